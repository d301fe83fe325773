"""SmolVLA's layers over cached keys, in LeRobot's order of operations; S tokens of B observations at a time.

`Attend` is `SmolVLAHost.attend`: (self_attn, query, key, value, mask) -> (B, S, heads * d).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lerobot.policies.smolvla.smolvlm_with_expert import apply_rope
from torch import Tensor

from ofp_vla.hosts.attention import heads

Attend = Callable[[Any, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def patch_positions(vision: Any, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Positions (P,) of the patches of whole pictures (B, 3, H, W), as SmolVLM's embeddings find them.

    A picture of any size lies over the grid that they were trained on; shares are of its pixels' type.
    """
    side = vision.embeddings.num_patches_per_side
    edges = torch.arange(1 / side, 1.0, 1 / side, device=images.device)

    def places(patches: int) -> Tensor:
        index = torch.arange(patches, device=images.device, dtype=torch.float32)
        share = (index * (1.0 / index.new_full((), patches))).clamp(max=1.0 - 1e-6).to(dtype)
        return torch.bucketize(share, edges, right=True)

    down, right = (places(size // vision.patch_size) for size in images.shape[2:])
    return (down[:, None] * side + right[None, :]).flatten()


def vlm_layer(
    attend: Attend,
    layer: Any,
    hidden: Tensor,
    positions: Tensor,
    sees: Tensor | None,
    past: tuple[Tensor, Tensor] | None,
    keys_only: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, S, W), keys and values of a layer of the VLM, after those of `past`.

    With `keys_only` the tokens come back as they were.
    """
    attn = layer.self_attn
    normed = layer.input_layernorm(hidden).to(attn.q_proj.weight.dtype)
    key = _rotated(attn.k_proj(normed), attn.head_dim, positions)
    value = heads(attn.v_proj(normed), attn.head_dim)
    if past is not None:
        key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
    if keys_only:
        return hidden, key, value
    query = _rotated(attn.q_proj(normed), attn.head_dim, positions)
    return _finish(layer, hidden, attend(attn, query, key, value, sees)), key, value


def self_layer(
    attend: Attend,
    layer: Any,
    hidden: Tensor,
    positions: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
) -> Tensor:
    """A layer of the expert over the VLM's keys and its own, under a mask (B, 1, S, P + S)."""
    attn = layer.self_attn
    normed = layer.input_layernorm(hidden).to(attn.q_proj.weight.dtype)
    query, own = (_rotated(p(normed), attn.head_dim, positions) for p in (attn.q_proj, attn.k_proj))
    keys = torch.cat([key, own], dim=2)
    values = torch.cat([value, heads(attn.v_proj(normed), attn.head_dim)], dim=2)
    return _finish(layer, hidden, attend(attn, query, keys, values, mask))


def cross_layer(
    attend: Attend,
    layer: Any,
    hidden: Tensor,
    positions: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor | None,
    null: Tensor | None,
) -> Tensor:
    """A layer of the expert over the VLM's `real` (B, P) keys alone; 0 where a token is `null` (B, S, 1).

    None stands for keys that are all real, and for no token that is null.
    """
    attn = layer.self_attn
    normed = layer.input_layernorm(hidden).to(attn.q_proj.weight.dtype)
    query = _rotated(attn.q_proj(normed), attn.head_dim, positions)
    keys = heads(attn.k_proj(_joined(key).to(attn.k_proj.weight.dtype)), attn.head_dim)
    values = heads(attn.v_proj(_joined(value).to(attn.v_proj.weight.dtype)), attn.head_dim)
    mask = None if real is None else real[:, None, None, :].expand(-1, -1, normed.shape[1], -1)
    mixed = attend(attn, query, keys, values, mask)
    # A softmax over nothing would be an average over everything.
    return _finish(layer, hidden, mixed if null is None else mixed.masked_fill(null, 0.0))


def _joined(x: Tensor) -> Tensor:
    """(B, heads, S, d) -> (B, S, heads * d)."""
    return x.transpose(1, 2).flatten(2)


def _rotated(x: Tensor, head_dim: int, positions: Tensor) -> Tensor:
    """(B, S, heads * d) -> (B, heads, S, d) with LeRobot's rotary embedding."""
    return apply_rope(x.view(*x.shape[:-1], -1, head_dim), positions).transpose(1, 2)


def _finish(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """Output projection, residual, MLP, residual, in the precision of the layer: (B, S, W) -> (B, S, W)."""
    out = layer.self_attn.o_proj(mixed.to(layer.self_attn.o_proj.weight.dtype))
    residual = (out + hidden).to(out.dtype)
    out = layer.mlp(layer.post_attention_layernorm(residual))
    return (out + residual).to(out.dtype)
