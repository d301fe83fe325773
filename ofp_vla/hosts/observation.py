"""What a host reads, and what it makes of it once: observations, and the keys and values of their prefix."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ofp_vla.hosts.recording.buffers import Kept


@dataclass(frozen=True)
class PromptExtent:
    """How long the prompts of a batch are, in tokens, where the host knows it."""

    shortest: int
    longest: int

    @staticmethod
    def measure(mask: Tensor) -> Tensor:
        """What `of` reads, (3,) on the device of a mask (B, L): see there."""
        lengths = mask.sum(dim=1)
        ends = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
        return torch.stack([lengths.min(), lengths.max(), ends.max()])

    @classmethod
    def of(cls, numbers: Sequence[float]) -> PromptExtent:
        """The extent from the shortest and longest prompt and the column at which the last one ends.

        Raises:
            ValueError: some prompt is not right-padded.
        """
        shortest, longest, last = (int(number) for number in numbers)
        if last > longest:
            raise ValueError(
                "prompt tokens are not right-padded; the tokenizer step must use padding_side='right'"
            )
        return cls(shortest, longest)


@dataclass(frozen=True)
class Observation:
    """What the host reads: present cameras only, the prompt as tokens, the state unless it is text."""

    images: tuple[Tensor, ...]  # each (B, 3, S, S), in [-1, 1]
    tokens: Tensor  # (B, L) int64, right-padded
    token_mask: Tensor  # (B, L) bool
    state: Tensor | None = None  # (B, S) normalised and padded
    image_masks: tuple[Tensor, ...] | None = None  # each (B,) bool, False where the picture is padding
    extent: PromptExtent | None = None  # of the prompts, if the host has asked the device already

    @property
    def tensors(self) -> tuple[Any, ...]:
        """All fields but the extent, in their order."""
        return self.images, self.tokens, self.token_mask, self.state, self.image_masks

    def trimmed(self, tokens: Tensor, mask: Tensor, *, full: bool) -> Observation:
        """The observation with other columns of prompts; `full` if none of them is padding anywhere."""
        columns = mask.shape[1]
        extent = PromptExtent(columns if full else 0, columns)
        return replace(self, tokens=tokens, token_mask=mask, extent=extent)

    def of(self, tensors: Sequence[Any]) -> Observation:
        """The observation with other tensors, prompts of the same extent."""
        images, tokens, token_mask, state, image_masks = tensors
        return Observation(images, tokens, token_mask, state, image_masks, self.extent)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of every layer for one observation batch, after rotary embedding."""

    keys: tuple[Tensor, ...]  # per layer (B, kv_heads, P, head_dim)
    values: tuple[Tensor, ...]
    mask: Tensor  # (B, P) bool, True where the token is real
    state: Tensor | None = None  # (B, S) for hosts whose expert reads the state itself
    full: bool = False  # the host knows that every token is real
    _made: dict[Hashable, Any] = field(init=False, repr=False, default_factory=dict)

    @cached_property
    def length(self) -> Tensor:
        """Real tokens of each sample (B,)."""
        return self.mask.sum(dim=1)

    @cached_property
    def kept(self) -> Kept:
        """The tensors, for recordings of passes that read them."""
        return Kept([self.mask, self.state, *self.keys, *self.values])

    def made[T](self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made once for this prefix and key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @classmethod
    def of(cls, kept: Sequence[Any], *, full: bool) -> Prefix:
        """A prefix from the tensors of `kept`."""
        mask, state, *layers = kept
        middle = len(layers) // 2
        return cls(tuple(layers[:middle]), tuple(layers[middle:]), mask, state, full)

    def of_rows(self, rows: Tensor) -> Prefix:
        """The prefix of some observations, by their indices (n,)."""
        return Prefix(
            tuple(key[rows] for key in self.keys),
            tuple(value[rows] for value in self.values),
            self.mask[rows],
            None if self.state is None else self.state[rows],
            self.full,
        )
