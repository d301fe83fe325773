"""The contract between objectives and hosts: queries, the velocity field that answers them, action chunks.

Time follows the paper (arXiv 2603.12480): t = 0 is noise, t = 1 is data, and a jump is
z_r = z_t + (r - t) u(z_t, t, r | o).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Query:
    """One interval velocity asked of every sample of a batch.

    Attributes:
        z: (B, H, D) noisy action chunk.
        t: (B,) start of the interval, in [0, 1].
        r: (B,) end of the interval, t <= r <= 1; r == t asks for the instantaneous velocity.
        null: (B,) bool, True drops the whole condition of that sample; None keeps every condition.
        ordered: whether the caller has made the times so that they are in order; comparing them would make
            the host wait for the device.

    Raises:
        ValueError: on shapes that do not agree, or (on the CPU only, where checking needs no device
            synchronisation) on times outside 0 <= t <= r <= 1.
    """

    z: Tensor
    t: Tensor
    r: Tensor
    null: Tensor | None = None
    ordered: bool = False

    def __post_init__(self) -> None:
        if self.z.ndim != 3:
            raise ValueError(f"Query.z: expected (B, H, D), got shape {tuple(self.z.shape)}")
        batch = (self.z.shape[0],)
        for name, value in (("t", self.t), ("r", self.r), ("null", self.null)):
            if value is not None and tuple(value.shape) != batch:
                raise ValueError(f"Query.{name}: expected shape {batch} as z has, got {tuple(value.shape)}")
        if self.null is not None and self.null.dtype != torch.bool:
            raise ValueError(f"Query.null: expected dtype bool, got {self.null.dtype}")
        on_cpu = self.t.device.type == "cpu" and self.r.device.type == "cpu"
        if on_cpu and not self.ordered and not _ordered(self.t, self.r):
            raise ValueError(f"Query: times must satisfy 0 <= t <= r <= 1, got t={self.t}, r={self.r}")


def _ordered(t: Tensor, r: Tensor) -> bool:
    return bool(((t >= 0) & (t <= r) & (r <= 1)).all())


class IntervalField(Protocol):
    """A mean velocity field u(z, t, r | o), already bound to the observations o of a batch."""

    def __call__(self, queries: Sequence[Query]) -> list[Tensor]:
        """Answers all queries in one forward pass: mean velocities, each (B, H, D) float32."""
        ...


@runtime_checkable
class SteppedField(Protocol):
    """A field that can compute what the times of a whole sampling cost before its first step."""

    def __call__(self, queries: Sequence[Query]) -> list[Tensor]:
        """As `IntervalField`."""
        ...

    def stepped(
        self, levels: Sequence[Sequence[tuple[float, float]]], level_of_row: Tensor | None
    ) -> Sequence[IntervalField]:
        """A field for each step, which answers queries over that step's interval only.

        Args:
            levels: for each level that rows start at, the interval (t, r) of each step.
            level_of_row: (B,) int64, which of them each row of the batch has; None if there is one.
        """
        ...


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """Expert actions of a batch.

    Attributes:
        actions: (B, H, D) normalised actions.
        valid: (B, H, D) bool, False on padded dimensions and on the padded tail of an episode.

    Raises:
        ValueError: on shapes that do not agree or a mask that is not boolean.
    """

    actions: Tensor
    valid: Tensor

    def __post_init__(self) -> None:
        if self.actions.ndim != 3:
            raise ValueError(f"ActionChunk.actions: expected (B, H, D), got {tuple(self.actions.shape)}")
        if self.valid.shape != self.actions.shape:
            raise ValueError(
                f"ActionChunk.valid: expected the shape of actions {tuple(self.actions.shape)}, "
                f"got {tuple(self.valid.shape)}"
            )
        if self.valid.dtype != torch.bool:
            raise ValueError(f"ActionChunk.valid: expected dtype bool, got {self.valid.dtype}")

    @classmethod
    def full(cls, actions: Tensor) -> ActionChunk:
        """A chunk of shape (B, H, D) without any padding."""
        return cls(actions, torch.ones_like(actions, dtype=torch.bool))
