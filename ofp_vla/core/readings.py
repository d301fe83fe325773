"""Numbers for the log that stay on the device until somebody looks at one of them."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Readings:
    """Behaves like a dictionary of names and plain numbers; the first look waits for the device, once.

    A step whose numbers nobody reads, or only after it has ended, does not wait for them in its middle. It is
    no `Mapping`, because accelerate makes every mapping that a forward pass returns again, which looks.
    """

    def __init__(self, read: Callable[[], dict[str, float]]) -> None:
        self._read = read

    @classmethod
    def of(cls, scalars: Mapping[str, Tensor]) -> Readings:
        """Scalars on a device, all read together."""
        names = list(scalars)
        stacked = torch.stack([x.detach().float() for x in scalars.values()]) if names else torch.empty(0)
        return cls(lambda: dict(zip(names, stacked.tolist(), strict=True)))

    @cached_property
    def _numbers(self) -> dict[str, float]:
        return self._read()

    def __or__(self, others: Mapping[str, float | Tensor]) -> Readings:
        """With more numbers, known ones or scalars on the device."""
        return Readings(lambda: self._numbers | {name: float(value) for name, value in others.items()})

    def __getitem__(self, name: str) -> float:
        return self._numbers[name]

    def __setitem__(self, name: str, value: float) -> None:
        self._numbers[name] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __eq__(self, other: object) -> bool:
        return self._numbers == (other._numbers if isinstance(other, Readings) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return _known, (self._numbers,)

    def get(self, name: str, default: Any = None) -> Any:
        """As a dictionary's."""
        return self._numbers.get(name, default)

    def keys(self) -> KeysView[str]:
        """As a dictionary's."""
        return self._numbers.keys()

    def values(self) -> ValuesView[float]:
        """As a dictionary's."""
        return self._numbers.values()

    def items(self) -> ItemsView[str, float]:
        """As a dictionary's."""
        return self._numbers.items()


def _known(numbers: dict[str, float]) -> Readings:
    return Readings(lambda: numbers)
