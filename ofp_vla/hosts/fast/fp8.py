"""Products in float8 (e4m3) with a scale for each row of both factors, as Hopper's tensor cores take them.

x W^T ~ s_x s_w (q_x q_w^T): a row's scale puts its largest entry at 448, the largest number of e4m3, whose
three bits of mantissa leave an error of 1/16 at most, but near zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ofp_vla.errors import DeviceError

LARGEST = 448.0
TYPE = torch.float8_e4m3fn
# Compute capability of the first card whose product takes a scale for each row.
_HOPPER = (9, 0)


def refuse_missing(device: torch.device) -> None:
    """Raises DeviceError if a device has no product of float8 matrices."""
    if device.type != "cuda":
        found = f"the policy is on {str(device)!r}"
    else:
        has = torch.cuda.get_device_capability(device)
        if has >= _HOPPER:
            return
        found = f"{torch.cuda.get_device_name(device)} has {has[0]}.{has[1]}"
    raise DeviceError(
        f"policy.engine=+fp8 needs a GPU of compute capability {_HOPPER[0]}.{_HOPPER[1]} (Hopper) or more, "
        f"and {found}: leave +fp8 out"
    )


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float8 rows (N, K) and their scales (N, 1), float32, of a matrix (N, K)."""
    wide = rows.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / LARGEST
    return (wide / scale).clamp(-LARGEST, LARGEST).to(TYPE), scale


def multiply_fp8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Product (..., N), in x's type, of x (..., K) and a quantised weight (N, K) with scales (N, 1)."""
    rows, scales = quantised(x.flatten(0, -2))
    return scaled_product(rows, weight, scales, scale, x.dtype).view(*x.shape[:-1], -1)


def scaled_product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype) -> Tensor:
    """(M, N) of float8 (M, K) and (N, K) with the scales (M, 1) and (N, 1) of their rows."""
    return torch._scaled_mm(
        a, b.t(), scale_a=scale_a, scale_b=scale_b.t(), out_dtype=dtype, use_fast_accum=True
    )
