"""Chunks of actions: LeRobot's own sampler and ours, on the same weights and observations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ofp_vla.bench.groups import Group, Stand, Unavailable
from ofp_vla.bench.subjects import Subject, batch_of
from ofp_vla.bench.timing import Arm, Clock
from ofp_vla.policies.checkpoint import LoadedPolicy
from ofp_vla.policies.one_step.policy import OneStepPolicy
from ofp_vla.policies.sampling import Sampling

PART = "acting"
LEROBOT, LEROBOT_ONE = "LeRobot, ten steps", "LeRobot, one step"
COMPILED = "LeRobot compiled, ten steps"
ONE, WARM, DRAWS = "one step", "one step, warm start", "one step, eight draws"
TWO, TEN = "two steps", "ten steps"
FLOAT8_ENGINE = "+fp8"
OFF, FLOAT8 = ", engine=off", ", fp8"

WAYS = {
    ONE: Sampling("interval", 1, False),
    WARM: Sampling("interval", 1, True),
    DRAWS: Sampling("interval", 1, False, 8),
    TWO: Sampling("interval", 2, False),
    TEN: Sampling("interval", 10, False),
}


def acting(batch: int, on: Subject, off: Subject, fp8: Subject, *, compared: bool = False) -> Group:
    """Our ways to act and LeRobot's sampler, eager; `compared` with float32 too."""
    ours = {name: _ours(way, batch) for name, way in WAYS.items()}
    without = {name + OFF: _ours(WAYS[name], batch) for name in (ONE, TEN)}
    lerobot = {LEROBOT: _stock(10, batch), LEROBOT_ONE: _stock(1, batch)}
    float8 = {name + FLOAT8: _ours(WAYS[name], batch, float8=True) for name in (ONE, TEN)}
    return Group(
        PART,
        batch,
        [Stand(on, ours), Stand(off, {**lerobot, **without}), Stand(fp8, float8)],
        weight=3.0,
        compare=partial(_cosines, batch=batch, on=on, off=off, fp8=fp8) if compared else None,
    )


def compiled(batch: int, off: Subject, mode: str) -> Group:
    """LeRobot's sampler as its switch `compile_model` makes it."""
    return Group(PART, batch, [Stand(off, {COMPILED: _compiled(batch, mode)})], late=True)


def _ours(way: Sampling, batch: int, *, float8: bool = False) -> Callable[[LoadedPolicy], Arm]:
    def make(loaded: LoadedPolicy) -> Arm:
        policy = loaded.policy
        seen = batch_of(policy, batch)
        if float8:
            _admit_float8(policy, seen, way)
        before = policy.generate(seen, sampling=way) if way.warm else None
        return Arm(lambda: policy.generate(seen, sampling=way, warm=before), batch)

    return make


def _admit_float8(policy: OneStepPolicy, seen: dict[str, torch.Tensor], way: Sampling) -> None:
    """Raises Unavailable where chunks in float8 are refused."""
    # As it is, and recorded: each is compared on a real observation before it is relied on.
    for _ in range(2):
        policy.draw(seen, sampling=way, watched=None)
    if not policy.host.levers.fp8:
        raise Unavailable("float8 was refused")


@torch.no_grad()
def _cosines(clock: Clock, batch: int, on: Subject, off: Subject, fp8: Subject) -> dict[str, float]:
    """Of chunks in one step and in ten, the least of the batch. `off` becomes float32 and is dropped."""
    if not off.made:
        return {}
    reference: LoadedPolicy = off.made[0]
    config = reference.policy.config
    seen = batch_of(reference.policy, batch)
    noise = torch.randn(batch, config.chunk_size, config.max_action_dim).to(config.device)

    def drawn(loaded: LoadedPolicy, way: str) -> torch.Tensor:
        return loaded.policy.generate(seen, sampling=WAYS[way], noise=noise).double().flatten(1)

    subjects = {"": on, OFF: off, FLOAT8: fp8}
    chunks = {
        (way, suffix): drawn(subject.made[0], way)
        for suffix, subject in subjects.items()
        if subject.made
        for way in (ONE, TEN)
    }
    reference.policy.float()
    exact = {way: drawn(reference, way) for way in (ONE, TEN)}
    off.drop(clock)
    return {
        way + suffix: float(torch.cosine_similarity(chunk, exact[way]).min())
        for (way, suffix), chunk in chunks.items()
    }


def _stock(steps: int, batch: int) -> Callable[[LoadedPolicy], Arm]:
    def make(loaded: LoadedPolicy) -> Arm:
        policy = loaded.policy
        seen = batch_of(policy, batch)
        sampler = policy.host_class.stock_chunk
        return Arm(torch.no_grad()(lambda: sampler(policy, seen, None, steps)), batch)

    return make


def _compiled(batch: int, mode: str) -> Callable[[LoadedPolicy], Arm]:
    def make(loaded: LoadedPolicy) -> Arm:
        core: Any = loaded.policy.model
        eager = _stock(10, batch)(loaded)
        torch._dynamo.reset()
        # The statement of LeRobot's constructor; the attribute is gone again after each call.
        faster = torch.compile(core.sample_actions, mode=mode)

        def run() -> None:
            core.sample_actions = faster
            try:
                eager.run()
            finally:
                del core.sample_actions

        return Arm(run, batch)

    return make
