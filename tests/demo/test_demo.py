import functools
import json
import shutil
import sys
import textwrap

import pytest
import yaml
from rich.console import Console

import ofp_vla.policies  # noqa: F401  registers the policy types
from ofp_vla.checkpoints.assets import tiny_base
from ofp_vla.demo.pipeline import Demo, run_demo
from ofp_vla.demo.settings import RECIPE, DemoSettings
from ofp_vla.demo.stages import Stages
from ofp_vla.demo.texts import CURVE_NAMES, demo_notes
from ofp_vla.embedded import evaluate
from ofp_vla.errors import CheckpointError
from ofp_vla.training.recipes import recipe_path
from ofp_vla.training.run import (
    CURVES,
    LOG,
    TrainingError,
    TrainingRun,
    environment,
    parse_meters,
    read_curves,
)
from robotwin_eval.runs.loading import load_run
from robotwin_eval.runs.outcome import NothingPlayed

LINE = (
    "INFO 2026-01-01 10:00:00 ot_train.py:700 step:1K smpl:32K ep:64 epch:2.50 loss:0.123 grdn:1.5 "
    "lr:1.0e-04 updt_s:0.200 data_s:0.010 smp/s:150 flow:0.100 endpoint_gap:nan"
)


class Runs:
    """Counts how often each stage worked."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def stages(self):
        return Stages(self.folder, Console(quiet=True))

    def work(self, name, *, fail=False):
        def work(product):
            self.calls.append(name)
            (product / "made").write_text(name)
            if fail:
                raise KeyboardInterrupt
            return {"count": self.calls.count(name)}

        return work

    def run(self, first=1, second=1, *, fail=False):
        stages = self.stages()
        stages.run("first", "First", {"value": first}, self.work("first"))
        return stages.run("second", "Second", {"value": second}, self.work("second", fail=fail))


def test_finished_stages_are_skipped_and_their_results_remembered(tmp_path):
    runs = Runs(tmp_path)
    assert runs.run() == runs.run() == {"count": 1}
    assert runs.calls == ["first", "second"]


def test_a_stage_that_was_killed_runs_again_with_what_it_left(tmp_path):
    runs = Runs(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runs.run(fail=True)
    (tmp_path / "second" / "left").touch()
    assert runs.run() == {"count": 2}
    assert runs.calls == ["first", "second", "second"]
    assert (tmp_path / "second" / "left").exists()


def test_changed_settings_restart_their_stage_and_the_later_ones_from_nothing(tmp_path, capsys):
    runs = Runs(tmp_path)
    runs.run()
    (tmp_path / "second" / "left").touch()
    assert runs.run(second=2) == {"count": 2}
    assert runs.calls == ["first", "second", "second"]
    assert not (tmp_path / "second" / "left").exists()
    stages = Stages(tmp_path, Console())
    stages.run("first", "First", {"value": 9}, runs.work("first"))
    assert "first.value was 1, now 9; starting this stage again" in " ".join(capsys.readouterr().out.split())
    assert stages.run("second", "Second", {"value": 2}, runs.work("second")) == {"count": 3}


def test_a_folder_of_someone_else_is_not_overwritten(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not made by this run"):
        Runs(tmp_path).run()
    assert (tmp_path / "first" / "thesis.txt").read_text() == "mine"


def test_meters_are_read_from_lerobots_own_tracker():
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    tracker = MetricsTracker(32, 6400, 400, {"loss": AverageMeter("loss", ":.3f")}, initial_step=1999)
    tracker.step()
    tracker.loss = 0.125
    tracker.update_metrics({"flow": 0.5, "draw_std": 0.25})
    assert parse_meters(f"INFO x {tracker}") == {"loss": 0.125, "flow": 0.5, "draw_std": 0.25}
    values = parse_meters(LINE)
    assert (values["loss"], values["lr"], values["smp/s"]) == (0.123, 1e-4, 150)
    assert not {"step", "smpl", "ep", "epch", "endpoint_gap"} & values.keys()
    assert parse_meters("INFO Checkpoint policy after step 100") is None


# Behaves as lerobot-train does towards its caller: meters on stderr, a progress bar with carriage returns,
# checkpoints whose link `last` moves at the end. It stops short where STOP says so.
TRAINER = """
import json, os, pathlib, sys
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
if options.get("resume") == "true":
    saved = pathlib.Path(options["config_path"]).parents[1]
    options = json.loads((saved / "pretrained_model" / "train_config.json").read_text())
    start = json.loads((saved / "training_state" / "training_step.json").read_text())["step"]
else:
    start = 0
    os.makedirs(options["output_dir"])
root = pathlib.Path(options["output_dir"]) / "checkpoints"
stop = int(os.environ.get("STOP", 10**9))
left = int(options["steps"]) - start
for step in range(start + 1, start + left + 1):
    print(f"\\rTraining:  5%|# | {step - start}/{left} [00:01<00:02]", end="", file=sys.stderr)
    if step % int(options["log_freq"]) == 0:
        print(f"\\nINFO step:{step} smpl:1K ep:2 epch:0.1 loss:{step}.0 lr:1e-4", file=sys.stderr)
    if step % int(options["save_freq"]) == 0 or step == int(options["steps"]):
        folder = root / f"{step:06d}"
        (folder / "pretrained_model").mkdir(parents=True)
        (folder / "training_state").mkdir()
        (folder / "pretrained_model" / "train_config.json").write_text(json.dumps(options))
        (folder / "training_state" / "training_step.json").write_text(json.dumps({"step": step}))
        if step == int(os.environ.get("HALF", -1)):
            sys.exit(4)
        (folder / "training_state" / "scheduler_state.json").write_text("{}")
        (root / "last").unlink(missing_ok=True)
        (root / "last").symlink_to(folder.name)
    if step == stop:
        print("\\nRuntimeError: out of cheese", file=sys.stderr)
        sys.exit(3)
"""


class StandIn(TrainingRun):
    """A run whose trainer is the script above; everything else is as it is."""

    def command(self):
        script = self.folder.parent / "trainer.py"
        script.write_text(textwrap.dedent(TRAINER))
        return [sys.executable, str(script), *super().command()[3:]]


@pytest.fixture
def run(tmp_path):
    return StandIn(tmp_path / "training", {"policy.path": "base"}, steps=60, log_every=10, save_every=20)


def test_training_keeps_one_point_of_every_logged_step(run):
    checkpoint = run.train()
    assert checkpoint.resolve() == run.folder / "run" / "checkpoints" / "000060" / "pretrained_model"
    assert read_curves(run.folder / CURVES)["loss"] == [(step, step) for step in range(10, 61, 10)]
    log = (run.folder / LOG).read_text()
    assert "loss:60.0" in log
    assert "Training:" not in log


def test_a_killed_training_resumes_from_its_last_checkpoint_and_its_curve_has_no_step_twice(run, monkeypatch):
    monkeypatch.setenv("STOP", "55")
    with pytest.raises(TrainingError, match=r"status 3 after 40 saved steps of 60.*out of cheese"):
        run.train()
    assert [step for step, _ in read_curves(run.folder / CURVES)["loss"]] == [10, 20, 30, 40, 50]
    monkeypatch.delenv("STOP")
    assert "--resume=true" in run.command()
    run.train()
    assert [step for step, _ in read_curves(run.folder / CURVES)["loss"]] == [10, 20, 30, 40, 50, 60]
    monkeypatch.setenv("STOP", "1")
    run.train()  # trained already: the trainer is not started


def test_a_training_killed_while_the_link_to_its_last_checkpoint_moved_goes_on_from_it(run, monkeypatch):
    monkeypatch.setenv("STOP", "45")
    with pytest.raises(TrainingError):
        run.train()
    checkpoints = run.folder / "run" / "checkpoints"
    (checkpoints / "last").unlink()
    assert run.trained() == 40
    # One that is not whole does not count.
    monkeypatch.delenv("STOP")
    monkeypatch.setenv("HALF", "60")
    with pytest.raises(TrainingError, match="status 4 after 40 saved steps"):
        run.train()
    assert (checkpoints / "000060").is_dir()
    assert run.checkpoint == checkpoints / "000040" / "pretrained_model"
    shutil.rmtree(checkpoints / "000060")
    monkeypatch.delenv("HALF")
    run.train()
    assert run.checkpoint == checkpoints / "last" / "pretrained_model"
    assert [step for step, _ in read_curves(run.folder / CURVES)["loss"]] == [10, 20, 30, 40, 50, 60]


def test_a_training_killed_before_its_first_checkpoint_starts_anew(run, monkeypatch):
    monkeypatch.setenv("STOP", "15")
    with pytest.raises(TrainingError, match="after 0 saved steps"):
        run.train()
    monkeypatch.delenv("STOP")
    run.train()
    assert read_curves(run.folder / CURVES)["loss"][0] == (10, 10)
    assert len(read_curves(run.folder / CURVES)["loss"]) == 6


def test_the_trainer_runs_offline_on_one_thread_unless_told_otherwise():
    default = environment({})
    assert (default["HF_HUB_OFFLINE"], default["OMP_NUM_THREADS"]) == ("1", "1")
    own = environment({"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "4"})
    assert (own["HF_HUB_OFFLINE"], own["OMP_NUM_THREADS"]) == ("0", "4")


def test_the_trainer_is_told_the_dataset_the_base_and_the_seed(tmp_path):
    recipe = tmp_path / "own.yaml"
    recipe.write_text("steps: 1\n")
    settings = DemoSettings(base="/base", recipe=str(recipe), steps=400, seed=3)
    demo = Demo(tmp_path / "out", settings, Console(quiet=True))
    command = demo.training(tmp_path / "out" / "training").command()
    for word in (
        f"--config_path={recipe}",
        "--policy.pretrained_path=/base",
        f"--dataset.root={tmp_path}/out/demonstrations/dataset",
        "--steps=400",
        "--seed=3",
        "--save_freq=100",
    ):
        assert word in command


def test_lerobot_starts_the_training_from_the_base_by_the_recipe(tmp_path, parse):
    demo = Demo(tmp_path, DemoSettings(base=str(tiny_base()), steps=30), Console(quiet=True))
    options = [word for word in demo.training(tmp_path / "training").command() if word.startswith("--")]
    config = parse(*options)
    assert config.policy.pretrained_path == tiny_base()
    written = yaml.safe_load(recipe_path(RECIPE).read_text(encoding="utf-8"))
    assert (config.steps, config.policy.optimizer_lr) == (30, written["policy"]["optimizer_lr"])


def test_five_policies_are_compared_the_two_baselines_first(tmp_path):
    variants = Demo(tmp_path, DemoSettings(base="/base"), Console(quiet=True)).variants("/ofp")
    assert [(a.checkpoint, a.sampler, a.steps, a.warm, a.draws) for a in variants] == [
        ("/base", "host", 10, False, None),
        ("/base", "host", 1, False, None),
        ("/ofp", "interval", 1, False, None),
        ("/ofp", "interval", 1, True, None),
        ("/ofp", "interval", 1, False, 8),
    ]


def test_three_of_them_run_once_more_replanning_within_a_chunk(tmp_path):
    demo = Demo(tmp_path, DemoSettings(base="/base"), Console(quiet=True))
    whole, replanning = demo.variants("/ofp"), demo.replanning("/ofp")
    assert [(a.checkpoint, a.sampler, a.steps, a.draws, a.execute) for a in replanning] == [
        ("/base", "host", 10, None, 8),
        ("/ofp", "interval", 1, None, 8),
        ("/ofp", "interval", 1, 8, 8),
    ]
    assert len({variant.folder for variant in whole + replanning}) == 8


def test_curves_on_the_page_are_terms_that_the_objective_logs():
    from ofp_vla.core.objectives import OFP

    assert set(OFP().config.shares) <= CURVE_NAMES.keys()


def test_a_missing_base_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere has no config.json"):
        run_demo(tmp_path / "out", base=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="seed"):
        run_demo(tmp_path / "out", seed=-1)
    assert not (tmp_path / "out").exists()


def test_notes_state_the_width_of_the_intervals():
    assert "±14 points" in " ".join(demo_notes(DemoSettings(episodes=50)))


@pytest.fixture
def one_worker(monkeypatch):
    """Eight evaluations of a few episodes: further simulators would take longer to start than to play."""
    few = functools.partial(evaluate.evaluate_variants, workers=1)
    monkeypatch.setattr(evaluate, "evaluate_variants", few)


@pytest.mark.slow
@pytest.mark.usefixtures("one_worker")
def test_a_demo_whose_policy_played_no_episode_writes_its_report_and_fails(tmp_path, monkeypatch):
    from tests.support.acting import write_checkpoint

    base = write_checkpoint(tmp_path / "base")
    broken = write_checkpoint(tmp_path / "broken", broken=True)

    def diverged(self, title="training"):
        (self.folder / CURVES).write_text(json.dumps({"step": 10, "loss": 0.5}) + "\n")
        return broken

    monkeypatch.setattr(TrainingRun, "train", diverged)
    recipe = tmp_path / "own.yaml"
    recipe.write_text("steps: 1\n")
    with pytest.raises(NothingPlayed, match="OFP, 1 step: all 2 episodes ended as errors of the policy"):
        run_demo(tmp_path / "out", base=base, recipe=str(recipe), demonstrations=1, steps=10, episodes=1)
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {row["policy"] for row in numbers["latencies"]} == {"Base, 10 steps", "Base, 1 step"}
    assert sum("every episode ended as an error" in notice for notice in numbers["notices"]) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("one_worker")
def test_demonstrations_evaluation_and_report_fit_together(tmp_path, monkeypatch):
    """Everything but the training itself, which a copy of the base stands for."""
    from tests.support.acting import write_checkpoint

    base = write_checkpoint(tmp_path / "base")

    def copied(self, title="training"):
        (self.folder / CURVES).write_text(json.dumps({"step": 10, "loss": 0.5, "flow": 0.25}) + "\n")
        return base

    monkeypatch.setattr(TrainingRun, "train", copied)
    recipe = tmp_path / "own.yaml"
    recipe.write_text("steps: 1\n")
    arguments = {"base": base, "recipe": str(recipe), "demonstrations": 2, "steps": 10}
    page = run_demo(tmp_path / "out", episodes=2, **arguments)
    numbers = json.loads(page.with_suffix(".json").read_text())
    ways = ["OFP, 1 step", "OFP, 1 step, warm", "OFP, 1 step, 8 draws"]
    assert list(numbers["labels"]) == ["Base, 10 steps", "Base, 1 step", *ways]
    assert {rate["episodes"] for rate in numbers["rates"] if rate["task"]} == {2}
    assert {pair["reference"] for pair in numbers["pairs"]} == {"Base, 10 steps", "Base, 1 step"}
    assert [curve["name"] for curve in numbers["curves"]] == ["Total loss", "Flow matching"]
    assert len(numbers["films"]) == 10
    assert numbers["provenance"]["Versions"]["lerobot"]
    assert {row["policy"] for row in numbers["latencies"]} == set(numbers["labels"])
    evaluation = tmp_path / "out" / "evaluation"
    before = {run: load_run(run).results for run in evaluation.iterdir() if run.is_dir()}
    assert len(before) == 8
    both = [(row["policy"], row["execute"]) for row in numbers["replanning"] if not row["task"]]
    assert both == [(name, 8) for name in ("Base, 10 steps", "OFP, 1 step", "OFP, 1 step, 8 draws")]
    page.unlink()
    assert run_demo(tmp_path / "out", episodes=2, **arguments).exists()
    assert {run: load_run(run).results for run in before} == before
