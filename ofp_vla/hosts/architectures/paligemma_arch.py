"""Sizes of PaliGemma with an action expert: LeRobot's classes, small enough for two cores.

LeRobot hard-codes the published size in its constructors (vocabulary 257152, SigLIP MLP 4304, projection
2048). The subclasses here, in `pi0` and in `pi05` override only those constructors; every forward pass is
LeRobot's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from lerobot.policies.pi05.modeling_pi05 import PaliGemmaWithExpertModel
from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma, PiGemmaForCausalLM
from torch import Tensor, nn
from transformers.models.auto import CONFIG_MAPPING


@dataclass(frozen=True)
class PaliGemmaSize:
    """One size of the architecture; attention keeps the 8 heads that LeRobot's joint layer hard-codes."""

    vlm_width: int
    expert_width: int
    depth: int
    vlm_mlp: int
    expert_mlp: int
    head_dim: int
    vision_width: int
    vision_depth: int
    vision_heads: int
    vision_mlp: int
    patch: int
    vocabulary: int


SIZES: dict[str, PaliGemmaSize] = {
    # 1.75 M parameters: trains and simulates on two CPU cores; the embedded base checkpoint has it.
    "tiny": PaliGemmaSize(
        vlm_width=64,
        expert_width=128,
        depth=4,
        vlm_mlp=256,
        expert_mlp=384,
        head_dim=16,
        vision_width=64,
        vision_depth=2,
        vision_heads=4,
        vision_mlp=192,
        patch=16,
        vocabulary=1024,
    ),
    # 105 M parameters, dominated by its prefix like the published size: for the cost benchmarks.
    "small": PaliGemmaSize(
        vlm_width=1024,
        expert_width=256,
        depth=6,
        vlm_mlp=4096,
        expert_mlp=1024,
        head_dim=64,
        vision_width=384,
        vision_depth=4,
        vision_heads=6,
        vision_mlp=1536,
        patch=14,
        vocabulary=1024,
    ),
}


class ConvolutionStem(nn.Module):
    """Strided convolutions for SigLIP's patch projection: (B, 3, S, S) -> (B, C, S/patch, S/patch).

    With it, a network of this size learns to localise several times faster than with one linear patch map.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        stages = patch.bit_length() - 1
        if 2**stages != patch:
            raise ValueError(f"convolution stem needs a patch size that is a power of two, got {patch}")
        channels = [3, *(width // 2 if i < stages // 2 else width for i in range(stages))]
        layers: list[nn.Module] = []
        for source, target in pairwise(channels):
            layers += [nn.Conv2d(source, target, 3, stride=2, padding=1), nn.GELU(approximate="tanh")]
        layers[-1] = nn.Conv2d(channels[-1], width, 1)
        self.layers = nn.Sequential(*layers)

    @property
    def weight(self) -> Tensor:
        """First kernel; SigLIP's embedding reads the dtype of its patch projection from it."""
        return self.layers[0].weight  # type: ignore[return-value]

    def forward(self, pixels: Tensor) -> Tensor:
        """Patch features of pixels (B, 3, S, S)."""
        return self.layers(pixels)


def _vlm_config(size: PaliGemmaSize, image_size: int) -> Any:
    config = CONFIG_MAPPING["paligemma"](
        text_config={
            "model_type": "gemma",
            "hidden_size": size.vlm_width,
            "intermediate_size": size.vlm_mlp,
            "num_attention_heads": 8,
            "head_dim": size.head_dim,
            "num_hidden_layers": size.depth,
            "num_key_value_heads": 1,
            "hidden_activation": "gelu_pytorch_tanh",
            "vocab_size": size.vocabulary,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": image_size,
            "patch_size": size.patch,
            "hidden_size": size.vision_width,
            "num_hidden_layers": size.vision_depth,
            "num_attention_heads": size.vision_heads,
            "intermediate_size": size.vision_mlp,
            "projection_dim": size.vlm_width,
            "projector_hidden_act": "gelu_fast",
            "vision_use_head": False,
        },
        projection_dim=size.vlm_width,
    )
    config.text_config.dtype = "float32"
    config.vision_config.dtype = "float32"
    # For heads this small, PyTorch's fused attention is many times slower on a CPU than two products.
    config.vision_config._attn_implementation = "eager"
    config.text_config.use_adarms = False
    config.text_config.adarms_cond_dim = None
    return config


def _expert_config(size: PaliGemmaSize, adaptive: bool) -> Any:
    config = CONFIG_MAPPING["gemma"](
        head_dim=size.head_dim,
        hidden_size=size.expert_width,
        intermediate_size=size.expert_mlp,
        num_attention_heads=8,
        num_hidden_layers=size.depth,
        num_key_value_heads=1,
        vocab_size=size.vocabulary,
        hidden_activation="gelu_pytorch_tanh",
        dtype="float32",
    )
    config.use_adarms = adaptive
    config.adarms_cond_dim = size.expert_width if adaptive else None
    return config


class SizedPaliGemmaWithExpert(PaliGemmaWithExpertModel):
    """LeRobot's PaliGemma + action expert at a chosen size; `adaptive` norms take the time (π0.5)."""

    def __init__(self, config: Any, size: PaliGemmaSize, *, adaptive: bool) -> None:
        nn.Module.__init__(self)
        self.freeze_vision_encoder = config.freeze_vision_encoder
        self.train_expert_only = config.train_expert_only
        vlm = _vlm_config(size, config.image_resolution[0])
        self.paligemma = PaliGemmaForConditionalGenerationWithPiGemma(config=vlm)
        self.gemma_expert = PiGemmaForCausalLM(config=_expert_config(size, adaptive))
        self.gemma_expert.model.embed_tokens = None
        embeddings = self.paligemma.model.vision_tower.vision_model.embeddings
        if size.patch & (size.patch - 1) == 0:
            embeddings.patch_embedding = ConvolutionStem(size.vision_width, size.patch)
        # The output heads are never read; at this size they would be a third of the checkpoint.
        self.paligemma.lm_head = nn.Identity()
        self.gemma_expert.lm_head = nn.Identity()
        if adaptive:
            self._open_gates(size.expert_width)
        self.to_bfloat16_for_selected_params(config.dtype)
        self._set_requires_grad()

    def _open_gates(self, width: int) -> None:
        """Starts every adaptive norm as a plain norm with an open gate (scale 0, shift 0, gate 1)."""
        for layer in self.gemma_expert.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                with torch.no_grad():
                    norm.dense.bias.zero_()
                    norm.dense.bias[2 * width :] = 1.0
        with torch.no_grad():
            self.gemma_expert.model.norm.dense.bias.zero_()
