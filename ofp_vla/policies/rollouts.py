"""Checks `lerobot-rollout` with a policy of this package, before the robot is connected and at the end.

LeRobot 0.6.1 refuses relative actions only once the robot is connected, and ends with status 0 if its
real-time engine got no chunk from the policy. `ofp_vla.lerobot_seams.hooks` calls the functions here.
"""

from __future__ import annotations

from typing import Any

from lerobot.rollout.configs import BaseStrategyConfig
from lerobot.rollout.inference import RTCInferenceConfig, SyncInferenceConfig

from ofp_vla.errors import OFPError
from ofp_vla.lerobot_seams.parsing import shown_by_parser
from ofp_vla.lerobot_seams.said import SettingError
from ofp_vla.policies.before_runs import check_evaluation
from ofp_vla.policies.configuration import OneStepConfig
from ofp_vla.policies.one_step.continuation import check_guidance
from ofp_vla.policies.switches import UNUSED


class RolloutError(OFPError, RuntimeError):
    """A rollout in which the policy did not act."""


def check_rollout(cfg: Any) -> None:
    """Refuses a rollout that LeRobot would refuse, or run without actions, with the robot connected.

    Args:
        cfg: LeRobot's configuration; one of another package's policy passes.

    Raises:
        SettingError: relative actions in LeRobot's synchronous engine, LeRobot's compilation, a horizon of
            real-time chunking below 1, or what `ofp_vla.policies.before_runs.check_evaluation` refuses.
        DataError: several draws under LeRobot's guidance.
    """
    if not isinstance(cfg.policy, OneStepConfig):
        return
    check_evaluation(cfg)
    with shown_by_parser():
        if cfg.policy.use_relative_actions and isinstance(cfg.inference, SyncInferenceConfig):
            raise SettingError(
                "inference.type=sync: LeRobot's synchronous engine takes no relative actions, which this "
                "policy has; use --inference.type=rtc"
            )
        if cfg.use_torch_compile:
            raise SettingError(
                f"use_torch_compile=true: a one-step policy does not use it, {UNUSED['compile_model']}; "
                f"leave it out"
            )
        if isinstance(cfg.inference, RTCInferenceConfig):
            check_guidance(cfg.policy.sampling)
            reach = cfg.inference.rtc.execution_horizon
            if reach < 1:
                raise SettingError(
                    f"inference.rtc.execution_horizon={reach}: expected the number of actions over which the "
                    f"running chunk fades, at least 1; --inference.rtc.enabled=false continues none"
                )


def check_ended_rollout(context: Any, given: int) -> None:
    """Raises RolloutError if the policy failed, or gave no action, though LeRobot's loop ended normally.

    Args:
        context: LeRobot's.
        given: actions that the inference engine gave.
    """
    policy, engine, cfg = context.policy.policy, context.policy.inference, context.runtime.cfg
    if not isinstance(policy.config, OneStepConfig):
        return
    said = "its messages above (RTC inference error) say why"
    if engine.failed:
        raise RolloutError(f"the policy failed so often that LeRobot ended the rollout: {said}")
    queue = getattr(engine, "action_queue", None)
    # In other strategies a person may have taken over.
    if given or queue is None or not isinstance(cfg.strategy, BaseStrategyConfig):
        return
    nothing = f"the robot got no action in {cfg.duration:g} s, as"
    if queue.queue is None:
        raise RolloutError(
            f"{nothing} the policy gave no chunk; if it failed, {said}, and if not, it was too slow for so "
            f"short a --duration"
        )
    size = policy.config.chunk_size
    raise RolloutError(
        f"{nothing} each chunk came later than its {size} actions last at --fps={cfg.fps:g}; take fewer "
        f"--policy.num_inference_steps, a lower --fps, or --inference.type=sync, where the robot waits"
    )
