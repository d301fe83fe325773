"""A layer of the expert as one compiled region where a gradient is wanted: fewer, larger kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

logger = logging.getLogger(__name__)

# Type of device -> PyTorch's compiler for it. On a CPU compiling takes longer than a short run saves.
BACKENDS: dict[str, str] = {"cuda": "inductor"}


class Regions:
    """Functions of a layer's module and tensors, each compiled at its first use.

    All layers share a region: it takes their parameters as inputs. One is compiled for each shape.

    Attributes:
        reason: why nothing is compiled any more, "" while it works.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Regions, ()

    def run[T](self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)`, compiled where its tensors are on a device that has a compiler."""
        device = next(x.device.type for x in tree_leaves(args) if isinstance(x, Tensor))
        if self.reason or device not in BACKENDS:
            return function(*args)
        # A bound method is another object at each access; its function is one.
        bound: Any = function
        whole = getattr(bound, "__func__", bound)
        given = args if whole is bound else (bound.__self__, *args)
        if whole not in self._compiled:
            self._compiled[whole] = torch.compile(
                whole, backend=BACKENDS[device], fullgraph=True, dynamic=False
            )
        try:
            return self._compiled[whole](*given)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler has many; if it is the function's own, it comes again
            out = function(*args)
            self.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            logger.warning("a training step's layers run operator by operator, uncompiled: %s", self.reason)
            return out
