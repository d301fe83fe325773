"""Where the weights of a model lie, to tell cheaply whether a recording still reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

from torch import Tensor, nn


class Whereabouts:
    """The tensors that a model's modules hold now, where each lies, and how adapters are routed.

    What is written in place is no move. A move is another tensor, another memory under the same (`.to`,
    `.data =`), another module (an adapter that wraps a layer), another routing, or dropout switched on.

    Args:
        model: the model.
        beside: tensors beside it that its passes read, such as the sets of weight roles.
        routing: what decides which of them a pass reads.
        copies: whether what passes read beside all that, copies of weights, is still true.
    """

    def __init__(
        self,
        model: nn.Module,
        beside: Callable[[], Iterable[Tensor]] = tuple,
        routing: Callable[[], object] = tuple,
        copies: Callable[[], bool] = lambda: True,
    ) -> None:
        self._beside, self._routing, self._copies = beside, routing, copies
        # Read as dictionaries: attributes of modules are ten times as slow, and there are thousands.
        places: list[tuple[dict[str, Any], str]] = []
        for module in model.modules():
            for held in (module._parameters, module._buffers, module._modules):
                places += [(held, name) for name in held]
        self._places = places
        self._there = [held[name] for held, name in places]
        self._around = list(beside())
        tensors = [x for x in (*self._there, *self._around) if isinstance(x, Tensor)]
        self._tensors = tensors
        self._addresses = list(map(Tensor.data_ptr, tensors))
        self._types = [(x.shape, x.dtype) for x in tensors]
        # Aliases: the memory of a tensor whose data is replaced is not given to another.
        self._alive = [x.detach() for x in tensors]
        self._dropouts = [m.__dict__ for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
        self._routed = routing()
        self._drops = self._dropping()

    @property
    def reduced(self) -> bool:
        """Whether some of them have 16 bits or fewer."""
        return any(dtype.is_floating_point and dtype.itemsize < 4 for _, dtype in self._types)

    def same(self) -> bool:
        """Whether nothing has moved since this was made."""
        try:
            there = [held[name] for held, name in self._places]
        except KeyError:
            return False
        around = list(self._beside())
        return (
            all(map(is_, there, self._there))
            and len(around) == len(self._around)
            and all(map(is_, around, self._around))
            and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
            and [(x.shape, x.dtype) for x in self._tensors] == self._types
            and self._dropping() == self._drops
            and self._routing() == self._routed
            and self._copies()
        )

    def _dropping(self) -> list[bool]:
        return [bool(d["training"] and d["p"]) for d in self._dropouts]
