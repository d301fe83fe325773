"""Continues a chunk that the robot is still carrying out: real-time chunking where there is one step.

Real-time chunking (arXiv 2506.07339) asks for the next chunk while the running one goes on. The actions that
will be carried out before the answer comes are frozen; the others have to continue them. Its guidance bends
each of many small steps towards what is left. One jump has no later step to mend what a bend breaks, so here
what is left is the warm start, and then fades out of the finished chunk. LeRobot 0.6.1 guides through no
network gradient, so that one step of its guidance, with a weight of 1, is this fading;
docs/serving.md derives it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lerobot.policies.rtc import RTCProcessor
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch import Tensor

from ofp_vla.errors import DataError
from ofp_vla.policies.sampling import Sampling


@dataclass(frozen=True)
class LeftOver:
    """The actions of the running chunk that were not carried out when the next one was asked for.

    Attributes:
        actions: (B, T, A) normalised, 1 <= T <= H; the first one is due at the observation of the new chunk.
        frozen: how many of them, at most T, will have been carried out when the new chunk arrives.
    """

    actions: Tensor
    frozen: int

    @classmethod
    def read(
        cls, given: Tensor | None, delay: int | None, *, rows: int, size: int, horizon: int
    ) -> LeftOver | None:
        """What LeRobot's real-time engine hands over; None if nothing is left.

        The engine fills up a short rest with zeros, which are not actions: those at the end that are zero in
        every dimension are dropped, and so is what goes beyond the horizon.

        Args:
            given: (B, T, A), or (T, A) for one observation; T may be 0.
            delay: actions carried out until the chunk arrives; None for 0. It may exceed T: no more than what
                is left can be frozen.
            rows: observations B.
            size: dimensions of the robot, A.
            horizon: actions of a chunk, H.

        Raises:
            DataError: another shape, NaN, or a delay that is no number of actions.
        """
        delay = 0 if delay is None else delay
        if isinstance(delay, bool) or not isinstance(delay, int) or delay < 0:
            raise DataError(f"inference_delay is {delay!r}, expected a number of actions, 0 or more")
        if given is None:
            return None
        actions = given[None] if given.ndim == 2 else given
        if actions.ndim != 3 or len(actions) != rows or actions.shape[2] != size:
            raise DataError(
                f"prev_chunk_left_over has shape {tuple(given.shape)}, expected (batch={rows}, any number, "
                f"actions={size}): what is left of each observation's running chunk, as "
                f"predict_action_chunk returned it"
            )
        actions = actions[:, :horizon]
        if not bool(torch.isfinite(actions).all()):
            raise DataError("prev_chunk_left_over holds NaN or infinity; nothing can continue it")
        there = actions.ne(0).any(dim=2).any(dim=0).nonzero()
        length = int(there.max()) + 1 if len(there) else 0
        return cls(actions[:, :length], min(delay, length)) if length else None

    def start(self, horizon: int, width: int) -> Tensor:
        """(B, H, D) to start the new chunk near: the last action repeated, unused dimensions 0 as in data."""
        rows, length, size = self.actions.shape
        warm = self.actions.new_zeros(rows, horizon, width)
        warm[:, :length, :size] = self.actions
        warm[:, length:, :size] = self.actions[:, -1:]
        return warm

    def weights(self, rtc: RTCConfig | None, horizon: int) -> Tensor:
        """Share (H,) of what is left in each action of the new chunk: 1 where frozen.

        Behind, LeRobot's `prefix_attention_schedule` over its `execution_horizon`, or over what is left if
        that is shorter; without real-time settings 0.
        """
        if rtc is None:
            return (torch.arange(horizon) < self.frozen).float()
        end = max(min(rtc.execution_horizon, self.actions.shape[1]), self.frozen)
        return RTCProcessor(rtc).get_prefix_weights(self.frozen, end, horizon)

    def fade(self, chunk: Tensor, weights: Tensor) -> Tensor:
        """`chunk` (B, H, A) with what is left blended in by `weights` (H,)."""
        rest = self.start(*chunk.shape[1:]).to(chunk)
        return torch.lerp(chunk, rest, weights.to(chunk)[:, None].expand_as(rest))

    def freeze(self, chunk: Tensor) -> Tensor:
        """`chunk` (B, H, A) with the frozen actions in their place, bit for bit."""
        return torch.cat([self.actions[:, : self.frozen].to(chunk), chunk[:, self.frozen :]], dim=1)


def check_guidance(way: Sampling) -> None:
    """Raises DataError if LeRobot's guided sampler cannot draw in the way that is asked for."""
    if way.sampler == "host" and way.draws > 1:
        raise DataError(
            f"real-time chunking by {way}: LeRobot's guided sampler draws one chunk, not {way.draws}; take "
            f"one (--policy.draws=1, --draws 1), or the interval sampler, which continues several "
            f"(--policy.sampler=interval, --sampler interval)"
        )
