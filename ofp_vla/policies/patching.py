"""Patching: turns a loaded LeRobot policy into a one-step policy around the same tensors, and back."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.policies.pretrained import PreTrainedPolicy
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

import ofp_vla.policies  # noqa: F401  registers the policies that are looked up below
from ofp_vla.errors import UnsupportedPolicyError
from ofp_vla.hosts.interval import HEAD_MODULE
from ofp_vla.hosts.roles import DEFAULT_ADAPTER, has_adapters
from ofp_vla.policies.configuration import OneStepConfig
from ofp_vla.policies.one_step.policy import OneStepPolicy


@dataclass
class Handover:
    """What `unpatch` needs: the original, and for each of its parameters the one that shares its memory."""

    original: Any
    twins: list[tuple[nn.Parameter, nn.Parameter]] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Handover:
        # A copy of the patched policy is no reason to copy the original too.
        return self


def supported() -> dict[type[PreTrainedPolicy], type[OneStepPolicy]]:
    """One-step policy classes by the LeRobot policy class that they take."""
    classes = [get_policy_class(name) for name in policy_types()]
    return {cls.stock_class: cls for cls in classes}


def policy_types() -> list[str]:
    """LeRobot's names of the one-step policies, one for each host."""
    known = PreTrainedConfig.get_known_choices()
    return sorted(name for name, config in known.items() if issubclass(config, OneStepConfig))


def patch(policy: Any, config: OneStepConfig | None = None, **overrides: Any) -> Any:
    """Makes a loaded LeRobot policy a one-step policy without copying a weight.

    The modules are new and share the memory of every parameter: training the result in full also changes the
    original's weights, while adapters, freezing and hooks of one do not touch the other. With its new
    interval head the result's velocities are the original's.

    Args:
        policy: `PI05Policy`, `PI0Policy` or `SmolVLAPolicy`, or a `PeftModel` with LoRA around one.
        config: configuration of the one-step policy; the original's with our defaults if None.
        **overrides: configuration fields to change, such as `train_expert_only=True` or `ofp=OFPConfig(...)`.

    Returns:
        The one-step policy; a `PeftModel` around it if one was given, whose adapter then holds the head too.

    Raises:
        UnsupportedPolicyError: another class, a policy of this package, or adapters that are not LoRA.
        ValueError: an override is not a field of the configuration or has a bad value.
    """
    stock = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    cls = _one_step_class(stock)
    config = _configure(cls, stock, config, overrides)
    handover = Handover(policy)
    memo = _shared(stock, handover)
    memo[id(stock.config)] = config
    model = copy.deepcopy(stock.model, memo)
    for compiled in ("forward", "sample_actions"):
        # Compiled methods are bound to the original's modules.
        model.__dict__.pop(compiled, None)
    adapted = has_adapters(stock)
    if not adapted and _freezing(config) != _freezing(stock.config):
        cls.host_class.set_trainable(model, config)
    patched = cls.around(model, config)
    result: Any = patched
    if adapted:
        memo[id(stock)] = patched
        result = _adapt_head(policy, patched, memo)
    patched.handover = handover
    result.train(policy.training)
    return result


def unpatch(policy: Any) -> Any:
    """Returns the policy that `patch` took, on the device where its weights are now.

    Its weights are the patched policy's: unchanged if that was trained only by adapters added after patching,
    or not at all.

    Raises:
        UnsupportedPolicyError: `policy` does not come from `patch`.
    """
    patched = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    handover = getattr(patched, "handover", None)
    if handover is None:
        raise UnsupportedPolicyError(
            f"{type(patched).__name__} was not made by ofp_vla.patch, so there is no original to give back"
        )
    for own, twin in handover.twins:
        if own.data_ptr() != twin.data_ptr() or own.device != twin.device:
            own.data = twin.data
    # Parameters are in place; buffers follow them.
    handover.original.to(next(patched.parameters()).device)
    return handover.original


def _one_step_class(stock: Any) -> type[OneStepPolicy]:
    classes = supported()
    listed = ", ".join(stock_class.__name__ for stock_class in classes)
    if isinstance(stock, OneStepPolicy):
        raise UnsupportedPolicyError(
            f"{type(stock).__name__} is a one-step policy already; patch takes LeRobot's {listed}"
        )
    for parent in type(stock).__mro__:
        if parent in classes:
            return classes[parent]
    raise UnsupportedPolicyError(
        f"patch does not support {type(stock).__name__}; it takes {listed}, also inside a PeftModel. "
        f"docs/adding_a_host.md says how to add another"
    )


def _configure(
    cls: type[OneStepPolicy], stock: PreTrainedPolicy, config: Any, overrides: dict[str, Any]
) -> OneStepConfig:
    if config is not None and not isinstance(config, cls.config_class):
        raise ValueError(
            f"config is a {type(config).__name__}, {type(stock).__name__} needs {cls.config_class.__name__}"
        )
    config = copy.deepcopy(config if config is not None else stock.config)
    config = cls.adopt_config(config, type(stock).__name__)
    if overrides.get("sampler") == "host":
        # The original's own number of steps, which the default sampler does not use.
        steps = getattr(stock.config, cls.host_class.stock_steps)
        overrides = {"num_inference_steps": steps} | overrides
    config.change(**overrides)
    return config


def _freezing(config: Any) -> tuple[bool, bool]:
    return config.train_expert_only, config.freeze_vision_encoder


def _shared(stock: nn.Module, handover: Handover) -> dict[int, Any]:
    """Memo for `copy.deepcopy` under which tensors and tokenizers are shared."""
    memo: dict[int, Any] = {}
    for parameter in stock.parameters():
        twin = parameter
        # Quantised parameters carry more than data and stay the same object.
        if type(parameter) is nn.Parameter:
            # Detached, not `data`: a change of one is counted as a change of the other.
            twin = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
            handover.twins.append((parameter, twin))
        memo[id(parameter)] = twin
    memo |= {id(buffer): buffer for buffer in stock.buffers()}
    for module in stock.modules():
        for value in vars(module).values():
            if isinstance(value, (torch.Tensor, ProcessorMixin, PreTrainedTokenizerBase)):
                memo[id(value)] = value
    return memo


def _adapt_head(policy: Any, patched: OneStepPolicy, memo: dict[int, Any]) -> Any:
    """Makes the interval head part of the default adapter, in a wrapper like `policy` around `patched`."""
    result: Any = patched
    if isinstance(policy, PeftModel):
        result = copy.deepcopy(policy, memo)
        patched.peft_config = result.peft_config
    else:
        patched.peft_config = copy.deepcopy(policy.peft_config)
    adapter = patched.peft_config.get(DEFAULT_ADAPTER)
    if adapter is None or str(getattr(adapter.peft_type, "value", adapter.peft_type)) != "LORA":
        raise UnsupportedPolicyError(
            f"patch takes LoRA in an adapter named {DEFAULT_ADAPTER!r}; this policy has "
            f"{ {name: str(c.peft_type) for name, c in patched.peft_config.items()} }"
        )
    adapter.modules_to_save = [*(adapter.modules_to_save or ()), HEAD_MODULE]
    head = ModulesToSaveWrapper(patched.model.interval_head, DEFAULT_ADAPTER)
    head.set_adapter(DEFAULT_ADAPTER, inference_mode=adapter.inference_mode)
    patched.model.interval_head = head
    return result
