"""A linear map with GELU behind it in one kernel, where a device has one for the form that SigLIP has.

`torch._addmm_activation` is GELU by tanh on CUDA, in the product's epilogue, and by erf on a CPU: PyTorch's
own decomposition says so, no documentation does. So it is compared with the two operators before it acts.
`torch.compile` calls it as it is, and does not make it of the two.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from ofp_vla.hosts.recording.compilers import told

logger = logging.getLogger(__name__)

# What summing in another order leaves of a product of 64 terms, and rounding it to 16 bits.
_ROUNDING, _ROUNDING_16 = 1e-5, 2e-2


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU (..., N) of x (..., K) times a weight (N, K) plus a bias (N,), in one kernel."""
    flat = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return flat.view(*x.shape[:-1], -1)


@cache
def one_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `linear_gelu` is the tanh form on a device; if not, the reason is logged, once. Waits."""
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=g) for shape in ((64, 64), (128, 64), (128,)))
    x, weight, bias = (y.to(device, dtype) for y in (x / 8, 2 * weight, bias))
    two = functional.gelu(functional.linear(x, weight, bias), approximate="tanh").float()
    try:
        apart = float((linear_gelu(x, weight, bias).float() - two).abs().max() / two.abs().max())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an operator that is missing, or refuses a type
        reason = told(error, 200)
    else:
        bound = _ROUNDING if dtype == torch.float32 else _ROUNDING_16
        if apart <= bound:
            return True
        reason = f"one kernel is {apart:.2g} apart, at most {bound:g} is allowed"
    logger.warning("SigLIP's GELU stays a kernel of its own on %s in %s: %s", device, dtype, reason)
    return False
