"""How noise becomes the chunk that is carried out: packed draws, one of them chosen, more steps in doubt."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ofp_vla.core.choosing import choose, distances, spread
from ofp_vla.core.sampling import sample
from ofp_vla.errors import MemoryFullError
from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.host import BoundField, FlowHost
from ofp_vla.hosts.observation import Observation
from ofp_vla.policies.one_step.agreement import Agreement, agreement
from ofp_vla.policies.sampling import Sampling

logger = logging.getLogger(__name__)

# What PyTorch says where the processor's own memory ends; an accelerator's has an error of its own.
_NO_MEMORY = "DefaultCPUAllocator"


@dataclass(frozen=True)
class Drawn:
    """What was drawn for B observations.

    Attributes:
        chunk: (B, H, max_action_dim), one of each observation's draws.
        spread: (B,) how far apart those lay; None for a single draw.
        doubted: (B,) bool, whether they lay so far apart that more steps were taken; None if none ever are.
    """

    chunk: Tensor
    spread: Tensor | None = None
    doubted: Tensor | None = None


@dataclass(frozen=True)
class Start:
    """Where chunks of B observations start: rows of all tensors belong together.

    Attributes:
        noise: (B, H, D) or (B, K, H, D).
        warm: (B, H, D) chunk to start near, if any.
        warm_rows: (B,) bool, which observations do; all of them if None.
        executed: (B,) actions that will be carried out, where observations differ in it.
    """

    noise: Tensor
    warm: Tensor | None
    warm_rows: Tensor | None
    executed: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All fields, in their order."""
        return self.noise, self.warm, self.warm_rows, self.executed

    def of_rows(self, rows: Tensor) -> Start:
        """The starts of some observations, by their indices (n,)."""
        return Start(
            self.noise[rows], *(None if x is None else x[rows.to(x.device)] for x in self.tensors[1:])
        )


@dataclass(frozen=True)
class Drawing:
    """How chunks are drawn of any observation.

    Attributes:
        host: whose passes.
        role: whose weights.
        way: by which sampler, in how many evaluations, how many draws.
        t_w: level of a warm start.
        actions: dimensions of the robot, the first ones of a chunk; the others do not count as distance.
        executed: actions of a chunk that will be carried out, unless a `Start` says; the others do not count
            either.
    """

    host: FlowHost
    role: str
    way: Sampling
    t_w: float
    actions: int
    executed: int

    def __call__[T](
        self,
        observation: Observation,
        start: Start,
        then: Callable[[Tensor], tuple[Tensor, T]],
        key: Hashable = None,
    ) -> tuple[Drawn, T]:
        """Draws chunks, chooses among the draws of each observation, and finishes them.

        Where the draws spread beyond `way.doubt`, the same noises are drawn once more in `way.doubt_steps`
        evaluations, and one of those is chosen. Only these observations take part, over the prefix that is
        there already, so that no observation depends on those beside it. How many they are is known only
        when they are, so that such a way is not recorded as a whole.

        Args:
            observation: B observations.
            start: their noise, and where warm starts begin.
            then: finishes chunks (B, H, max_action_dim) without a wait for the device; what it says of them
                is returned too.
            key: equal for all `then` that do the same.

        Raises:
            MemoryFullError: the pass does not fit in memory.
        """
        way = self.way
        with _room_for(len(start.noise), way):
            if way.doubt_steps:
                self.host.unrepeated("a chunk with doubt", "how many rows are in doubt depends on the chunk")
                drawn = self._with_doubt(self.host.bind(observation, self.role), start)
                chunk, said = then(drawn.chunk)
                return replace(drawn, chunk=chunk), said
            observation = self.host.fitted(observation)

            def once(parts: Sequence[Any], *tensors: Any) -> tuple[Tensor, Tensor | None, T]:
                field = self.host.bind(observation.of(parts), self.role)
                drawn, apart = self._once(field, Start(*tensors), way.steps)
                chunk, said = then(drawn)
                return chunk, apart, said

            own = (observation.extent, self.role, way, self.t_w, self.actions, self.executed, key)
            chunk, apart, said = self.host.repeated("a chunk", own, once, observation.tensors, *start.tensors)
        return Drawn(chunk, apart), said

    def agreement(
        self,
        observation: Observation,
        start: Start,
        drawn: Drawn,
        then: Callable[[Tensor], tuple[Tensor, object]],
        levers: Levers | None = None,
    ) -> Agreement | None:
        """How near chunks are to those by other levers; None if no row can be compared.

        Args:
            observation: of which `drawn` are the chunks.
            start: as they were drawn.
            drawn: rows that were in doubt or are not finite are left out.
            then: as for the chunks.
            levers: the others; none of them if None.
        """
        host, kept = self.host, drawn.chunk.isfinite().flatten(1).all(dim=1)
        if drawn.doubted is not None:
            kept &= ~drawn.doubted
        own, host.levers = host.levers, levers or Levers.of("off")
        try:
            plain = self._all(host.bind(observation, self.role), start, self.way.steps)
        except torch.OutOfMemoryError:
            logger.warning("no memory is left to compare a chunk with the path by other levers")
            return None
        finally:
            host.levers = own
        chunk, plain = (x[kept, ..., : self.actions] for x in (drawn.chunk, then(plain)[0]))
        return agreement(chunk, plain, reduced=host.reduced) if len(chunk) else None

    def _with_doubt(self, field: BoundField, start: Start) -> Drawn:
        chunk, apart = self._once(field, start, self.way.steps)
        assert apart is not None  # one draw has no doubt
        doubted = apart > self.way.doubt
        rows = doubted.nonzero()[:, 0]
        if len(rows):
            again = self._once(field.of_rows(rows), start.of_rows(rows), self.way.doubt_steps)
            chunk = chunk.index_copy(0, rows, again[0])
        return Drawn(chunk, apart, doubted)

    def _once(self, field: BoundField, start: Start, steps: int) -> tuple[Tensor, Tensor | None]:
        """Chosen chunks (B, H, D) and the spread (B,) of their draws, None of a single one."""
        chunks = self._all(field, start, steps)
        if chunks.ndim == 3:
            return chunks, None
        executed = self.executed if start.executed is None else start.executed
        apart = distances(chunks[..., : self.actions], executed)
        at = torch.arange(len(chunks), device=chunks.device)
        return chunks[at, choose(apart, self.way.choose)], spread(apart)

    def _all(self, field: BoundField, start: Start, steps: int) -> Tensor:
        """(B, H, D), or (B, K, H, D) before one of them is chosen."""
        return sample(
            field,
            start.noise,
            steps=steps,
            warm=start.warm,
            warm_rows=start.warm_rows,
            t_w=self.t_w,
            diagonal=self.way.sampler == "host",
        )


@contextmanager
def _room_for(rows: int, way: Sampling) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and _NO_MEMORY not in str(error):
            raise
        fewer = "fewer draws (--draws, policy.draws) or " if way.draws > 1 else ""
        raise MemoryFullError(
            f"draws={way.draws} for a batch of {rows} do not fit in memory in one pass: take {fewer}a "
            f"smaller batch (ofp-vla serve --max-batch, lerobot-eval --eval.batch_size); PyTorch said: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
