"""Sampling: one step or a few from noise or from a warm start (OFP, arXiv 2603.12480, inference)."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_float
from itertools import pairwise

import torch
from torch import Tensor

from ofp_vla.core.field import IntervalField, Query, SteppedField
from ofp_vla.core.path import interpolate, jump


def sample(
    field: IntervalField,
    noise: Tensor,
    *,
    steps: int = 1,
    warm: Tensor | None = None,
    warm_rows: Tensor | None = None,
    t_w: float = 0.15,
    diagonal: bool = False,
) -> Tensor:
    """Draws action chunks from a field in `steps` evaluations.

    Several draws of an observation share each evaluation: their queries are packed. A field that says what it
    was trained for (`BoundNetwork.check`) is not sampled by anything else. One that can prepare for the times
    of all steps (`SteppedField`) does so once.

    Args:
        field: interval velocity field bound to the observations of the batch.
        noise: (B, H, D) standard normal, or (B, K, H, D) for K draws of each observation.
        steps: network evaluations on a uniform grid over [t_0, 1].
        warm: (B, H, D) chunk to start near, normalised as the field's actions are (`shift_and_pad` makes one
            from the last chunk); sampling then starts at t_w from (1 - t_w) noise + t_w warm.
        warm_rows: (B,) bool, which samples start near `warm`, the others at t_0 = 0; None means all of them.
        t_w: warm start level in [0, 1), used only with `warm`.
        diagonal: integrate the instantaneous velocity u(z, t, t) by Euler, as the host does, instead of
            jumping with the mean velocity u(z, t, r).

    Returns:
        Float32 action chunks of the noise's shape.

    Raises:
        ValueError: on steps < 1, t_w outside [0, 1), shapes that differ, or velocities that the field was not
            trained for.
    """
    check = getattr(field, "check", None)
    if check is not None:
        check(steps, diagonal)
    if noise.ndim not in (3, 4):
        raise ValueError(f"sample: noise must be (B, H, D) or (B, K, H, D), got shape {tuple(noise.shape)}")
    points = [noise.float()] if noise.ndim == 3 else list(noise.float().unbind(1))
    start = points[0].new_zeros(len(noise))
    levels, level_of_row = [0.0], None
    if warm is not None:
        if warm.shape != points[0].shape:
            raise ValueError(f"sample: warm has shape {tuple(warm.shape)}, noise {tuple(noise.shape)}")
        if not 0 <= t_w < 1:
            raise ValueError(f"sample: t_w must be in [0, 1), got {t_w}")
        level, levels = torch.full_like(start, t_w), [t_w]
        if warm_rows is not None:
            warm_rows = warm_rows.to(start.device)
            level, levels, level_of_row = torch.where(warm_rows, level, start), [0.0, t_w], warm_rows.long()
        start = level
        points = [interpolate(z, warm.to(z), start) for z in points]
    fields: Sequence[IntervalField] = [field] * _checked(steps)
    if isinstance(field, SteppedField):
        fields = field.stepped([_intervals(level, steps, diagonal) for level in levels], level_of_row)
    chunks = _integrate(fields, points, [start] * len(points), diagonal=diagonal, ordered=True)
    return chunks[0] if noise.ndim == 3 else torch.stack(chunks, dim=1)


def integrate(
    field: IntervalField, points: Sequence[Tensor], starts: Sequence[Tensor], *, steps: int, diagonal: bool
) -> list[Tensor]:
    """Moves each point (B, H, D) from its start times (B,) to t = 1 in `steps` calls of the field.

    Every call packs one query for each point. Raises ValueError on steps < 1.
    """
    return _integrate([field] * _checked(steps), points, starts, diagonal=diagonal)


def _checked(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"sample, integrate: steps must be at least 1, got {steps}")
    return steps


def _integrate(
    fields: Sequence[IntervalField],
    points: Sequence[Tensor],
    starts: Sequence[Tensor],
    *,
    diagonal: bool,
    ordered: bool = False,
) -> list[Tensor]:
    """`integrate` by a field for each step; points that start at the same tensor share its times."""
    points = list(points)
    grid_of = {id(start): _grid(start, len(fields)) for start in starts}
    grids = [grid_of[id(start)] for start in starts]
    for k, field in enumerate(fields):
        times = [(grid[k], grid[k + 1]) for grid in grids]
        queries = [
            Query(z, t, t if diagonal else r, ordered=ordered)
            for z, (t, r) in zip(points, times, strict=True)
        ]
        velocities = field(queries)
        points = [jump(z, u.float(), t, r) for z, u, (t, r) in zip(points, velocities, times, strict=True)]
    return points


def _intervals(start: float, steps: int, diagonal: bool) -> list[tuple[float, float]]:
    """What each step asks, (t, r): the float32 numbers of `_grid`, without asking a device for them."""
    first = c_float(start).value
    length = c_float(1.0 - first).value
    times = [first]
    for k in range(1, steps + 1):
        share = c_float(k / steps).value
        # as torch.lerp: from the nearer end
        near = first + share * length if share < 0.5 else 1.0 - (1.0 - share) * length
        times.append(c_float(near).value)
    return [(t, t if diagonal else r) for t, r in pairwise(times)]


def _grid(start: Tensor, steps: int) -> list[Tensor]:
    """Times from `start` to 1, where each step begins and the last one ends; shapes as `start`."""
    # lerp reaches its end exactly, so that the last interval ends at 1
    return [start, *(torch.lerp(start, torch.ones_like(start), (k + 1) / steps) for k in range(steps))]


def shift_and_pad(chunk: Tensor, executed: int) -> Tensor:
    """Drops the first `executed` actions of a chunk (B, H, D) and repeats the last one to keep H.

    For actions relative to the current state the caller must re-base the chunk first.

    Raises:
        ValueError: if executed is not in [0, H].
    """
    horizon = chunk.shape[-2]
    if not 0 <= executed <= horizon:
        raise ValueError(
            f"shift_and_pad: executed must be in [0, {horizon}], the chunk's length; got {executed}"
        )
    last = chunk[..., -1:, :].expand(*chunk.shape[:-2], executed, chunk.shape[-1])
    return torch.cat([chunk[..., executed:, :], last], dim=-2)
