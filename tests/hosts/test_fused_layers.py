"""Branches of the fused layers that only a GPU takes, in closed form on any device."""

import pytest
import torch

from ofp_vla.hosts.attention import attend, fast_attention
from ofp_vla.hosts.fast.fused_layers import DecoderLayer, Norm, Product, expert_layer, multiply
from ofp_vla.hosts.fast.packed import widened

G = torch.Generator().manual_seed(0)


def random(*shape):
    return torch.randn(*shape, generator=G)


@pytest.mark.parametrize("kind", ["sdpa", "grouped"])
@pytest.mark.parametrize("mask", ["none", "of keys", "of each token"])
@pytest.mark.parametrize("keys", [1, 2, 4])
def test_attention_is_the_same_by_every_kernel(kind, mask, keys):
    query, key, value = random(3, 5, 4, 8), random(3, keys, 7, 8), random(3, keys, 7, 8)
    seen = {
        "none": None,
        "of keys": torch.rand(3, 1, 1, 7, generator=G) < 0.7,
        "of each token": torch.rand(3, 1, 5, 7, generator=G) < 0.7,
    }[mask]
    if seen is not None and keys == 4:
        seen = None  # SigLIP has none
    if seen is not None:
        seen[..., 0] = True
    expected = attend("sdpa", query.transpose(1, 2), key, value, seen, 8**-0.5)
    torch.testing.assert_close(fast_attention(kind, query, key, value, seen), expected)


def test_keys_behind_the_real_ones_are_seen_by_nobody():
    query, key, value = random(2, 5, 4, 8), random(2, 1, 7, 8), random(2, 1, 7, 8)
    mask = torch.rand(2, 1, 1, 7, generator=G) < 0.7
    mask[..., 0] = True
    longer = [torch.cat([x, 1e4 * random(2, 1, 9, 8)], dim=2) for x in (key, value)]
    for seen in (None, mask):
        expected = fast_attention("grouped", query, key, value, seen)
        torch.testing.assert_close(fast_attention("grouped", query, *longer, seen, 7), expected)


@pytest.mark.parametrize("queries", [1, 3])
def test_an_expert_layer_is_the_same_with_keys_padded_to_a_multiple(queries):
    width, heads, dim, batch, known, tokens = 16, 4, 8, 2, 6, 5
    layer = DecoderLayer(
        Product(random((heads + 2) * dim, width)),
        Product(random(width, heads * dim)),
        Product(random(2 * 24, width)),
        None,
        Product(random(width, 24)),
    )
    norm = Norm(random(1, 1, width), random(1, 1, width), random(1, 1, width))
    rows = batch * queries
    angles = random(tokens, 1, dim // 2).repeat(1, 1, 2)
    sine = torch.cat([-angles.sin()[..., : dim // 2], angles.sin()[..., dim // 2 :]], dim=-1)
    given = (random(rows, tokens, width), random(rows, tokens, width), norm.gate)
    prefix = random(batch, 1, known, dim), random(batch, 1, known, dim)
    mask = torch.rand(rows, 1, 1, known + tokens, generator=G) < 0.8
    mask[..., 0] = True
    for seen in (None, mask):
        behind = (*prefix, (angles.cos(), sine), seen, norm, layer, norm, "grouped")
        padded, plain = expert_layer(*given, *behind, True), expert_layer(*given, *behind)
        for a, b in zip(padded, plain, strict=True):
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_an_mlp_of_a_rounder_width_computes_the_same():
    rise, fall = Product(random(30, 16), random(30)), Product(random(16, 30), random(16))
    wide = widened(rise, fall, 32)
    assert len(wide[0].weight) == 32
    x = random(3, 16)

    def run(rise, fall):
        return multiply(torch.nn.functional.gelu(multiply(x, rise), approximate="tanh"), fall)

    torch.testing.assert_close(run(*wide), run(rise, fall))
    assert widened(rise, fall) == (rise, fall)
