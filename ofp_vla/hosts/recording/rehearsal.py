"""A run that finds out whether work can be recorded, before a device is asked to: no waits, no draws."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ofp_vla.counting import waits_for_device

logger = logging.getLogger(__name__)


class Unrecordable(RuntimeError):
    """The work needs its host in the middle: a repetition would give wrong numbers."""


def rehearse(work: Callable[[], object]) -> None:
    """Runs work that has just run, and looks for what a repetition would get wrong.

    Raises:
        Unrecordable: it waits for the device, copies from the host or draws.
    """
    try:
        with _Rehearsal():
            work()
    except (Unrecordable, torch.OutOfMemoryError):
        raise
    except Exception:
        # Of the look itself, as under a compiler that does not run with it: recording will tell.
        logger.debug("a rehearsal came to no end", exc_info=True)


class _Rehearsal(TorchDispatchMode):
    """Raises Unrecordable at the first operator that waits for the device, copies from the host or draws."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if waits_for_device(func, args):
            raise Unrecordable(f"it waits for the device ({name})")
        if _draws(func, args, kwargs):
            raise Unrecordable(f"it draws random numbers ({name})")
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_") and len(_devices((args, out))) > 1:
            raise Unrecordable(f"it copies between host and device ({name})")
        return out


def _devices(values: Any) -> set[str]:
    """Where tensors are; a single number on the host takes part as a constant."""
    return {x.device.type for x in tree_leaves(values) if isinstance(x, Tensor)}


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator draws; attention is marked so for a dropout that is mostly 0."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    for place, argument in enumerate(func._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            given = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
            return bool(given)
    return True
