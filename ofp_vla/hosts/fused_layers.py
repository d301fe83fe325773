"""Layers of SigLIP, Gemma and the action expert as pure functions of tensors.

No module and no state: so all layers of one kind share one compilation, and a CUDA graph can hold them. The
arithmetic is that of LeRobot's modules in their order, up to rounding: norms in float32, everything else in
the type of the hidden tokens. Sequences are (rows, S, W), heads (rows, S, heads, d): rows that share keys lie
together, so that they are one product's rows without a copy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ofp_vla.hosts.attention import fast_attention
from ofp_vla.hosts.fp8 import multiply_fp8

# Of every norm in SigLIP, Gemma and the expert.
EPSILON = 1e-6


class Product(NamedTuple):
    """A linear map: weight (N, K), bias (N,); with a scale (N, 1), the weight is float8."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None


class Norm(NamedTuple):
    """What a norm does after it has divided: times `scale`, plus `shift`; `gate` is of its residual.

    Plain: scale (W,) = 1 + w. Adaptive: all (n, 1, W), n = 1 or one for each row. float32 but for the gate.
    """

    scale: Tensor
    shift: Tensor | None = None
    gate: Tensor | None = None


class VisionLayer(NamedTuple):
    """A layer of SigLIP; `qkv` gives queries, keys and values."""

    norm: Tensor
    norm_bias: Tensor
    qkv: Product
    out: Product
    mlp_norm: Tensor
    mlp_norm_bias: Tensor
    rise: Product
    fall: Product


class DecoderLayer(NamedTuple):
    """A layer of Gemma but for its norms; without `up`, `gate` gives both."""

    qkv: Product
    out: Product
    gate: Product
    up: Product | None
    down: Product


def multiply(x: Tensor, product: Product) -> Tensor:
    """(..., K) -> (..., N)."""
    if product.scale is None:
        return functional.linear(x, product.weight, product.bias)
    return multiply_fp8(x, product.weight, product.scale)


def vision_layer(hidden: Tensor, layer: VisionLayer, heads: int, attention: str) -> Tensor:
    """One layer of SigLIP, (rows, S, W) -> (rows, S, W)."""
    rows, length, width = hidden.shape
    tokens = functional.layer_norm(hidden, (width,), layer.norm, layer.norm_bias, EPSILON)
    qkv = multiply(tokens, layer.qkv).view(rows, length, 3, heads, width // heads)
    query, key, value = qkv.unbind(2)
    mixed = fast_attention(attention, query, key.transpose(1, 2), value.transpose(1, 2), None)
    hidden = hidden + multiply(mixed, layer.out)
    tokens = functional.layer_norm(hidden, (width,), layer.mlp_norm, layer.mlp_norm_bias, EPSILON)
    return hidden + multiply(functional.gelu(multiply(tokens, layer.rise), approximate="tanh"), layer.fall)


def prefix_layer(
    hidden: Tensor,
    rotary: Tensor,
    mask: Tensor | None,
    norm: Norm,
    layer: DecoderLayer,
    mlp_norm: Norm,
    attention: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer of the prefix.

    Args:
        hidden: (B, P, W).
        rotary: see `turned`.
        mask: (B, 1, 1, P) bool, True where a token is real; None if all are.
        norm: before attention, plain.
        layer: weights.
        mlp_norm: before the MLP, plain.
        attention: see `fast_attention`.

    Returns:
        (B, P, W), keys and values (B, 1, P, d).
    """
    query, key, value = _projected(normed(hidden, norm), rotary, layer.qkv)
    mixed = fast_attention(attention, query, key, value, mask)
    return _finished(hidden, mixed, layer, norm, mlp_norm), key, value


def prefix_keys(hidden: Tensor, rotary: Tensor, norm: Norm, product: Product) -> tuple[Tensor, Tensor]:
    """Keys and values (B, 1, P, d) of a layer of which nothing else is read; `product` gives both."""
    joined = multiply(normed(hidden, norm), product)
    key, value = joined.view(*joined.shape[:2], 2, -1).split(1, dim=2)
    return turned(key, rotary).transpose(1, 2), value.transpose(1, 2)


def expert_layer(
    hidden: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    rotary: Tensor,
    mask: Tensor | None,
    norm: Norm,
    layer: DecoderLayer,
    mlp_norm: Norm,
    attention: str,
) -> Tensor:
    """One layer of the action expert for Q chunks of each of B observations.

    Args:
        hidden: (B*Q, S, W).
        prefix_key: (B, 1, P, d).
        prefix_value: (B, 1, P, d).
        rotary: see `turned`.
        mask: (B*Q, 1, S or 1, P + S) bool, True where a token is seen; None if all see all.
        norm: before attention.
        layer: weights.
        mlp_norm: before the MLP.
        attention: see `fast_attention`.

    Returns:
        (B*Q, S, W).
    """
    query, key, value = _projected(normed(hidden, norm), rotary, layer.qkv)
    key, value = _behind(prefix_key, key), _behind(prefix_value, value)
    mixed = fast_attention(attention, query, key, value, mask)
    return _finished(hidden, mixed, layer, norm, mlp_norm)


def normed(hidden: Tensor, norm: Norm) -> Tensor:
    """Root mean square norm in float32, in the type of `hidden`."""
    wide, width = hidden.float(), hidden.shape[-1:]
    if norm.shift is None:
        out = functional.rms_norm(wide, width, norm.scale, EPSILON)
    else:
        out = torch.addcmul(norm.shift, functional.rms_norm(wide, width, None, EPSILON), norm.scale)
    return out.to(hidden.dtype)


def turned(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotary embedding of heads (rows, S, heads, d).

    Args:
        x: queries or keys.
        rotary: (2, S, 1, d), or (2, rows, S, 1, d) where each row has positions of its own: cosines, and
            sines that are negative for the first half of a head.
    """
    cosine, sine = rotary
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)


def _projected(tokens: Tensor, rotary: Tensor, qkv: Product) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (rows, S, heads, d), keys and values (rows, 1, S, d): the two last heads of a projection."""
    heads = multiply(tokens, qkv).unflatten(-1, (-1, rotary.shape[-1]))
    both = turned(heads[:, :, :-1], rotary)
    return both[:, :, :-1], both[:, :, -1:].transpose(1, 2), heads[:, :, -1:].transpose(1, 2)


def _behind(prefix: Tensor, own: Tensor) -> Tensor:
    """Keys or values (B, 1, P, d) of each observation before those of its rows, (B*Q, 1, P + S, d)."""
    batch = prefix.shape[0]
    if batch == own.shape[0]:
        return torch.cat([prefix, own], dim=2)
    each = own.unflatten(0, (batch, -1))
    return torch.cat([prefix[:, None].expand(-1, each.shape[1], -1, -1, -1), each], dim=3).flatten(0, 1)


def _finished(hidden: Tensor, mixed: Tensor, layer: DecoderLayer, norm: Norm, mlp_norm: Norm) -> Tensor:
    """Output projection, residual, MLP, residual."""
    hidden = _added(hidden, multiply(mixed, layer.out), norm.gate)
    tokens = normed(hidden, mlp_norm)
    if layer.up is None:
        gate, up = multiply(tokens, layer.gate).chunk(2, dim=-1)
    else:
        gate, up = multiply(tokens, layer.gate), multiply(tokens, layer.up)
    out = multiply(functional.gelu(gate, approximate="tanh") * up, layer.down)
    return _added(hidden, out, mlp_norm.gate)


def _added(hidden: Tensor, out: Tensor, gate: Tensor | None) -> Tensor:
    return hidden + out if gate is None else torch.addcmul(hidden, out, gate)
