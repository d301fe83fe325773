"""Branches of the fused layers that only a GPU takes, in closed form on any device."""

import pytest
import torch

from ofp_vla.hosts.attention import attend, fast_attention
from ofp_vla.hosts.fast import gelu
from ofp_vla.hosts.fast.fused_layers import (
    DecoderLayer,
    Norm,
    Product,
    VisionLayer,
    expert_layer,
    multiply,
    vision_layer,
)
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


def by_tanh(bias, x, weight, *, use_gelu):
    """What the operator computes on CUDA; on a CPU it is the form by erf."""
    assert use_gelu
    return torch.nn.functional.gelu(torch.addmm(bias, x, weight), approximate="tanh")


def test_gelu_is_one_kernel_only_where_that_computes_the_form_of_siglip(monkeypatch, caplog):
    gelu.one_kernel.cache_clear()
    device = torch.device("cpu")
    for _ in range(2):
        assert not gelu.one_kernel(device, torch.float32)
    assert caplog.text.count("stays a kernel of its own on cpu in torch.float32: one kernel is") == 1
    gelu.one_kernel.cache_clear()
    monkeypatch.setattr(torch, "_addmm_activation", by_tanh)
    assert all(gelu.one_kernel(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    gelu.one_kernel.cache_clear()
    monkeypatch.delattr(torch, "_addmm_activation")
    assert not gelu.one_kernel(device, torch.float32)
    assert "has no attribute '_addmm_activation'" in caplog.text
    gelu.one_kernel.cache_clear()


def test_a_layer_of_siglip_with_gelu_in_one_kernel_is_the_same(monkeypatch):
    monkeypatch.setattr(torch, "_addmm_activation", by_tanh)

    def product(out, inside):
        return Product(random(out, inside), random(out))

    norms = random(16), random(16)
    layer = VisionLayer(*norms, product(48, 16), product(16, 16), *norms, product(30, 16), product(16, 30))
    given = random(2, 9, 16), random(2, 9, 16)
    for kind in ("grouped", "sdpa"):
        one = vision_layer(*given, layer._replace(one_kernel=True), 4, kind)
        for a, b in zip(one, vision_layer(*given, layer, 4, kind), strict=True):
            torch.testing.assert_close(a, b)
