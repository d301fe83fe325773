"""How layers run where a gradient is wanted: compiled into few kernels, or again in the backward pass."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.recording.captures import Captures
from ofp_vla.hosts.recording.compilers import graphs_made, told
from ofp_vla.hosts.recording.proof import FUSED, check
from ofp_vla.hosts.roles import STUDENT, Roles

logger = logging.getLogger(__name__)

# Type of device -> PyTorch's compiler for it. On a CPU compiling takes longer than a short run saves.
BACKENDS: dict[str, str] = {"cuda": "inductor"}


class Regions:
    """Functions of a layer's module and tensors, each compiled at its first use.

    All layers share a region: it takes their parameters as inputs. One is compiled for each shape, and its
    outputs and gradients are compared with those of the function itself, once.

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
        before = graphs_made()
        try:
            out = self._compiled[whole](*given)
            if graphs_made() != before:
                _compare(self._compiled[whole], whole, given)
            return out
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler has many; if it is the function's own, it comes again
            out = function(*args)
            self.reason = told(error, 200)
            logger.warning("a training step's layers run operator by operator, uncompiled: %s", self.reason)
            return out


class Layers:
    """The part of a host that runs layers."""

    model: Any
    roles: Roles
    levers: Levers
    captures: Captures
    regions: Regions

    def _region[T](self, function: Callable[..., T], *args: object) -> T:
        """A layer of the expert: compiled where a gradient is wanted, if nothing else is done with it."""
        if not torch.is_grad_enabled() or self._checkpoints() or self.captures.stopped:
            return self._checkpointed(function, *args)
        return self.regions.run(function, *args) if self.levers.compile else function(*args)

    def _checkpoints(self) -> bool:
        model = self.model
        wanted = getattr(model, "gradient_checkpointing_enabled", False) and model.training
        return wanted and torch.is_grad_enabled()

    def _checkpointed[T](self, function: Callable[..., T], *args: object) -> T:
        if self._checkpoints():
            run = self._kept_under(self.roles.active, function)
            return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)
        return function(*args)

    def _kept_under[T](self, role: str, function: Callable[..., T]) -> Callable[..., T]:
        """Wraps a function in the weights of `role`: the backward pass repeats it outside any context."""
        if role == STUDENT:
            return function

        def run(*args: object) -> T:
            with self.roles.use(role):
                return function(*args)

        return run


def _compare(compiled: Callable[..., Any], plain: Callable[..., Any], given: Any) -> None:
    """Raises `Unequal` if outputs or gradients differ by more than rounding."""
    modules = [x for x in given if isinstance(x, nn.Module)]
    tensors = [x for x in tree_leaves(given) if isinstance(x, Tensor)]
    wanted = [x for x in (*tensors, *(p for m in modules for p in m.parameters())) if x.requires_grad]
    reduced = torch.is_autocast_enabled(tensors[0].device.type) or any(
        x.is_floating_point() and x.element_size() < 4 for x in tensors
    )

    def numbers(function: Callable[..., Any]) -> list[Tensor | None]:
        out = function(*given)
        if not out.requires_grad:
            return [out]
        return [out, *torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)]

    found, expected = numbers(compiled), numbers(plain)
    check(found, expected, reduced=reduced, what="a compiled layer", loosely=FUSED)
