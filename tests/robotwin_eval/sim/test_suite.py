"""The suite as a simulator: determinism, observations, instructions, bad input."""

import hashlib
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from robotwin_eval.sim.aloha.robot import ACTION_NAMES, CAMERAS, home_action
from robotwin_eval.sim.aloha.suite import TASKS, AlohaSuite
from robotwin_eval.sim.base import ActionRefused

EPISODE = """
import hashlib, numpy as np
from robotwin_eval.sim.aloha.suite import AlohaSuite
suite = AlohaSuite()
states = [suite.expert("transfer_cube", 8).actions]
for _ in range(4):
    suite.step(states[0][0])
    states.append(suite.observe([]).state)
print(hashlib.sha256(b"".join(s.tobytes() for s in states)).hexdigest())
"""


@pytest.fixture
def suite():
    suite = AlohaSuite(image_size=48)
    yield suite
    suite.close()


def trace(suite, task, seed, actions):
    suite.reset(task, seed)
    rows = [suite.observe([]).state]
    for action in actions:
        suite.step(action)
        rows.append(np.concatenate([suite.observe([]).state, suite.truth()]))
    return np.concatenate(rows)


def test_an_episode_depends_on_task_seed_and_actions_only(suite):
    actions = suite.expert("lift_bar", 5).actions
    first = trace(suite, "lift_bar", 5, actions)
    suite.expert("press_button", 1)
    suite.expert("lift_bar", 6)
    np.testing.assert_array_equal(trace(suite, "lift_bar", 5, actions), first)
    assert not np.array_equal(trace(suite, "lift_bar", 6, actions), first)


def test_interleaved_suites_share_a_model_and_do_not_disturb_each_other(suite):
    actions = suite.expert("lift_bar", 5).actions[:10]
    alone = trace(suite, "lift_bar", 5, actions)
    other = AlohaSuite()
    other.reset("lift_bar", 7)
    suite.reset("lift_bar", 5)
    rows = [suite.observe([]).state]
    for action in actions:
        suite.step(action)
        other.step(home_action())
        rows.append(np.concatenate([suite.observe([]).state, suite.truth()]))
    np.testing.assert_array_equal(np.concatenate(rows), alone)
    other.close()


def test_another_process_plays_the_same_episode_bit_for_bit(suite):
    states = [suite.expert("transfer_cube", 8).actions]
    for _ in range(4):
        suite.step(states[0][0])
        states.append(suite.observe([]).state)
    here = hashlib.sha256(b"".join(s.tobytes() for s in states)).hexdigest()
    run = subprocess.run([sys.executable, "-c", EPISODE], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == here


def test_a_process_that_rendered_ends_without_a_word():
    code = (
        "from robotwin_eval.sim.aloha.suite import AlohaSuite; s = AlohaSuite(); s.reset('lift_bar', 0); "
        "s.observe(); "
        "t = AlohaSuite(); t.reset('press_button', 0); t.observe(); del t"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""


@pytest.mark.parametrize("task", TASKS)
def test_observe_gives_every_camera_and_the_joints(suite, task):
    suite.reset(task, 0)
    observation = suite.observe()
    assert tuple(observation.images) == CAMERAS
    for image in observation.images.values():
        assert image.shape == (48, 48, 3)
        assert image.dtype == np.uint8
        assert image.std() > 5
    assert observation.state.shape == (suite.state_dim,) == (14,)
    assert observation.state.dtype == np.float32
    assert np.abs(observation.state - home_action()).max() < 0.08


@pytest.mark.parametrize(("task", "colour"), [("press_button", 0), ("transfer_cube", 0), ("lift_bar", 2)])
def test_the_object_is_seen_from_above_where_the_truth_says(suite, task, colour):
    seen, true = [], []
    for seed in range(6):
        suite.reset(task, seed)
        image = suite.observe(["cam_high"]).images["cam_high"].astype(int)
        vivid = image[..., colour] - image.mean(-1) > 60
        assert vivid.sum() >= 6
        seen.append(np.argwhere(vivid).mean(0)[::-1])
        true.append(suite.truth()[:2])
    across = np.corrcoef(np.array(seen)[:, 0], np.array(true)[:, 0])[0, 1]
    upward = np.corrcoef(np.array(seen)[:, 1], np.array(true)[:, 1])[0, 1]
    assert across > 0.95
    assert upward < -0.95


def test_only_observe_renders_and_only_the_named_cameras(suite, monkeypatch):
    calls = []
    render = mujoco.Renderer.render
    monkeypatch.setattr(mujoco.Renderer, "render", lambda self: calls.append(1) or render(self))
    suite.expert("press_button", 0)
    suite.reset("press_button", 0)
    suite.step(home_action())
    suite.observe([])
    assert calls == []
    assert list(suite.observe(["cam_left_wrist"]).images) == ["cam_left_wrist"]
    assert len(calls) == 1


def test_pictures_of_the_same_state_are_equal(suite):
    suite.reset("press_button", 3)
    first = suite.observe().images
    suite.expert("press_button", 9)
    suite.reset("press_button", 3)
    for name, image in suite.observe().images.items():
        np.testing.assert_array_equal(image, first[name])


@pytest.mark.parametrize("task", TASKS)
def test_instruction_splits_share_no_sentence_and_seeds_choose(suite, task):
    seen = {suite.instruction(task, seed, "seen") for seed in range(200)}
    unseen = {suite.instruction(task, seed) for seed in range(200)}
    assert len(seen) >= 5
    assert len(unseen) >= 4
    assert not {s.lower() for s in seen} & {s.lower() for s in unseen}
    assert suite.instruction(task, 7) == suite.instruction(task, 7, "unseen")


def test_no_sentence_serves_two_tasks():
    sentences = [s for task in TASKS.values() for s in task.seen + task.unseen]
    assert len(sentences) == len(set(sentences))


def with_value(index, value):
    action = home_action()
    action[index] = value
    return action


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(13), r"shape \(14,\), got \(13,\)"),
        (np.zeros((1, 14)), "shape"),
        (with_value(8, np.nan), "right_shoulder is nan"),
        (with_value(1, -2.0), r"left_shoulder is -2.0000, outside \[-1.8500, 1.2566\]"),
        (with_value(13, 1.2), "right_gripper"),
    ],
)
def test_a_bad_action_is_refused_by_joint_and_leaves_the_episode_as_it_was(suite, action, message):
    suite.reset("press_button", 0)
    before = suite.observe([]).state
    with pytest.raises(ActionRefused, match=message):
        suite.step(action)
    np.testing.assert_array_equal(suite.observe([]).state, before)


def test_fourteen_named_actions():
    assert len(ACTION_NAMES) == 14
    assert ACTION_NAMES[0] == "left_waist"
    assert ACTION_NAMES[6] == "left_gripper"
    assert ACTION_NAMES[13] == "right_gripper"


def test_unknown_names_are_refused_with_the_known_ones(suite):
    with pytest.raises(ValueError, match="press_button"):
        suite.reset("fold_towel", 0)
    with pytest.raises(ValueError, match="fold_towel"):
        suite.step_limit("fold_towel")
    with pytest.raises(ValueError, match="seen"):
        suite.instruction("lift_bar", 0, "train")
    with pytest.raises(ValueError, match="left"):
        suite.expert("press_button", 0, "both")
    with pytest.raises(ValueError, match="seed"):
        suite.reset("lift_bar", -1)
    suite.reset("lift_bar", 0)
    with pytest.raises(ValueError, match="cam_high"):
        suite.observe(["head_camera"])


def test_a_gliding_button_moves_for_a_policy_and_not_for_the_expert(suite):
    gliding = AlohaSuite(glide=0.05)
    plan = gliding.expert("press_button", 3)
    assert plan.solved == suite.expert("press_button", 3).solved
    gliding.reset("press_button", 3)
    start = gliding.truth()
    for _ in range(10):  # a second
        gliding.step(home_action())
    moved = (gliding.truth() - start)[:2]
    assert np.abs(moved[0]) == pytest.approx(0.05, rel=1e-3)
    assert np.sign(moved[0]) == -np.sign(start[0])
    assert abs(moved[1]) < 1e-6  # truth is float32
    assert gliding.provenance()["glide"] == "0.05"
    assert "glide" not in suite.provenance()
    with pytest.raises(ValueError, match="nothing of lift_bar can glide"):
        gliding.reset("lift_bar", 0)
    with pytest.raises(ValueError, match="glide: expected 0 to"):
        AlohaSuite(glide=5)
    gliding.close()


def test_stepping_before_a_reset_or_after_close_says_what_to_do(suite):
    with pytest.raises(RuntimeError, match="reset"):
        suite.step(home_action())
    suite.reset("lift_bar", 0)
    suite.close()
    with pytest.raises(RuntimeError, match="reset"):
        suite.observe()


def test_the_package_imports_no_learning_library():
    code = (
        "import sys, robotwin_eval.sim.aloha.suite, robotwin_eval.sim.seeds; "
        "print([m for m in ('torch', 'lerobot', 'ofp_vla', 'gymnasium', 'gym_aloha') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
