"""Chunks for robots that move on while the policy thinks: each continues what its session is still doing.

Real-time chunking of `ofp_vla.policies.one_step.continuation` for a batch of sessions, some of which may have
nothing to continue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from ofp_vla.policies.one_step.continuation import LeftOver
from ofp_vla.policies.one_step.drawing import Drawn
from ofp_vla.policies.sampling import Sampling
from robotwin_eval.policy.protocol import Request


def left_over(requests: Sequence[Request], previous: Mapping[int, Tensor], size: int) -> dict[int, LeftOver]:
    """Row -> what is left of its session's running chunk, for requests that say how late their chunk will be.

    Args:
        requests: one a row.
        previous: row -> (H, D) the running chunk from the present on, its last action repeated to H.
        size: dimensions of the robot, A.
    """
    found = {}
    for row, chunk in previous.items():
        executed, delay = requests[row].executed, requests[row].delay
        length = len(chunk) - executed
        if delay is not None and length:
            found[row] = LeftOver(chunk[None, :length, :size], min(delay, length))
    return found


def draw_continued(
    policy: Any,
    batch: Mapping[str, Any],
    left: Mapping[int, LeftOver],
    *,
    noise: Tensor,
    sampling: Sampling,
    **others: Any,
) -> Drawn:
    """Draws chunks; the rows in `left` continue what is left there.

    Jumps start warm from it, and it fades out of them. The host's own sampler is LeRobot's guided one for
    these rows, each in a pass of its own.

    Args:
        policy: an `Acting`.
        batch: a preprocessed observation batch.
        left: by row.
        noise: as `policy.draw` takes it.
        sampling: likewise.
        others: likewise.

    Raises:
        DataError: several draws of the host's own sampler.
    """
    rtc = policy.real_time_settings() if left else None
    guided = sampling.sampler == "host" and bool(left)
    rows = len(noise)
    if guided and len(left) == rows:
        drawn = Drawn(noise.new_zeros(rows, *noise.shape[-2:]))
    else:
        drawn = policy.draw(batch, noise=noise, sampling=sampling, **others)
    chunk = drawn.chunk.clone() if left else drawn.chunk
    for row, rest in left.items():
        if guided:
            only = {name: value[row : row + 1] for name, value in batch.items() if _has_rows(value, rows)}
            own = policy.guided_chunk(only, noise[row : row + 1], sampling, rest, rtc)
            chunk[row] = pad(own, (0, chunk.shape[-1] - own.shape[-1]))[0]
        else:
            size = rest.actions.shape[-1]
            chunk[row, :, :size] = policy.joined(chunk[row : row + 1, :, :size], rest, rtc)[0]
    return replace(drawn, chunk=chunk)


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, (Tensor, list)) and len(value) == rows
