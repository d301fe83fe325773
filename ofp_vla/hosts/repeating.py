"""How a host repeats what it has recorded: what shapes its passes, and what of them is recorded at all."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.observation import Observation, Prefix
from ofp_vla.hosts.recording.buffers import Kept
from ofp_vla.hosts.recording.captures import RECORDERS, Captures
from ofp_vla.hosts.recording.whereabouts import Whereabouts
from ofp_vla.hosts.roles import STUDENT, Roles


class Repeating:
    """The part of a host that knows of recordings.

    Attributes:
        captures: what was recorded of passes without gradient.
        compared: ways to act whose first chunk was compared with the path without levers.
    """

    model: Any
    roles: Roles
    levers: Levers
    attention: str
    passes: Counter[str]

    def _begin_repeating(self) -> None:
        self.captures = Captures(self._watch, self.passes)
        self.compared: set[Hashable] = set()

    def _watch(self) -> Whereabouts:
        return Whereabouts(self.model, self.roles.held, self.roles.routing, self.packs_are_true)

    @abstractmethod
    def packs_are_true(self) -> bool:
        """Whether no weights have changed of which the host keeps copies, as far as that is seen at once."""

    @abstractmethod
    def _trimmed(self, observation: Observation) -> tuple[Tensor, Tensor, bool]:
        """Prompt and mask without columns that nobody needs, and whether no padding is left."""

    def repeated[T](
        self, name: str, key: Hashable, function: Callable[..., T], *inputs: Any, kept: Kept | None = None
    ) -> T:
        """What `Captures.run` gives; the key is joined with all by which this host computes."""
        if not self.repeats or self.roles.active != STUDENT:
            return function(*inputs) if kept is None else function(kept.tensors, *inputs)
        own = (key, self.levers, self.attention, self.model.training)
        return self.captures.run(name, own, function, *inputs, kept=kept)

    @property
    def repeats(self) -> bool:
        """Whether work is recorded and repeated where the model is."""
        return self.levers.graphs and self.device.type in RECORDERS

    @property
    def device(self) -> torch.device:
        """Where the model is; asked often, and its many modules are slow to walk through."""
        return next(self.model.interval_head.parameters()).device

    @property
    def reduced(self) -> bool:
        """Whether numbers of 16 bits take part in what is computed now."""
        device = self.device.type
        return torch.is_autocast_enabled(device) or any(
            p.dtype != torch.float32 for p in self.model.parameters()
        )

    def unrepeated(self, name: str, reason: str) -> None:
        """Says, once, that something is not recorded where other work is."""
        if self.repeats:
            self.captures.refuse(name, reason)

    def fitted(self, observation: Observation) -> Observation:
        """The observation with the columns of its prompts that are encoded, and no others."""
        tokens, mask, full = self._trimmed(observation)
        return observation.trimmed(tokens, mask, full=full)

    @torch.no_grad()
    def encode_repeated(
        self, encode: Callable[[Observation], Prefix], observation: Observation, role: str = STUDENT
    ) -> Prefix:
        """What `encode` gives with the weights of `role`, in tensors of its own whatever is encoded next."""
        observation = self.fitted(observation)

        def encoded(*parts: Any) -> tuple[bool, list[Tensor | None]]:
            with self.roles.use(role):
                prefix = encode(observation.of(parts))
            return prefix.full, prefix.kept.tensors

        key = (encode.__name__, role, observation.extent)
        full, tensors = self.repeated("the prefix", key, encoded, *observation.tensors)
        return Prefix.of(tensors, full=full)
