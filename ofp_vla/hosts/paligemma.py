"""Hosts over LeRobot's PaliGemma with a Gemma action expert: cached prefix and packed expert layers.

Nothing inside LeRobot's model is changed; the layers below read its modules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from lerobot.policies.pi_gemma import _gated_residual
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn
from transformers.models.gemma import modeling_gemma

from ofp_vla.hosts.architectures.paligemma_arch import SIZES
from ofp_vla.hosts.attention import attend, heads
from ofp_vla.hosts.fast.fp8 import refuse_missing
from ofp_vla.hosts.fast.paligemma_path import PaliGemmaPath
from ofp_vla.hosts.host import FlowHost, Observation, Prefix
from ofp_vla.hosts.modulation import Modulation, normed
from ofp_vla.hosts.packing import PackingHost

# LeRobot's PaliGemma, which its constructor spells out.
_VOCABULARY = 257152
_LM_HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
# LeRobot's additive mask value.
_MASKED = -2.3819763e38


class PaliGemmaHost(PackingHost):
    """What π0 and π0.5 share: SigLIP and Gemma make the prefix, a second Gemma reads it layer by layer."""

    fast_path = PaliGemmaPath
    licence = "gemma"
    has_fp8 = True
    terms = (
        "whose PaliGemma and Gemma parts are provided under and subject to the [Gemma Terms of Use]"
        "(https://ai.google.dev/gemma/terms); these terms, with their prohibited uses, pass on to whoever "
        "uses or redistributes this checkpoint"
    )
    # Output and embedding are one tensor; with the expert's head, 790 M parameters at the published size.
    tied: ClassVar[Mapping[str, str]] = {
        "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight": _LM_HEAD
    }
    output_heads = (_LM_HEAD, "model.paligemma_with_expert.gemma_expert.lm_head.weight")
    fixed_settings: ClassVar[tuple[str, ...]] = (
        "arch",
        "paligemma_variant",
        "action_expert_variant",
        "image_resolution",
        "max_action_dim",
        "min_period",
        "max_period",
    )

    @staticmethod
    def time_width(model: Any) -> int:
        """Width of the action expert."""
        return model.paligemma_with_expert.gemma_expert.model.config.hidden_size

    @staticmethod
    def enable_checkpointing(model: Any) -> None:
        """Turns on LeRobot's own switch, which its joint forward reads too."""
        model.gradient_checkpointing_enable()

    @staticmethod
    def set_trainable(model: Any, config: Any) -> None:
        """Follows LeRobot's own rule."""
        model.requires_grad_(True)
        part = model.paligemma_with_expert
        part.train_expert_only = config.train_expert_only
        part.freeze_vision_encoder = config.freeze_vision_encoder
        part._set_requires_grad()

    @staticmethod
    def meaning(name: str, settings: Mapping[str, Any]) -> Any:
        """See `FlowHost.meaning`; the variants are widths of the published size only."""
        widths = name in ("paligemma_variant", "action_expert_variant")
        return FlowHost.meaning(name, settings) if not widths or settings.get("arch") == "full" else None

    @staticmethod
    def vocabulary(config: Any) -> int | None:
        """PaliGemma's vocabulary, or that of a smaller size."""
        return SIZES[config.arch].vocabulary if config.arch in SIZES else _VOCABULARY

    @classmethod
    def observe(cls, policy: Any, batch: dict[str, Tensor]) -> Observation:
        """Present cameras in [-1, 1], the prompt and, if the network reads it, the padded state."""
        present = [key for key in policy.config.image_features if key in batch]
        images, _ = policy._preprocess_images(batch)
        return Observation(
            tuple(images[: len(present)]),
            batch[OBS_LANGUAGE_TOKENS],
            batch[OBS_LANGUAGE_ATTENTION_MASK],
            state=policy.prepare_state(batch) if cls.reads_state else None,
        )

    @classmethod
    def stock_chunk(
        cls, policy: Any, batch: dict[str, Tensor], noise: Tensor | None, steps: int, **kwargs: Any
    ) -> Tensor:
        """`sample_actions` of LeRobot's core."""
        images, masks = policy._preprocess_images(batch)
        words = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        state = (policy.prepare_state(batch),) if cls.reads_state else ()
        return policy.model.sample_actions(
            images, masks, *words, *state, noise=noise, num_steps=steps, **kwargs
        )

    def vlm_parameters(self) -> Iterable[nn.Parameter]:
        """PaliGemma's parameters."""
        return self.model.paligemma_with_expert.paligemma.parameters()

    # ---- the fast path

    def refuse_levers(self) -> None:
        """See `FlowHost.refuse_levers`."""
        if self.levers.fp8:
            refuse_missing(self.device)

    def _encode(self, observation: Observation) -> Prefix:
        pack = self.fast.prefix_pack()
        if pack is not None:
            self.refuse_levers()
            return self.fast.encode(pack, observation)
        vlm = self.model.paligemma_with_expert
        tokens, token_mask, full = self._trimmed(observation)
        parts, masks = [], []
        if observation.images:
            with self._vision_type(observation.images[0].device):
                parts = self._pictures(vlm.embed_image, observation.images)
            masks = [torch.ones(p.shape[:2], dtype=torch.bool, device=p.device) for p in parts]
        language = vlm.embed_language_tokens(tokens)
        parts.append(language.to(parts[0].dtype) if parts else language)
        masks.append(token_mask.bool())
        hidden, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)

        decoder = vlm.paligemma.model.language_model
        hidden = hidden.to(decoder.layers[0].self_attn.q_proj.weight.dtype)
        positions = torch.cumsum(mask, dim=1) - 1
        cos, sin = decoder.rotary_emb(hidden, positions)
        sees = None if full and self.levers.unmasked else mask[:, None, None, :]
        keys, values = [], []
        last = len(decoder.layers) - 1
        for index, layer in enumerate(decoder.layers):
            # Only keys and values of the last layer are read, so its attention and MLP are skipped.
            keys_only = index == last and self.levers.last_layer
            hidden, key, value = self._checkpointed(
                self._prefix_layer, layer, hidden, cos, sin, sees, keys_only
            )
            keys.append(key)
            values.append(value)
        return Prefix(tuple(keys), tuple(values), mask, observation.state, full)

    def _vision_type(self, device: torch.device) -> AbstractContextManager[Any]:
        """SigLIP's products in the language model's type, unless a gradient is wanted."""
        wanted = self._language_type()
        if not self.levers.vision or wanted != torch.bfloat16 or torch.is_grad_enabled():
            return nullcontext()
        return torch.autocast(device.type, wanted)

    def _language_type(self) -> torch.dtype:
        layer = self.model.paligemma_with_expert.paligemma.model.language_model.layers[0]
        return layer.self_attn.q_proj.weight.dtype

    def _prefix_layer(
        self, layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, keys_only: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, gate = normed(layer.input_layernorm, hidden, None)
        attn = layer.self_attn
        key, value = (heads(p(tokens), attn.head_dim) for p in (attn.k_proj, attn.v_proj))
        query = None if keys_only else heads(attn.q_proj(tokens), attn.head_dim)
        if query is None:
            _, key = modeling_gemma.apply_rotary_pos_emb(key, key, cos, sin, unsqueeze_dim=1)
            return hidden, key, value
        query, key = modeling_gemma.apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=1)
        mixed = self._attend(attn, query, key, value, mask)
        return self._finish_layer(layer, hidden, mixed, gate, None), key, value

    def _attend(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, heads, S, d) over (B, kv_heads, T, d), mask (B, 1, S or 1, T) bool -> (B, S, heads*d)."""
        if self.attention != "eager" or mask is None:
            return attend(self.attention, query, key, value, mask, attn.scaling)
        additive = torch.where(mask, 0.0, _MASKED).expand(-1, -1, query.shape[2], -1)
        out, _ = modeling_gemma.eager_attention_forward(attn, query, key, value, additive, attn.scaling)
        return out.reshape(*out.shape[:2], -1)

    @staticmethod
    def _finish_layer(
        layer: Any,
        hidden: Tensor,
        mixed: Tensor,
        gate: Tensor | None,
        cond: Tensor | Modulation | None,
    ) -> Tensor:
        """Output projection, gated residual, MLP, gated residual: (N, S, W) -> (N, S, W)."""
        out = layer.self_attn.o_proj(mixed.to(layer.self_attn.o_proj.weight.dtype))
        residual = _gated_residual(hidden, out, gate)
        tokens, gate = normed(layer.post_attention_layernorm, residual, cond)
        return _gated_residual(residual, layer.mlp(tokens.to(layer.mlp.up_proj.weight.dtype)), gate)

    def _run_expert(
        self,
        prefix: Prefix,
        hidden: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cond: Tensor | tuple[Modulation, ...] | None = None,
    ) -> Tensor:
        """All layers and the last norm of the action expert.

        Args:
            prefix: cached keys and values of B observations, P tokens each.
            hidden: (N, S, W) suffix tokens, N a multiple of B; the N / B rows of an observation attend as one
                sequence of T = N / B * S tokens.
            positions: (B, T).
            mask: (B, 1, T, P + T) bool; None where all see all.
            cond: condition (N, W) of the adaptive norms, for experts that have them, or what each of them
                makes of it.

        Returns:
            (N, S, W).
        """
        decoder = self.model.paligemma_with_expert.gemma_expert.model
        hidden = hidden.to(decoder.layers[0].self_attn.q_proj.weight.dtype)
        cos, sin = decoder.rotary_emb(hidden, positions)
        conds = cond if isinstance(cond, tuple) else (cond,) * (2 * len(decoder.layers) + 1)
        for number, layer in enumerate(decoder.layers):
            hidden = self._region(
                self._expert_layer,
                layer,
                hidden,
                conds[2 * number : 2 * number + 2],
                prefix.keys[number],
                prefix.values[number],
                cos,
                sin,
                mask,
            )
        return normed(decoder.norm, hidden, conds[-1])[0]

    def _expert_layer(
        self,
        layer: Any,
        hidden: Tensor,
        conds: Sequence[Tensor | Modulation | None],
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        tokens, gate = normed(layer.input_layernorm, hidden, conds[0])
        attn = layer.self_attn
        batch, packed = cos.shape[:2]
        q, k, v = (
            heads(p(tokens).view(batch, packed, -1), attn.head_dim)
            for p in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        q, k = modeling_gemma.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1)
        mixed = self._attend(attn, q, torch.cat([key, k], dim=2), torch.cat([value, v], dim=2), mask)
        return self._finish_layer(layer, hidden, mixed.view(*hidden.shape[:2], -1), gate, conds[1])
