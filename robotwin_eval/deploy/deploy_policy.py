"""RoboTwin's policy interface (OLD layout, `policy/<name>/deploy_policy.py`) over our policy server.

`script/eval_policy.py` calls `get_model` once, `reset_model` before each counted episode and `eval`
until it ends. Settings come from `deploy_policy.yml` and from the command line after `--overrides`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from robotwin_eval.policy.client import RemotePolicy
    from robotwin_eval.policy.protocol import Observation

TOKEN_VARIABLE = "OFP_TOKEN"


class ServedPolicy:
    """A policy server, as RoboTwin's script sees it.

    Args:
        policy: the connection.
        cameras: the policy's camera -> RoboTwin's; a camera not listed has the same name in both.
        execute: actions carried out of each chunk; None for as many as the server says, or all.
        action_type: "qpos" or "ee".
        noise_seed: the evaluation's part of the key of the sampling noise.
        task: name of the task.
    """

    def __init__(
        self,
        policy: RemotePolicy,
        cameras: Mapping[str, str],
        execute: int | None,
        action_type: str,
        noise_seed: int,
        task: str,
    ) -> None:
        if execute is not None and not 1 <= execute <= policy.horizon:
            raise ValueError(f"execute is {execute}, expected 1 to the policy's horizon {policy.horizon}")
        self.policy = policy
        self.sources = {camera: cameras.get(camera, camera) for camera in policy.cameras}
        self.execute = execute or int(policy.metadata.get("execute") or policy.horizon)
        self.action_type = action_type
        self.noise_seed = noise_seed
        self.task = task
        self.episode = -1
        self.chunk = 0
        self.executed = 0

    def start_episode(self) -> None:
        """Forgets the previous episode."""
        self.episode += 1
        self.chunk = 0
        self.executed = 0

    def infer(self, observation: Observation, instruction: str) -> np.ndarray:
        """Asks for the next chunk; returns the actions to carry out, (execute, A).

        Raises:
            PolicyError: the server's answer cannot be used.
            ServerLost: the connection to the server is lost.
        """
        from robotwin_eval.policy.protocol import NoiseKey, Request

        request = Request(
            session="robotwin",
            observation=observation,
            instruction=instruction,
            # RoboTwin's script does not tell a policy the episode's seed, so counted episodes are numbered
            # instead.
            key=NoiseKey(self.noise_seed, self.task, self.episode, self.chunk),
            reset=self.chunk == 0,
            executed=self.executed,
            execute=self.execute,
        )
        (reply,) = self.policy.infer([request])
        self.chunk += 1
        return reply.actions[: self.execute]


def encode_obs(
    observation: Mapping[str, Any], sources: Mapping[str, str] | None = None, action_type: str = "qpos"
) -> Observation:
    """Turns RoboTwin's observation into the server's: RGB uint8 (H, W, 3) and state (14,) or (16,) float32.

    Args:
        observation: what `TASK_ENV.get_obs()` returned.
        sources: the policy's camera -> RoboTwin's; None takes every camera under RoboTwin's name.
        action_type: "qpos" for joints, "ee" for poses.
    """
    _load_robotwin_eval()
    from robotwin_eval.policy.protocol import Observation
    from robotwin_eval.sim.robotwin.observation import read_observation

    if sources is None:
        sources = {camera: camera for camera, data in observation["observation"].items() if "rgb" in data}
    read = read_observation(observation, tuple(sources.values()), action_type)
    return Observation({camera: read.images[source] for camera, source in sources.items()}, read.state)


def get_model(usr_args: Mapping[str, Any]) -> ServedPolicy:
    """Connects to the server that `server` names.

    Raises:
        ValueError: a setting is missing or wrong, or the server serves another kind of robot.
        OSError: nothing answers at that address.
    """
    _load_robotwin_eval()
    from robotwin_eval.policy.client import RemotePolicy
    from robotwin_eval.sim.robotwin.observation import ACTION_TYPES, POSE_NAMES

    server, action_type = usr_args.get("server"), str(usr_args.get("action_type", "qpos"))
    if not isinstance(server, str) or not server.startswith(("ws://", "wss://")):
        raise ValueError(
            f"deploy_policy.yml: server is {server!r}, expected an address as ws://127.0.0.1:8000"
        )
    if action_type not in ACTION_TYPES:
        raise ValueError(f"deploy_policy.yml: action_type is {action_type!r}, expected {list(ACTION_TYPES)}")
    policy = RemotePolicy(
        server,
        token=os.environ.get(TOKEN_VARIABLE) or None,
        timeout=float(usr_args.get("timeout") or 60.0),
    )
    # RoboTwin's script gives the number of joints of each arm; each arm also has a gripper.
    joints = int(usr_args.get("left_arm_dim", 6)) + int(usr_args.get("right_arm_dim", 6)) + 2
    size = joints if action_type == "qpos" else 2 * (len(POSE_NAMES) + 1)
    model = ServedPolicy(
        policy,
        cameras=usr_args.get("cameras") or {},
        execute=usr_args.get("execute"),
        action_type=action_type,
        noise_seed=int(usr_args.get("noise_seed") or 0),
        task=str(usr_args.get("task_name", "")),
    )
    if policy.action_dim != size:
        raise ValueError(
            f"{server}: policy {policy.name!r} gives {policy.action_dim} values an action, "
            f"RoboTwin takes {size} with action_type {action_type}"
        )
    return model


def eval(TASK_ENV: Any, model: ServedPolicy, observation: Mapping[str, Any]) -> None:
    """Asks for one chunk and carries it out.

    A chunk that cannot be used ends the episode as a failure, as in our own runner; losing the server ends
    the script.
    """
    from robotwin_eval.policy.protocol import PolicyError

    optional, has = model.policy.optional_cameras, observation["observation"]
    sources = {c: source for c, source in model.sources.items() if source in has or c not in optional}
    try:
        seen = encode_obs(observation, sources, model.action_type)
        actions = model.infer(seen, str(TASK_ENV.get_instruction()))
    except PolicyError as error:
        print(f"\nthe policy failed in episode {model.episode}: {error}", file=sys.stderr)
        TASK_ENV.take_action_cnt = TASK_ENV.step_lim
        return
    model.executed = 0
    for action in actions:
        TASK_ENV.take_action(np.asarray(action, dtype=np.float64), action_type=model.action_type)
        model.executed += 1
        if TASK_ENV.eval_success or TASK_ENV.take_action_cnt >= TASK_ENV.step_lim:
            return
        if getattr(TASK_ENV, "eval_video_path", None) is not None:
            # RoboTwin's film shows the latest observation, so without a new one it would stand still within a
            # chunk.
            TASK_ENV.get_obs()


def reset_model(model: ServedPolicy) -> None:
    """Starts the next counted episode."""
    model.start_episode()


def _load_robotwin_eval() -> None:
    """Imports `robotwin_eval` from the folder around this one, wherever RoboTwin's link to it lies.

    Nothing else in that folder becomes importable in RoboTwin's interpreter.
    """
    if "robotwin_eval" in sys.modules or importlib.util.find_spec("robotwin_eval") is not None:
        return
    folder = Path(__file__).resolve().parent.parent
    if not (folder / "worker" / "worker_main.py").is_file():
        raise ImportError(
            f"robotwin_eval is not installed here and not around {Path(__file__).resolve().parent}: "
            "link this folder into RoboTwin's policy/ instead of copying it"
        )
    spec = importlib.util.spec_from_file_location(
        "robotwin_eval", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["robotwin_eval"] = package
    spec.loader.exec_module(package)
