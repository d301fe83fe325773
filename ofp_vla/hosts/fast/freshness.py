"""Whether what was made of a network's weights is still true.

A copy of changed weights gives wrong actions without an error, and nothing cheap tells every change: writing
through `tensor.data` moves neither a tensor's address nor its version. So a `Watch` has two questions.
`stale`, asked at every use, costs a quarter of a microsecond a tensor and sees what autograd, optimisers,
`load_state_dict`, `.to`, adapters and weight roles do, that a module was replaced, and on a CPU that a whole
tensor was written by whatever means, by one of its numbers. `changed`, asked where an episode begins, reads
every copied weight once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from itertools import repeat
from operator import attrgetter, contains, getitem, is_
from typing import Any, NamedTuple

import numpy as np
import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

_address = torch._C.TensorBase.data_ptr
_version = attrgetter("_version")
_expired = torch.UntypedStorage._expired
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_WIDTHS = (torch.int64, torch.int32, torch.int16, torch.uint8)
_INTEGERS = {width.itemsize: width for width in _WIDTHS}
_read = np.ndarray.item


class NotPacked(Exception):
    """Says why the weights of a network, as it is, are not copied; the path without copies is taken then."""


def require(holds: bool, otherwise: str) -> None:
    """Raises NotPacked with a reason unless something holds."""
    if not holds:
        raise NotPacked(otherwise)


class Source(NamedTuple):
    """A tensor or a module and where it was found, so that another in its place is noticed."""

    holder: Mapping[str, Any]
    name: str
    found: Any


class Sources:
    """The tensors and modules that were read while something was made of them.

    Attributes:
        copied: tensors whose values were copied, or went into constants.
        used: tensors that are used as they are, so that only another one in their place matters.
        modules: all modules passed through, whose routing, hooks and replaced methods matter.

    Args:
        stand_ins: see `Roles.stand_ins`.
        root: where all these modules stand, so that another in the place of one is noticed.
        checked: whether tensors that a `Watch` cannot watch are refused.
    """

    def __init__(
        self,
        stand_ins: Mapping[int, tuple[Mapping[str, Tensor], str]] | None = None,
        root: nn.Module | None = None,
        *,
        checked: bool = True,
    ) -> None:
        self.copied: dict[int, Source] = {}
        self.used: dict[int, Source] = {}
        self.modules: dict[int, nn.Module] = {}
        self._stand_ins = stand_ins or {}
        self._root = root
        self._checked = checked

    def enter(self, module: nn.Module) -> None:
        """Notes a module whose weights are read without calling it.

        Raises:
            NotPacked: a call would do more than its class says.
        """
        if _intercepted(module):
            raise NotPacked(f"{type(module).__name__} has a hook or another forward than its class")
        self.modules[id(module)] = module

    def read(self, module: nn.Module, name: str, *, copied: bool = True) -> Tensor | None:
        """Parameter or buffer `name` of a module; None if the module has none.

        Raises:
            NotPacked: it is no plain tensor.
        """
        self.enter(module)
        holder: Mapping[str, Any] = module._parameters if name in module._parameters else module._buffers
        tensor = holder.get(name)
        if tensor is None:
            return None
        if self._checked and (type(tensor) not in _PLAIN or tensor.is_meta):
            kind = "meta tensor" if tensor.is_meta else type(tensor).__name__
            raise NotPacked(f"{type(module).__name__}.{name} is a {kind}")
        if id(tensor) in self._stand_ins:
            # What stands in a module now is a constant that a weight role put there for this pass.
            holder, name = self._stand_ins[id(tensor)]
            source, copied = Source(holder, name, holder[name]), True
        else:
            source = Source(holder, name, tensor)
        (self.copied if copied else self.used)[id(source.found)] = source
        return tensor.detach()

    def read_all(self, module: nn.Module, *, copied: bool = True) -> None:
        """Notes every parameter that a module reads when it is called as it is, and its routing.

        Raises:
            NotPacked: see `read`.
        """
        for part in _passed(module):
            self.enter(part)
            for name in part._parameters:
                self.read(part, name, copied=copied)

    def places(self) -> list[Source]:
        """Where each module passed through stands below the root, and each module that it stands in."""
        around: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        for module in self._root.modules() if self._root is not None else ():
            for name, child in module._modules.items():
                around[id(child)].append((module, name))
        found, waiting = [], list(self.modules.values())
        while waiting:
            module = waiting.pop()
            for holder, name in around.pop(id(module), ()):
                found.append(Source(holder._modules, name, module))
                waiting.append(holder)
        return found


class Unwatched:
    """In place of a `Watch` over tensors that nothing changes."""

    def stale(self) -> bool:
        """Never."""
        return False

    changed = stale


class Watch:
    """What `Sources` were when it was made.

    Raises:
        NotPacked: a tensor has no version, or they lie on several devices.
    """

    def __init__(self, sources: Sources) -> None:
        copied = list(sources.copied.values())
        every = copied + [s for key, s in sources.used.items() if key not in sources.copied]
        devices = {source.found.device for source in every}
        if len(devices) > 1:
            raise NotPacked(f"the weights lie on several devices: {sorted(map(str, devices))}")
        self._tensors: list[Tensor] = [source.found for source in every]
        self._holders, self._names, self._found = zip(*every, *sources.places(), strict=True)
        self._copied = self._tensors[: len(copied)]
        modules = sources.modules.values()
        self._known = [module.__dict__ for module in modules]
        self._hooks = [hooks for known in self._known for hooks in _hooks(known)]
        self._routed = [m.__dict__ for m in modules if isinstance(m, (BaseTunerLayer, ModulesToSaveWrapper))]
        # Kept from being given to another tensor: an address alone would not tell.
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in self._tensors]
        self._cells = [storage.cdata for storage in self._storages]
        try:
            self._versions = list(map(_version, self._copied))
        except RuntimeError as error:
            raise NotPacked("the weights were made in inference mode, which counts no changes") from error
        self._addresses = list(map(_address, self._tensors))
        self._shapes = [tensor.shape for tensor in self._tensors]
        self._routes = deepcopy(_routes(self._routed))
        self._samples = _samples(self._copied)
        self._sampled = list(map(_read, self._samples))
        self._sums = _sums(self._copied)

    def stale(self) -> bool:
        """Whether anything that is seen without reading all weights has changed; asks no device."""
        try:
            return (
                not all(map(is_, map(getitem, self._holders, self._names), self._found))
                or list(map(_address, self._tensors)) != self._addresses
                or list(map(_version, self._copied)) != self._versions
                or any(map(_expired, self._cells))
                or _routes(self._routed) != self._routes
                or any(self._hooks)
                or any(map(contains, self._known, repeat("forward")))
                # Last: what lies elsewhere by now, or nowhere, is not read.
                or list(map(_read, self._samples)) != self._sampled
            )
        except KeyError:  # a parameter, a module or a role is gone
            return True

    def changed(self) -> bool:
        """Whether the copied weights have other bits than they had; reads them all and waits."""
        if self.stale() or [tensor.shape for tensor in self._tensors] != self._shapes:
            return True
        return not torch.equal(_sums(self._copied), self._sums)

    def same_sources(self, other: Watch) -> bool:
        """Whether another watch is over the same tensors, routed alike."""
        return self._addresses == other._addresses and self._routes == other._routes


def _intercepted(module: nn.Module) -> bool:
    known = module.__dict__
    return any(_hooks(known)) or "forward" in known


def _hooks(known: Mapping[str, Any]) -> tuple[Any, Any]:
    return known["_forward_hooks"], known["_forward_pre_hooks"]


def _passed(module: Any) -> Iterator[nn.Module]:
    """The module and those below it that a call passes through, by the routing of adapters as it is now.

    So what a role does not read may be trained without a change for that role.
    """
    yield module
    if isinstance(module, ModulesToSaveWrapper):
        (name,) = module.active_adapters
        own = not module._disable_adapters and name in module.modules_to_save
        yield from _passed(module.modules_to_save[name] if own else module.original_module)
    elif type(module) is LoraLinear:
        yield from _passed(module.base_layer)
        for name in () if module._disable_adapters else module.active_adapters:
            for part in (module.lora_A, module.lora_B):
                if name in part:
                    yield from _passed(part[name])
    else:
        for child in module.children():
            yield from _passed(child)


def _routes(routed: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """By module: which adapters are active, how strong, and which are merged into the base's weights."""
    names = ("_active_adapter", "_disable_adapters", "scaling", "merged_adapters")
    return [[known.get(name) for known in routed] for name in names]


def _samples(tensors: Iterable[Tensor]) -> list[np.ndarray]:
    """The bits of one number in the middle of each tensor on a CPU, () each, where they lie."""
    return [
        tensor.detach()[tuple(size // 2 for size in tensor.shape)].view(_INTEGERS[tensor.itemsize]).numpy()
        for tensor in tensors
        if tensor.device.type == "cpu" and tensor.numel()
    ]


def _sums(tensors: Iterable[Tensor]) -> Tensor:
    """(n,) int64: the bits of each tensor, read as whole numbers, added up: exact, so one bit shows."""
    return torch.stack([_bits(tensor.detach()).sum(dtype=torch.int64) for tensor in tensors])


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().flatten() if tensor.ndim else tensor.reshape(1)
    size = flat.numel() * flat.element_size()
    width = next(w for w in _WIDTHS if size % w.itemsize == 0 and flat.data_ptr() % w.itemsize == 0)
    return flat.view(width)
