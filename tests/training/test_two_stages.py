"""`ofp-vla train --teacher-steps`: the flow is fine-tuned first and distilled then, also after a kill."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from ofp_vla.cli import main as cli
from ofp_vla.hosts.roles import STUDENT, TEACHER
from ofp_vla.hub.card import CardFacts
from ofp_vla.policies import load_policy
from ofp_vla.training.recipes import RecipeError
from ofp_vla.training.run import TrainingRun, read_curves
from ofp_vla.training.two_stages import TwoStages
from tests.support.tiny import HORIZON, SIDE, STATE, WIDTH, WORDS

HOST = pytest.mark.parametrize("host", ["pi05"])


@pytest.fixture
def recipe(base, images, words, tmp_path):
    policy = {"type": "pi05_ofp", "pretrained_path": str(base), "push_to_hub": False, "device": "cpu"}
    policy |= {"arch": "tiny", "tokenizer_name": str(words), "tokenizer_max_length": WORDS}
    policy |= {"image_resolution": [SIDE, SIDE], "max_state_dim": STATE, "max_action_dim": WIDTH}
    policy |= {"chunk_size": HORIZON, "n_action_steps": HORIZON, "optimizer_lr": 1e-2}
    policy |= {"normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}}
    policy["ofp"] = {
        "endpoint_from": "teacher",
        "endpoint_steps": 2,
        "queries": 1,
        "guidance_ramp": [0.1, 0.4],
    }
    run = {"batch_size": 2, "num_workers": 0, "steps": 2, "save_freq": 1, "log_freq": 1, "env_eval_freq": 0}
    run |= {"dataset": {"repo_id": "test/images", "root": str(images)}, "policy": policy, "seed": 0}
    run |= {"peft": {"method_type": "LORA", "r": 4}, "output_dir": str(tmp_path / "run"), "job_name": "mine"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def tensors(folder: Path, role: str = "") -> dict[str, torch.Tensor]:
    return load_file(folder / role / "adapter_model.safetensors")


def options(run: TrainingRun) -> list[str]:
    return [word for word in run.command() if word.startswith("--") and "discover" not in word]


@HOST
@pytest.mark.slow
def test_killed_first_stage_goes_on_and_the_second_distils_from_its_result(recipe, host, tmp_path, train):
    def stages_of_the_command() -> TwoStages:
        return TwoStages(str(recipe), [f"output_dir={tmp_path / 'run'}"], 2)

    stages = stages_of_the_command()
    with pytest.raises(FileNotFoundError, match="train without --resume first"):
        stages.train(resume=True)
    # As the command leaves it when it is killed after one step.
    stages.begin(resume=False)
    train(options(stages.teacher))
    saved = tmp_path / "run_teacher" / "run" / "checkpoints"
    shutil.rmtree(saved / "000002")
    (saved / "last").unlink()
    (saved / "last").symlink_to("000001")
    assert stages.teacher.trained() == 1
    with pytest.raises(FileExistsError, match="--resume goes on"):
        stages.train(resume=False)
    with pytest.raises(RecipeError, match="teacher_steps 2; repeat its command"):
        dataclasses.replace(stages, teacher_steps=3).train(resume=True)

    # In this process, since another one would import everything again.
    train(options(stages.teacher))
    final = stages.train(resume=True)
    assert final.resolve().parents[2] == tmp_path / "run"
    first = stages.teacher.checkpoint
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (final, first))
    assert (before["objective"], before["trained_steps"]) == ("flow_matching", 2)
    assert (config["objective"], config["trained_steps"], config["sampler"]) == ("ofp", 2, "interval")
    assert config["ofp"]["guidance_ramp"] == [0.1, 0.4]
    # The first stage's adapter stays as the teacher, and the second one's student began there.
    taught, learned = tensors(first), tensors(final)
    assert all(torch.equal(tensor, taught[name]) for name, tensor in tensors(final, TEACHER).items())
    lora = [name for name in taught if "lora_B" in name]
    assert max(float(taught[name].abs().max()) for name in lora) > 0
    assert 0 < max(float((learned[name] - taught[name]).abs().max()) for name in lora) < 0.1
    policy = load_policy(final).policy
    assert policy.acting_role(policy.config.sampling) == STUDENT
    assert ("before", "2 steps of flow matching on the same data") in CardFacts(
        "me/x", config
    ).training_rows()
    assert [
        step for step, _ in read_curves(tmp_path / "run_teacher" / "second" / "curves.jsonl")["loss"]
    ] == [1, 2]
    assert stages_of_the_command().train(resume=True) == final


@HOST
def test_second_stage_on_whole_tensors_starts_from_the_first_one_s(recipe, host, tmp_path, parse):
    settings = yaml.safe_load(recipe.read_text())
    del settings["peft"]
    recipe.write_text(yaml.safe_dump(settings))
    stages = TwoStages(str(recipe), ["steps=7", "policy.ofp.queries=2"], 5)
    # The first one's result is not there yet, and LeRobot's parser would look at it.
    start = f"--policy.pretrained_path={stages.teacher.checkpoint}"
    said = options(stages.student)
    assert start in said
    config = parse(*(word for word in said if word != start))
    assert (config.steps, config.policy.objective, config.policy.ofp.queries) == (7, "ofp", 2)
    assert config.policy.teacher_steps == 5


@pytest.mark.parametrize("name", ["pi05_ofp_lora", "pi05_ofp_expert"])
def test_recipe_for_a_base_without_the_task_distils_from_the_teacher_that_learned_it(name, tmp_path):
    own = ["dataset.repo_id=me/data", f"output_dir={tmp_path / 'run'}", "policy.ofp.queries=3"]
    said = TwoStages(name, own, 5).student.command()
    assert {"--policy.ofp.endpoint_from=teacher", "--policy.ofp.first_leg=teacher"} <= set(said)
    assert [word for word in said if ".queries=" in word] == ["--policy.ofp.queries=3"]
    assert "--policy.ofp.endpoint_from=teacher" not in TwoStages(name, own, 5).teacher.command()


@HOST
def test_dry_run_prints_both_commands_and_flow_matching_needs_no_second_stage(recipe, host, tmp_path):
    done = CliRunner().invoke(cli.app, ["train", str(recipe), "--teacher-steps", "3", "--dry-run"])
    assert done.exit_code == 0, done.output
    first, second = done.output.strip().splitlines()
    assert "--policy.objective=flow_matching" in first
    assert "--steps=3" in first
    assert f"--output_dir={tmp_path / 'run'} " in second
    assert not (tmp_path / "run_teacher").exists()
    with pytest.raises(RecipeError, match="raise steps instead"):
        TwoStages(str(recipe), ["policy.objective=flow_matching"], 3).train(resume=False)


@HOST
def test_a_record_that_cannot_be_read_is_named(recipe, host, tmp_path):
    stages = TwoStages(str(recipe), [f"output_dir={tmp_path / 'run'}"], 2)
    stages.begin(resume=False)
    (stages.folder / "stages.json").write_text('{"recipe": ')
    with pytest.raises(RecipeError, match=r"stages\.json cannot be read"):
        stages.begin(resume=True)
