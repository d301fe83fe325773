"""Runs LeRobot's trainer in one of several processes with draws that belong to the frame, not to the process.

    python parallel_driver.py JOBS.json

A job has a `folder`, the trainer's `arguments`, the `parts` of a batch and whether to shard by `fsdp`. Every
frame of the dataset gets its own noise and times at each step, so that a step is the same function of its
frames however they are spread over processes or parts. Writes what the trainer saw and made to
<folder>/rank<R>.pt.
"""

import functools
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState, PartialState
from draccus.wrappers import docstring
from lerobot.scripts import lerobot_train
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp._flat_param import FlatParamHandle

import ofp_vla.policies  # noqa: F401  registers the policies
from ofp_vla.core.objectives import flow_matching, ofp_draw, slots
from ofp_vla.hosts.roles import EMA, STUDENT
from ofp_vla.policies.one_step.policy import OneStepPolicy
from ofp_vla.training.in_parts import update_in_parts

ROLES = (STUDENT, EMA)


class FrameDraws:
    """Draws in place of `ofp_vla.core.draws`: a row's values follow from its frame, the step and the call."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self.step = self.calls = 0

    def _rows(self, draw) -> Tensor:
        self.calls += 1
        seeds = [(frame * 1009 + self.step) * 1009 + self.calls for frame in self.frames]
        return torch.stack([draw(torch.Generator().manual_seed(seed)) for seed in seeds])

    def normal(self, shape, device, generator=None) -> Tensor:
        """(B, ...) normal values."""
        return self._rows(lambda g: torch.randn(*shape[1:], generator=g)).to(device)

    def stratified(self, size, device, generator=None) -> Tensor:
        """(B,) uniforms; each by itself as the real ones are."""
        return self._rows(lambda g: torch.rand((), generator=g)).to(device)


class Ended(Exception):
    """The trainer is done."""


def sharding_accelerator() -> Accelerator:
    """As LeRobot's trainer makes it from what `accelerate launch` tells, which it heeds on GPUs only.

    On a CPU, FSDP's gathering for a checkpoint would free the very tensors that it moves to the CPU.
    """
    FlatParamHandle.to_cpu = nullcontext
    accelerator = Accelerator(step_scheduler_with_optimizer=False, cpu=True)
    # Where accelerate keeps them: every `AcceleratorState()` copies from there. FSDP knows no "cpu:0".
    PartialState._shared_state |= {"distributed_type": DistributedType.FSDP, "device": torch.device("cpu")}
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return accelerator


def train(folder: Path, arguments: list[str], parts: int, fsdp: bool) -> None:
    """Runs one training and writes what came of it."""
    draws, made, losses, frames, sharded = FrameDraws(), [], [], [], []
    for module in (ofp_draw, flow_matching):
        module.normal = draws.normal
    for module in (ofp_draw, flow_matching, slots):
        module.stratified = draws.stratified
    update = update_in_parts(parts) if parts > 1 else UPDATE

    def remember(*args, **kwargs):
        made.append(MAKE(*args, **kwargs))
        draws.step = made[-1].config.trained_steps
        return made[-1]

    def keyed(policy, batch, *args, **kwargs):
        draws.frames, draws.calls = batch["index"].flatten().tolist(), 0
        return FORWARD(policy, batch, *args, **kwargs)

    def watch(metrics, policy, batch, *args, **kwargs):
        frames.append(batch["index"].flatten().tolist())
        units = FullyShardedDataParallel.fsdp_modules(policy)
        sharded.append(sum(parameter.numel() for unit in units for parameter in unit.params))
        metrics, log = update(metrics, policy, batch, *args, **kwargs)
        losses.append(metrics.loss.val)
        draws.step += 1
        return metrics, log

    def finish(accelerator):
        roles = made[0].host.roles
        state = {role: {k: v.detach().clone() for k, v in roles.tensors(role).items()} for role in ROLES}
        state |= {"steps": made[0].config.trained_steps, "total": made[0].config.total_steps}
        state |= {"losses": losses, "frames": frames}
        state["sharded"] = sharded[-1]
        torch.save(state, folder / f"rank{accelerator.process_index}.pt")
        raise Ended

    lerobot_train.make_policy, lerobot_train.update_policy = remember, watch
    OneStepPolicy.forward, Accelerator.end_training = keyed, finish
    sys.argv = ["lerobot-train", *arguments]
    try:
        lerobot_train.train(accelerator=sharding_accelerator() if fsdp else None)
    except Ended:
        # The group of processes stays for the next training.
        if fsdp:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
        AcceleratorState._reset_state()
        GradientState._reset_state()


MAKE, UPDATE, FORWARD = lerobot_train.make_policy, lerobot_train.update_policy, OneStepPolicy.forward

if __name__ == "__main__":
    # Which LeRobot's parser reads from the sources for each option, once more for each training.
    docstring.get_attribute_docstring = functools.cache(docstring.get_attribute_docstring)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        train(Path(job["folder"]), job["arguments"], job["parts"], job["fsdp"])
    # Taking gloo's groups down can hang once the other rank is gone.
    os._exit(0)
