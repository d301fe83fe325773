import json

import numpy as np
import pytest

from ofp_vla.evaluate import Arm, Checkpoints, arm_latencies, evaluate_arms, evaluate_checkpoint, fingerprint
from ofp_vla.films import load_films
from ofp_vla.seed_manifest import plan_episodes
from robotwin_eval.results import ResultsError, read_results
from robotwin_eval.sim.aloha import AlohaSuite

from .acting import write_checkpoint

pytestmark = pytest.mark.slow
TASK = "press_button"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("evaluate") / "checkpoint"))


@pytest.fixture(scope="module")
def checkpoints():
    return Checkpoints()


def arms(checkpoint):
    return [
        Arm("base@2", "Base", checkpoint, 2, "host"),
        Arm("ofp@1-warm", "OFP", checkpoint, 1, "interval", warm=True),
    ]


def outcome(result):
    return (result.policy, result.task, result.seed, result.success, result.steps, result.mode, result.error)


def test_all_arms_meet_the_same_solvable_seen_episodes_from_100000_on(checkpoint, checkpoints, tmp_path):
    results = evaluate_arms(
        arms(checkpoint), [TASK], 3, tmp_path, execute=8, slots=2, films=1, checkpoints=checkpoints
    )
    by_arm = {arm.name: [r for r in results if r.policy == arm.name] for arm in arms(checkpoint)}
    seeds = [[r.seed for r in rows] for rows in by_arm.values()]
    assert seeds[0] == seeds[1] == sorted(seeds[0])
    assert min(seeds[0]) >= 100_000
    suite = AlohaSuite()
    assert all(suite.expert(TASK, seed).solved for seed in seeds[0])
    assert all(r.instruction == suite.instruction(TASK, r.seed, "seen") for r in results)
    suite.close()
    assert all(r.chunks == 2 and r.error == "" and r.steps == 16 for r in results)
    films = load_films(tmp_path / "films")
    assert [(f.policy, f.seed) for f in films] == [("base@2", seeds[0][0]), ("ofp@1-warm", seeds[0][0])]
    assert all(len(f.frames) == 17 for f in films)


def test_a_killed_evaluation_goes_on_and_ends_as_an_uninterrupted_one(checkpoint, checkpoints, tmp_path):
    whole = evaluate_arms(arms(checkpoint), [TASK], 3, tmp_path / "a", films=1, checkpoints=checkpoints)
    log = tmp_path / "a" / "results.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    # As after a kill: one arm done, the other cut inside its second line, no film of either.
    log.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    for film in (tmp_path / "a" / "films").iterdir():
        film.unlink()
    with pytest.warns(UserWarning, match="half-written"):
        again = evaluate_arms(arms(checkpoint), [TASK], 3, tmp_path / "a", films=1, checkpoints=checkpoints)
    assert [outcome(r) for r in again] == [outcome(r) for r in whole]
    assert log.read_bytes().splitlines(keepends=True)[:4] == lines[:4]
    assert len(load_films(tmp_path / "a" / "films")) == 2


def test_results_of_other_sampling_under_the_same_name_are_refused(checkpoint, checkpoints, tmp_path):
    evaluate_arms([Arm("p", "P", checkpoint, 1)], [TASK], 1, tmp_path, checkpoints=checkpoints)
    with pytest.raises(ResultsError, match=r"interval1-cold.*interval2-cold"):
        evaluate_arms([Arm("p", "P", checkpoint, 2)], [TASK], 1, tmp_path, checkpoints=checkpoints)
    with pytest.raises(ValueError, match="split is 'seen', this evaluation has 'unseen'"):
        evaluate_arms(
            [Arm("p", "P", checkpoint, 1)], [TASK], 1, tmp_path, split="unseen", checkpoints=checkpoints
        )
    with pytest.raises(ValueError, match="same name"):
        evaluate_arms([Arm("p", "P", checkpoint)] * 2, [TASK], 1, tmp_path, checkpoints=checkpoints)


def test_a_policy_that_computes_nan_fails_its_episodes_and_the_evaluation_goes_on(checkpoint, tmp_path):
    broken = str(write_checkpoint(tmp_path / "broken", broken=True))
    pair = [Arm("broken", "Broken", broken, 1), Arm("sound", "Sound", checkpoint, 1)]
    results = evaluate_arms(pair, [TASK], 2, tmp_path / "out")
    assert [(r.success, r.error_source, r.counted) for r in results[:2]] == [(False, "policy", True)] * 2
    assert all("NonFiniteActionError" in r.error for r in results[:2])
    assert all(r.error == "" for r in results[2:])


def test_a_longer_plan_contains_the_shorter_one(tmp_path):
    path = tmp_path / "seeds.json"
    short = plan_episodes(path, [TASK], 2, AlohaSuite)[TASK]
    long = plan_episodes(path, [TASK, "lift_bar"], 4, AlohaSuite)
    assert long[TASK][:2] == short
    assert [len(episodes) for episodes in long.values()] == [4, 4]
    assert plan_episodes(path, [TASK], 2, AlohaSuite)[TASK] == short
    with pytest.raises(ValueError, match="start is 100000, this evaluation has 200000"):
        plan_episodes(path, [TASK], 2, AlohaSuite, block=1)
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a manifest"):
        plan_episodes(path, [TASK], 2, AlohaSuite)


def test_the_fingerprint_tells_weights_and_sampling_apart(checkpoint, checkpoints, tmp_path):
    loaded = checkpoints.get(checkpoint)
    other = checkpoints.get(str(write_checkpoint(tmp_path / "other", seed=1)))
    marks = [fingerprint(x, arm.policy(x)) for x in (loaded, other) for arm in arms(checkpoint)]
    assert len(set(marks)) == 4
    assert marks[0] == fingerprint(loaded, arms(checkpoint)[0].policy(loaded))
    assert marks[0].endswith("-host2-cold")


def test_latency_is_measured_for_one_robot_and_grows_with_the_steps(checkpoint, checkpoints):
    pair = [Arm("one", "", checkpoint, 1), Arm("twenty", "", checkpoint, 20)]
    seconds = arm_latencies(pair, TASK, checkpoints, repeats=5)
    assert [len(values) for values in seconds.values()] == [5, 5]
    assert np.median(seconds["twenty"]) > np.median(seconds["one"]) > 0


def test_the_command_writes_a_report_to_which_a_second_sampling_is_added(checkpoint, tmp_path, capsys):
    evaluate_checkpoint(checkpoint, tasks=[TASK], episodes=2, output=tmp_path)
    data = evaluate_checkpoint(checkpoint, tasks=[TASK], episodes=2, steps=2, warm=True, output=tmp_path)
    names = ["checkpoint: interval@1 cold", "checkpoint: interval@2 warm"]
    assert list(data.labels) == names
    assert {r.policy for r in read_results(tmp_path / "results.jsonl")} == set(names)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert json.loads((tmp_path / "report.json").read_text())["labels"] == dict(
        zip(names, names, strict=True)
    )
    printed = capsys.readouterr().out
    assert "interval" in printed
    assert "report.html" in printed
