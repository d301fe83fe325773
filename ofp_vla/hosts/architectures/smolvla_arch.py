"""Builds the SmolVLA core from a configuration: the published SmolVLM2-500M, another VLM, or a tiny one.

LeRobot's constructors ask the Hub for the VLM's configuration and for its processor, of which they use two
token ids. The subclasses below override only those constructors; every forward pass is LeRobot's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel, get_intermediate_size
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, SmolVLMForConditionalGeneration
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig

from ofp_vla.hub_names import snapshot

# config.json of HuggingFaceTB/SmolVLM2-500M-Video-Instruct where it differs from the defaults.
PUBLISHED = {
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": {
        "image_token_id": 49190,
        "scale_factor": 4,
        "text_config": {
            "model_type": "llama",
            "head_dim": 64,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "max_position_embeddings": 8192,
            "num_attention_heads": 15,
            "num_hidden_layers": 32,
            "num_key_value_heads": 5,
            "pad_token_id": 2,
            "rms_norm_eps": 1e-5,
            "vocab_size": 49280,
            "dtype": "bfloat16",
        },
        "vision_config": {
            "hidden_size": 768,
            "image_size": 512,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "patch_size": 16,
        },
    }
}
# 1.0 M parameters with six layers, of which `num_vlm_layers` are kept as in the published policy.
TINY = {
    "image_token_id": 1000,
    "scale_factor": 2,
    "text_config": {
        "model_type": "llama",
        "head_dim": 16,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_attention_heads": 6,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": 1024,
        "dtype": "float32",
    },
    "vision_config": {
        "hidden_size": 64,
        "image_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "patch_size": 8,
    },
}
# In SmolVLM's vocabulary these come this far before the image token.
_FAKE_IMAGE, _GLOBAL_IMAGE = 1, 38


def vlm_config(config: Any) -> SmolVLMConfig:
    """SmolVLM's configuration for a policy: a size, what its checkpoint carries, or `vlm_model_name`'s.

    Only a VLM that is neither published here nor carried by the checkpoint is looked up in a folder or on the
    Hub; `config.vlm_config` keeps what was found.
    """
    if config.arch == "tiny":
        found = SmolVLMConfig(**copy.deepcopy(TINY))
        # For heads this small, PyTorch's fused attention is many times slower on a CPU than two products.
        found.vision_config._attn_implementation = "eager"
        return found
    if not config.vlm_config and config.vlm_model_name not in PUBLISHED:
        config.vlm_config = AutoConfig.from_pretrained(config.vlm_model_name).to_dict()
    return SmolVLMConfig(**copy.deepcopy(config.vlm_config or PUBLISHED[config.vlm_model_name]))


def model_name(place: Any) -> str:
    """The model that a Hub name or a folder stands for; a copy in a folder is known by the folder's name.

    A folder of the Hub's cache stands for the model whose snapshot it is.
    """
    cached = snapshot(str(place))
    name = cached[0] if cached else str(place).replace("\\", "/").rstrip("/")
    return name.rsplit("/", 1)[-1].lower()


def vlm_layers(settings: Mapping[str, Any]) -> int | None:
    """Language layers that the VLM of a configuration keeps; None for all of one that is not known here."""
    asked = settings.get("num_vlm_layers") or 0
    named = model_name(settings.get("vlm_model_name"))
    known: Any = next((vlm for name, vlm in PUBLISHED.items() if model_name(name) == named), {})
    vlm = settings.get("vlm_config") or known
    if settings.get("arch") == "tiny":
        vlm = TINY
    there = vlm.get("text_config", {}).get("num_hidden_layers")
    if asked <= 0:
        return there
    return asked if there is None else min(asked, there)


class OfflineSmolVLMWithExpert(SmolVLMWithExpertModel):
    """LeRobot's SmolVLM + action expert, built from `vlm` instead of a Hub name."""

    def __init__(self, settings: Any, vlm: SmolVLMConfig) -> None:
        nn.Module.__init__(self)
        self.config = vlm
        self.vlm = SmolVLMForConditionalGeneration(config=vlm)
        text = self.vlm.model.text_model
        if settings.num_vlm_layers > 0:
            text.layers = text.layers[: settings.num_vlm_layers]
        self.num_vlm_layers = len(text.layers)
        self.lm_expert = AutoModel.from_config(self._expert_config(settings))
        self.lm_expert.embed_tokens = None
        self.num_expert_layers = len(self.lm_expert.layers)
        self.self_attn_every_n_layers = settings.self_attn_every_n_layers
        self.attention_mode = settings.attention_mode
        if "cross" in self.attention_mode:
            self._read_vlm_keys()
        self.num_attention_heads = vlm.text_config.num_attention_heads
        self.num_key_value_heads = vlm.text_config.num_key_value_heads
        self.expert_hidden_size = self.lm_expert.config.hidden_size
        self.freeze_vision_encoder = settings.freeze_vision_encoder
        self.train_expert_only = settings.train_expert_only
        self._set_precision(settings)
        self.set_requires_grad()

    def _expert_config(self, settings: Any) -> Any:
        config = copy.deepcopy(self.config.text_config)
        config.hidden_size = int(config.hidden_size * settings.expert_width_multiplier)
        config.intermediate_size = get_intermediate_size(config.hidden_size)
        config.num_hidden_layers = self.num_vlm_layers
        if settings.num_expert_layers > 0:
            if self.num_vlm_layers % settings.num_expert_layers:
                raise ValueError(
                    f"policy.num_expert_layers: {settings.num_expert_layers} does not divide the "
                    f"{self.num_vlm_layers} layers of the VLM"
                )
            config.num_hidden_layers = settings.num_expert_layers
        return config

    def _read_vlm_keys(self) -> None:
        """Gives the cross-attention layers projections from the VLM's keys and values."""
        text = self.config.text_config
        every = self.self_attn_every_n_layers
        width = text.num_key_value_heads * text.head_dim
        for index, layer in enumerate(self.lm_expert.layers):
            if every > 0 and index % every == 0:
                continue
            layer.self_attn.k_proj = nn.Linear(width, width, bias=text.attention_bias)
            layer.self_attn.v_proj = nn.Linear(width, width, bias=text.attention_bias)

    def _set_precision(self, settings: Any) -> None:
        if settings.dtype != "auto":
            self.to(getattr(torch, settings.dtype))
        elif settings.load_vlm_weights:
            # LeRobot reads a pretrained VLM in this precision.
            self.vlm.to(torch.bfloat16)


class OfflineVLAFlowMatching(VLAFlowMatching):
    """LeRobot's SmolVLA core around `OfflineSmolVLMWithExpert`; parameter names are the stock ones."""

    def __init__(self, config: Any, rtc_processor: object | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        vlm = vlm_config(config)
        self.vlm_with_expert = OfflineSmolVLMWithExpert(config, vlm)
        width = self.vlm_with_expert.expert_hidden_size
        self.state_proj = nn.Linear(config.max_state_dim, vlm.text_config.hidden_size)
        self.action_in_proj = nn.Linear(config.max_action_dim, width)
        self.action_out_proj = nn.Linear(width, config.max_action_dim)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)
        self.set_requires_grad()
        self.fake_image_token = vlm.image_token_id - _FAKE_IMAGE
        self.global_image_token = vlm.image_token_id - _GLOBAL_IMAGE
        self.global_image_start_token = torch.tensor([self.fake_image_token, self.global_image_token])
        self.image_end_token = torch.tensor([self.fake_image_token])
        self.add_image_special_tokens = config.add_image_special_tokens
        self.prefix_length = config.prefix_length
        self.rtc_processor = rtc_processor


def load_vlm_weights(model: VLAFlowMatching, name: str) -> None:
    """Copies the VLM's own pretrained weights, from a folder or the Hub, into a new policy's core."""
    found = AutoModelForImageTextToText.from_pretrained(name, dtype=torch.bfloat16).state_dict()
    vlm = model.vlm_with_expert.vlm
    vlm.load_state_dict({key: found[key] for key in vlm.state_dict()})
