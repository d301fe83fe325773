"""The embedded suite as a Gymnasium environment and under LeRobot's own rollout loop."""

import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from lerobot.configs import parser
from lerobot.envs.factory import make_env, make_env_config
from lerobot.envs.utils import env_to_policy_features, preprocess_observation
from lerobot.scripts import lerobot_eval
from lerobot.scripts.lerobot_eval import rollout
from torch import Tensor, nn

from ofp_vla.embedded.env import RobotwinEvalEnv, evaluation_seed
from robotwin_eval.sim.aloha.robot import ACTION_HIGH, ACTION_LOW
from robotwin_eval.sim.aloha.suite import CONTROL_HZ, TASKS, AlohaSuite
from robotwin_eval.sim.base import Demonstration
from robotwin_eval.sim.seeds import EVALUATION_BLOCK
from tests.support.embedded import save_checkpoint

TASK = "press_button"


@pytest.fixture(scope="module")
def suite() -> Iterator[AlohaSuite]:
    sim = AlohaSuite()
    yield sim
    sim.close()


@pytest.fixture
def env() -> Iterator[RobotwinEvalEnv]:
    made = RobotwinEvalEnv(TASK)
    yield made
    made.close()


class PickySuite(AlohaSuite):
    """The suite with an expert that fails on chosen seeds, on some of them by an exception."""

    def __init__(self, unsolved: set[int], raising: set[int]) -> None:
        super().__init__()
        self.unsolved, self.raising = unsolved, raising

    def expert(self, task: str, seed: int, mode: str | None = None) -> Demonstration:
        if seed in self.raising:
            raise FloatingPointError("unstable scene")
        demonstration = super().expert(task, seed, mode)
        return replace(demonstration, solved=False) if seed in self.unsolved else demonstration


class ExpertReplay(nn.Module):
    """Plays the experts' actions, one column of episodes per batch row, and keeps the prompts it saw."""

    def __init__(self, suite: AlohaSuite, seeds: list[int], beyond: float = 0.0) -> None:
        super().__init__()
        self.plans = [suite.expert(TASK, seed).actions for seed in seeds]
        self.beyond, self.step = beyond, 0
        self.seen: list[dict[str, object]] = []

    def reset(self) -> None:
        self.step = 0

    def select_action(self, observation: dict[str, object]) -> Tensor:
        self.seen.append(observation)
        rows = [plan[min(self.step, len(plan) - 1)] for plan in self.plans]
        self.step += 1
        return torch.from_numpy(np.stack(rows)) + self.beyond


def unchanged(value: object) -> object:
    return value


def test_gymnasium_finds_nothing_but_a_space_in_radians() -> None:
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        check_env(gym.make("robotwin_eval/aloha-v0", task=TASK).unwrapped)
    remarks = [str(remark.message) for remark in remarks if "gymnasium" in remark.filename]
    assert [text for text in remarks if "normalized" not in text] == []


def test_episodes_are_the_simulators_own_at_the_evaluations_seeds(
    env: RobotwinEvalEnv, suite: AlohaSuite
) -> None:
    observation, info = env.reset(seed=3)
    assert info["seed"] == EVALUATION_BLOCK + 3
    suite.reset(TASK, EVALUATION_BLOCK + 3)
    expected = suite.observe(["cam_high"])
    np.testing.assert_array_equal(observation["agent_pos"], expected.state)
    np.testing.assert_array_equal(observation["pixels"]["cam_high"], expected.images["cam_high"])
    assert env.task_description == suite.instruction(TASK, EVALUATION_BLOCK + 3, "seen")
    assert env.metadata["render_fps"] == CONTROL_HZ


def test_reset_without_seed_goes_on_from_the_last_seed_and_stays_out_of_the_demonstrations(
    env: RobotwinEvalEnv,
) -> None:
    env.reset(seed=5)
    drawn = [env.reset()[1]["seed"] for _ in range(3)]
    env.reset(seed=5)
    assert [env.reset()[1]["seed"] for _ in range(3)] == drawn
    assert len(set(drawn)) == 3
    assert min(drawn) >= EVALUATION_BLOCK


def test_unsolvable_seed_is_replaced_by_one_that_no_other_index_plays() -> None:
    sim = PickySuite(unsolved={100_003}, raising={200_003})
    assert [evaluation_seed(sim, TASK, index) for index in (2, 3, 4)] == [100_002, 300_003, 100_004]
    sim.close()


def test_where_no_seed_is_solvable_the_search_ends() -> None:
    sim = PickySuite(unsolved=set(), raising=set(range(0, 10**8, 1000)))
    with pytest.raises(RuntimeError, match=f"{TASK}.*100000k"):
        evaluation_seed(sim, TASK, 0)


def test_action_beyond_the_limits_is_clipped_and_reported(env: RobotwinEvalEnv) -> None:
    start = env.reset(seed=0)[0]["agent_pos"]
    beyond = np.clip(start, ACTION_LOW, ACTION_HIGH)
    beyond[6] = ACTION_HIGH[6] + 0.25
    clipped, _, _, _, info = env.step(beyond)
    assert info["clipped"] == pytest.approx(0.25)
    env.reset(seed=0)
    allowed, _, _, _, info = env.step(np.clip(beyond, ACTION_LOW, ACTION_HIGH))
    assert info["clipped"] == 0.0
    np.testing.assert_array_equal(clipped["agent_pos"], allowed["agent_pos"])


@pytest.mark.parametrize("action", [np.full(14, np.nan), np.zeros(13)])
def test_action_that_cannot_be_clipped_is_refused(env: RobotwinEvalEnv, action: np.ndarray) -> None:
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step(action)


def test_idle_episode_is_truncated_at_the_simulators_limit(env: RobotwinEvalEnv, suite: AlohaSuite) -> None:
    hold = np.clip(env.reset(seed=0)[0]["agent_pos"], ACTION_LOW, ACTION_HIGH)
    results = [env.step(hold)[1:] for _ in range(suite.step_limit(TASK))]
    assert [(terminated, truncated) for _, terminated, truncated, _ in results[:-1]] == [(False, False)] * (
        len(results) - 1
    )
    reward, terminated, truncated, info = results[-1]
    assert (reward, terminated, truncated, info["is_success"]) == (0.0, False, True, False)


def test_lerobots_rollout_gives_the_sentence_as_prompt_and_finds_the_success(suite: AlohaSuite) -> None:
    config = make_env_config("robotwin_eval", task=TASK)
    vector = make_env(config, n_envs=2)[TASK][0]
    policy = ExpertReplay(suite, [EVALUATION_BLOCK, EVALUATION_BLOCK + 1])
    pipeline = [unchanged] * 4
    result = rollout(vector, policy, *pipeline, seeds=[0, 1])
    vector.close()
    assert result["success"].any(dim=1).tolist() == [True, True]
    sentences = [suite.instruction(TASK, EVALUATION_BLOCK + index, "seen") for index in range(2)]
    assert all(seen["task"] == sentences for seen in policy.seen)
    assert all(" " in sentence for sentence in sentences)
    first = policy.seen[0]
    assert first["observation.images.cam_high"].shape == (2, 3, 64, 64)
    assert first["observation.state"].shape == (2, 14)


def test_every_camera_of_the_config_reaches_the_policy_under_the_name_it_declares() -> None:
    cameras = ["cam_left_wrist", "cam_high"]
    config = make_env_config("robotwin_eval", task=TASK, cameras=cameras, image_size=32)
    vector = make_env(config, n_envs=1)[TASK][0]
    observation = preprocess_observation(vector.reset(seed=[0])[0])
    vector.close()
    declared = env_to_policy_features(config)
    assert {key: tuple(value.shape[1:]) for key, value in observation.items()} == {
        key: feature.shape for key, feature in declared.items() if key != "action"
    }
    assert {f"observation.images.{camera}" for camera in cameras} <= declared.keys()


def test_all_and_comma_separated_tasks_become_one_group_each() -> None:
    assert make_env_config("robotwin_eval", task="all").task_names() == list(TASKS)
    envs = make_env(make_env_config("robotwin_eval", task="lift_bar, press_button"), n_envs=1)
    assert list(envs) == ["lift_bar", "press_button"]
    limits = [envs[name][0].call("_max_episode_steps")[0] for name in envs]
    assert limits == [TASKS[name].step_limit for name in envs]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"task": "fold_shirt"}, "fold_shirt"),
        ({"task": " , "}, "env.task"),
        ({"cameras": ["top"]}, "top"),
        ({"split": "test"}, "test"),
        ({"fps": 50}, "50"),
        ({"task": "all", "max_parallel_tasks": 2}, "max_parallel_tasks"),
    ],
)
def test_setting_that_cannot_work_is_named_in_one_line(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named) as refusal:
        make_env(make_env_config("robotwin_eval", **settings), n_envs=1)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_lerobot_eval_evaluates_a_checkpoint_on_two_tasks(tmp_path: Path, monkeypatch) -> None:
    """As a process: tests/packaging/test_wheel.py."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    command = [
        "lerobot-eval",
        f"--policy.path={checkpoint}",
        "--discover_packages_path=lerobot_policy_ofp",
        "--env.type=robotwin_eval",
        "--env.task=press_button,lift_bar",
        "--env.episode_length=3",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        "--seed=0",
        f"--output_dir={tmp_path / 'results'}",
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(parser, "_config_path_args", {})
    monkeypatch.setattr(parser, "_config_yaml_overrides", {})
    lerobot_eval.eval_main()
    info = json.loads((tmp_path / "results" / "eval_info.json").read_text())
    assert {task: group["n_episodes"] for task, group in info["per_group"].items()} == {
        "press_button": 2,
        "lift_bar": 2,
    }
    videos = [Path(path) for path in info["overall"]["video_paths"]]
    assert len(videos) == 4
    assert all(path.stat().st_size for path in videos)
