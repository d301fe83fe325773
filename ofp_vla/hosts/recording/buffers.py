"""The tensors that recordings read: each call's inputs are copied into them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor


def buffers(like: Sequence[Any]) -> list[Any]:
    """Tensors of the same kinds, laid out alike; what is no tensor stays as it is."""
    return [torch.empty_like(x) if isinstance(x, Tensor) else x for x in like]


def copy(buffers: Sequence[Any], tensors: Sequence[Any]) -> None:
    """Copies tensors into their buffers."""
    for buffer, tensor in zip(buffers, tensors, strict=True):
        if isinstance(buffer, Tensor):
            buffer.copy_(tensor, non_blocking=True)


def signature(tensors: Sequence[Any]) -> tuple[Hashable, ...]:
    """What tensors have to have in common to share buffers."""
    return tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else None for x in tensors)


class Kept:
    """Tensors that many calls read and few change: they are copied into a recording's buffers once."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self.tensors = list(tensors)
        self.signature = signature(self.tensors)


class Buffers:
    """The buffers of all recordings that read kept tensors of one signature, and whose tensors are there."""

    def __init__(self, like: Sequence[Tensor | None]) -> None:
        self.tensors = buffers(like)
        self._of: ref[Kept] | None = None

    def hold(self, kept: Kept) -> bool:
        """Copies `kept`; False if it was there already."""
        if self._of is not None and self._of() is kept:
            return False
        copy(self.tensors, kept.tensors)
        self._of = ref(kept)
        return True

    def changed(self) -> None:
        """Notes that somebody has written into the tensors."""
        self._of = None
