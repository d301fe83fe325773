"""What the fast path reads: weights merged, cast and laid out for `fused_layers`.

Copied are SigLIP in the language model's type, joined queries, keys and values, and a role's whole expert
with its adapters merged in (in float32, cast once). The rest of the prefix, most of the weights, stays the
policy's own. `ofp_vla.hosts.fast.freshness` tells when a copy is no longer true.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ofp_vla.hosts.engine import GPUS
from ofp_vla.hosts.fast.fp8 import quantised
from ofp_vla.hosts.fast.freshness import Unwatched, Watch, require
from ofp_vla.hosts.fast.fused_layers import (
    DecoderLayer,
    Norm,
    Product,
    Rotary,
    VisionLayer,
)
from ofp_vla.hosts.recording.cuda import has_numbers

# Intervals of time whose constants a pack keeps: several grids of ten steps, cold and warm.
_KEPT_TIMES = 64
# Of widths that a GPU multiplies best.
_MULTIPLE = 128
# Positions of a table of rotary embeddings, or a multiple.
_TABLE = 1024


class Tower(NamedTuple):
    """SigLIP and the projection of its features.

    Attributes:
        patches: turns pixels (n, 3, S, S) into features: a product over flat patches, or a module.
        side: of a patch in pixels.
        places: (patches, W) position embedding.
        layers: its layers.
        heads: of each.
        attention: see `fast_attention`.
        norm: weight and bias of the last norm.
        projection: to the width of the language model.
    """

    patches: Product | Callable[[Tensor], Tensor]
    side: int
    places: Tensor
    layers: list[VisionLayer]
    heads: int
    attention: str
    norm: tuple[Tensor, Tensor]
    projection: Product


@dataclass(eq=False)
class PrefixPack:
    """The vision tower and the language model.

    Attributes:
        tower: SigLIP.
        layers: of the language model, with the norm before attention and that before the MLP.
        last: the last layer's norm and its product for keys and values only.
        rotary: see `RotaryTable`.
        vision_type: the type that SigLIP was asked to have.
        watch: whether all this is still true; set by who asks.
        constants: see `Constants`.
    """

    tower: Tower
    layers: list[tuple[Norm, DecoderLayer, Norm]]
    last: tuple[Norm, Product]
    rotary: RotaryTable
    vision_type: torch.dtype | None
    watch: Watch | Unwatched = field(init=False)
    constants: Constants = field(init=False, default_factory=lambda: Constants())

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tokens."""
        return self.last[1].weight.dtype

    @cached_property
    def eighths(self) -> list[tuple[Norm, DecoderLayer, Norm]]:
        """The layers with all weights in float8, copies of the policy's own too; gate and up are joined."""
        return [(norm, _in_fp8(layer), mlp_norm) for norm, layer, mlp_norm in self.layers]


def widened(rise: Product, fall: Product, multiple: int | None = None) -> tuple[Product, Product]:
    """Both layers of an MLP with as many hidden values as a GPU multiplies best; the new ones are zero."""
    if multiple is None:
        multiple = _MULTIPLE if rise.weight.device.type in GPUS else 1
    more = -len(rise.weight) % multiple
    if not more:
        return rise, fall
    bias = None if rise.bias is None else pad(rise.bias, (0, more))
    return Product(pad(rise.weight, (0, 0, 0, more)), bias), Product(pad(fall.weight, (0, more)), fall.bias)


def _in_fp8(layer: DecoderLayer) -> DecoderLayer:
    def product(*parts: Product) -> Product:
        weight, scale = quantised(torch.cat([part.weight for part in parts]))
        require(all(part.bias is None for part in parts), "a bias in the language model")
        return Product(weight, None, scale)

    both = (layer.gate,) if layer.up is None else (layer.gate, layer.up)
    return DecoderLayer(product(layer.qkv), product(layer.out), product(*both), None, product(layer.down))


@dataclass(eq=False)
class ExpertPack:
    """The action expert of one weight role.

    Attributes:
        layers: its layers.
        norms: the norm before each layer's attention, that before its MLP, and so on, and the last; empty
            where the time decides them.
        products: linear maps outside the layers, by the name of their module.
        rotary: see `RotaryTable`.
        cross: by layer, for those that read keys and values of the prefix alone, their products for these.
        places: by layer, the layer of the prefix that it reads; empty if that is the one of its number.
        watch: whether all this is still true; set by who asks.
        times: what the expert makes of intervals (t, r), by their values.
        constants: see `Constants`.
    """

    layers: list[DecoderLayer]
    norms: list[Norm]
    products: dict[str, Product]
    rotary: RotaryTable
    cross: dict[int, tuple[Product, Product]] = field(default_factory=dict)
    places: list[int] = field(default_factory=list)
    watch: Watch | Unwatched = field(init=False)
    times: dict[tuple[float, float], Any] = field(init=False, default_factory=dict)
    constants: Constants = field(init=False, default_factory=lambda: Constants())

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tokens."""
        return self.layers[0].qkv.weight.dtype

    def known_times(
        self,
        intervals: Sequence[tuple[float, float]],
        make: Callable[[Sequence[tuple[float, float]]], Sequence[Any]],
    ) -> list[Any]:
        """What `make` gives for each interval, made once for as long as the pack lives.

        Nothing is dropped before: a CUDA graph may read it. Beyond a bound nothing is kept either.
        """
        new = [interval for interval in dict.fromkeys(intervals) if interval not in self.times]
        made = dict(zip(new, make(new), strict=True)) if new else {}
        if has_numbers() and len(self.times) + len(made) <= _KEPT_TIMES:
            self.times.update(made)
        return [made[each] if each in made else self.times[each] for each in intervals]


class Constants:
    """Tensors that depend on a pack and on shapes alone, made once for each."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Tensor] = {}

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of `key`."""
        made = self._made.get(key)
        if made is None:
            made = make()
            if has_numbers():
                self._made[key] = made
        return made


class RotaryTable:
    """Cosines and signed sines of positions, see `fused_layers.turned`; computed once for each length."""

    def __init__(self, embedding: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], like: Tensor) -> None:
        self._embedding, self._like = embedding, like
        self._tables = Constants()

    def table(self, length: int) -> Tensor:
        """(2, n, 1, d) with n >= length."""
        size = -(-length // _TABLE) * _TABLE

        def make() -> Tensor:
            positions = torch.arange(size, device=self._like.device)
            both = self._embedding(self._like.new_empty(1, 1, 1), positions[None])
            cosine, sine = (x[0, :, None] for x in both)
            first, second = sine.chunk(2, dim=-1)
            return torch.stack([cosine, torch.cat([-first, second], dim=-1)])

        return self._tables.get(size, make)

    def span(self, start: int, stop: int) -> Rotary:
        """Of the positions from `start` up to `stop`, the same for all samples."""
        cosine, sine = self.table(stop)[:, start:stop]
        return cosine, sine

    def at(self, positions: Tensor, bound: int) -> Rotary:
        """Of positions (rows, S) below `bound`."""
        cosine, sine = self.table(bound)[:, positions]
        return cosine, sine
