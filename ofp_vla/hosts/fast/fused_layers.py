"""Layers of SigLIP, of Gemma and Llama, and of the action experts as pure functions of tensors.

No module and no state: so all layers of one kind share one compilation, and a CUDA graph can hold them. The
arithmetic is that of LeRobot's modules in their order, up to rounding: norms in float32, everything else in
the type of the hidden tokens. Sequences are (rows, S, W), heads (rows, S, heads, d): those that share keys
lie together. What families of models do differently is told by a word, not by a number, which a compiler
would let vary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ofp_vla.hosts.attention import fast_attention
from ofp_vla.hosts.fast.fp8 import multiply_fp8
from ofp_vla.hosts.fast.gelu import linear_gelu

# Of every norm in SigLIP.
EPSILON = 1e-6
GEMMA, LLAMA = "gemma", "llama"
# Of every norm in a language model of a family and in its expert.
EPSILONS = {GEMMA: 1e-6, LLAMA: 1e-5}
# Keys of a product that is to be fast on a GPU.
_MULTIPLE = 8


Rotary = tuple[Tensor, Tensor]


class Product(NamedTuple):
    """A linear map: weight (N, K), bias (N,); with a scale (N, 1), the weight is float8."""

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None


class Norm(NamedTuple):
    """What a norm does after it has divided: times `scale`, plus `shift`; `gate` is of its residual.

    Plain: scale (W,) = w, or 1 + w as Gemma has it. Adaptive: all (n, 1, W), n = 1 or one for each row.
    float32 but for the gate.
    """

    scale: Tensor
    shift: Tensor | None = None
    gate: Tensor | None = None
    family: str = GEMMA


class VisionLayer(NamedTuple):
    """A layer of SigLIP; `qkv` gives queries, keys and values, `one_kernel` is that of `hosts.fast.gelu`."""

    norm: Tensor
    norm_bias: Tensor
    qkv: Product
    out: Product
    mlp_norm: Tensor
    mlp_norm_bias: Tensor
    rise: Product
    fall: Product
    one_kernel: bool = False


class DecoderLayer(NamedTuple):
    """A layer of Gemma or Llama but for its norms; without `up`, `gate` gives both.

    `qkv` gives queries, keys and values; in a layer that reads another sequence's, queries alone.
    """

    qkv: Product
    out: Product
    gate: Product
    up: Product | None
    down: Product
    family: str = GEMMA


def multiply(x: Tensor, product: Product) -> Tensor:
    """(..., K) -> (..., N)."""
    if product.scale is None:
        return functional.linear(x, product.weight, product.bias)
    return multiply_fp8(x, product.weight, product.scale)


def vision_layer(
    hidden: Tensor, delta: Tensor | None, layer: VisionLayer, heads: int, attention: str
) -> tuple[Tensor, Tensor]:
    """One layer of SigLIP, all (rows, S, W); see `prefix_layer` for `delta`."""
    hidden = added(hidden, delta)
    rows, length, width = hidden.shape
    tokens = torch.layer_norm(hidden, (width,), layer.norm, layer.norm_bias, EPSILON)
    qkv = multiply(tokens, layer.qkv).view(rows, length, 3, heads, width // heads)
    query, key, value = qkv.unbind(2)
    mixed = fast_attention(attention, query, key.transpose(1, 2), value.transpose(1, 2), None)
    hidden = hidden + multiply(mixed, layer.out)
    tokens = torch.layer_norm(hidden, (width,), layer.mlp_norm, layer.mlp_norm_bias, EPSILON)
    if layer.one_kernel and layer.rise.bias is not None:
        raised = linear_gelu(tokens, layer.rise.weight, layer.rise.bias)
    else:
        raised = functional.gelu(multiply(tokens, layer.rise), approximate="tanh")
    return hidden, multiply(raised, layer.fall)


def prefix_layer(
    hidden: Tensor,
    delta: Tensor | None,
    rotary: Rotary,
    mask: Tensor | None,
    norm: Norm,
    layer: DecoderLayer,
    mlp_norm: Norm,
    attention: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer of the prefix.

    Args:
        hidden: (B, P, W).
        delta: what the layer before adds to it, so that one kernel adds and norms; None for nothing.
        rotary: see `turned`.
        mask: (B or 1, 1, P or 1, P) bool, True where a token is seen; None if all see all.
        norm: before attention, plain.
        layer: weights.
        mlp_norm: before the MLP, plain.
        attention: see `fast_attention`.

    Returns:
        `hidden` and `delta` for the next layer, keys and values (B, kv_heads, P, d).
    """
    hidden = added(hidden, delta)
    query, key, value = _projected(normed(hidden, norm), rotary, layer)
    key, value = _alone(key), _alone(value)
    mixed = fast_attention(attention, query, key, value, mask)
    return *_finished(hidden, mixed, layer, norm, mlp_norm), key, value


def prefix_keys(
    hidden: Tensor, delta: Tensor | None, rotary: Rotary, norm: Norm, product: Product
) -> tuple[Tensor, Tensor]:
    """Keys and values (B, kv_heads, P, d) of a layer of which nothing else is read; `product` gives both."""
    joined = multiply(normed(added(hidden, delta), norm), product)
    key, value = joined.view(*joined.shape[:2], -1, rotary[0].shape[-1]).chunk(2, dim=2)
    return _alone(turned(key, rotary).transpose(1, 2)), _alone(value.transpose(1, 2))


def expert_layer(
    hidden: Tensor,
    delta: Tensor | None,
    gate: Tensor | None,
    prefix_key: Tensor,
    prefix_value: Tensor,
    rotary: Rotary,
    mask: Tensor | None,
    norm: Norm,
    layer: DecoderLayer,
    mlp_norm: Norm,
    attention: str,
    rounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """One layer of the action expert for Q chunks of each of B observations.

    Args:
        hidden: (B*Q, S, W).
        delta: see `prefix_layer`.
        gate: of `delta`, if its norm had one.
        prefix_key: (B, kv_heads, P, d).
        prefix_value: (B, kv_heads, P, d).
        rotary: see `turned`.
        mask: (B*Q or 1, 1, S or 1, P + S) bool, True where a token is seen; None if all see all.
        norm: before attention.
        layer: weights.
        mlp_norm: before the MLP.
        attention: see `fast_attention`.
        rounded: whether keys and values are padded to a number that a GPU multiplies faster.

    Returns:
        `hidden` and `delta` for the next layer.
    """
    hidden = added(hidden, delta, gate)
    query, key, value = _projected(normed(hidden, norm), rotary, layer)
    real = prefix_key.shape[2] + key.shape[2]
    padding = -real % _MULTIPLE if rounded else 0
    key, value = (_behind(*pair, padding) for pair in ((prefix_key, key), (prefix_value, value)))
    mixed = fast_attention(attention, query, key, value, mask, real if rounded else None)
    return _finished(hidden, mixed, layer, norm, mlp_norm)


def cross_layer(
    hidden: Tensor,
    delta: Tensor | None,
    key: Tensor,
    value: Tensor,
    rotary: Rotary,
    mask: Tensor | None,
    null: Tensor | None,
    norm: Norm,
    layer: DecoderLayer,
    mlp_norm: Norm,
    attention: str,
) -> tuple[Tensor, Tensor]:
    """One layer of an action expert that reads given keys and values alone, for Q chunks of B observations.

    Args:
        hidden: (B*Q, S, W).
        delta: see `prefix_layer`.
        key: (B, kv_heads, P, d), which all chunks of an observation read.
        value: (B, kv_heads, P, d).
        rotary: see `turned`.
        mask: (B, 1, 1, P) bool, True where a token is real; None if all are.
        null: (B*Q, 1, 1) bool, True for chunks that see nothing; None if there are none.
        norm: before attention.
        layer: weights.
        mlp_norm: before the MLP.
        attention: see `fast_attention`.

    Returns:
        `hidden` and `delta` for the next layer.
    """
    hidden = added(hidden, delta)
    query = multiply(normed(hidden, norm), layer.qkv)
    query = turned(query.view(*hidden.shape[:2], -1, key.shape[-1]), rotary)
    mixed = fast_attention(attention, query.view(len(key), -1, *query.shape[2:]), key, value, mask)
    mixed = mixed.view(*hidden.shape[:2], -1)
    if null is not None:
        # A softmax over nothing would be an average over everything.
        mixed = mixed.masked_fill(null, 0.0)
    return _finished(hidden, mixed, layer, norm, mlp_norm)


def read_keys(key: Tensor, value: Tensor, products: tuple[Product, Product]) -> tuple[Tensor, Tensor]:
    """What a layer that reads another sequence's keys and values makes of these; all (B, kv_heads, P, d)."""
    dim = key.shape[-1]
    made = (
        multiply(x.transpose(1, 2).flatten(2).to(product.weight.dtype), product).unflatten(2, (-1, dim))
        for x, product in zip((key, value), products, strict=True)
    )
    first, second = (_alone(x.transpose(1, 2)) for x in made)
    return first, second


def normed(hidden: Tensor, norm: Norm) -> Tensor:
    """Root mean square norm in float32, in the type of `hidden`."""
    wide, width, epsilon = hidden.float(), hidden.shape[-1:], EPSILONS[norm.family]
    if norm.shift is None:
        out = torch.rms_norm(wide, width, norm.scale, epsilon)
    else:
        out = torch.addcmul(norm.shift, torch.rms_norm(wide, width, None, epsilon), norm.scale)
    return out.to(hidden.dtype)


def turned(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary embedding of heads (rows, S, heads, d).

    Args:
        x: queries or keys.
        rotary: cosines, and sines that are negative for the first half of a head, each (S, 1, d), or
            (rows, S, 1, d) where each row has positions of its own. In float32, the rotation is too.
    """
    cosine, sine = rotary
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine).to(x.dtype)


def _projected(tokens: Tensor, rotary: Rotary, layer: DecoderLayer) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (rows, S, heads, d), keys and values (rows, kv_heads, S, d), which lie behind them."""
    joined = multiply(tokens, layer.qkv)
    heads = joined.view(*joined.shape[:2], -1, rotary[0].shape[-1])
    count = layer.out.weight.shape[1] // heads.shape[3]
    keys = (heads.shape[2] - count) // 2
    both, value = heads.split_with_sizes([count + keys, keys], dim=2)
    query, key = turned(both, rotary).split_with_sizes([count, keys], dim=2)
    return query, key.transpose(1, 2), value.transpose(1, 2)


def _alone(x: Tensor) -> Tensor:
    """Keys or values (B, kv_heads, S, d) in memory of their own, always with the same strides."""
    return x[:, 0].contiguous()[:, None] if x.shape[1] == 1 else x.contiguous()


def _behind(prefix: Tensor, own: Tensor, padding: int) -> Tensor:
    """Keys or values (B, kv_heads, P, d) of observations before those of their rows; zeros behind."""
    batch = prefix.shape[0]
    if batch == own.shape[0] and not padding:
        return torch.cat([prefix, own], dim=2)
    each = own.view(batch, -1, *own.shape[1:])
    parts = [prefix[:, None].expand(-1, each.shape[1], -1, -1, -1), each]
    if padding:
        parts.append(each.new_zeros(*each.shape[:3], padding, each.shape[-1]))
    return torch.cat(parts, dim=3).flatten(0, 1)


def _finished(
    hidden: Tensor, mixed: Tensor, layer: DecoderLayer, norm: Norm, mlp_norm: Norm
) -> tuple[Tensor, Tensor]:
    """Output projection, residual, MLP; the last addition is the next layer's."""
    hidden = added(hidden, multiply(mixed, layer.out), norm.gate)
    tokens = normed(hidden, mlp_norm)
    if layer.up is None:
        gate, up = multiply(tokens, layer.gate).chunk(2, dim=-1)
    else:
        gate, up = multiply(tokens, layer.gate), multiply(tokens, layer.up)
    if layer.family == GEMMA:
        activated = functional.gelu(gate, approximate="tanh")
    else:
        activated = functional.silu(gate)
    return hidden, multiply(activated * up, layer.down)


def added(hidden: Tensor, delta: Tensor | None, gate: Tensor | None = None) -> Tensor:
    """The residual stream with what a layer adds, gated if its norm has a gate."""
    if delta is None:
        return hidden
    return hidden + delta if gate is None else torch.addcmul(hidden, delta, gate)
