"""What a chunk and a training step cost, counted on tensors without memory: no clock, no GPU, no weights.

Prompts have `PROMPT` tokens, padded as LeRobot pads them. Operator calls stand for launches: views are free,
and every other operator counts as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ofp_vla.bench import acting, training
from ofp_vla.bench.floors import Phase
from ofp_vla.bench.random_weights import SHAPES, random_config
from ofp_vla.bench.rows import Row
from ofp_vla.bench.subjects import LORA, PROMPT
from ofp_vla.core import field
from ofp_vla.core.field import ActionChunk
from ofp_vla.core.objectives import OBJECTIVES
from ofp_vla.core.sampling import sample
from ofp_vla.counting import Cost, count
from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.observation import Observation, PromptExtent
from ofp_vla.policies.pi05_ofp.modeling_pi05_ofp import PI05OFPPolicy
from ofp_vla.policies.sampling import Sampling

PREFIX, EXPERT, EXPERT_DRAWS = "prefix", "expert", "expert, eight draws"
LAST = acting.TEN + acting.OFF  # of what is counted once
STEP_BATCH = 8  # of a training step


class Counter:
    """Counts work of π0.5 of a size in a type."""

    def __init__(self, size: str, dtype: str, prompt: int = PROMPT) -> None:
        self.size, self.dtype, self.prompt = size, dtype, prompt
        self._mode = FakeTensorMode()

    def policy(self, engine: str = "on") -> PI05OFPPolicy:
        """A policy of shapes and types without numbers, which says that it is on the CPU."""
        config = random_config(self.size, self.dtype, "cpu", engine=engine, attention="sdpa")
        with torch.device("meta"):
            policy = PI05OFPPolicy.around(PI05OFPPolicy.host_class.build(config), config).eval()
        self._give_shapes(policy)
        with self._mode, torch.no_grad():
            policy.host.fast.pack_unwatched()
        return policy

    def trainee(self, objective: str, engine: str) -> PI05OFPPolicy:
        """A policy in training by LoRA on its action expert, of shapes without numbers."""
        config = random_config(
            self.size, self.dtype, "cpu", engine=engine, objective=objective, attention="sdpa"
        )
        with torch.device("meta"):
            policy = PI05OFPPolicy.around(PI05OFPPolicy.host_class.build(config), config)
            config.device = "cpu"
            config.pretrained_path = "shapes"  # type: ignore[assignment]
            policy.wrap_with_peft(peft_cli_overrides=LORA)
            policy.train()
            policy.get_optim_params()  # makes the roles
        self._give_shapes(policy)
        return policy

    def _give_shapes(self, policy: PI05OFPPolicy) -> None:
        for module in policy.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    shape = FakeTensor(self._mode, weight.detach(), torch.device("cpu"))
                    module._parameters[name] = torch.nn.Parameter(shape, weight.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = FakeTensor(self._mode, buffer, torch.device("cpu"))

    def observation(self, batch: int = 1) -> Observation:
        """Prepared pictures and tokens; what would be asked of the device is known."""
        side, cameras, _, _ = SHAPES[self.size]
        padded = self._padded
        return Observation(
            tuple(torch.empty(batch, 3, side, side) for _ in range(cameras)),
            torch.empty(batch, padded, dtype=torch.long),
            torch.empty(batch, padded, dtype=torch.bool),
            extent=PromptExtent(self.prompt, self.prompt),
        )

    @property
    def _padded(self) -> int:
        return max(200, self.prompt)

    def noise(self, draws: int = 1) -> Tensor:
        """Where chunks start."""
        _, _, horizon, width = SHAPES[self.size]
        return torch.empty(1, *([draws] if draws > 1 else []), horizon, width)

    def count(self, work: Callable[[], object], policy: PI05OFPPolicy) -> Cost:
        """What a piece of work on a policy costs."""
        weights = [
            kept for module in policy.modules() for kept in module._parameters.values() if kept is not None
        ]
        with self._mode, torch.no_grad():
            work()  # makes constants of the times
            pack = policy.host.pack()
            return count(work, [*weights, *(pack.tensors() if pack is not None else ())])

    def chunk(self, policy: PI05OFPPolicy, way: Sampling) -> Cost:
        """Our sampler, from prepared pictures and tokens to a chunk."""
        return self.count(
            lambda: sample(policy.host.bind(self.observation()), self.noise(way.draws), steps=way.steps),
            policy,
        )

    def steps(self, policy: PI05OFPPolicy, steps: int) -> Cost:
        """Our sampler in so many steps."""
        return self.chunk(policy, Sampling("interval", steps, False))

    def stock(self, policy: PI05OFPPolicy, steps: int) -> Cost:
        """LeRobot's sampler on the same inputs."""

        def work() -> Any:
            seen = self.observation()
            masks = [torch.empty(1, dtype=torch.bool) for _ in seen.images]
            words = seen.tokens, seen.token_mask
            return policy.model.sample_actions(
                list(seen.images), masks, *words, noise=self.noise(), num_steps=steps
            )

        return self.count(work, policy)

    def step(self, objective: str, batch: int) -> Cost:
        """Forward and backward of a training step by an objective; without the optimiser."""
        policy = self.trainee(objective, "on")

        def loss() -> Tensor:
            _, _, horizon, width = SHAPES[self.size]
            fields = policy.host.bind_all(self.observation(batch), sorted(policy.objective.roles))
            actions = torch.empty(batch, horizon, width)
            chunk = ActionChunk(actions, torch.ones_like(actions, dtype=torch.bool))
            return policy.objective(fields, chunk, progress=0.5, generator=None).total

        return self._backward(policy, loss)

    def stock_step(self, batch: int) -> Cost:
        """Forward and backward of LeRobot's own step, by the same adapters."""
        policy = self.trainee("flow_matching", "off")

        def loss() -> Tensor:
            seen = self.observation(batch)
            masks = [torch.empty(batch, dtype=torch.bool) for _ in seen.images]
            _, _, horizon, width = SHAPES[self.size]
            actions, noise = torch.empty(2, batch, horizon, width).unbind()
            words = seen.tokens, seen.token_mask
            squares: Tensor = policy.model.forward(
                list(seen.images), masks, *words, actions, noise, torch.empty(batch)
            )
            return squares.mean()

        return self._backward(policy, loss)

    def _backward(self, policy: PI05OFPPolicy, loss: Callable[[], Tensor]) -> Cost:
        def work() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16"):
                value = loss()
            value.backward()

        with self._mode, _orders_known():
            work()  # makes the gradients
            return count(work, policy.parameters())

    def prefix(self, policy: PI05OFPPolicy) -> Cost:
        """Pictures and prompt, once a chunk."""
        return self.count(lambda: policy.host.encode(self.observation()), policy)


def count_all(size: str, dtype: str) -> Iterator[tuple[str, Cost]]:
    """Yields what is counted, by name: LeRobot's and our ways, and the phases of which floors are made."""
    counter = Counter(size, dtype)
    on = counter.policy()
    one, two, draws = (
        counter.chunk(on, acting.WAYS[name]) for name in (acting.ONE, acting.TWO, acting.DRAWS)
    )
    yield acting.ONE, one
    yield acting.TWO, two
    yield acting.DRAWS, draws
    yield acting.TEN, after(10, one, two)
    prefix = counter.prefix(on)
    yield PREFIX, prefix
    yield EXPERT, combined(one, prefix, -1)
    yield EXPERT_DRAWS, combined(draws, prefix, -1)
    off = counter.policy("off")
    for name, counted in ((acting.LEROBOT, partial(counter.stock, off)), (LAST, partial(counter.steps, off))):
        one, two = counted(1), counted(2)
        yield name.replace("ten steps", "one step"), one
        yield name, after(10, one, two)


def count_steps(size: str, dtype: str, batch: int = STEP_BATCH) -> Iterator[tuple[str, Cost]]:
    """Yields forward and backward of training steps: LeRobot's own, and every objective's."""
    counter = Counter(size, dtype)
    yield training.LEROBOT, counter.stock_step(batch)
    for name in OBJECTIVES:
        yield name, counter.step(name, batch)


def count_levers(size: str, dtype: str) -> Iterator[tuple[str, Cost]]:
    """Yields ten steps without each lever of the engine."""
    counter = Counter(size, dtype)
    for lever in Levers.names():
        policy = counter.policy(f"-{lever}")
        yield f"{acting.TEN}, without {lever}", counter.chunk(policy, acting.WAYS[acting.TEN])


def combined(one: Cost, other: Cost, factor: int) -> Cost:
    """One cost and `factor` times another."""
    a, b = astuple(one), astuple(other)
    return Cost(*(x + factor * y for x, y in zip(a, b, strict=True)))


def after(steps: int, one: Cost, two: Cost) -> Cost:
    """What so many steps cost, by the costs of one and of two: every further step costs the same."""
    return combined(one, combined(two, one, -1), steps - 1)


def phases(row: Row, counts: Mapping[str, Mapping[str, int]]) -> list[Phase]:
    """What a row has to do at least, as phases; none where it was not counted.

    A chunk reads its prefix once and its expert once a step, whoever computes it. A training step is its
    flow-matching minimum: the prefix forward, and the expert forward and backward (twice as much) once.
    """
    known = {name: Cost(**cost) for name, cost in counts.items()}
    if not {PREFIX, EXPERT, EXPERT_DRAWS} <= known.keys():
        return []
    prefix = Phase.of(known[PREFIX], row.batch)
    if row.part == training.PART:
        once = known[EXPERT]
        tripled = Phase(3.0 * once.flops * row.batch, 2.0 * once.weight_bytes)
        return [prefix, tripled]
    if row.part != acting.PART:
        return []
    ways = {acting.LEROBOT: (10, EXPERT), acting.LEROBOT_ONE: (1, EXPERT), acting.COMPILED: (10, EXPERT)}
    ways |= {
        name: (way.steps, EXPERT_DRAWS if way.draws > 1 else EXPERT) for name, way in acting.WAYS.items()
    }
    name = row.name.removesuffix(acting.OFF)
    if name not in ways:
        return []  # another type than the counted one
    steps, expert = ways[name]
    return [prefix, Phase.of(known[expert], row.batch, steps)]


@contextmanager
def _orders_known() -> Iterator[None]:
    """That times are in order is asked on a CPU alone; here they have no numbers."""
    asked = field._ordered
    field._ordered = lambda t, r: True
    try:
        yield
    finally:
        field._ordered = asked
