"""`ofp-vla compare-open-loop`: units, intervals, which episodes are held out, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE
from typer.testing import CliRunner

from ofp_vla.cli import main as cli
from ofp_vla.open_loop.measure import DISTANCE, ONE, REGIONS, SCORE, SPREAD, TEN, Measured
from ofp_vla.open_loop.summary import compare
from ofp_vla.policies import load_policy
from tests.support.tiny import (
    ACTION_NAMES,
    CAMERAS,
    HORIZON,
    WIDTH,
    random_stats,
    tiny_config,
    tiny_policy,
    train_head,
    write_dataset,
    write_tokenizer,
)

EPISODES, FRAMES, DRAWS = 5, 12, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "recorded", episodes=EPISODES, frames=FRAMES)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write(folder, words, dataset=None, stats=None, **changes):
    """A checkpoint that executes half of its chunk; as trained on a dataset if one is given."""
    names = {"observation.state": ACTION_NAMES, "action": ACTION_NAMES}
    settings = {"tokenizer_name": str(words), "n_action_steps": HORIZON // 2, "dimension_names": names}
    policy = tiny_policy(**settings | changes)
    train_head(policy)
    for part in (policy, *make_pre_post_processors(policy.config, dataset_stats=stats or random_stats())):
        part.save_pretrained(folder)
    if dataset is not None:
        run = {"dataset": {"repo_id": "test/recorded", "root": str(dataset[0]), **dataset[1]}}
        (folder / "train_config.json").write_text(json.dumps(run))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, words, dataset):
    """Trained with the last episode of each of the two tasks held out."""
    return write(tmp_path_factory.mktemp("own") / "one", words, (dataset, {"eval_split": 0.1}))


def run(*arguments):
    return CliRunner().invoke(cli.app, ["compare-open-loop", *map(str, arguments), "--draws", str(DRAWS)])


def said(done):
    """The error of a command, on one line."""
    assert done.exit_code != 0, done.output
    return " ".join((done.output + str(done.exception)).split())


def test_held_out_episodes_are_measured_in_the_units_in_which_the_policy_acts(checkpoint, dataset, tmp_path):
    page = tmp_path / "out" / "page.html"
    done = run(checkpoint, dataset, "--output", page, "--frames", 2, "--batch-size", 3)
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(page.with_suffix(".json").read_text())
    assert (found["episodes"], found["views"], found["joints"]) == ([3, 4], 4, ACTION_NAMES)
    assert found["trained_on"] == {}
    assert str(tmp_path) not in page.read_text()
    assert "<script src" not in page.read_text()

    # The same by what a robot calls: one chunk from the same noise, post-processed, against the recording.
    loaded = load_policy(checkpoint)
    loaded.policy._guard = lambda actions: actions
    times = {"action": [step / 10 for step in range(HORIZON)]}
    frames = LeRobotDataset("test/recorded", root=dataset, delta_timestamps=times)
    expected = {ONE: [], TEN: []}
    for index in (36, 47, 48, 59):
        frame = frames[index]
        batch = loaded.preprocess({k: frame[k] for k in (*CAMERAS, "observation.state", "task")})
        valid = ~frame["action_is_pad"]
        noise = torch.randn((DRAWS, HORIZON, WIDTH), generator=torch.Generator().manual_seed(index))
        for name, (sampler, steps) in {ONE: ("interval", 1), TEN: ("host", 10)}.items():
            chunks = [
                loaded.postprocess(
                    loaded.policy.generate(batch, noise=one[None], sampler=sampler, num_steps=steps)[..., :4]
                )[0]
                for one in noise
            ]
            errors = [(chunk - frame["action"])[valid].square().mean(0).sqrt() for chunk in chunks]
            expected[name].append(torch.stack(errors).mean(0))
    for row in found["rows"]:
        if row["way"] in expected:
            own = row["measures"][DISTANCE]["whole chunk"]["joints"]
            mean = torch.stack(expected[row["way"]]).mean(0)
            # Guarded here and not there: the limits are wide of what random weights do.
            torch.testing.assert_close(torch.tensor(list(own.values())), mean, rtol=1e-3, atol=1e-3)
            assert {*row["measures"][SCORE]} == {*REGIONS}


def test_the_same_weights_differ_by_nothing_and_other_batches_change_nothing(checkpoint, dataset, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "two")
    done = run(checkpoint, copy, dataset, "--output", tmp_path / "a.html", "--frames", 2)
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads((tmp_path / "a.json").read_text())
    assert [row["checkpoint"] for row in found["rows"]] == ["one"] * 3 + ["two"] * 3
    assert found["reference"] == f"one, {TEN}"
    (same,) = [row for row in found["rows"] if (row["checkpoint"], row["way"]) == ("two", TEN)]
    assert all(value == 0 for interval in same["difference"].values() for value in interval.values())
    again = run(checkpoint, dataset, "--output", tmp_path / "b.html", "--frames", 2, "--batch-size", 1)
    assert again.exit_code == 0, (again.output, again.exception)
    other = json.loads((tmp_path / "b.json").read_text())["rows"]
    for row, alone in zip(found["rows"], other, strict=False):
        for measure, regions in row["measures"].items():
            for region, values in regions.items():
                single = alone["measures"][measure][region]["overall"]["estimate"]
                assert values["overall"]["estimate"] == pytest.approx(single, rel=1e-3)


def test_ten_steps_are_left_out_where_the_teacher_whose_flow_is_meant_is_not_in_the_checkpoint(
    words, dataset, tmp_path
):
    changes = {"objective": "imle", "trained_steps": 1}
    alone = write(tmp_path / "alone", words, (dataset, {"eval_split": 0.1}), **changes)
    done = run(alone, dataset, "--output", tmp_path / "page.html", "--frames", 1)
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads((tmp_path / "page.json").read_text())
    assert "is not in this checkpoint" in found["skipped"]["alone"][TEN]
    assert TEN not in {row["way"] for row in found["rows"]}


def test_actions_of_one_dimension_have_one_joint(words, tmp_path):
    # LeRobot batches them as (batch, horizon).
    one = write_dataset(tmp_path / "narrow", joints=1)
    names = dict.fromkeys((ACTION, OBS_STATE), ACTION_NAMES[:1])
    features = tiny_config().input_features | {OBS_STATE: PolicyFeature(FeatureType.STATE, (1,))}
    sizes = {"input_features": features, "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (1,))}}
    stats = {key: {name: v[:1] for name, v in values.items()} for key, values in random_stats().items()}
    single = write(tmp_path / "single", words, dimension_names=names, stats=stats, **sizes)
    done = run(single, one, "--episodes", "0", "--frames", 2, "--output", tmp_path / "page.html")
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads((tmp_path / "page.json").read_text())
    assert found["joints"] == ACTION_NAMES[:1]
    for row in found["rows"]:
        assert row["measures"][DISTANCE]["first action"]["joints"].keys() == set(found["joints"])


def test_score_prefers_a_policy_that_draws_both_ways_to_one_that_draws_their_middle():
    """Recorded -1 or 1; draws of both ways, E|p-a| - E|p-p'|/2 = 1 - 1/2, against their middle, 1 - 0."""
    rows = {
        ("both", DISTANCE): 1.0,
        ("both", SPREAD): 1.0,
        ("both", SCORE): 0.5,
        ("middle", DISTANCE): 1.0,
        ("middle", SPREAD): 0.0,
        ("middle", SCORE): 1.0,
    }
    # Episodes of 1 and 3 views count alike.
    views = np.array([0, 1, 1, 1])
    measured = {"x": Measured(views, {k: np.full((4, 3, 2), v) for k, v in rows.items()}, {})}
    measured["x"].rows["both", SCORE][0] = 0.1
    found = compare(measured, ("a", "b"), np.array([0.5, 0.5]), DRAWS, {})
    both, middle = found.rows
    assert [interval.estimate for interval in both.overall[SCORE]] == pytest.approx([0.6] * 3)
    assert (both.overall[SCORE][0].low, both.overall[SCORE][0].high) == pytest.approx((0.2, 1.0))
    assert middle.difference[0].estimate == pytest.approx(1.4)
    assert middle.difference[0].low > 0
    assert both.difference == ()


def test_what_cannot_be_compared_is_refused_in_one_line(checkpoint, words, dataset, tmp_path):
    output = ("--output", tmp_path / "page.html")
    assert "is not known which episodes are held out" in said(
        run(write(tmp_path / "n", words), dataset, *output)
    )
    every = write(tmp_path / "every", words, (dataset, {}))
    assert f"all {EPISODES} of" in said(run(every, dataset, *output))
    assert "episodes 0 to 4" in said(run(checkpoint, dataset, "--episodes", "3-7", *output))
    assert "numbers and ranges" in said(run(checkpoint, dataset, "--episodes", "3..7", *output))
    assert "named twice" in said(run(checkpoint, checkpoint, dataset, *output))
    assert "not a LeRobot dataset" in said(run(checkpoint, tmp_path, *output))
    for file, content, words in (
        ("meta/tasks.parquet", None, "has no meta/tasks.parquet"),
        ("data/chunk-000/file-000.parquet", b"PAR1", "cannot be read"),
        ("meta/stats.json", None, "ofp-vla data statistics"),
    ):
        damaged = shutil.copytree(dataset, tmp_path / "damaged" / file)
        (damaged / file).unlink() if content is None else (damaged / file).write_bytes(content)
        assert words in said(run(checkpoint, damaged, "--episodes", "0", *output))

    told = run(every, dataset, "--episodes", "0", "--frames", "1", *output)
    assert told.exit_code == 0, (told.output, told.exception)
    assert "was trained on 1 of these episodes" in " ".join(told.output.split())

    def with_info(name, change):
        other = shutil.copytree(dataset, tmp_path / name)
        info = json.loads((other / "meta" / "info.json").read_text())
        change(info["features"])
        (other / "meta" / "info.json").write_text(json.dumps(info))
        return other

    turned = with_info("turned", lambda f: f["action"].update(names=ACTION_NAMES[::-1]))
    assert "stand at other positions" in said(run(checkpoint, turned, "--episodes", "0", *output))
    larger = with_info("larger", lambda f: f["action"].update(shape=[5], names=None))
    assert "it is another robot's" in said(run(checkpoint, larger, "--episodes", "0", *output))
    blind = with_info("blind", lambda f: f.pop(CAMERAS[1]))
    assert CAMERAS[1] in said(run(checkpoint, blind, "--episodes", "0", *output))
