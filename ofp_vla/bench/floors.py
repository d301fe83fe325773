"""What a machine allows at best: its measured ceilings, and the time that counted work takes at them.

A phase takes at least its operations over the rate of its matrix products, and at least its bytes over the
bandwidth of a copy; phases that wait for each other add up. No version runs faster, so the ratio of a
measured time to this is what is left to gain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch

from ofp_vla.bench.timing import Clock
from ofp_vla.counting import Cost

_ROUNDS = 10
# Bytes of a copied buffer and side of a square product: on a GPU far beyond its caches.
_SIZES = {"cuda": (2**30, 8192)}
_SMALL = (2**26, 1024)


@dataclass(frozen=True)
class Ceilings:
    """What was measured of a machine.

    Attributes:
        copy: bytes a second of a copy within the device's memory, read and written ones counted.
        flops: operations a second of a large matrix product in the policy's type.
    """

    copy: float
    flops: float

    def describe(self) -> dict[str, float]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Phase:
    """Work whose parts overlap: operations, and bytes of weights, `times` times one after the other."""

    flops: float
    bytes: float
    times: int = 1

    @classmethod
    def of(cls, cost: Cost, batch: int = 1, times: int = 1) -> Phase:
        """What was counted for one observation, for a batch: weights are read once for all of its rows."""
        return cls(cost.flops * batch, cost.weight_bytes, times)


def floor(phases: Iterable[Phase], ceilings: Ceilings) -> float:
    """Milliseconds that phases take one after the other."""
    return 1e3 * sum(
        phase.times * max(phase.flops / ceilings.flops, phase.bytes / ceilings.copy) for phase in phases
    )


def measure_ceilings(clock: Clock, dtype: torch.dtype) -> Ceilings:
    """Measures both on random numbers, the best of some rounds: a ceiling is what the machine can do."""
    size, side = _SIZES.get(clock.device.type, _SMALL)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=clock.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)

    def best(work: object) -> float:
        assert callable(work)
        return min(clock(work) for _ in range(_ROUNDS))

    return Ceilings(
        copy=2 * size / best(lambda: target.copy_(source)),
        flops=2 * side**3 / best(lambda: torch.mm(a, b, out=out)),
    )
