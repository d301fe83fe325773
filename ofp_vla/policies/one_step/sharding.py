"""LoRA training under FSDP: what is sharded, and what every process holds and keeps the same.

LeRobot's trainer wraps the policy by accelerate's plugin (FSDP1, the version whose checkpoints it writes).
One flat parameter of frozen and trained tensors would make autograd differentiate the frozen base, and would
cut a student's tensor and its average at different elements. So the large frozen layers are sharded, each by
itself, since a host calls the layers of its transformer, not the blocks that contain them. Adapters, interval
head and small layers are held by every process: FSDP leaves them alone; their gradients are averaged here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState, is_initialized
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, distributed, nn
from torch.autograd import Variable

from ofp_vla.hosts.roles import AdapterRoles, Roles

# Numbers in a layer from which on it is sharded; each sharded layer costs one message per pass.
SHARDED_FROM = 4096


def prepare_sharding(policy: nn.Module, roles: Roles) -> None:
    """Tells accelerate how to shard `policy` if this process trains under FSDP; does nothing otherwise.

    Call it after the roles are made and PEFT has wrapped the policy in place, but before the trainer wraps
    it, on every process.

    Raises:
        ValueError: FSDP2, or a policy that is trained without LoRA.
    """
    plugin = _plugin()
    if plugin is None:
        return
    if plugin.fsdp_version != 1:
        raise ValueError(
            f"FSDP version {plugin.fsdp_version}: LeRobot's trainer writes checkpoints of version 1 only; "
            "set fsdp_version: 1 in accelerate's configuration"
        )
    if not isinstance(roles, AdapterRoles):
        raise ValueError(
            "FSDP with whole trained tensors is not supported: their average and the teacher are swapped in "
            "place. Train by LoRA (--peft.method_type=LORA), or use several processes without FSDP"
        )
    sharded = sharded_layers(policy)
    chosen = set(map(id, sharded))
    # Frozen layers are sharded as they are stored; FSDP's own casts would take the actions with them.
    plugin.mixed_precision_policy = None
    plugin.auto_wrap_policy = functools.partial(_is_one_of, chosen=chosen)
    plugin.ignored_modules = [m for m in policy.modules() if _is_leaf(m) and id(m) not in chosen]
    host: Any = policy.host
    host.captures.stop("FSDP gathers the weights of a layer in each call")
    held = [p for m in plugin.ignored_modules for p in m.parameters()]
    for parameter in held:
        distributed.broadcast(parameter.data, 0)
    MeanGradients(p for p in held if p.requires_grad)


def sharded_layers(policy: nn.Module) -> list[nn.Module]:
    """Frozen layers of at least `SHARDED_FROM` numbers that no role replaces."""
    held = {id(inner) for part in policy.modules() for own in _role_modules(part) for inner in own.modules()}
    layers = []
    for module in policy.modules():
        tensors = list(module.parameters(recurse=False))
        frozen = bool(tensors) and not any(p.requires_grad for p in tensors)
        large = sum(p.numel() for p in tensors) >= SHARDED_FROM
        if frozen and large and id(module) not in held and _is_leaf(module):
            layers.append(module)
    return layers


class MeanGradients:
    """Averages the gradients of `parameters` over all processes at the end of every backward pass.

    A parameter without a gradient in one process counts as zero there; without one in all, it stays without.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self._averaged_at_the_end_of: int | None = None
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._at_the_end)

    def _at_the_end(self, _: Tensor) -> None:
        # Keyed by the number of the backward pass: one that fails never reaches its end.
        current = torch._C._current_graph_task_id()
        if self._averaged_at_the_end_of != current:
            self._averaged_at_the_end_of = current
            Variable._execution_engine.queue_callback(self._average)

    @torch.no_grad()
    def _average(self) -> None:
        first = self.parameters[0]
        present = torch.tensor([p.grad is not None for p in self.parameters], device=first.device).float()
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([present, *(gradient.flatten() for gradient in own)])
        distributed.all_reduce(flat)
        count, flat = flat[: len(present)], flat[len(present) :] / distributed.get_world_size()
        sizes = [p.numel() for p in self.parameters]
        for parameter, mean, processes in zip(self.parameters, flat.split(sizes), count, strict=True):
            if processes > 0:
                parameter.grad = mean.view_as(parameter).to(parameter.dtype)


def _plugin() -> Any:
    if not is_initialized():
        return None
    state = AcceleratorState()
    return state.fsdp_plugin if state.distributed_type == DistributedType.FSDP else None


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _role_modules(module: nn.Module) -> list[nn.Module]:
    if isinstance(module, ModulesToSaveWrapper):
        return [module]
    if isinstance(module, BaseTunerLayer):
        return [getattr(module, name) for name in module.adapter_layer_names if hasattr(module, name)]
    return []


def _is_one_of(module: nn.Module, recurse: bool, nonwrapped_numel: int, chosen: set[int]) -> bool:
    """A wrapping policy of FSDP: look into every module, wrap those of `chosen`."""
    return recurse or id(module) in chosen
