"""The fast path: a chunk's prefix and expert passes over packed weights.

Which packs there are, whether they are still true, and what the passes of all hosts have in common. Where a
pack cannot be had, the reason is logged once and the path through LeRobot's modules is taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ofp_vla.hosts.engine import GPUS
from ofp_vla.hosts.fast.compiled import COMPILED_ON, PLAIN, Functions, compiled
from ofp_vla.hosts.fast.freshness import NotPacked, Sources, Unwatched, Watch
from ofp_vla.hosts.fast.fused_layers import EPSILON, Norm, Product, Rotary, added, multiply, normed
from ofp_vla.hosts.fast.packed import ExpertPack, PrefixPack, Tower
from ofp_vla.hosts.observation import Prefix
from ofp_vla.hosts.roles import EMA, TRAINED

logger = logging.getLogger(__name__)

_NOTHING: Any = object()


@dataclass(frozen=True, eq=False)
class Times:
    """What the expert makes of n intervals of time, with the pack whose weights say so.

    Attributes:
        pack: the expert.
        tensors: (m, n, 1, W) each; for adaptive norms their scales, shifts and gates, m norms.
    """

    pack: ExpertPack
    tensors: tuple[Tensor, ...]

    @cached_property
    def norms(self) -> list[Norm]:
        """One for each adaptive norm."""
        return [Norm(*parts) for parts in zip(*(tensor.unbind() for tensor in self.tensors), strict=True)]

    def split(self) -> list[Times]:
        """Those of each interval."""
        parts = zip(*(tensor.split(1, dim=1) for tensor in self.tensors), strict=True)
        return [Times(self.pack, part) for part in parts]

    @staticmethod
    def rows(levels: Sequence[Times], index: Tensor) -> Times:
        """Those of rows (n,) that each have one of several intervals."""
        joined = zip(*(level.tensors for level in levels), strict=True)
        return Times(levels[0].pack, tuple(torch.cat(parts, dim=1)[:, index] for parts in joined))


@dataclass(frozen=True)
class Pack:
    """The packs of a weight role; equal only if they are the same."""

    prefix: PrefixPack | None
    expert: ExpertPack | None

    def tensors(self) -> list[Tensor]:
        """All weights, those that stay the policy's own too."""
        named = [vars(pack) for pack in (self.prefix, self.expert) if pack is not None]
        return [x for x in tree_leaves(named) if isinstance(x, Tensor)]


class FastPath:
    """Packs of one host by weight role, and what passes through them need; subclasses say what and how.

    Attributes:
        in_training: whether what no step changes, a frozen prefix and a role that is not trained, is packed
            in training mode too; None, as where passes are recorded.
        reason: why there was no pack last time, "" if there was.
    """

    def __init__(self, host: Any) -> None:
        self.host: Any = host
        self.in_training: bool | None = None
        self.reason = ""
        self._told: set[str] = set()
        self._prefixes: dict[str, PrefixPack | None] = {}
        self._experts: dict[str, ExpertPack | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Copies and what watches them belong to the network that they were made of.
        return {"host": self.host, "in_training": self.in_training}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["host"])  # type: ignore[misc]
        self.in_training = state["in_training"]

    # ---- packs

    def pack_unwatched(self) -> None:
        """Packs the present weights for good, for tensors without memory, which nothing changes."""
        role = self.host.roles.active
        prefix = self._prefixes[role] = self._make_prefix(Sources(checked=False))
        expert = self._experts[role] = self._make_expert(Sources(checked=False))
        prefix.watch = expert.watch = Unwatched()

    def forget(self) -> None:
        """Drops every pack; the next use makes new ones."""
        self._drop(lambda watch: True)

    def verify(self) -> None:
        """Drops packs whose sources have changed by whatever means; reads the copied weights and waits."""
        self._drop(lambda watch: watch.changed())

    def fresh(self) -> bool:
        """Whether all packs are true, as far as that is seen without asking the device."""
        return all(packs[role] is None for packs, role in self._found(lambda watch: watch.stale()))

    def pack(self) -> Pack | None:
        """The packs of the role whose weights the policy holds now; None, with a `reason`, if it has none."""
        expert, reason = self.expert_pack(), self.reason
        prefix = self.prefix_pack()
        self.reason = self.reason or reason
        return None if prefix is None and expert is None else Pack(prefix, expert)

    def _drop(self, untrue: Callable[[Any], bool]) -> None:
        found = self._found(untrue)
        for packs, role in found:
            packs.pop(role)
        if found:
            self.host.captures.drop()

    def _found(self, untrue: Callable[[Any], bool]) -> list[tuple[dict[str, Any], str]]:
        """Packs, by where they are kept, that are `untrue` or were refused."""
        roles, found = self.host.roles, []
        for role in {*self._prefixes, *self._experts}:
            with roles.use(role) if role in roles.available else nullcontext():
                for packs in (self._prefixes, self._experts):
                    pack = packs.get(role, _NOTHING)
                    if pack is _NOTHING:
                        continue
                    if role not in roles.available or pack is None or untrue(pack.watch):
                        found.append((packs, role))
        return found

    def prefix_pack(self) -> PrefixPack | None:
        """The prefix of the present role, fresh; None with a `reason`."""
        host = self.host
        kept = self._prefixes.get(host.roles.active) if host.levers.packed else None
        if kept is not None and kept.vision_type != host.vision_type():
            self.forget()
        return self._kept(self._prefixes, self._make_prefix, frozen=lambda _: self.host.prefix_is_frozen)

    def expert_pack(self) -> ExpertPack | None:
        """The expert of the present role, fresh; None with a `reason`."""
        return self._kept(self._experts, self._make_expert, frozen=lambda role: role not in (*TRAINED, EMA))

    def _kept(self, packs: dict[str, Any], make: Callable[[Sources], Any], frozen: Any) -> Any:
        host, role = self.host, self.host.roles.active
        self.reason = ""
        if not host.levers.packed or host.attention == "eager":
            self.reason = "switched off"
        elif torch.is_grad_enabled():
            self.reason = "a gradient may be wanted"
        elif host.model.training and not (self._in_training and frozen(role)):
            self.reason = "the weights are being trained"
            if packs.pop(role, None) is not None:
                host.captures.drop()  # they read its memory
        if self.reason:
            return None
        pack = packs.get(role, _NOTHING)
        if pack is None:
            self.reason = "refused before"
            return None
        if pack is not _NOTHING and not pack.watch.stale():
            return pack
        if pack is not _NOTHING:
            # The old one's memory is free, and no recording reads it, before the new one needs it.
            del pack, packs[role]
            host.captures.drop()
        packs[role] = self._made(packs, make, role)
        return packs[role]

    def _made(self, packs: dict[str, Any], make: Callable[[Sources], Any], role: str) -> Any:
        sources = Sources(self.host.roles.stand_ins(role), self.host.model)
        try:
            pack = make(sources)
            pack.watch = Watch(sources)
        except NotPacked as refusal:
            self.reason = str(refusal)
            if self.reason not in self._told:
                self._told.add(self.reason)
                logger.warning("no packed weights, so LeRobot's modules run: %s", refusal)
            return None
        # What adapters and roles leave alone is packed once for all of them.
        same = (p for p in packs.values() if p is not None and p.watch.same_sources(pack.watch))
        return next(same, pack)

    @property
    def _in_training(self) -> bool:
        return self.host.repeats if self.in_training is None else self.in_training

    def _make_prefix(self, sources: Sources) -> PrefixPack:
        """Copies what the prefix needs; raises NotPacked if it is built otherwise than the passes compute."""
        raise NotPacked("no passes over copies are written for this host")

    def _make_expert(self, sources: Sources) -> ExpertPack:
        """Copies the action expert, as its adapters are routed now; raises NotPacked as well."""
        raise NotPacked("no passes over copies are written for this host")

    # ---- passes

    def expert(self, prefix: Prefix, z: Tensor, times: Times, null: Tensor | None) -> Tensor:
        """See `FlowHost.expert`; each chunk is a row of its own, so that none hides from another."""
        raise NotImplementedError

    def _tower(self, tower: Tower, pixels: Tensor, places: Tensor) -> Tensor:
        """SigLIP's features (n, patches, W) of pictures (n, 3, S, S), whose patches have `places`."""
        pixels = pixels.to(places.dtype)
        if isinstance(tower.patches, Product):
            count, channels, height, width = pixels.shape
            side = tower.side
            grid = pixels.view(count, channels, height // side, side, width // side, side)
            flat = grid.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * side * side)
            hidden = multiply(flat, tower.patches)
        else:
            hidden = tower.patches(pixels).flatten(2).transpose(1, 2).contiguous()
        hidden = hidden + places
        run = self._functions(hidden)
        delta = nothing(hidden, run)
        for layer in tower.layers:
            hidden, delta = run.vision(hidden, delta, layer, tower.heads, tower.attention)
        weight, bias = tower.norm
        return torch.layer_norm(added(hidden, delta), weight.shape, weight, bias, EPSILON)

    def _decoded(
        self, pack: PrefixPack, hidden: Tensor, rotary: Rotary, sees: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values of all layers of the language model, of its tokens (B, P, W)."""
        layers = pack.eighths if self.in_fp8 else pack.layers
        layers = layers[:-1] if self.host.levers.last_layer else layers
        run = self._functions(hidden)
        delta = nothing(hidden, run)
        kind = self._kind(hidden, "sdpa")
        keys, values = [], []
        for norm, layer, mlp_norm in layers:
            hidden, delta, key, value = run.prefix(hidden, delta, rotary, sees, norm, layer, mlp_norm, kind)
            keys.append(key)
            values.append(value)
        if self.host.levers.last_layer:
            key, value = run.last(hidden, delta, rotary, *pack.last)
            keys.append(key)
            values.append(value)
        return tuple(keys), tuple(values)

    def _behind(self, pack: ExpertPack, prefix: Prefix, queries: int, tokens: int) -> Rotary:
        """Rotary embedding of so many tokens behind the prefix, of each query."""
        known = prefix.mask.shape[1]
        if prefix.full:
            return pack.rotary.span(known, known + tokens)
        first = prefix.length.repeat_interleave(queries)[:, None]
        steps = torch.arange(tokens, device=first.device)
        return pack.rotary.at(first + steps, known + tokens)

    def _velocity(self, pack: ExpertPack, hidden: Tensor, norm: Norm, z: Tensor) -> Tensor:
        """Velocities of the last tokens (B*Q, S, W), shaped as the chunks z (B, Q, H, D), in float32."""
        last = normed(hidden[:, hidden.shape[1] - z.shape[2] :], norm)
        with torch.autocast(device_type=z.device.type, enabled=False):
            velocity = multiply(last.float(), pack.products["action_out_proj"]).float()
        return velocity.view(*z.shape[:3], -1)

    @property
    def in_fp8(self) -> bool:
        """Whether the prefix multiplies in float8 now; what is trained on it is made without."""
        return bool(self.host.levers.fp8) and not self.host.model.training

    def _kind(self, hidden: Tensor, fastest: str) -> str:
        """How to attend: what is fastest on a GPU, unless the configuration says otherwise."""
        kind: str = self.host.attention
        return fastest if kind == "auto" and hidden.device.type in GPUS else kind

    def _functions(self, hidden: Tensor) -> Functions:
        """The layer functions, compiled where that is switched on and pays."""
        kind = hidden.device.type
        return compiled(COMPILED_ON[kind]) if self.host.levers.compile and kind in COMPILED_ON else PLAIN


def nothing(hidden: Tensor, run: Functions) -> Tensor | None:
    """What no layer has added yet; for compiled functions zeros, so that the first layer is as others."""
    return None if run is PLAIN else torch.zeros_like(hidden)
