"""SmolVLA as an interval field: an expert that alternates between its own tokens and the VLM's keys.

Even layers of the expert attend to the prefix and to actions, each action to those before it; odd layers read
only the VLM's keys and values. The state is the last token of the prefix. LeRobot's model is unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn

from ofp_vla.hosts.architectures.smolvla_arch import (
    PUBLISHED,
    OfflineVLAFlowMatching,
    load_vlm_weights,
    model_name,
    vlm_config,
    vlm_layers,
)
from ofp_vla.hosts.architectures.smolvla_layers import cross_layer, patch_positions, self_layer, vlm_layer
from ofp_vla.hosts.attention import attend, packed_mask
from ofp_vla.hosts.fast.smolvla_path import SmolVLAPath
from ofp_vla.hosts.host import FlowHost, Observation, Prefix
from ofp_vla.hosts.interval import MixedTimeHost


class SmolVLAHost(MixedTimeHost):
    """LeRobot's `VLAFlowMatching`; time = sincos(s) + φ(s - s') enters the MLP that makes the action tokens.

    Images and words do not see the state, so with a frozen VLM they are encoded once for all roles, and each
    role adds its own state token (`passes["state"]`), whose projection is trained. Under the null condition
    an action sees only its own chunk, and nothing in the cross-attention layers.
    """

    fast_path = SmolVLAPath
    title = "SmolVLA"
    licence = "apache-2.0"
    stock_steps = "num_steps"
    lora_targets = (
        r"(.*\.lm_expert\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        r"|model\.(state_proj|action_time_mlp_in|action_time_mlp_out|action_in_proj|action_out_proj))"
    )
    fixed_settings = (
        "arch",
        "resize_imgs_with_padding",
        "max_action_dim",
        "max_state_dim",
        "min_period",
        "max_period",
        "num_vlm_layers",
        "num_expert_layers",
        "expert_width_multiplier",
        "attention_mode",
        "self_attn_every_n_layers",
        "add_image_special_tokens",
    )
    chosen_settings = ("vlm_model_name",)
    optional_settings = ("resize_imgs_with_padding",)

    @staticmethod
    def build(config: Any, rtc_processor: object | None = None) -> nn.Module:
        """LeRobot's `VLAFlowMatching`, built without the Hub if the configuration says enough."""
        return OfflineVLAFlowMatching(config, rtc_processor)

    @staticmethod
    def initialise(model: Any, config: Any) -> None:
        """Starts a new policy from the VLM's own weights if `load_vlm_weights` asks for them."""
        if config.load_vlm_weights:
            load_vlm_weights(model, config.vlm_model_name)

    @staticmethod
    def record(model: Any, config: Any) -> None:
        """Keeps the configuration of a VLM that is not a published one."""
        if config.arch == "full" and config.vlm_model_name not in PUBLISHED and not config.vlm_config:
            config.vlm_config = model.vlm_with_expert.config.to_dict()

    @staticmethod
    def set_trainable(model: Any, config: Any) -> None:
        """Follows LeRobot's own rules: one for the VLM, one for the state's projection."""
        model.requires_grad_(True)
        part = model.vlm_with_expert
        part.train_expert_only = config.train_expert_only
        part.freeze_vision_encoder = config.freeze_vision_encoder
        part.set_requires_grad()
        model.set_requires_grad()

    @staticmethod
    def time_width(model: Any) -> int:
        """Width of the action expert."""
        return model.vlm_with_expert.expert_hidden_size

    @staticmethod
    def meaning(name: str, settings: Mapping[str, Any]) -> Any:
        """See `FlowHost.meaning`; a layer count means layers, the attention mode whether it crosses."""
        value = settings.get(name)
        if name == "num_vlm_layers":
            return vlm_layers(settings)
        if name == "num_expert_layers":
            return value if value and value > 0 else vlm_layers(settings)
        if name == "attention_mode":
            return "cross" in str(value)
        if name == "self_attn_every_n_layers":
            return max(value or 0, 0) if "cross" in str(settings.get("attention_mode")) else None
        if name == "vlm_model_name":
            return model_name(value)
        return FlowHost.meaning(name, settings)

    @staticmethod
    def vocabulary(config: Any) -> int | None:
        """The VLM's vocabulary, if its configuration is available here."""
        known = config.arch == "tiny" or config.vlm_config or config.vlm_model_name in PUBLISHED
        return int(vlm_config(config).text_config.vocab_size) if known else None

    @classmethod
    def observe(cls, policy: Any, batch: dict[str, Tensor]) -> Observation:
        """Present cameras in [-1, 1] with their padding masks, prompt, padded state."""
        present = [key for key in policy.config.image_features if key in batch]
        images, masks = policy.prepare_images(batch)
        padded = any(f"{key}_padding_mask" in batch for key in present)
        return Observation(
            tuple(images[: len(present)]),
            batch[OBS_LANGUAGE_TOKENS],
            batch[OBS_LANGUAGE_ATTENTION_MASK],
            state=policy.prepare_state(batch),
            image_masks=tuple(masks[: len(present)]) if padded else None,
        )

    @classmethod
    def stock_chunk(
        cls, policy: Any, batch: dict[str, Tensor], noise: Tensor | None, steps: int, **kwargs: Any
    ) -> Tensor:
        """`VLAFlowMatching.sample_actions`, which reads its number of steps from the configuration."""
        images, masks = policy.prepare_images(batch)
        tokens, token_mask = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        config = policy.model.config
        before, config.num_steps = config.num_steps, steps
        try:
            return policy.model.sample_actions(
                images, masks, tokens, token_mask, policy.prepare_state(batch), noise=noise, **kwargs
            )
        finally:
            config.num_steps = before

    def vlm_parameters(self) -> Iterable[nn.Parameter]:
        """SmolVLM's parameters."""
        return self.model.vlm_with_expert.vlm.parameters()

    # ---- prefix

    def encode(self, observation: Observation) -> Prefix:
        """The whole prefix; the state token separately if only that token's projection takes gradient."""
        trained = any(p.requires_grad for p in self.model.state_proj.parameters())
        if trained and torch.is_grad_enabled() and self.prefix_is_frozen:
            return self.complete(self.encode_shared(observation), observation)
        return super().encode(observation)

    def encode_shared(self, observation: Observation) -> Prefix:
        """Images and words, which see nothing that a role changes."""
        self.passes["prefix"] += 1
        with torch.no_grad():
            if (pack := self.fast.prefix_pack()) is not None:
                return self.fast.encode(pack, observation, state=None)
            hidden, mask, full = self._joined(observation)
            return self._run_vlm(hidden, mask, self._sees(mask, full), full)

    def complete(self, shared: Prefix, observation: Observation) -> Prefix:
        """Adds the state token, which sees all of the prefix."""
        self.passes["state"] += 1
        state = self._state_token(observation.state)
        one = torch.ones_like(shared.mask[:, :1])
        mask = torch.cat([shared.mask, one], dim=1)
        return self._run_vlm(state, one, self._sees(mask, shared.full), shared.full, shared)

    def _sees(self, mask: Tensor, full: bool) -> Tensor | None:
        return None if full and self.levers.unmasked else mask[:, None, None, :]

    def _encode(self, observation: Observation) -> Prefix:
        if (pack := self.fast.prefix_pack()) is not None:
            return self.fast.encode(pack, observation, state=self._state_token(observation.state))
        context, real, full = self._joined(observation)
        state = self._state_token(observation.state)
        hidden = torch.cat([context, state], dim=1)
        mask = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
        return self._run_vlm(hidden, mask, self.sees_state_last(mask), full)

    @staticmethod
    def sees_state_last(mask: Tensor) -> Tensor:
        """(B, 1, P, P) of real tokens (B, P): none sees the state, the last, which sees all."""
        sees = mask[:, None, :].repeat(1, mask.shape[1], 1)
        sees[:, :-1, -1] = False
        return sees[:, None]

    def _joined(self, observation: Observation) -> tuple[Tensor, Tensor, bool]:
        """Embedded images and words (B, P, W), which of them are real (B, P), and whether all are."""
        parts, shown, full = self.context(observation, self._scaled_image)
        # LeRobot joins these with the state, whose projection is float32 even if the VLM is bfloat16.
        dtype = torch.promote_types(parts[0].dtype, self.model.state_proj.weight.dtype)
        return torch.cat([part.to(dtype) for part in parts], dim=1), self.shown(parts, shown), full

    def context(
        self, observation: Observation, embed: Callable[[Tensor], Tensor]
    ) -> tuple[list[Tensor], list[Tensor | None], bool]:
        """Images and words as tokens.

        Args:
            observation: B observations.
            embed: makes tokens (n, S, W) of pictures (n, 3, H, W).

        Returns:
            Parts (B, S, W); for each, which tokens are real, (B, S or 1) bool, or None if all are; whether
            all of all parts are.
        """
        tokens, token_mask, full = self._trimmed(observation)
        full &= observation.image_masks is None
        parts: list[Tensor] = []
        shown: list[Tensor | None] = []
        if observation.images:
            features = self._pictures(embed, observation.images)
            given = observation.image_masks or (None,) * len(features)
            for feature, mask in zip(features, given, strict=True):
                framed = self._framed(feature)
                parts += framed
                # SmolVLM's special tokens are real even around a picture that is padding.
                shown += [None if mask is None or part is not feature else mask[:, None] for part in framed]
        words = self.model.vlm_with_expert.embed_language_tokens(tokens)
        parts.append(words * math.sqrt(words.shape[-1]))
        shown.append(token_mask.bool())
        return parts, shown, full

    @staticmethod
    def shown(parts: Sequence[Tensor], shown: Sequence[Tensor | None]) -> Tensor:
        """(B, P) bool, which tokens of all parts are real; see `context`."""
        every = torch.ones((), dtype=torch.bool, device=parts[0].device)
        known = zip(parts, shown, strict=True)
        return torch.cat([(every if x is None else x).expand(part.shape[:2]) for part, x in known], dim=1)

    def _scaled_image(self, images: Tensor) -> Tensor:
        raw = self._embed_image(images)
        # As a tensor of the features' type, which rounds it; filled on the device, not copied to it.
        return raw * raw.new_full((), raw.shape[-1] ** 0.5)

    def _embed_image(self, images: Tensor) -> Tensor:
        """LeRobot's `embed_image` of whole pictures (B, 3, S, S), all of whose patches are real.

        Transformers asks the device which ones are, and waits for it.
        """
        vlm = self.model.vlm_with_expert.get_vlm_model()
        vision = vlm.vision_model
        patches = vision.embeddings.patch_embedding(images.to(vision.dtype))
        hidden = patches.flatten(2).transpose(1, 2)
        hidden = hidden + vision.embeddings.position_embedding(patch_positions(vision, images, hidden.dtype))
        hidden = vision.encoder(inputs_embeds=hidden, attention_mask=None).last_hidden_state
        return vlm.connector(vision.post_layernorm(hidden))

    def _framed(self, feature: Tensor) -> list[Tensor]:
        """An image's tokens, between SmolVLM's special ones if the policy uses them."""
        model = self.model
        if not model.add_image_special_tokens:
            return [feature]

        def special(name: str) -> Tensor:
            tokens = getattr(model, name)
            if tokens.device != feature.device:
                # Kept there: a copy from the host in each call would wait for the device.
                tokens = tokens.to(feature.device)
                setattr(model, name, tokens)
            embedded = model.vlm_with_expert.embed_language_tokens(tokens)
            return embedded[None].expand(len(feature), -1, -1)

        return [special("global_image_start_token"), feature, special("image_end_token")]

    def _run_vlm(
        self, hidden: Tensor, real: Tensor, sees: Tensor | None, full: bool, before: Prefix | None = None
    ) -> Prefix:
        """Keys and values of the tokens `hidden` (B, S, W), after those of `before`.

        `real` is (B, S) bool; `sees` is (B, 1, S or 1, T) bool over all T tokens, None where all see all.
        """
        positions = torch.cumsum(real, dim=1) - 1
        mask = real
        if before is not None:
            positions = positions + before.length[:, None]
            mask = torch.cat([before.mask, real], dim=1)
        keys, values = [], []
        layers = self.model.vlm_with_expert.get_vlm_model().text_model.layers
        for index, layer in enumerate(layers):
            past = None if before is None else (before.keys[index], before.values[index])
            # Only keys and values of the last layer are read, so its attention and MLP are skipped.
            keys_only = index == len(layers) - 1 and self.levers.last_layer
            hidden, key, value = self._checkpointed(
                vlm_layer, self._attend, layer, hidden, positions, sees, past, keys_only
            )
            keys.append(key)
            values.append(value)
        return Prefix(tuple(keys), tuple(values), mask, full=full)

    def _attend(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, heads, S, d) over (B, kv_heads, T, d), mask (B, 1, S or 1, T) bool -> (B, S, heads*d)."""
        if self.attention != "eager" or mask is None:
            # LeRobot leaves some projections in float32 in a bfloat16 expert, and attends in float32.
            key, value = key.to(query.dtype), value.to(query.dtype)
            return attend(self.attention, query, key, value, mask, attn.head_dim**-0.5)
        back = [x.transpose(1, 2) for x in (query, key, value)]
        return self.model.vlm_with_expert.eager_attention_forward(
            mask[:, 0], query.shape[0], attn.head_dim, *back
        )

    # ---- expert

    def _language_type(self) -> torch.dtype:
        return self.model.vlm_with_expert.get_vlm_model().text_model.layers[0].self_attn.q_proj.weight.dtype

    def _time_type(self, s: Tensor) -> torch.dtype:
        """That of the action tokens, as LeRobot has it."""
        kind = s.device.type
        return (
            torch.get_autocast_dtype(kind)
            if torch.is_autocast_enabled(kind)
            else self.model.action_in_proj.weight.dtype
        )

    def _expert(self, prefix: Prefix, z: Tensor, condition: Tensor, null: Tensor | None) -> Tensor:
        """See `FlowHost.expert`; the sequence is Q chunks of H tokens."""
        batch, queries, horizon, _ = z.shape
        hidden = self._action_tokens(z.flatten(0, 1), condition)
        hidden = hidden.view(batch, queries * horizon, -1)
        steps = torch.arange(horizon, device=z.device).repeat(queries)[None].expand(batch, -1)
        mask = packed_mask(prefix.mask, null, queries, horizon, causal=True)
        hidden_prefix = None if null is None else null.repeat_interleave(horizon, dim=1)[..., None]
        real = None if prefix.full and self.levers.unmasked else prefix.mask
        for index, layer, attends in self.expert_layers():
            key, value = prefix.keys[index], prefix.values[index]
            if attends:
                positions = prefix.length[:, None] + steps
                hidden = self._region(self_layer, self._attend, layer, hidden, positions, key, value, mask)
            else:
                hidden = self._region(
                    cross_layer, self._attend, layer, hidden, steps, key, value, real, hidden_prefix
                )
        norm = self.model.vlm_with_expert.lm_expert.norm
        return self._velocity(norm(hidden)).view(batch, queries, horizon, -1)

    def expert_layers(self) -> list[tuple[int, Any, bool]]:
        """Layers of the expert: the VLM's layer that each reads, itself, whether it attends to actions."""
        vlm = self.model.vlm_with_expert
        every, crosses = vlm.self_attn_every_n_layers, "cross" in vlm.attention_mode
        layers = vlm.get_model_layers([vlm.get_vlm_model().text_model, vlm.lm_expert])[1]
        return [
            (index, layer, not crosses or (every > 0 and index % every == 0))
            for index, layer in enumerate(layers)
            if layer is not None
        ]
