"""Products in float8 (e4m3) with a scale for each row of both factors, as Hopper's tensor cores take them.

x W^T ~ s_x s_w (q_x q_w^T): a row's scale puts its largest entry at 448, the largest that e4m3 holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 448.0
TYPE = torch.float8_e4m3fn


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float8 rows (N, K) and their scales (N, 1), float32, of a matrix (N, K)."""
    wide = rows.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / LARGEST
    return (wide / scale).clamp(-LARGEST, LARGEST).to(TYPE), scale


def multiply_fp8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Product (..., N), in x's type, of x (..., K) and a quantised weight (N, K) with scales (N, 1)."""
    rows, scales = quantised(x.flatten(0, -2))
    out = torch._scaled_mm(
        rows, weight.t(), scale_a=scales, scale_b=scale.t(), out_dtype=x.dtype, use_fast_accum=True
    )
    return out.view(*x.shape[:-1], -1)
