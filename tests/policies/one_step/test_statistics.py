"""Statistics of another quantity than the one normalised: trained policies have those of what they see."""

import json
import logging
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE
from typer.testing import CliRunner

from ofp_vla.cli import main as cli
from ofp_vla.data.statistics import exact_statistics, replace_statistics
from ofp_vla.errors import DataError
from ofp_vla.normalization import quantities
from ofp_vla.normalization.fit import LARGEST_RMS, LARGEST_VALUE, judge, robust
from ofp_vla.normalization.frames import read_vectors
from ofp_vla.normalization.quantities import Relative, absolute_statistics, relative_statistics
from ofp_vla.policies.one_step.guard import LARGEST
from ofp_vla.policies.one_step.statistics import judge_dataset, statistics_command
from tests.support.tiny import (
    ACTION_NAMES,
    ACTIONS,
    CAMERAS,
    HORIZON,
    tiny_batch,
    tiny_config,
    tiny_policy,
    write_dataset,
    write_tokenizer,
)

EPISODES, FRAMES = 3, 40
RELATIVE = Relative(HORIZON, ("gripper",), tuple(ACTION_NAMES))
MASK = np.array([True, False, True, False])


def motion() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States, actions and episodes of joints that live around 2.5 and move by 0.1."""
    time = np.arange(EPISODES * FRAMES)
    phase = 0.3 * time[:, None] + np.arange(ACTIONS)
    states = 2.5 + 0.1 * np.sin(phase)
    actions = 2.5 + 0.1 * np.sin(phase + 0.3)
    return states.astype(np.float32), actions.astype(np.float32), time // FRAMES


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_dataset(tmp_path_factory.mktemp("moving") / "data", episodes=EPISODES, frames=FRAMES)
    states, actions, _ = motion()
    put(root, **{OBS_STATE: states, ACTION: actions})
    replace_statistics(root, exact_statistics(root))
    return root


@pytest.fixture
def dataset(moving: Path, tmp_path: Path) -> Path:
    return shutil.copytree(moving, tmp_path / "data")


def put(root: Path, **columns: np.ndarray) -> None:
    path = root / "data/chunk-000/file-000.parquet"
    table = pd.read_parquet(path)
    for key, values in columns.items():
        table[key] = list(values)
    table.to_parquet(path)


def trained(root: Path, tokenizer: Path, host: str = "pi05", **changes):
    """A policy and its processors as LeRobot's trainer makes them, and the dataset's metadata."""
    meta = LeRobotDatasetMetadata("test/data", root=root)
    config = tiny_config(host, tokenizer_name=str(tokenizer), **changes)
    config.input_features = {}
    policy = make_policy(config, ds_meta=meta)
    return policy, *make_pre_post_processors(config, dataset_stats=meta.stats), meta


def chunks(root: Path, rows: list[int]) -> dict:
    times = {ACTION: [i / 10 for i in range(HORIZON)]}
    frames = [LeRobotDataset("test/data", root=root, delta_timestamps=times)[row] for row in rows]
    batch = {key: torch.stack([frame[key] for frame in frames]) for key in (*CAMERAS, OBS_STATE, ACTION)}
    return {**batch, "task": ["press the green button"] * len(rows)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


# ---- the quantities


def test_relative_statistics_are_those_of_every_difference_in_a_chunk_and_in_its_episode():
    states, actions, episodes = motion()
    listed = [
        actions[later] - np.where(MASK, states[start], 0)
        for start in range(len(actions))
        for later in range(start, min(start + HORIZON, len(actions)))
        if episodes[later] == episodes[start]
    ]
    found = relative_statistics(actions, states, episodes, RELATIVE)
    for name, level in quantities.QUANTILES.items():
        np.testing.assert_allclose(found[name][MASK], np.quantile(listed, level, axis=0)[MASK], atol=1e-6)
        np.testing.assert_allclose(found[name][~MASK], np.quantile(actions, level, axis=0)[~MASK], atol=1e-6)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(found[name][MASK], getattr(np, name)(listed, axis=0)[MASK], atol=1e-6)


def test_chunks_left_out_of_a_large_dataset_do_not_narrow_the_range(monkeypatch):
    states, actions, episodes = motion()
    actions[57, 0] += 40
    whole = relative_statistics(actions, states, episodes, RELATIVE)
    monkeypatch.setattr(quantities, "_MOST_DIFFERENCES", 60)
    some = relative_statistics(actions, states, episodes, RELATIVE)
    for name in ("min", "max"):
        np.testing.assert_allclose(some[name], whole[name], atol=1e-6)
    assert some["count"] < whole["count"] / 5


def test_relative_dimension_without_a_state_is_refused():
    states, actions, episodes = motion()
    with pytest.raises(DataError, match=r"4 actions and 2 states.*; write a state for every action"):
        relative_statistics(actions, states[:, :2], episodes, RELATIVE)


# ---- the measure


@pytest.mark.parametrize("mode", ["QUANTILES", "QUANTILE10", "MEAN_STD", "MIN_MAX"])
def test_size_is_that_of_the_normalised_data(mode):
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((500, 3)) * [1, 5, 0.01] + [0, 9, -4]).astype(np.float32)
    exact = absolute_statistics(values)
    stored = {name: value + 0.3 for name, value in exact.items()}
    fit = judge(stored, exact, mode)
    names = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max")}
    first, second = (
        stored[n] for n in names.get(mode, ("q01", "q99") if mode == "QUANTILES" else ("q10", "q90"))
    )
    normalised = (
        (values - first) / second if mode == "MEAN_STD" else 2 * (values - first) / (second - first) - 1
    )
    np.testing.assert_allclose(fit.rms, np.sqrt((normalised**2).mean(axis=0)), rtol=1e-3)
    np.testing.assert_allclose(fit.largest, np.abs(normalised).max(axis=0), rtol=1e-3)


@pytest.mark.parametrize("share", [0.0002, 0.002, 0.009])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("mode", ["QUANTILES", "QUANTILE10", "MEAN_STD"])
def test_rarely_moving_dimension_is_too_large_by_its_quantiles_and_mended_by_its_range(share, noise, mode):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((10_000, 2)).astype(np.float32)
    values[:, 1] = noise * values[:, 1] + (np.arange(10_000) % round(1 / share) == 0)
    exact = absolute_statistics(values)
    if mode != "MEAN_STD":
        assert judge(exact, exact, mode).too_large.tolist() == [1]
    new, _, still = robust(exact)
    assert judge(new, exact, mode).good
    assert not still
    assert all(np.array_equal(new[name][0], exact[name][0]) for name in exact if name != "count")


def test_statistics_of_a_large_healthy_dataset_stay_as_they_are():
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.standard_t(4, (20_000, 3)), rng.uniform(-2, 5, (20_000, 2))], axis=1)
    exact = absolute_statistics(values.astype(np.float32))
    new, rare, still = robust(exact, observed=True)
    assert (rare, still) == ([], [])
    assert all(np.array_equal(new[name], exact[name]) for name in exact)


def test_still_state_gets_the_range_of_the_others():
    states, _, _ = motion()
    states[:, 1] = 0.7
    exact = absolute_statistics(states)
    new, rare, still = robust(exact, observed=True)
    assert (rare, still) == ([], [1])
    np.testing.assert_allclose(new["q99"][1] - new["q01"][1], 0.2, rtol=0.02)
    np.testing.assert_allclose((new["q99"][1] + new["q01"][1]) / 2, 0.7, rtol=1e-5)


def test_wide_statistics_of_a_base_are_not_those_of_relative_actions():
    time = np.arange(600)[:, None]
    states, actions = (1 + 0.5 * np.sin(0.9 * (time + ahead) + np.arange(ACTIONS)) for ahead in (0, 0.3))
    episodes = time[:, 0] // FRAMES
    exact = absolute_statistics(actions)
    wide = {"q01": np.full(ACTIONS, -3.0), "q99": np.full(ACTIONS, 3.0)}
    other = relative_statistics(actions, states, episodes, RELATIVE)
    assert judge(wide, exact, "QUANTILES", lambda: other).good
    assert judge(other, exact, "QUANTILES", lambda: other).other_form


@pytest.mark.parametrize("mode", ["QUANTILES", "QUANTILE10", "MEAN_STD", "MIN_MAX"])
def test_radians_by_statistics_in_degrees_are_next_to_nothing_and_nothing_else_is(mode):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((20_000, 4)).astype(np.float32)
    values[:, 2] = 0.5
    values[:, 3] = np.arange(20_000) == 7  # moves in one frame, and is normalised by its range
    exact = robust(absolute_statistics(values))[0]
    fit = judge(exact, exact, mode)
    assert fit.squeezed == ()
    degrees = {name: np.where(np.arange(4) >= 2, value, np.degrees(value)) for name, value in exact.items()}
    fit = judge(degrees, exact, mode)
    assert fit.good
    assert fit.squeezed == (0, 1)
    assert judge({name: value * 5 for name, value in exact.items()}, exact, mode).squeezed == ()


# ---- training


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ({"motors": ACTION_NAMES}, ACTION_NAMES),
        ({name: index for index, name in enumerate(ACTION_NAMES)}, ACTION_NAMES),
        (["gripper"], None),
        (None, None),
    ],
    ids=["group", "indices", "too few", "none"],
)
def test_relative_actions_and_their_statistics_know_the_same_names(dataset, tokenizer, names, taken):
    info = json.loads((dataset / "meta/info.json").read_text())
    info["features"][ACTION]["names"] = names
    (dataset / "meta/info.json").write_text(json.dumps(info))
    policy, before, after, _ = trained(dataset, tokenizer, use_relative_actions=True)
    assert policy.config.action_feature_names == taken
    batch = chunks(dataset, [0, 17, 33, 95])
    wanted = batch[ACTION].clone()
    normalised = before(batch)[ACTION]
    assert float(normalised.square().mean((0, 1)).sqrt().max()) < 1.5
    torch.testing.assert_close(after(policy.guard(normalised)), wanted, atol=1e-4, rtol=0)


def test_resumed_run_keeps_the_names_that_its_actions_were_made_relative_by(dataset, tokenizer):
    before = {"action_feature_names": ["motors"], "trained_steps": 5, "action_low": [-1.0] * ACTIONS}
    policy, *_ = trained(dataset, tokenizer, use_relative_actions=True, action_high=[1.0] * ACTIONS, **before)
    assert policy.config.action_feature_names == ["motors"]


def test_advised_command_makes_all_actions_relative_where_none_is_excluded(dataset, tokenizer, caplog):
    settings = {"use_relative_actions": True, "relative_exclude_joints": []}
    line = statistics_command(str(dataset), tiny_config(**settings))
    done = CliRunner().invoke(cli.app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    trained(dataset, tokenizer, **settings)
    assert "replaced" not in caplog.text


@pytest.mark.parametrize("host", ["pi0", "smolvla"])
def test_state_at_rest_is_mended_with_a_word_so_that_its_first_motion_is_a_small_number(
    dataset, tokenizer, host, caplog
):
    states, _, _ = motion()
    states[:, 2] = -1.5
    put(dataset, **{OBS_STATE: states})
    replace_statistics(dataset, exact_statistics(dataset))
    _, before, _, _ = trained(dataset, tokenizer, host)
    assert "dimensions [2] never move and are normalised by a range of nothing" in caplog.text
    batch = chunks(dataset, [5])
    batch[OBS_STATE][0, 2] += 0.01
    assert 0 < float(before(batch)[OBS_STATE][0, 2]) < 0.5


@pytest.mark.parametrize("dimension", range(ACTIONS))
def test_action_at_rest_is_held_and_needs_no_mending(dataset, tokenizer, dimension, caplog):
    _, actions, _ = motion()
    actions[:, dimension] = 0.25
    put(dataset, **{ACTION: actions})
    replace_statistics(dataset, exact_statistics(dataset))
    policy, before, after, _ = trained(dataset, tokenizer)
    assert "replaced" not in caplog.text
    wanted = chunks(dataset, [5])[ACTION]
    guess = policy.guard(before(chunks(dataset, [5]))[ACTION] + 0.05)
    torch.testing.assert_close(after(guess)[..., dimension], wanted[..., dimension])


@pytest.mark.parametrize("host", ["pi05", "pi0", "smolvla"])
def test_relative_training_on_absolute_statistics_is_mended_and_a_recorded_chunk_comes_back(
    dataset, tokenizer, host, caplog
):
    with caplog.at_level(logging.WARNING):
        policy, before, after, meta = trained(dataset, tokenizer, host, use_relative_actions=True)
    assert "'action' were replaced for this run" in caplog.text
    assert "they are those of absolute actions, the policy is trained on relative ones" in caplog.text
    batch = chunks(dataset, [0, 17, 33, 95])
    wanted = batch[ACTION].clone()
    batch = before(batch)
    assert float(batch[ACTION].square().mean().sqrt()) < 1.5
    guarded = policy.guard(batch[ACTION])
    assert policy.guard.clipped == 0
    torch.testing.assert_close(after(guarded), wanted, atol=1e-4, rtol=0)
    exact = relative_statistics(*motion()[1::-1], motion()[2], RELATIVE)
    np.testing.assert_allclose(meta.stats[ACTION]["q99"], exact["q99"], atol=1e-6)


def test_robot_of_one_dimension_has_statistics_too(dataset):
    info = json.loads((dataset / "meta/info.json").read_text())
    for key, values in zip((OBS_STATE, ACTION), motion(), strict=False):
        info["features"][key] |= {"shape": [1], "names": ["slider"]}
        put(dataset, **{key: values[:, 0]})
    (dataset / "meta/info.json").write_text(json.dumps(info))
    exact = exact_statistics(dataset, RELATIVE)
    replace_statistics(dataset, exact)
    columns = read_vectors(dataset, OBS_STATE, ACTION, "episode_index")
    found = judge_dataset(tiny_config(use_relative_actions=True), info["features"], columns, exact)
    assert all(fit.good for fit, _ in found.values())
    found = judge_dataset(tiny_config(), info["features"], columns, exact)
    assert found[ACTION][0].other_form


@pytest.mark.parametrize("relative", [False, True])
def test_statistics_of_the_right_form_are_left_alone(dataset, tokenizer, relative, caplog):
    if relative:
        replace_statistics(dataset, exact_statistics(dataset, RELATIVE))
    stored = json.loads((dataset / "meta/stats.json").read_text())
    with caplog.at_level(logging.WARNING):
        *_, meta = trained(dataset, tokenizer, use_relative_actions=relative)
    assert "replaced" not in caplog.text
    for key in (OBS_STATE, ACTION):
        np.testing.assert_allclose(meta.stats[key]["q99"], stored[key]["q99"])


def test_absolute_training_on_relative_statistics_is_mended(dataset, tokenizer, caplog):
    replace_statistics(dataset, exact_statistics(dataset, RELATIVE))
    policy, before, after, _ = trained(dataset, tokenizer)
    assert "they are those of relative actions, the policy is trained on absolute ones" in caplog.text
    batch = chunks(dataset, [3, 50])
    wanted = batch[ACTION].clone()
    torch.testing.assert_close(after(policy.guard(before(batch)[ACTION])), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("key", [OBS_STATE, ACTION])
def test_dimension_that_hardly_moves_is_mended_with_a_word_and_the_others_are_kept(
    dataset, tokenizer, key, caplog
):
    values = dict(zip((OBS_STATE, ACTION), motion()[:2], strict=True))[key]
    values[:, 1] = np.arange(len(values)) == 60
    put(dataset, **{key: values})
    replace_statistics(dataset, exact_statistics(dataset))
    *_, before, _, meta = trained(dataset, tokenizer)
    assert f"they make dimensions of {key} too large once normalised: 1 (root mean square" in caplog.text
    # The rare frame and its neighbours.
    assert float(before(chunks(dataset, [58, 60]))[key].abs().max()) < 2
    exact = absolute_statistics(values)
    np.testing.assert_allclose(meta.stats[key]["q99"][[0, 2, 3]], exact["q99"][[0, 2, 3]])


def test_statistics_in_other_units_are_told_of_and_kept(dataset, tokenizer, caplog):
    states = motion()[0] - 2.5
    put(dataset, **{OBS_STATE: states})
    degrees = absolute_statistics(np.degrees(states))
    replace_statistics(dataset, exact_statistics(dataset) | {OBS_STATE: degrees})
    *_, meta = trained(dataset, tokenizer)
    (told,) = [each.message for each in caplog.records if "other units" in each.message]
    assert "Statistics of 'observation.state' are kept" in told
    assert all(f"{dimension} (standard deviation 0.01" in told for dimension in range(ACTIONS))
    assert f"ofp-vla data statistics {dataset}" in told
    assert "replaced" not in caplog.text
    np.testing.assert_allclose(meta.stats[OBS_STATE]["q99"], degrees["q99"], rtol=1e-5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stats: [stats.pop("q01"), stats.pop("q99")],
        lambda stats: stats.update(q99=[float("nan")] * ACTIONS),
        lambda stats: stats.update(q01=[0.0] * 32, q99=[1.0] * 32),
    ],
    ids=["missing", "NaN", "padded"],
)
def test_statistics_that_cannot_be_used_are_computed_from_the_data(dataset, tokenizer, spoil, caplog):
    path = dataset / "meta/stats.json"
    stats = json.loads(path.read_text())
    spoil(stats[ACTION])
    path.write_text(json.dumps(stats))
    *_, meta = trained(dataset, tokenizer)
    assert "which QUANTILES needs, are missing, damaged or of another size" in caplog.text
    np.testing.assert_allclose(meta.stats[ACTION]["q01"], absolute_statistics(motion()[1])["q01"], atol=1e-6)


def test_resumed_run_keeps_the_limits_of_its_checkpoint(dataset, tokenizer):
    first, *_ = trained(dataset, tokenizer, use_relative_actions=True)
    low = first.config.action_low
    again, *_, meta = trained(
        dataset, tokenizer, use_relative_actions=True, trained_steps=5, action_low=low,
        action_high=first.config.action_high,
    )  # fmt: skip
    assert again.config.action_low == low
    np.testing.assert_allclose(meta.stats[ACTION]["q99"], absolute_statistics(motion()[1])["q99"], atol=1e-6)


@pytest.mark.parametrize("fits", [True, False])
def test_resumed_run_says_where_the_statistics_of_its_checkpoint_do_not_fit(
    dataset, tokenizer, tmp_path, caplog, fits
):
    policy, before, after, _ = trained(dataset, tokenizer, use_relative_actions=True)
    if not fits:
        _, before, after, _ = trained(dataset, tokenizer)
    place = tmp_path / "checkpoint"
    for part in (policy, before, after):
        part.save_pretrained(place)
    limits = policy.config.action_low
    mended = exact_statistics(dataset, RELATIVE)[ACTION]
    replace_statistics(dataset, {ACTION: {**mended, "q99": mended["q99"] + 0.03}})
    caplog.clear()
    config = PreTrainedConfig.from_pretrained(place)
    config.trained_steps, config.pretrained_path = 5, place
    make_policy(config, ds_meta=LeRobotDatasetMetadata("test/data", root=dataset))
    assert config.action_low == limits
    assert ("that the checkpoint was trained with do not fit the data" in caplog.text) is not fits
    assert "replaced for this run" not in caplog.text


def test_batch_that_no_statistics_of_its_data_would_give_is_refused_with_its_dimension():
    policy = tiny_policy(total_steps=10)
    batch = tiny_batch()
    batch[ACTION][2, 3, 1] = 2e8
    with pytest.raises(
        DataError, match=r"'action' reaches 2e\+08 once normalised \(dimensions \[1\]\) in batch rows \[2\]"
    ):
        policy(batch)


def test_limit_of_a_batch_leaves_room_above_what_data_may_reach():
    assert LARGEST_RMS < LARGEST_VALUE < LARGEST
