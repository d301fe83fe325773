"""The previous chunk as a start for the next one, per environment, in normalised units (OFP, inference)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ofp_vla.core.sampling import shift_and_pad


@dataclass(frozen=True)
class LastChunk:
    """The last chunk of each environment and the state that it was predicted from."""

    chunk: Tensor  # (B, H, D) normalised
    state: Tensor | None  # (B, S) normalised

    def shifted(self, executed: int) -> Tensor:
        """The part not yet executed, its last action repeated to the full horizon: (B, H, D)."""
        return shift_and_pad(self.chunk, executed)


def rebase(actions: Tensor, old_state: Tensor, new_state: Tensor, scale: Tensor) -> Tensor:
    """Re-expresses normalised actions relative to `old_state` as relative to `new_state`.

    A relative action is an absolute one minus the state, so it changes by (old - new); `scale` carries a normalised
    state difference to a normalised action difference and is 0 on dimensions that are absolute.

    Args:
        actions: (B, H, D) or (B, D).
        old_state: (B, S) normalised, S >= A = len(scale).
        new_state: (B, S) normalised.
        scale: (A,), A <= D.
    """
    size = scale.shape[0]
    shift = (old_state[:, :size] - new_state[:, :size]) * scale
    if actions.ndim == 3:
        shift = shift[:, None]
    moved = actions.clone()
    moved[..., :size] += shift.to(actions)
    return moved


def relative_scale(stats: dict[str, dict], action_names: list[str] | None, excluded: list[str]) -> list[float] | None:
    """`scale` of `rebase` from dataset statistics: state range over action range, 0 where a joint stays absolute.

    Returns None where quantiles of state or action are missing.
    """
    state, action = stats.get("observation.state", {}), stats.get("action", {})
    if not all(q in s for q in ("q01", "q99") for s in (state, action)):
        return None
    ranges = [torch.as_tensor(s["q99"]) - torch.as_tensor(s["q01"]) for s in (state, action)]
    size = min(len(r) for r in ranges)
    scale = (ranges[0][:size] / ranges[1][:size].clamp(min=1e-8)).float()
    for index, name in enumerate((action_names or [])[:size]):
        if any(token.lower() in name.lower() for token in excluded if token):
            scale[index] = 0.0
    return scale.tolist()
