"""What a piece of work costs, counted without a clock: FLOPs, operator calls, bytes of weights, waits.

Works on any device, and on tensors without memory: so the published size is counted on a small machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_aten: Any = torch.ops.aten
# Operators after which the host knows a number of the device, and so has waited for it.
_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"}
# Methods that do the same without an operator of their own.
_READING: set[Any] = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


@dataclass(frozen=True)
class Cost:
    """What was counted.

    Attributes:
        flops: of matrix products and convolutions, two a multiplication and addition.
        calls: operators that compute; views and shapes are free. On a GPU each is a kernel or more, so this
            stands for launches.
        weight_bytes: bytes of the given weights that these operators read, each reading counted.
        waits: times at which the host asked for a number that the device computes.
    """

    flops: int
    calls: int
    weight_bytes: int
    waits: int

    def describe(self) -> dict[str, int]:
        """The fields as JSON values."""
        return asdict(self)


def count(work: Callable[[], object], weights: Iterable[Tensor] = ()) -> Cost:
    """Runs `work` once and counts what it did; `weights` are those whose reading is counted."""
    calls = _Calls({w.untyped_storage()._cdata for w in weights})
    reads = _Reads()
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as flops, calls, reads:
        work()
    return Cost(flops.get_total_flops(), calls.calls, calls.weight_bytes, calls.waits + reads.waits)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# PyTorch 2.11 counts the fused attention of a GPU alone.
_ATTENTION: dict[Any, Any] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class _Calls(TorchDispatchMode):
    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self._weights = weights
        self.calls = self.waits = self.weight_bytes = 0
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if waits_for_device(func, args):
            self.waits += 1
        elif not func.is_view and name not in _FREE:
            self.calls += 1
            self.by_name[name] += 1
            for given in tree_leaves(args):
                if isinstance(given, Tensor) and given.untyped_storage()._cdata in self._weights:
                    # An embedding reads the rows of its table that it returns.
                    read = out if name == "embedding" else given
                    self.weight_bytes += read.numel() * read.element_size()
        return out


def waits_for_device(func: Any, args: Any) -> bool:
    """Whether the host knows a number of the device after the operator `func`, and so has waited for it."""
    name = func.overloadpacket.__name__
    return name in _WAITING or (name.startswith("index") and _by_mask(args))


def _by_mask(args: Any) -> bool:
    """Whether `index` or `index_put` has to ask how many entries a mask selects."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


# Allocation, bookkeeping and questions of a tensor without memory, which launch nothing.
_FREE = {
    "detach",
    "device",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "_unsafe_view",
    "lift_fresh",
}


class _Reads(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits += func in _READING
        return func(*args, **(kwargs or {}))
