"""Our functions around functions of LeRobot and PEFT that offer no hook.

Each gets the original and its arguments; installing a hook that is in place already does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import factory as datasets
from lerobot.optim import factory as optimizers
from lerobot.policies import factory as policies
from lerobot.rollout.configs import RolloutConfig
from lerobot.rollout.strategies import factory as strategies
from lerobot.utils import sample_weighting
from peft import PeftModel

_MARK = "_ofp_vla_hook"


def check_runs(check: Callable[[Any], None]) -> None:
    """Checks a training after `TrainPipelineConfig.validate`, which all go through, even resumed ones."""
    _around(TrainPipelineConfig, "validate", _and_then(check))


def check_evaluations(check: Callable[[Any], None]) -> None:
    """Checks an evaluation once its configuration, including the policy's, is made."""
    _around(EvalPipelineConfig, "__post_init__", _and_then(check))


def check_rollouts(check: Callable[[Any], None]) -> None:
    """Checks a rollout on a robot once its configuration, including the policy's, is made."""
    _around(RolloutConfig, "__post_init__", _and_then(check))


def check_ended_rollouts(check: Callable[[Any, int], None]) -> None:
    """Checks a rollout when its loop has ended, before LeRobot lets go of the robot.

    `check` gets LeRobot's context and how many actions the inference engine gave.
    """

    def make(original: Callable[[Any], Any], config: Any) -> Any:
        strategy = original(config)
        run = strategy.run

        def run_and_check(context: Any) -> None:
            engine, given = context.policy.inference, 0
            get_action = engine.get_action

            def counted(*seen: Any, **more: Any) -> Any:
                nonlocal given
                action = get_action(*seen, **more)
                given += action is not None
                return action

            engine.get_action = counted
            run(context)
            check(context, given)

        strategy.run = run_and_check
        return strategy

    _around(strategies, "create_strategy", make)


def save_adapters(save: Callable[..., None]) -> None:
    """Puts `save(original, peft_model, folder, ...)` in place of PEFT's `save_pretrained`."""
    _around(PeftModel, "save_pretrained", save)


def open_datasets(open_: Callable[..., Any]) -> None:
    """Puts `open_(original, cfg)` in place of `make_train_eval_datasets`, which every training calls."""
    _around(datasets, "make_train_eval_datasets", open_)


def read_processors(read: Callable[..., Any]) -> None:
    """Puts `read(original, policy_cfg, pretrained_path, ...)` in place of `make_pre_post_processors`.

    LeRobot's factory asks a plugin how to make new processors, but reads saved ones as they are.
    """
    _around(policies, "make_pre_post_processors", read)


def make_optimizers(make: Callable[..., Any]) -> None:
    """Puts `make(original, cfg, policy)` in place of `make_optimizer_and_scheduler`."""
    _around(optimizers, "make_optimizer_and_scheduler", make)


def make_sample_weighters(make: Callable[..., Any]) -> None:
    """Puts `make(original, config, policy, device, ...)` in place of `make_sample_weighter`."""
    _around(sample_weighting, "make_sample_weighter", make)


def _and_then(check: Callable[[Any], None]) -> Callable[..., None]:
    def checked(original: Callable[..., None], config: Any) -> None:
        original(config)
        check(config)

    return checked


def _around(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if hasattr(original, _MARK):
        return

    @wraps(original)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        return ours(original, *args, **kwargs)

    setattr(hooked, _MARK, True)
    setattr(owner, name, hooked)
    # LeRobot's commands import functions by name, and some have done so before they look for plugins.
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is original:
            setattr(module, name, hooked)
