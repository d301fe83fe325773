import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ofp_vla.cli import main as cli
from ofp_vla.embedded.evaluate import (
    SEEDS,
    Checkpoints,
    Variant,
    evaluate_checkpoint,
    evaluate_variants,
    variant_latencies,
)
from ofp_vla.policies.fingerprint import fingerprint
from robotwin_eval.cli import main as robotwin_cli
from robotwin_eval.runs.loading import load_run
from robotwin_eval.runs.manifest import ManifestError
from robotwin_eval.runs.store import RunError, RunStore
from robotwin_eval.runs.videos import read_films
from robotwin_eval.sim.aloha.robot import ACTION_HIGH, ACTION_LOW
from robotwin_eval.sim.aloha.suite import AlohaSuite
from tests.support.acting import write_checkpoint

pytestmark = pytest.mark.slow
TASK = "press_button"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("evaluate") / "checkpoint"))


@pytest.fixture(scope="module")
def checkpoints():
    return Checkpoints()


def variants(checkpoint):
    return [
        Variant("base@2", "Base", checkpoint, 2, "host", warm=False),
        Variant("ofp@1-warm", "OFP", checkpoint, 1, "interval", warm=True),
    ]


def outcomes(run):
    rows = sorted(run.results, key=lambda r: (r.task, r.seed))
    return [(r.policy, r.task, r.seed, r.success, r.steps, r.mode, r.error) for r in rows]


def test_all_arms_meet_the_same_solvable_seen_episodes_from_100000_on(checkpoint, checkpoints, tmp_path):
    runs = evaluate_variants(
        variants(checkpoint), [TASK], 3, tmp_path, execute=8, workers=2, films=1, checkpoints=checkpoints
    )
    seeds = [sorted(r.seed for r in run.results) for run in runs]
    assert seeds[0] == seeds[1]
    assert min(seeds[0]) >= 100_000
    suite = AlohaSuite()
    assert all(suite.expert(TASK, seed).solved for seed in seeds[0])
    results = [result for run in runs for result in run.results]
    assert all(r.instruction == suite.instruction(TASK, r.seed, "seen") for r in results)
    suite.close()
    assert all(r.chunks == 2 and r.error == "" and r.steps == 16 for r in results)
    assert [run.info.policy for run in runs] == ["base@2", "ofp@1-warm"]
    for run in runs:
        assert run.info.server["batch_invariant"] is True
        (film,) = read_films(run.folder / "videos", run.info.label)
        assert (film.policy, film.seed, len(film.frames)) == (run.info.label, seeds[0][0], 17)


def test_a_killed_evaluation_goes_on_and_ends_as_an_uninterrupted_one(checkpoint, checkpoints, tmp_path):
    whole = evaluate_variants(variants(checkpoint), [TASK], 3, tmp_path / "a", checkpoints=checkpoints)
    # As after a kill: the first variant is done, the second has one of its episodes.
    output = tmp_path / "b"
    output.mkdir()
    (output / SEEDS).write_bytes((tmp_path / "a" / SEEDS).read_bytes())
    for run, kept in zip(whole, (3, 1), strict=True):
        with RunStore.create(output / run.folder.name, run.info) as store:
            for result in run.results[:kept]:
                store.append(result)
    again = evaluate_variants(variants(checkpoint), [TASK], 3, output, checkpoints=checkpoints)
    assert [outcomes(run) for run in again] == [outcomes(run) for run in whole]
    assert again[0].results == whole[0].results
    assert again[1].results[0] == whole[1].results[0]


def test_results_of_other_sampling_under_the_same_name_are_refused(checkpoint, checkpoints, tmp_path):
    evaluate_variants([Variant("p", "P", checkpoint, 1)], [TASK], 1, tmp_path, checkpoints=checkpoints)
    with pytest.raises(RunError, match=r"interval1-warm[\s\S]*interval2-warm"):
        evaluate_variants([Variant("p", "P", checkpoint, 2)], [TASK], 1, tmp_path, checkpoints=checkpoints)
    with pytest.raises(ManifestError, match="'split'"):
        evaluate_variants(
            [Variant("q", "Q", checkpoint, 1)], [TASK], 1, tmp_path, split="unseen", checkpoints=checkpoints
        )
    with pytest.raises(ManifestError, match="has 1 episodes, this run wants 2"):
        evaluate_variants([Variant("q", "Q", checkpoint, 1)], [TASK], 2, tmp_path, checkpoints=checkpoints)
    with pytest.raises(ValueError, match="same name"):
        evaluate_variants([Variant("p", "P", checkpoint)] * 2, [TASK], 1, tmp_path, checkpoints=checkpoints)


def test_what_the_preflight_has_clipped_leaves_the_episodes_their_own_message(checkpoint, tmp_path, caplog):
    loading = Checkpoints()
    loading.get(checkpoint).policy.guard.limits = (torch.zeros(14), torch.zeros(14))
    variant = Variant("one", "One", checkpoint)
    evaluate_variants([variant], [TASK], 1, tmp_path, workers=1, preflight=True, checkpoints=loading)
    assert caplog.text.count("were clipped (dimensions") == 2  # the preflight's, and the worker's


def test_variants_keep_within_the_limits_of_the_suites_robot(checkpoint, checkpoints):
    policy = Variant("one", "One", checkpoint).policy(checkpoints.get(checkpoint))
    beyond = np.stack([ACTION_LOW - 1, ACTION_HIGH + 1])
    np.testing.assert_array_equal(policy._clip(beyond), [ACTION_LOW, ACTION_HIGH])
    assert policy.clipped == 2 * len(ACTION_LOW)


def test_a_policy_that_computes_nan_fails_its_episodes_and_the_evaluation_goes_on(checkpoint, tmp_path):
    broken = str(write_checkpoint(tmp_path / "broken", broken=True))
    pair = [Variant("broken", "Broken", broken, 1), Variant("sound", "Sound", checkpoint, 1)]
    bad, good = evaluate_variants(pair, [TASK], 2, tmp_path / "out")
    assert [(r.success, r.error_source, r.counted) for r in bad.results] == [(False, "policy", True)] * 2
    assert all("NaN" in r.error for r in bad.results)
    assert [r.error for r in good.results] == ["", ""]


def test_the_fingerprint_tells_weights_and_sampling_apart(checkpoint, checkpoints, tmp_path):
    loaded = checkpoints.get(checkpoint)
    other = checkpoints.get(str(write_checkpoint(tmp_path / "other", seed=1)))
    marks = [
        fingerprint(x, variant.policy(x).sampling)
        for x in (loaded, other)
        for variant in variants(checkpoint)
    ]
    assert len(set(marks)) == 4
    assert marks[0] == fingerprint(loaded, variants(checkpoint)[0].policy(loaded).sampling)
    assert marks[0].endswith("-host2-cold")


def test_latency_is_measured_for_one_robot_and_grows_with_the_steps(checkpoint, checkpoints):
    pair = [Variant("one", "", checkpoint, 1), Variant("twenty", "", checkpoint, 20)]
    seconds = variant_latencies(pair, TASK, checkpoints, repeats=5)
    assert [len(values) for values in seconds.values()] == [5, 5]
    assert np.median(seconds["twenty"]) > np.median(seconds["one"]) > 0


def test_the_command_writes_a_report_to_which_a_second_sampling_is_added(checkpoint, tmp_path, capsys):
    evaluate_checkpoint(checkpoint, tasks=[TASK], episodes=2, output=tmp_path)
    other = {"steps": 2, "warm": False, "delay": 1, "engine": "off"}
    data = evaluate_checkpoint(checkpoint, tasks=[TASK], episodes=2, output=tmp_path, **other)
    names = ["checkpoint: interval@1 warm", "checkpoint: interval@2 cold, late by 1, engine off"]
    assert list(data.labels) == names
    runs = {run.info.policy: run.info for run in map(load_run, filter(Path.is_dir, tmp_path.iterdir()))}
    assert runs.keys() == set(names)
    assert [(runs[name].delay, runs[name].server["engine"]) for name in names] == [(None, "on"), (1, "off")]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert json.loads((tmp_path / "report.json").read_text())["labels"] == dict(
        zip(names, names, strict=True)
    )
    printed = capsys.readouterr().out
    assert "interval" in printed
    assert "report.html" in printed


def test_the_command_refuses_a_policy_that_cannot_answer_and_says_when_none_was_played(tmp_path, monkeypatch):
    broken = str(write_checkpoint(tmp_path / "broken", broken=True))
    words = ["eval", broken, "--tasks", TASK, "--episodes", "1", "--output"]
    refused = CliRunner().invoke(cli.app, [*words, str(tmp_path / "refused")])
    assert refused.exit_code == 2
    assert "before the first episode" in refused.stderr
    monkeypatch.setattr("robotwin_eval.runner.runner.check_chunk", lambda *_: None)
    failed = CliRunner().invoke(cli.app, [*words, str(tmp_path / "failed")])
    assert failed.exit_code == 2
    assert "all 1 episodes ended as errors of the policy" in failed.stderr
    assert (tmp_path / "failed" / "report.html").exists()


def test_both_evaluations_act_as_the_checkpoint_says(tmp_path):
    """In every way that differs from the usual one; others: tests/serving/test_serve_command.py."""
    way = ("host", 3, False)
    fields = dict(zip(("sampler", "num_inference_steps", "warm_start"), way, strict=True))
    folder = write_checkpoint(tmp_path / "own", **fields)
    words = ["--tasks", TASK, "--episodes", "1", "--output"]
    ours = CliRunner().invoke(cli.app, ["eval", str(folder), *words, str(tmp_path / "eval")])
    assert ours.exit_code == 0, ours.output
    command = ["run", "--suite", "aloha", "--policy", str(folder), *words, str(tmp_path / "run")]
    theirs = CliRunner().invoke(robotwin_cli.app, command)
    assert theirs.exit_code == 0, theirs.output
    start = "host@3 cold"
    (own,) = (run for run in (tmp_path / "eval").iterdir() if run.is_dir())
    for run, said in ((load_run(own), ours), (load_run(tmp_path / "run"), theirs)):
        policy = run.info.server["policy"]
        assert (policy["sampler"], policy["steps"], policy["warm"]) == way
        assert run.info.policy == f"own: {start}"
        assert f"acts by {start}" in " ".join(said.output.split())
        assert run.info.split == "seen"
    assert load_run(own).manifest.hash == load_run(tmp_path / "run").manifest.hash
