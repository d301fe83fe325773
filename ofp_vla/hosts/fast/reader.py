"""Reads modules of LeRobot and transformers as the weights of `fused_layers`, and notes what was read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ofp_vla.hosts.engine import GPUS
from ofp_vla.hosts.fast.freshness import NotPacked, Sources, require
from ofp_vla.hosts.fast.fused_layers import (
    EPSILON,
    EPSILONS,
    GEMMA,
    LLAMA,
    DecoderLayer,
    Norm,
    Product,
    VisionLayer,
)
from ofp_vla.hosts.fast.gelu import one_kernel
from ofp_vla.hosts.fast.packed import Tower, widened
from ofp_vla.hosts.recording.cuda import has_numbers

# SigLIP's and Gemma's activation, as transformers names it.
GELU = "gelu_pytorch_tanh"


class Reader:
    """Reads modules of LeRobot and transformers as the weights of `fused_layers`."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    def enter(self, module: Any) -> Any:
        """Notes a module that is passed through, see `Sources.enter`, and returns it."""
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
        require(type(module) is nn.Linear, f"a layer is a {type(module).__module__}.{type(module).__name__}")
        return self.weight(module, copied=copied), self.sources.read(module, "bias", copied=copied)

    def _adapted(self, module: Any, copied: bool) -> tuple[Tensor, Tensor | None]:
        self.enter(module)
        active = [] if module._disable_adapters else [a for a in module.active_adapters if a in module.lora_A]
        require(not module.merged, "an adapter is merged into its base")
        weight, bias = self.linear(module.base_layer, copied=copied or bool(active))
        for name in active:
            plain = name not in module.lora_variant and not module.fan_in_fan_out
            require(plain, f"the adapter {name!r} is no plain LoRA")
            low, _ = self.linear(module.lora_A[name], copied=True)
            high, more = self.linear(module.lora_B[name], copied=True)
            weight = weight.float() + module.scaling[name] * (high.float() @ low.float())
            if more is not None:
                more = module.scaling[name] * more.float()
                bias = more if bias is None else bias.float() + more
        return weight, bias

    def product(
        self,
        modules: Sequence[Any],
        dtype: torch.dtype | None = None,
        *,
        copied: bool = True,
        factor: float | None = None,
    ) -> Product:
        """The joined output of linear layers times `factor`, in `dtype` or that of their base weights."""
        parts = [self.linear(module, copied=copied) for module in modules]
        dtype = dtype or _base(modules[0]).weight.dtype
        if factor is not None:
            parts = [(factor * w.float(), None if b is None else factor * b.float()) for w, b in parts]
        weights = [weight.to(dtype) for weight, _ in parts]
        biases = [bias.to(dtype) for _, bias in parts if bias is not None]
        require(len(biases) in (0, len(parts)), "layers to be joined, some of them without a bias")
        if len(parts) == 1:
            return Product(weights[0], biases[0] if biases else None)
        return Product(torch.cat(weights), torch.cat(biases) if biases else None)

    def norm(self, module: Any) -> Norm:
        """Root mean square norm of LeRobot's Gemma or of transformers' Llama."""
        if type(module) is LlamaRMSNorm:
            family, epsilon, offset = LLAMA, module.variance_epsilon, 0.0
        else:
            require(getattr(module, "dense", self) is None, "another norm in the prefix")
            family, epsilon, offset = GEMMA, module.eps, 1.0
        require(epsilon == EPSILONS[family], f"epsilon {epsilon} of a norm")
        return Norm(offset + self.weight(module).float(), family=family)

    def layer_norm(self, module: nn.LayerNorm, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        require(type(module) is nn.LayerNorm and module.eps == EPSILON, "another norm in the vision tower")
        return self.weight(module).to(dtype), self.weight(module, "bias").to(dtype)

    def vision_layer(self, layer: Any, dtype: torch.dtype) -> VisionLayer:
        """A layer of SigLIP."""
        for module in (layer, layer.self_attn, layer.mlp):
            self.enter(module)
        attn, mlp = layer.self_attn, layer.mlp
        device = mlp.fc1.weight.device
        return VisionLayer(
            *self.layer_norm(layer.layer_norm1, dtype),
            self.product([attn.q_proj, attn.k_proj, attn.v_proj], dtype),
            self.product([attn.out_proj], dtype),
            *self.layer_norm(layer.layer_norm2, dtype),
            *widened(self.product([mlp.fc1], dtype), self.product([mlp.fc2], dtype)),
            has_numbers() and device.type in GPUS and one_kernel(device, dtype),
        )

    def tower(
        self, tower: Any, projection: Any, dtype: torch.dtype | None, factor: float | None = None
    ) -> Tower:
        """SigLIP and the projection behind it, which is multiplied by `factor`."""
        for module in (tower, tower.encoder, tower.embeddings):
            self.enter(module)
        require(tower.config.hidden_act == GELU, "another activation")
        patch, places = self.patches(tower.embeddings, dtype)
        cast = dtype or places.dtype
        return Tower(
            patch,
            tower.config.patch_size,
            places.to(cast),
            [self.vision_layer(layer, cast) for layer in tower.encoder.layers],
            tower.config.num_attention_heads,
            "grouped" if tower.config._attn_implementation == "eager" else "sdpa",
            self.layer_norm(tower.post_layernorm, cast),
            self.product([projection], cast, factor=factor),
        )

    def decoder_layer(
        self, layer: Any, family: str, *, own: bool, dtype: torch.dtype | None = None, crosses: bool = False
    ) -> DecoderLayer:
        """A layer of a language model.

        Args:
            layer: the module.
            family: see `fused_layers`.
            own: whether the large matrices stay where the policy has them, in their own type.
            dtype: of copies; None for that of what they are copies of.
            crosses: whether it makes queries only.
        """
        for module in (layer, layer.self_attn, layer.mlp):
            self.enter(module)
        attn, mlp = layer.self_attn, layer.mlp
        require(attn.scaling == attn.head_dim**-0.5, "another scaling of attention's scores")
        qkv = self.product([attn.q_proj] if crosses else [attn.q_proj, attn.k_proj, attn.v_proj], dtype)
        if own:
            large = attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
            out, gate, up, down = (self.product([m], copied=False) for m in large)
            return DecoderLayer(qkv, out, gate, up, down, family)
        out, down = (self.product([m], dtype) for m in (attn.o_proj, mlp.down_proj))
        both = self.product([mlp.gate_proj, mlp.up_proj], dtype)
        return DecoderLayer(qkv, out, both, None, down, family)

    def language_model(
        self, layers: Sequence[Any], family: str
    ) -> tuple[list[tuple[Norm, DecoderLayer, Norm]], tuple[Norm, Product]]:
        """Of `PrefixPack`, its `layers` and `last`; the large matrices stay the policy's own."""
        read = [
            (
                self.norm(layer.input_layernorm),
                self.decoder_layer(layer, family, own=True),
                self.norm(layer.post_attention_layernorm),
            )
            for layer in layers
        ]
        attn = layers[-1].self_attn
        types = {x.dtype for _, layer, _ in read for x in tree_leaves(layer) if isinstance(x, Tensor)}
        require(len(types) == 1, f"layers of several types: {sorted(map(str, types))}")
        return read, (read[-1][0], self.product([attn.k_proj, attn.v_proj]))

    def patches(
        self, embeddings: Any, dtype: torch.dtype | None
    ) -> tuple[Product | Callable[[Tensor], Tensor], Tensor]:
        """How pixels become features, and the embedding of their places."""
        places = self.weight(embeddings.position_embedding)
        stem = embeddings.patch_embedding
        if type(stem) is nn.Conv2d:
            require(stem.kernel_size == stem.stride and stem.padding in ("valid", (0, 0)), "other patches")
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
        """Gemma's rotary embedding, which depends on no weights."""
        self.sources.read(decoder.rotary_emb, "inv_freq")
        return decoder.rotary_emb


def _base(module: Any) -> Any:
    """The layer below adapters."""
    if isinstance(module, ModulesToSaveWrapper):
        return module.original_module
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module
