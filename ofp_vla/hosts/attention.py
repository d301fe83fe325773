"""Attention of packed queries: layout of the heads, mask of one pass, and a product that is fast on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

ATTENTION = ("auto", "sdpa", "grouped", "eager")


def heads(x: Tensor, head_dim: int) -> Tensor:
    """(B, S, heads * d) -> (B, heads, S, d)."""
    return x.view(*x.shape[:-1], -1, head_dim).transpose(1, 2)


def packed_mask(
    prefix: Tensor, null: Tensor | None, queries: int, horizon: int, *, causal: bool = False
) -> Tensor:
    """Which tokens of prefix and suffix each packed action token sees.

    Args:
        prefix: (B, P) bool, real tokens of the prefix.
        null: (B, Q) bool, queries that must not see the prefix; None if there is none.
        queries: Q.
        horizon: H, actions per chunk.
        causal: whether an action sees only those before it, instead of its whole chunk.

    Returns:
        (B, 1, Q*H, P + Q*H) bool: a query sees the prefix unless null, and its own chunk.
    """
    batch = prefix.shape[0]
    if null is None:
        sees_prefix = prefix[:, None, :].expand(-1, queries * horizon, -1)
    else:
        sees_prefix = ((~null)[:, :, None] & prefix[:, None, :]).repeat_interleave(horizon, dim=1)
    block = torch.ones(horizon, horizon, dtype=torch.bool, device=prefix.device)
    own = torch.eye(queries, dtype=torch.bool, device=prefix.device).kron(block.tril() if causal else block)
    return torch.cat([sees_prefix, own.expand(batch, -1, -1)], dim=2)[:, None]


def attend(
    kind: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """Attention of (B, heads, S, d) over (B, kv_heads, T, d).

    Args:
        kind: "sdpa"; "grouped", which folds the heads that share keys into the rows of one product and is
            several times faster for small heads on a CPU; "auto" takes "sdpa" on a GPU, "grouped" on a CPU.
        query: (B, heads, S, d).
        key: (B, kv_heads, T, d).
        value: (B, kv_heads, T, d).
        mask: (B, 1, S or 1, T) bool; every row sees at least one token. None where all see all.
        scaling: factor of the scores.

    Returns:
        (B, S, heads * d).
    """
    if kind == "grouped" or (kind == "auto" and query.device.type == "cpu"):
        return _grouped_attention(query, key, value, mask, scaling)
    count = query.shape[1]
    key, value = (x.expand(-1, count, -1, -1) if x.shape[1] == 1 else x for x in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=key.shape[1] != count
    )
    return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


def fast_attention(
    kind: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, real: int | None = None
) -> Tensor:
    """Attention of the fast path; the one place that chooses a kernel for it.

    Args:
        kind: see `attend`; no "eager".
        query: (rows, S, heads, d).
        key: (rows, kv_heads, T, d), each read by as many heads beside each other.
        value: as `key`.
        mask: (rows or 1, 1, S or 1, T) bool; every token sees at least one. None where all see all.
        real: only the first so many of T keys are real, others are seen by nobody; "grouped" only.

    Returns:
        (rows, S, heads * d).
    """
    rows, length, heads, dim = query.shape
    groups = key.shape[1]
    shared = heads // groups
    if kind == "grouped" or (kind == "auto" and query.device.type == "cpu"):
        scale = dim**-0.5
        if shared == 1:
            scores = (query * scale).transpose(1, 2) @ key.mT
            out = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype) @ value
            return out.transpose(1, 2).reshape(rows, length, heads * dim)
        scores = torch.bmm(_folded(query, groups, scale).flatten(0, 1), key.flatten(0, 1).mT)
        if mask is not None:
            seen = scores.view(rows, groups, length, shared, -1)[..., :real]
            seen.masked_fill_(~mask[:, :, :, None], torch.finfo(scores.dtype).min)
        if real is not None:
            behind = torch.arange(scores.shape[-1], device=scores.device) >= real
            scores = scores.masked_fill(behind, -torch.inf)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
        return _unfolded(torch.bmm(weights, value.flatten(0, 1)), groups, length)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    if shared == 1:
        return sdpa(query.transpose(1, 2), key, value, attn_mask=mask).transpose(1, 2).flatten(2)
    # Heads become rows of one head, so that keys are read once for all of them.
    if mask is not None and mask.shape[2] > 1:
        mask = mask.repeat_interleave(shared, dim=2)
    return _unfolded(sdpa(_folded(query, groups), key, value, attn_mask=mask), groups, length)


def _folded(query: Tensor, groups: int, scale: float | None = None) -> Tensor:
    """(rows, S, heads, d) -> (rows, groups, S * heads / groups, d): heads that share keys as rows of one."""
    rows, length, heads, dim = query.shape
    parts = query.view(rows, length, groups, heads // groups * dim).transpose(1, 2)
    if scale is None:
        return parts.reshape(rows, groups, -1, dim)
    if groups == 1:
        return (query * scale).view(rows, 1, length * heads, dim)
    return torch.mul(parts, scale, out=torch.empty_like(parts, memory_format=torch.contiguous_format)).view(
        rows, groups, -1, dim
    )


def _unfolded(mixed: Tensor, groups: int, length: int) -> Tensor:
    """Back from `_folded` to (rows, S, heads * d); the first two dimensions may be one."""
    parts = mixed.reshape(-1, groups, length, mixed.shape[-2] // length * mixed.shape[-1])
    return parts.transpose(1, 2).reshape(len(parts), length, -1)


def _grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    batch, count, length, dim = query.shape
    groups = key.shape[1]
    rows = query.reshape(batch, groups, count // groups * length, dim) * scaling
    scores = (rows @ key.transpose(2, 3)).view(batch, count, length, -1)
    if mask is not None:
        # In place: the product's backward does not need the scores.
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    out = weights.view(batch, groups, count // groups * length, -1) @ value
    return out.view(batch, count, length, dim).transpose(1, 2).reshape(batch, length, count * dim)
