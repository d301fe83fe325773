"""The last gate before a robot: no NaN and nothing beyond the limits leaves the policy silently."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lerobot.configs.types import NormalizationMode
from torch import Tensor

from ofp_vla.errors import NonFiniteActionError
from ofp_vla.policies.normalization import normalization_line

logger = logging.getLogger(__name__)


class ActionGuard:
    """Limits of normalised actions; counts what it had to clip.

    Args:
        low: (A,) lowest allowed, or None for no lower limit.
        high: (A,) highest allowed, or None.
        margin: share of (high - low) by which an action may go beyond.
    """

    def __init__(self, low: list[float] | None, high: list[float] | None, margin: float) -> None:
        self.limits: tuple[Tensor, Tensor] | None = None
        self.clipped = 0
        if low is not None and high is not None:
            lowest, highest = torch.tensor(low), torch.tensor(high)
            slack = margin * (highest - lowest).clamp(min=1e-3)
            self.limits = (lowest - slack, highest + slack)

    def __call__(self, actions: Tensor) -> Tensor:
        """Checks and clips (B, H, A) normalised actions.

        Raises:
            NonFiniteActionError: Some row holds NaN or infinity.
        """
        bad = ~torch.isfinite(actions).flatten(1).all(dim=1)
        if bool(bad.any()):
            rows = bad.nonzero().flatten().tolist()
            raise NonFiniteActionError(
                f"the policy computed NaN or infinite actions for batch rows {rows}; nothing was returned. "
                f"Check the checkpoint and the observation statistics of these rows"
            )
        if self.limits is None:
            return actions
        low, high = (limit.to(actions) for limit in self.limits)
        size = low.shape[0]
        inside = actions[..., :size].clamp(low, high)
        changed = (inside != actions[..., :size]).flatten(0, -2).sum(dim=0)
        count = int(changed.sum())
        if count:
            if self.clipped == 0:
                dimensions = changed.nonzero().flatten().tolist()
                logger.warning(
                    "%d predicted action values beyond the limits were clipped (dimensions %s); later "
                    "ones are counted without a message",
                    count,
                    dimensions,
                )
            self.clipped += count
        return torch.cat([inside, actions[..., size:]], dim=-1)


def limits_from_stats(
    action: Mapping[str, Any], mode: NormalizationMode | str
) -> tuple[list[float], list[float]] | None:
    """The dataset's smallest and largest action in normalised units, or None without statistics.

    Args:
        action: statistics of the actions by name.
        mode: how the policy normalises actions.
    """
    line = normalization_line(action, mode)
    if line is None or not {"min", "max"} <= action.keys():
        return None
    slope, offset = line
    low, high = (slope * torch.as_tensor(action[k]).float().flatten() + offset for k in ("min", "max"))
    return low.tolist(), high.tolist()
