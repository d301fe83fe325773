"""The fast path of PaliGemma hosts: SigLIP and Gemma make the prefix, a second Gemma is the expert."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ofp_vla.hosts.engine import GPUS
from ofp_vla.hosts.fast.fast_path import FastPath, Times, nothing
from ofp_vla.hosts.fast.freshness import Sources, require
from ofp_vla.hosts.fast.fused_layers import EPSILONS, GEMMA, added, multiply
from ofp_vla.hosts.fast.packed import ExpertPack, PrefixPack, RotaryTable
from ofp_vla.hosts.fast.reader import GELU, Reader
from ofp_vla.hosts.observation import Observation, Prefix


class PaliGemmaPath(FastPath):
    """Packs and passes of a `PaliGemmaHost`."""

    def _make_prefix(self, sources: Sources) -> PrefixPack:
        self.host.fp8_tried.clear()
        return pack_prefix(self.host.model.paligemma_with_expert, sources, self.host.vision_type())

    def _make_expert(self, sources: Sources) -> ExpertPack:
        host = self.host
        return pack_expert(host.model.paligemma_with_expert, sources, host.products(), host.timed())

    def encode(self, pack: PrefixPack, observation: Observation) -> Prefix:
        """Keys and values of the prefix, as `FlowHost.encode` gives them."""
        host = self.host
        tokens, token_mask, full = host._trimmed(observation)
        parts = []
        if observation.images:
            parts = host._pictures(partial(self._pictures, pack), observation.images)
        words = host.model.paligemma_with_expert.embed_language_tokens(tokens)
        parts.append(words.to(pack.dtype))
        hidden = torch.cat(parts, dim=1)
        batch, length = hidden.shape[:2]
        real = token_mask.new_ones((), dtype=torch.bool).expand(batch, length)
        mask = real if full else torch.cat([real[:, tokens.shape[1] :], token_mask.bool()], dim=1)
        sees = None if full and host.levers.unmasked else mask[:, None, None]
        # Padding stands at the end, so that real tokens have the positions that they have without it.
        keys, values = self._decoded(pack, hidden, pack.rotary.span(0, length), sees)
        return Prefix(keys, values, mask, observation.state, full)

    def _pictures(self, pack: PrefixPack, pixels: Tensor) -> Tensor:
        features = self._tower(pack.tower, pixels, pack.tower.places)
        return multiply(features, pack.tower.projection).to(pack.dtype)

    def expert(self, prefix: Prefix, z: Tensor, times: Times, null: Tensor | None) -> Tensor:
        """See `FastPath.expert`."""
        host, pack = self.host, times.pack
        queries, horizon = z.shape[1:3]
        hidden = host.fast_tokens(z.flatten(0, 1), times, prefix.state).to(pack.dtype)
        tokens = hidden.shape[1]
        rotary = self._behind(pack, prefix, queries, tokens)
        mask = self._mask(pack, prefix, null, queries, tokens, with_state=tokens > horizon)
        norms = pack.norms or times.norms
        run = self._functions(hidden)
        delta, gate = nothing(hidden, run), norms[1].gate
        kind = self._kind(hidden, "grouped" if queries == 1 else "sdpa")
        rounded = kind == "grouped" and hidden.device.type in GPUS
        for number, layer in enumerate(pack.layers):
            hidden, delta = run.expert(
                hidden,
                delta,
                gate,
                prefix.keys[number],
                prefix.values[number],
                rotary,
                mask,
                norms[2 * number],
                layer,
                norms[2 * number + 1],
                kind,
                rounded,
            )
            gate = norms[2 * number + 1].gate
        return self._velocity(pack, added(hidden, delta, gate), norms[-1], z)

    def _mask(
        self,
        pack: ExpertPack,
        prefix: Prefix,
        null: Tensor | None,
        queries: int,
        tokens: int,
        *,
        with_state: bool,
    ) -> Tensor | None:
        """See `fused_layers.expert_layer`. The state, if it is the first token, sees no action."""
        known = prefix.mask.shape[1]

        def seen(rows: Tensor) -> Tensor:
            mask = torch.cat([rows, rows.new_ones(len(rows), tokens)], dim=1)[:, None, None]
            if with_state:
                mask = mask.repeat(1, 1, tokens, 1)
                mask[:, :, 0, known + 1 :] = False
            return mask

        if prefix.full and null is None:
            if not with_state and self.host.levers.unmasked:
                return None
            return pack.constants.get((known, tokens), lambda: seen(prefix.mask[:1]))
        mask = seen(prefix.mask.repeat_interleave(queries, dim=0))
        if null is not None:
            hidden = null.flatten()[:, None, None, None]
            if with_state:
                mask[:, :, 1:, : known + 1] &= ~hidden
            else:
                mask[..., :known] &= ~hidden
        return mask


def pack_prefix(vlm: Any, sources: Sources, vision_type: torch.dtype | None = None) -> PrefixPack:
    """Copies what the prefix needs of LeRobot's `PaliGemmaWithExpertModel`.

    Args:
        vlm: the model.
        sources: notes what is read.
        vision_type: type of SigLIP's products; None for that of its own weights.

    Raises:
        NotPacked: something is built otherwise than these functions compute.
    """
    reader = Reader(sources)
    core = vlm.paligemma.model
    reader.enter(core.vision_tower)
    reader.enter(core.multi_modal_projector)
    decoder = reader.enter(core.language_model)
    require(decoder.config.hidden_activation == GELU, "another activation")
    tower = getattr(core.vision_tower, "vision_model", core.vision_tower)
    seen = reader.tower(tower, core.multi_modal_projector.linear, vision_type)
    layers, last = reader.language_model(decoder.layers, GEMMA)
    sources.read_all(decoder.embed_tokens, copied=False)
    rotary = RotaryTable(reader.rotary(decoder), last[1].weight)
    return PrefixPack(seen, layers, last, rotary, vision_type)


def pack_expert(
    vlm: Any, sources: Sources, products: dict[str, Any], timed: Sequence[nn.Module]
) -> ExpertPack:
    """Copies the action expert of LeRobot's `PaliGemmaWithExpertModel`, as its adapters are routed now.

    Args:
        vlm: the model.
        sources: notes what is read.
        products: linear modules around the expert, by name.
        timed: modules that are called where the constants of a time are made.

    Raises:
        NotPacked: see `pack_prefix`.
    """
    reader = Reader(sources)
    decoder = reader.enter(vlm.gemma_expert.model)
    require(decoder.config.hidden_activation == GELU, "another activation")
    layers = [reader.decoder_layer(layer, GEMMA, own=False) for layer in decoder.layers]
    norms = [n for layer in decoder.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
    plain = []
    for norm in (*norms, decoder.norm):
        if norm.dense is None:
            plain.append(reader.norm(norm))
        else:
            require(norm.eps == EPSILONS[GEMMA], f"epsilon {norm.eps} of a norm")
            sources.read_all(norm)
    for module in timed:
        sources.read_all(module)
    around = {name: reader.product([module]) for name, module in products.items()}
    return ExpertPack(layers, plain, around, RotaryTable(reader.rotary(decoder), layers[0].qkv.weight))
