"""The layer functions of the fast path, as they are and compiled: once for all layers of a kind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from ofp_vla.hosts.fast.fused_layers import (
    cross_layer,
    expert_layer,
    prefix_keys,
    prefix_layer,
    vision_layer,
)
from ofp_vla.hosts.recording.compilers import graphs_made, told

logger = logging.getLogger(__name__)

# Types of devices on which compiling pays, and by which backend of torch.compile.
COMPILED_ON = {"cuda": "inductor"}
# Batches, prompt lengths, masks and roles' layouts, beyond which PyTorch would give up by default.
_VARIANTS = 64
# What summing in another order and rounding at other places leave of a layer in float32, and in 16 bits.
_ROUNDING, _ROUNDING_16 = 1e-4, 3e-2


class Functions(NamedTuple):
    """One function a kind of layer, see `ofp_vla.hosts.fast.fused_layers`."""

    vision: Callable[..., Any]
    prefix: Callable[..., Any]
    last: Callable[..., Any]
    expert: Callable[..., Any]
    cross: Callable[..., Any]


PLAIN = Functions(vision_layer, prefix_layer, prefix_keys, expert_layer, cross_layer)


class Compiled:
    """A function compiled at its first call, whole; from the first failure on it runs as it is.

    Another number of prompt tokens or rows is compiled once more, and then for all numbers. What was just
    compiled is compared with the function itself, once.
    """

    def __init__(self, function: Callable[..., Any], backend: str | Callable[..., Any]) -> None:
        self._plain = function
        self._run: Callable[..., Any] | None = torch.compile(function, fullgraph=True, backend=backend)

    def __call__(self, *given: Any) -> Any:
        """What the function gives."""
        if self._run is None:
            return self._plain(*given)
        before = graphs_made()
        try:
            found = self._run(*given)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler says, the call itself can be answered
            return self._refused(given, told(error, 300))
        if graphs_made() == before:
            return found
        plain = self._plain(*given)
        apart, bound = _apart(found, plain)
        if apart <= bound:
            return found
        return self._refused(given, f"what was compiled is {apart:.2g} apart, at most {bound:g} is allowed")

    def _refused(self, given: tuple[Any, ...], reason: str) -> Any:
        self._run = None
        logger.warning("%s runs uncompiled: %s", self._plain.__name__, reason)
        return self._plain(*given)


def _apart(found: Any, plain: Any) -> tuple[float, float]:
    """Largest relative distance of tensors that should be the same, and what rounding may make of it."""
    pairs = list(zip(tree_leaves(found), tree_leaves(plain), strict=True))
    bound = _ROUNDING if all(p.dtype == torch.float32 for _, p in pairs) else _ROUNDING_16
    gaps = [(f.float() - p.float()).norm() / p.float().norm().clamp(min=1e-12) for f, p in pairs]
    return float(torch.stack(gaps).max()), bound


@cache
def compiled(backend: str) -> Functions:
    """The functions, compiled by a backend of torch.compile."""
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VARIANTS)
    return Functions(*(Compiled(function, backend) for function in PLAIN))
