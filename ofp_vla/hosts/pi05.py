"""π0.5 as an interval field: one prefix, and all queries of a call in one pass of the expert.

LeRobot's π0.5 counts host time s from data 0 to noise 1 with velocity ε - a; `ofp_vla.core` counts t = 1 - s,
with velocity a - ε. This file is the edge where the two meet, and nothing inside LeRobot's model is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch
from lerobot.policies.pi_gemma import _gated_residual, layernorm_forward
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.gemma import modeling_gemma

from ofp_vla.core.field import Query
from ofp_vla.hosts.roles import STUDENT, Roles

ATTENTION = ("auto", "sdpa", "grouped", "eager")


@dataclass(frozen=True)
class Observation:
    """What the host reads: present cameras only, prompt with its state text as tokens."""

    images: tuple[Tensor, ...]  # each (B, 3, S, S), in [-1, 1]
    tokens: Tensor  # (B, L) int64, right-padded
    token_mask: Tensor  # (B, L) bool


@dataclass(frozen=True)
class Prefix:
    """Keys and values of every layer for one observation batch, after rotary embedding."""

    keys: tuple[Tensor, ...]  # per layer (B, kv_heads, P, head_dim)
    values: tuple[Tensor, ...]
    mask: Tensor  # (B, P) bool, True where the token is real

    @property
    def length(self) -> Tensor:
        """Real tokens of each sample (B,)."""
        return self.mask.sum(dim=1)


def trim_prompt(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Drops columns that are padding in every row; exact: padding is masked and adds no position."""
    longest = max(int(mask.sum(dim=1).max()), 1)
    if bool(mask[:, longest:].any()):
        raise ValueError(
            "prompt tokens are not right-padded; the tokenizer step must use padding_side='right'"
        )
    return tokens[:, :longest], mask[:, :longest]


class Pi05Host:
    """Binds observations to interval fields over one `PI05Pytorch` that owns an `interval_head`.

    Args:
        model: LeRobot's π0.5 core; `model.interval_head` is the φ of `ofp_vla.hosts.interval`.
        roles: Weight roles of the policy around it.
        attention: "sdpa"; "grouped", which folds the heads into the rows of one product (all heads share
            keys and values) and is several times faster for small heads on a CPU; "auto" takes the former on
            a GPU, the latter on a CPU; "eager" is LeRobot's own attention function.
    """

    def __init__(self, model: PI05Pytorch, roles: Roles, attention: str = "auto") -> None:
        if attention not in ATTENTION:
            raise ValueError(f"attention must be one of {ATTENTION}, got {attention!r}")
        self.model = model
        self.roles = roles
        self.attention = attention
        self.passes: Counter[str] = Counter()

    @property
    def prefix_is_frozen(self) -> bool:
        """Whether no parameter of the vision-language model is trained."""
        return not any(p.requires_grad for p in self.model.paligemma_with_expert.paligemma.parameters())

    def bind(self, observation: Observation, role: str = STUDENT) -> BoundField:
        """Interval field of `role` for one batch of observations; the prefix is encoded on first use."""
        return BoundField(self, observation, role)

    def bind_all(self, observation: Observation, names: Sequence[str]) -> dict[str, BoundField]:
        """One field per role. A frozen VLM's prefix is the same for all roles and is encoded once."""
        student = self.bind(observation)
        fields = {STUDENT: student}
        for name in names:
            if name != STUDENT:
                fields[name] = self.bind(observation, name)
                if self.prefix_is_frozen:
                    fields[name].share(student)
        return fields

    def encode(self, observation: Observation) -> Prefix:
        """Keys and values of the prefix; without autograd graph where the VLM is frozen."""
        self.passes["prefix"] += 1
        with torch.no_grad() if self.prefix_is_frozen else nullcontext():
            return self._encode(observation)

    def _encode(self, observation: Observation) -> Prefix:
        vlm = self.model.paligemma_with_expert
        tokens, token_mask = trim_prompt(observation.tokens, observation.token_mask)
        batch = tokens.shape[0]
        parts, masks = [], []
        if observation.images:
            pixels = torch.cat(observation.images)
            features = self._checkpointed(vlm.embed_image, pixels)
            parts = list(features.split(batch))
            masks = [torch.ones(p.shape[:2], dtype=torch.bool, device=p.device) for p in parts]
        language = vlm.embed_language_tokens(tokens)
        parts.append(language.to(parts[0].dtype) if parts else language)
        masks.append(token_mask.bool())
        hidden, mask = torch.cat(parts, dim=1), torch.cat(masks, dim=1)

        decoder = vlm.paligemma.model.language_model
        hidden = hidden.to(decoder.layers[0].self_attn.q_proj.weight.dtype)
        positions = torch.cumsum(mask, dim=1) - 1
        cos, sin = decoder.rotary_emb(hidden, positions)
        keys, values = [], []
        last = len(decoder.layers) - 1
        for index, layer in enumerate(decoder.layers):
            # Of the last layer only keys and values are read, so its attention and MLP are skipped.
            hidden, key, value = self._checkpointed(
                self._prefix_layer, layer, hidden, cos, sin, mask[:, None, None, :], index == last
            )
            keys.append(key)
            values.append(value)
        return Prefix(tuple(keys), tuple(values), mask)

    def _prefix_layer(
        self, layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, keys_only: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed, gate = layernorm_forward(layer.input_layernorm, hidden)
        attn = layer.self_attn
        key, value = (_heads(p(normed), attn.head_dim) for p in (attn.k_proj, attn.v_proj))
        query = None if keys_only else _heads(attn.q_proj(normed), attn.head_dim)
        if query is None:
            _, key = modeling_gemma.apply_rotary_pos_emb(key, key, cos, sin, unsqueeze_dim=1)
            return hidden, key, value
        query, key = modeling_gemma.apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=1)
        mixed = self._attend(attn, query, key, value, mask)
        return self._finish_layer(layer, hidden, mixed, gate, None), key, value

    def _attend(self, attn: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """(B, heads, S, d) over (B, kv_heads, T, d), mask (B, 1, S or 1, T) bool -> (B, S, heads*d)."""
        if self.attention == "eager":
            additive = torch.where(mask, 0.0, -2.3819763e38).expand(-1, -1, query.shape[2], -1)
            out, _ = modeling_gemma.eager_attention_forward(attn, query, key, value, additive, attn.scaling)
            return out.reshape(*out.shape[:2], -1)
        if self.attention == "grouped" or (self.attention == "auto" and query.device.type == "cpu"):
            return _grouped_attention(query, key, value, mask, attn.scaling)
        heads = query.shape[1]
        key, value = (x.expand(-1, heads, -1, -1) if x.shape[1] == 1 else x for x in (key, value))
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=attn.scaling, enable_gqa=key.shape[1] != heads
        )
        return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)

    @staticmethod
    def _finish_layer(
        layer: Any, hidden: Tensor, mixed: Tensor, gate: Tensor | None, cond: Tensor | None
    ) -> Tensor:
        """Output projection, gated residual, MLP, gated residual: (N, S, W) -> (N, S, W)."""
        out = layer.self_attn.o_proj(mixed.to(layer.self_attn.o_proj.weight.dtype))
        residual = _gated_residual(hidden, out, gate)
        normed, gate = layernorm_forward(layer.post_attention_layernorm, residual, cond)
        return _gated_residual(residual, layer.mlp(normed.to(layer.mlp.up_proj.weight.dtype)), gate)

    def expert(self, prefix: Prefix, z: Tensor, s: Tensor, length: Tensor, null: Tensor) -> Tensor:
        """One pass of the action expert over all packed queries.

        Args:
            prefix: Cached prefix of B observations.
            z: (B, Q, H, D) noisy chunks.
            s: (B, Q) host time of the start, 1 = noise.
            length: (B, Q) interval length s - s' in [0, s].
            null: (B, Q) bool, True where the query must not see the prefix.

        Returns:
            (B, Q, H, D) float32 velocities in the host's sign (noise minus data).
        """
        self.passes["expert"] += 1
        model = self.model
        batch, queries, horizon, _ = z.shape
        noisy = z.flatten(0, 1).to(model.action_in_proj.weight.dtype)
        hidden, _, _, cond = model.embed_suffix(noisy, s.flatten())
        cond = cond + model.interval_head(length.flatten()).to(cond.dtype)

        decoder = model.paligemma_with_expert.gemma_expert.model
        hidden = hidden.to(decoder.layers[0].self_attn.q_proj.weight.dtype)
        packed = queries * horizon
        steps = torch.arange(horizon, device=z.device).repeat(queries)
        positions = prefix.length[:, None] + steps[None, :]
        cos, sin = decoder.rotary_emb(hidden, positions)
        mask = self._packed_mask(prefix, null, horizon)
        shape = (batch, queries, horizon, packed)
        for layer, key, value in zip(decoder.layers, prefix.keys, prefix.values, strict=True):
            hidden = self._checkpointed(
                self._expert_layer, layer, hidden, cond, key, value, cos, sin, mask, shape
            )
        hidden, _ = layernorm_forward(decoder.norm, hidden, cond)
        with torch.autocast(device_type=z.device.type, enabled=False):
            velocity = model.action_out_proj(hidden.to(torch.float32)).float()
        return velocity.view(batch, queries, horizon, -1)

    @staticmethod
    def _packed_mask(prefix: Prefix, null: Tensor, horizon: int) -> Tensor:
        """(B, 1, Q*H, P + Q*H) bool: a query sees the prefix unless null, and its own chunk."""
        queries = null.shape[1]
        sees_prefix = (~null)[:, :, None] & prefix.mask[:, None, :]
        own = torch.eye(queries, dtype=torch.bool, device=null.device).repeat_interleave(horizon, dim=1)
        own = own[None].expand(null.shape[0], -1, -1)
        return torch.cat([sees_prefix, own], dim=2).repeat_interleave(horizon, dim=1)[:, None]

    def _expert_layer(
        self,
        layer: Any,
        hidden: Tensor,
        cond: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        shape: tuple[int, int, int, int],
    ) -> Tensor:
        batch, queries, horizon, packed = shape
        normed, gate = layernorm_forward(layer.input_layernorm, hidden, cond)
        attn = layer.self_attn
        q, k, v = (
            _heads(p(normed).view(batch, packed, -1), attn.head_dim)
            for p in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        q, k = modeling_gemma.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1)
        mixed = self._attend(attn, q, torch.cat([key, k], dim=2), torch.cat([value, v], dim=2), mask)
        return self._finish_layer(layer, hidden, mixed.view(batch * queries, horizon, -1), gate, cond)

    def _checkpointed[T](self, function: Callable[..., T], *args: object) -> T:
        model = self.model
        if model.gradient_checkpointing_enabled and model.training and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
        return function(*args)


class BoundField:
    """`IntervalField` for one observation batch and one weight role; gradient for the student only."""

    def __init__(self, host: Pi05Host, observation: Observation, role: str) -> None:
        self.host = host
        self.observation = observation
        self.role = role
        self._source: BoundField | None = None

    def share(self, other: BoundField) -> None:
        """Uses the prefix of `other` instead of encoding its own."""
        self._source = other

    @cached_property
    def prefix(self) -> Prefix:
        """The encoded prefix, its own or the shared one."""
        if self._source is not None:
            return self._source.prefix
        with self._weights():
            return self.host.encode(self.observation)

    def __call__(self, queries: Sequence[Query]) -> list[Tensor]:
        """Mean velocities u(z, t, r), each (B, H, D) float32, all queries in one pass of the expert."""
        prefix = self.prefix
        z = torch.stack([q.z for q in queries], dim=1)
        t = torch.stack([q.t for q in queries], dim=1).to(torch.float32)
        r = torch.stack([q.r for q in queries], dim=1).to(torch.float32)
        null = torch.stack(
            [torch.zeros_like(q.t, dtype=torch.bool) if q.null is None else q.null for q in queries], dim=1
        )
        with self._weights():
            velocity = self.host.expert(prefix, z, 1.0 - t, r - t, null)
        return list((-velocity).unbind(dim=1))

    @contextmanager
    def _weights(self) -> Iterator[None]:
        if self.role == STUDENT:
            yield
        else:
            with torch.no_grad(), self.host.roles.use(self.role):
                yield


def _heads(x: Tensor, head_dim: int) -> Tensor:
    """(B, S, heads * d) -> (B, heads, S, d)."""
    return x.view(*x.shape[:-1], -1, head_dim).transpose(1, 2)


def _grouped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention with the heads that share keys folded into the rows of one product per kv head."""
    batch, heads, length, dim = query.shape
    groups = key.shape[1]
    rows = query.reshape(batch, groups, heads // groups * length, dim)
    scores = (rows @ key.transpose(2, 3)).view(batch, heads, length, -1) * scaling
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    out = weights.view(batch, groups, heads // groups * length, -1) @ value
    return out.view(batch, heads, length, dim).transpose(1, 2).reshape(batch, length, heads * dim)
