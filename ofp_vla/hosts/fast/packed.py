"""What the fast path of PaliGemma hosts reads: weights merged, cast and laid out for `fused_layers`.

Copied are SigLIP in the language model's type, joined queries, keys and values, and a role's whole expert
with its adapters merged in (in float32, cast once). The rest of the prefix, most of the weights, stays the
policy's own. `ofp_vla.hosts.fast.freshness` tells when a copy is no longer true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.functional import pad

from ofp_vla.hosts.engine import GPUS
from ofp_vla.hosts.fast.fp8 import quantised
from ofp_vla.hosts.fast.freshness import NotPacked, Sources, Unwatched, Watch
from ofp_vla.hosts.fast.fused_layers import EPSILON, DecoderLayer, Norm, Product, Rotary, VisionLayer
from ofp_vla.hosts.recording.cuda import has_numbers

_GELU = "gelu_pytorch_tanh"
# Intervals of time whose constants a pack keeps: several grids of ten steps, cold and warm.
_KEPT_TIMES = 64
# Of widths that a GPU multiplies best.
_MULTIPLE = 128
# Positions of a table of rotary embeddings, or a multiple.
_TABLE = 1024


@dataclass(eq=False)
class PrefixPack:
    """SigLIP, the projection of its patches and Gemma.

    Attributes:
        patches: turns pixels (n, 3, S, S) into features: a product over flat patches, or a module.
        patch: side of a patch in pixels.
        places: (patches, W) position embedding.
        vision: layers of SigLIP.
        vision_heads: heads of each.
        vision_attention: see `fast_attention`.
        vision_norm: weight and bias of SigLIP's last norm.
        projection: to the width of the language model.
        layers: of Gemma, with the norm before attention and that before the MLP.
        last: the last layer's norm and its product for keys and values only.
        rotary: see `RotaryTable`.
        vision_type: the type that SigLIP was asked to have.
        watch: whether all this is still true; set by who asks.
    """

    patches: Product | Callable[[Tensor], Tensor]
    patch: int
    places: Tensor
    vision: list[VisionLayer]
    vision_heads: int
    vision_attention: str
    vision_norm: tuple[Tensor, Tensor]
    projection: Product
    layers: list[tuple[Norm, DecoderLayer, Norm]]
    last: tuple[Norm, Product]
    rotary: RotaryTable
    vision_type: torch.dtype | None
    watch: Watch | Unwatched = field(init=False)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tokens."""
        return self.last[1].weight.dtype

    @cached_property
    def eighths(self) -> list[tuple[Norm, DecoderLayer, Norm]]:
        """The layers with all weights in float8, copies of the policy's own too; gate and up are joined."""
        return [(norm, _in_fp8(layer), mlp_norm) for norm, layer, mlp_norm in self.layers]


def _widened(rise: Product, fall: Product, multiple: int | None = None) -> tuple[Product, Product]:
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
        _require(all(part.bias is None for part in parts), "a bias in the language model")
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
        watch: whether all this is still true; set by who asks.
        times: what the expert makes of intervals (t, r), by their values.
        masks: those that depend on lengths alone, by them.
    """

    layers: list[DecoderLayer]
    norms: list[Norm]
    products: dict[str, Product]
    rotary: RotaryTable
    watch: Watch | Unwatched = field(init=False)
    times: dict[tuple[float, float], Any] = field(default_factory=dict)
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

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


class RotaryTable:
    """Cosines and signed sines of positions, see `fused_layers.turned`; computed once for each length."""

    def __init__(self, embedding: Any, like: Tensor) -> None:
        self._embedding, self._like = embedding, like
        self._tables: dict[int, Tensor] = {}

    def table(self, length: int) -> Tensor:
        """(2, n, 1, d) with n >= length."""
        size = -(-length // _TABLE) * _TABLE
        table = self._tables.get(size)
        if table is None:
            positions = torch.arange(size, device=self._like.device)
            both = self._embedding(self._like.new_empty(1, 1, 1), positions[None])
            cosine, sine = (x[0, :, None] for x in both)
            first, second = sine.chunk(2, dim=-1)
            table = torch.stack([cosine, torch.cat([-first, second], dim=-1)])
            if has_numbers():
                self._tables[size] = table
        return table

    def span(self, start: int, stop: int) -> Rotary:
        """Of the positions from `start` up to `stop`, the same for all samples."""
        cosine, sine = self.table(stop)[:, start:stop]
        return cosine, sine

    def at(self, positions: Tensor, bound: int) -> Rotary:
        """Of positions (rows, S) below `bound`."""
        cosine, sine = self.table(bound)[:, positions]
        return cosine, sine


def pack_prefix(vlm: Any, sources: Sources, vision_type: torch.dtype | None = None) -> PrefixPack:
    """Copies what the prefix needs of LeRobot's `PaliGemmaWithExpertModel`.

    Args:
        vlm: the model.
        sources: notes what is read.
        vision_type: type of SigLIP's products; None for that of its own weights.

    Raises:
        NotPacked: something is built otherwise than these functions compute.
    """
    reader = _Reader(sources)
    core = vlm.paligemma.model
    tower = reader.enter(getattr(core.vision_tower, "vision_model", core.vision_tower))
    decoder = reader.enter(core.language_model)
    for module in (core.vision_tower, core.multi_modal_projector, tower.encoder, tower.embeddings):
        reader.enter(module)
    _require(tower.config.hidden_act == decoder.config.hidden_activation == _GELU, "another activation")
    patch, places = reader.patches(tower.embeddings, vision_type)
    cast = vision_type or places.dtype
    vision = [reader.vision_layer(layer, cast) for layer in tower.encoder.layers]
    decoded = [reader.decoder_layer(layer, own=True) for layer in decoder.layers]
    attn = decoder.layers[-1].self_attn
    tokens = decoded[0].qkv.weight
    sources.read_all(decoder.embed_tokens, copied=False)
    return PrefixPack(
        patch,
        tower.config.patch_size,
        places.to(cast),
        vision,
        tower.config.num_attention_heads,
        "grouped" if tower.config._attn_implementation == "eager" else "sdpa",
        reader.layer_norm(tower.post_layernorm, cast),
        reader.product([core.multi_modal_projector.linear], cast),
        [
            (reader.norm(layer.input_layernorm), weights, reader.norm(layer.post_attention_layernorm))
            for layer, weights in zip(decoder.layers, decoded, strict=True)
        ],
        (reader.norm(decoder.layers[-1].input_layernorm), reader.product([attn.k_proj, attn.v_proj])),
        RotaryTable(reader.rotary(decoder), tokens),
        vision_type,
    )


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
    reader = _Reader(sources)
    decoder = reader.enter(vlm.gemma_expert.model)
    _require(decoder.config.hidden_activation == _GELU, "another activation")
    layers = [reader.decoder_layer(layer, own=False) for layer in decoder.layers]
    norms = [n for layer in decoder.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
    plain = []
    for norm in (*norms, decoder.norm):
        if norm.dense is None:
            plain.append(reader.norm(norm))
        else:
            _require(norm.eps == EPSILON, f"epsilon {norm.eps} of a norm")
            sources.read_all(norm)
    for module in timed:
        sources.read_all(module)
    around = {name: reader.product([module]) for name, module in products.items()}
    return ExpertPack(layers, plain, around, RotaryTable(reader.rotary(decoder), layers[0].qkv.weight))


class _Reader:
    """Reads modules of LeRobot and transformers as the weights of `fused_layers`."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    def enter(self, module: Any) -> Any:
        self.sources.enter(module)
        return module

    def weight(self, module: nn.Module, name: str = "weight", *, copied: bool = True) -> Tensor:
        """A parameter that has to be there: one that is computed, as by a parametrisation, is not."""
        weight = self.sources.read(module, name, copied=copied)
        if weight is None:
            raise NotPacked(f"{type(module).__name__}.{name} is no parameter")
        return weight

    def linear(self, module: Any, *, copied: bool) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a linear layer with what its adapters add, in float32 if they add anything."""
        if isinstance(module, ModulesToSaveWrapper):
            self.enter(module)
            if module._disable_adapters:
                return self.linear(module.original_module, copied=copied)
            (name,) = module.active_adapters
            own = name in module.modules_to_save
            return self.linear(module.modules_to_save[name] if own else module.original_module, copied=copied)
        if type(module) is LoraLinear:
            return self._adapted(module, copied)
        _require(type(module) is nn.Linear, f"a layer is a {type(module).__module__}.{type(module).__name__}")
        return self.weight(module, copied=copied), self.sources.read(module, "bias", copied=copied)

    def _adapted(self, module: Any, copied: bool) -> tuple[Tensor, Tensor | None]:
        self.enter(module)
        active = [] if module._disable_adapters else [a for a in module.active_adapters if a in module.lora_A]
        _require(not module.merged, "an adapter is merged into its base")
        weight, bias = self.linear(module.base_layer, copied=copied or bool(active))
        for name in active:
            plain = name not in module.lora_variant and not module.fan_in_fan_out
            _require(plain, f"the adapter {name!r} is no plain LoRA")
            low, _ = self.linear(module.lora_A[name], copied=True)
            high, more = self.linear(module.lora_B[name], copied=True)
            weight = weight.float() + module.scaling[name] * (high.float() @ low.float())
            if more is not None:
                more = module.scaling[name] * more.float()
                bias = more if bias is None else bias.float() + more
        return weight, bias

    def product(
        self, modules: Sequence[Any], dtype: torch.dtype | None = None, *, copied: bool = True
    ) -> Product:
        """The joined output of linear layers, in `dtype` or that of their base weights."""
        parts = [self.linear(module, copied=copied) for module in modules]
        dtype = dtype or _base(modules[0]).weight.dtype
        weights = [weight.to(dtype) for weight, _ in parts]
        biases = [bias.to(dtype) for _, bias in parts if bias is not None]
        _require(len(biases) in (0, len(parts)), "layers to be joined, some of them without a bias")
        if len(parts) == 1:
            return Product(weights[0], biases[0] if biases else None)
        return Product(torch.cat(weights), torch.cat(biases) if biases else None)

    def norm(self, module: Any) -> Norm:
        """LeRobot's root mean square norm."""
        _require(module.dense is None and module.eps == EPSILON, "another norm in the prefix")
        return Norm(1.0 + self.weight(module).float())

    def layer_norm(self, module: nn.LayerNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        _require(type(module) is nn.LayerNorm and module.eps == EPSILON, "another norm in the vision tower")
        return self.weight(module).to(dtype), self.weight(module, "bias").to(dtype)

    def vision_layer(self, layer: Any, dtype: torch.dtype) -> VisionLayer:
        for module in (layer, layer.self_attn, layer.mlp):
            self.enter(module)
        attn, mlp = layer.self_attn, layer.mlp
        return VisionLayer(
            *self.layer_norm(layer.layer_norm1, dtype),
            self.product([attn.q_proj, attn.k_proj, attn.v_proj], dtype),
            self.product([attn.out_proj], dtype),
            *self.layer_norm(layer.layer_norm2, dtype),
            *_widened(self.product([mlp.fc1], dtype), self.product([mlp.fc2], dtype)),
        )

    def decoder_layer(self, layer: Any, *, own: bool) -> DecoderLayer:
        """A Gemma layer; `own` leaves the large matrices where the policy has them."""
        for module in (layer, layer.self_attn, layer.mlp):
            self.enter(module)
        attn, mlp = layer.self_attn, layer.mlp
        _require(attn.scaling == attn.head_dim**-0.5, "another scaling of attention's scores")
        _require(attn.k_proj.out_features == attn.head_dim, "several heads of keys")
        qkv = self.product([attn.q_proj, attn.k_proj, attn.v_proj])
        out, down = (self.product([m], copied=not own) for m in (attn.o_proj, mlp.down_proj))
        if own:
            gate, up = (self.product([m], copied=False) for m in (mlp.gate_proj, mlp.up_proj))
            return DecoderLayer(qkv, out, gate, up, down)
        return DecoderLayer(qkv, out, self.product([mlp.gate_proj, mlp.up_proj]), None, down)

    def patches(
        self, embeddings: Any, dtype: torch.dtype | None
    ) -> tuple[Product | Callable[[Tensor], Tensor], Tensor]:
        """How pixels become features, and the embedding of their places."""
        places = self.weight(embeddings.position_embedding)
        stem = embeddings.patch_embedding
        if type(stem) is nn.Conv2d:
            _require(stem.kernel_size == stem.stride and stem.padding in ("valid", (0, 0)), "other patches")
            weight, bias = self.weight(stem), self.sources.read(stem, "bias")
            cast = dtype or weight.dtype
            return Product(weight.flatten(1).to(cast), None if bias is None else bias.to(cast)), places
        own = dtype in (None, stem.weight.dtype)
        self.sources.read_all(stem, copied=not own)
        if own:
            return stem, places
        cast_weights = {id(p): nn.Parameter(p.detach().to(dtype), False) for p in stem.parameters()}
        return deepcopy(stem, cast_weights), places

    def rotary(self, decoder: Any) -> Any:
        """The decoder's rotary embedding, which depends on no weights."""
        self.sources.read(decoder.rotary_emb, "inv_freq")
        return decoder.rotary_emb


def _base(module: Any) -> Any:
    """The layer below adapters."""
    if isinstance(module, ModulesToSaveWrapper):
        return module.original_module
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise NotPacked(otherwise)
