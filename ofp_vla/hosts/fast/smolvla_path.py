"""The fast path of SmolVLA: SigLIP and Llama make the prefix, a second Llama reads it in two ways.

Some layers of the expert attend to the prefix and to their own tokens, causally; the others read what they
make of the prefix's keys and values alone, once for all steps and chunks of an observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ofp_vla.hosts.architectures.smolvla_layers import patch_positions
from ofp_vla.hosts.engine import GPUS
from ofp_vla.hosts.fast.fast_path import FastPath, Times, nothing
from ofp_vla.hosts.fast.freshness import Sources, require
from ofp_vla.hosts.fast.fused_layers import LLAMA, added, multiply, read_keys
from ofp_vla.hosts.fast.packed import ExpertPack, PrefixPack, RotaryTable
from ofp_vla.hosts.fast.reader import Reader
from ofp_vla.hosts.observation import Observation, Prefix

# Of the rotary embedding that LeRobot gives to all of SmolVLA.
_LONGEST_WAVE = 10_000


class SmolVLAPath(FastPath):
    """Packs and passes of a `SmolVLAHost`."""

    def _make_prefix(self, sources: Sources) -> PrefixPack:
        return pack_prefix(self.host.model.vlm_with_expert, sources, self.host.vision_type())

    def _make_expert(self, sources: Sources) -> ExpertPack:
        host = self.host
        layers = host.expert_layers()
        return pack_expert(host.model.vlm_with_expert, layers, sources, host.products(), host.timed())

    def encode(self, pack: PrefixPack, observation: Observation, *, state: Tensor | None) -> Prefix:
        """Keys and values of images, words and the state token (B, 1, W), if it is given."""
        parts, shown, full = self.host.context(observation, partial(self._pictures, pack))
        if state is not None:
            parts, shown = [*parts, state], [*shown, None]
        hidden = torch.cat([part.to(pack.dtype) for part in parts], dim=1)
        batch, length = hidden.shape[:2]
        if full:
            mask = torch.ones((), dtype=torch.bool, device=hidden.device).expand(batch, length)
            rotary = pack.rotary.span(0, length)
        else:
            mask = self.host.shown(parts, shown)
            rotary = pack.rotary.at(mask.cumsum(dim=1) - 1, length)
        if state is None:
            sees = None if full and self.host.levers.unmasked else mask[:, None, None]
        elif full:
            sees = pack.constants.get(("sees", length), lambda: self.host.sees_state_last(mask[:1]))
        else:
            sees = self.host.sees_state_last(mask)
        return Prefix(*self._decoded(pack, hidden, rotary, sees), mask, full=full)

    def _pictures(self, pack: PrefixPack, pixels: Tensor) -> Tensor:
        vlm = self.host.model.vlm_with_expert.get_vlm_model()

        def lie() -> Tensor:
            return pack.tower.places[patch_positions(vlm.vision_model, pixels, pack.tower.places.dtype)]

        places = pack.constants.get(("places", *pixels.shape[2:]), lie)
        hidden = self._tower(pack.tower, pixels, places)
        count, patches, width = hidden.shape
        # As SmolVLM's connector: squares of neighbouring patches become one token.
        factor, side = vlm.connector.scale_factor, int(patches**0.5)
        squares = hidden.view(count, side // factor, factor, side // factor, factor, width)
        tokens = squares.transpose(2, 3).reshape(count, patches // factor**2, factor**2 * width)
        return multiply(tokens, pack.tower.projection)

    def expert(self, prefix: Prefix, z: Tensor, times: Times, null: Tensor | None) -> Tensor:
        """See `FastPath.expert`."""
        host, pack = self.host, times.pack
        queries, horizon = z.shape[1:3]
        hidden = host.fast_tokens(z.flatten(0, 1), times, None).to(pack.dtype)
        behind, alone = self._behind(pack, prefix, queries, horizon), pack.rotary.span(0, horizon)
        mask = self._mask(pack, prefix, null, queries, horizon)
        real = None if prefix.full and host.levers.unmasked else prefix.mask[:, None, None]
        unseen = None if null is None else null.flatten()[:, None, None]
        run = self._functions(hidden)
        delta = nothing(hidden, run)
        kind = self._kind(hidden, "grouped" if queries == 1 else "sdpa")
        rounded = kind == "grouped" and hidden.device.type in GPUS
        norms = pack.norms
        for number, layer in enumerate(pack.layers):
            around = norms[2 * number], layer, norms[2 * number + 1], kind
            if number in pack.cross:
                read = prefix.made((pack, number), partial(_read, pack, number, prefix))
                hidden, delta = run.cross(hidden, delta, *read, alone, real, unseen, *around)
            else:
                place = pack.places[number]
                own = (x[place].to(pack.dtype) for x in (prefix.keys, prefix.values))
                hidden, delta = run.expert(hidden, delta, None, *own, behind, mask, *around, rounded)
        return self._velocity(pack, added(hidden, delta), norms[-1], z)

    def _mask(
        self, pack: ExpertPack, prefix: Prefix, null: Tensor | None, queries: int, horizon: int
    ) -> Tensor:
        """(B*Q or 1, 1, H, P + H) bool: an action sees the prefix, unless null, and those before it."""

        def seen(rows: Tensor) -> Tensor:
            own = torch.ones(horizon, horizon, dtype=torch.bool, device=rows.device).tril()
            parts = rows[:, None].expand(-1, horizon, -1), own.expand(len(rows), -1, -1)
            return torch.cat(parts, dim=2)[:, None]

        if prefix.full and null is None:
            return pack.constants.get((prefix.mask.shape[1], horizon), lambda: seen(prefix.mask[:1]))
        rows = prefix.mask.repeat_interleave(queries, dim=0)
        return seen(rows if null is None else rows & ~null.flatten()[:, None])


def _read(pack: ExpertPack, number: int, prefix: Prefix) -> tuple[Tensor, Tensor]:
    place = pack.places[number]
    return read_keys(prefix.keys[place], prefix.values[place], pack.cross[number])


def pack_prefix(vlm: Any, sources: Sources, vision_type: torch.dtype | None = None) -> PrefixPack:
    """Copies what the prefix needs of LeRobot's `SmolVLMWithExpertModel`.

    Args:
        vlm: the model.
        sources: notes what is read.
        vision_type: type of SigLIP's products; None for that of its own weights.

    Raises:
        NotPacked: something is built otherwise than these functions compute.
    """
    reader = Reader(sources)
    core = vlm.get_vlm_model()
    connector = reader.enter(core.connector)
    text = core.text_model
    require(text.config.hidden_act == "silu", "another activation")
    # LeRobot multiplies the features of pictures by this.
    factor = text.config.hidden_size**0.5
    projection = reader.enter(connector.modality_projection).proj
    seen = reader.tower(core.vision_model, projection, vision_type, factor)
    layers, last = reader.language_model(text.layers, LLAMA)
    sources.read_all(text.get_input_embeddings(), copied=False)
    tokens = last[1].weight
    rotary = RotaryTable(partial(_rotary, text.layers[0].self_attn.head_dim), tokens)
    return PrefixPack(seen, layers, last, rotary, vision_type)


def pack_expert(
    vlm: Any,
    layers: Sequence[tuple[int, Any, bool]],
    sources: Sources,
    products: dict[str, Any],
    timed: Sequence[nn.Module],
) -> ExpertPack:
    """Copies the action expert of LeRobot's `SmolVLMWithExpertModel`, as its adapters are routed now.

    Args:
        vlm: the model.
        layers: of the expert, each with the layer of the VLM that it reads before it, and behind it whether
            it attends to actions.
        sources: notes what is read.
        products: linear modules around the expert, by name.
        timed: modules that are called where the constants of a time are made.

    Raises:
        NotPacked: see `pack_prefix`.
    """
    reader = Reader(sources)
    decoder = vlm.lm_expert
    require(decoder.config.hidden_act == "silu", "another activation")
    dtype = decoder.layers[0].self_attn.q_proj.weight.dtype
    packed, norms, cross, places = [], [], {}, []
    for number, (place, layer, attends) in enumerate(layers):
        packed.append(reader.decoder_layer(layer, LLAMA, own=False, dtype=dtype, crosses=not attends))
        norms += [reader.norm(layer.input_layernorm), reader.norm(layer.post_attention_layernorm)]
        places.append(place)
        if not attends:
            attn = layer.self_attn
            cross[number] = reader.product([attn.k_proj], dtype), reader.product([attn.v_proj], dtype)
    norms.append(reader.norm(decoder.norm))
    for module in timed:
        sources.read_all(module)
    around = {name: reader.product([module]) for name, module in products.items()}
    tokens = packed[0].qkv.weight
    rotary = RotaryTable(partial(_rotary, decoder.layers[0].self_attn.head_dim), tokens)
    return ExpertPack(packed, norms, around, rotary, cross, places)


def _rotary(dim: int, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (1, n, d) of positions (1, n) as LeRobot has them, in float32 whatever reads them."""
    exponents = (2.0 / dim) * torch.arange(dim // 2, dtype=torch.float32, device=like.device)
    angles = (positions[..., None].float() / _LONGEST_WAVE**exponents).repeat(1, 1, 2)
    return angles.cos(), angles.sin()
