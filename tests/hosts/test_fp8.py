"""float8: what quantising costs, emulated on the CPU; who is refused, and the gate before it acts."""

import logging
import math

import pytest
import torch

from ofp_vla.errors import DeviceError
from ofp_vla.hosts.fast import fp8
from ofp_vla.policies.sampling import Sampling
from tests.support.tiny import HORIZON, WIDTH, tiny_batch, tiny_policy, train_head

WAY = Sampling("interval", 1, False)


def noise(seed=0):
    return torch.randn(2, HORIZON, WIDTH, generator=torch.Generator().manual_seed(seed))


def emulated(a, b, scale_a, scale_b, dtype):
    return ((a.float() * scale_a) @ (b.float() * scale_b).T).to(dtype)


@pytest.fixture
def emulation(monkeypatch):
    """Products of float8 matrices on any device."""
    monkeypatch.setattr(fp8, "scaled_product", emulated)
    monkeypatch.setattr("ofp_vla.hosts.paligemma.refuse_missing", lambda device: None)


def test_a_quantised_row_is_off_by_a_sixteenth_or_half_the_smallest_step():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 512, generator=g) * torch.logspace(-6, 6, 64)[:, None]
    rows[3] = 0
    rows[4, 0] = 1e4
    small, scale = fp8.quantised(rows)
    assert small.dtype == torch.float8_e4m3fn
    assert scale.shape == (64, 1)
    gap = (small.float() * scale - rows).abs()
    assert bool((gap <= rows.abs() / 16 * (1 + 1e-6) + scale * 2.0**-10).all())
    largest = rows.abs().amax(dim=1)
    assert torch.allclose((small.float() * scale).abs().amax(dim=1), largest, rtol=1e-6)


def test_a_product_in_float8_is_off_by_what_two_rounded_factors_leave(emulation):
    g = torch.Generator().manual_seed(1)
    x, weight = torch.randn(3, 40, 256, generator=g), torch.randn(96, 256, generator=g)
    found = fp8.multiply_fp8(x, *fp8.quantised(weight))
    exact = x @ weight.T
    error = float((found - exact).norm() / exact.norm())
    # Rounding within 1/16 of each entry is spread evenly at the most: 1/16/sqrt(3) a factor.
    assert 0.005 < error < math.sqrt(2) / 16 / math.sqrt(3)


def chunk(policy, seed=0):
    batch = tiny_batch(2, seed)
    return policy.draw(batch, noise=noise(seed), sampling=WAY, watched=None).chunk


@pytest.mark.parametrize("kind", ["pi05", "pi0"])
def test_float8_acts_where_its_chunks_are_those_of_bfloat16(kind, emulation, caplog):
    policy = tiny_policy(host=kind, dtype="bfloat16", engine="+fp8")
    train_head(policy)
    with caplog.at_level(logging.WARNING):
        seen = [chunk(policy) for _ in range(3)]
    assert policy.host.fp8_tried == {"student": 2}
    assert policy.host.levers.fp8
    assert "no fp8" not in caplog.text
    assert torch.equal(seen[0], seen[2])
    policy.config.change(engine="on")
    policy._host = None
    exact = chunk(policy)
    assert not torch.equal(exact, seen[0])
    assert torch.cosine_similarity(exact.flatten(1), seen[0].flatten(1)).min() > 0.995


def test_float8_that_acts_otherwise_is_given_up_with_the_number(emulation, caplog, monkeypatch):
    policy = tiny_policy(host="pi05", dtype="bfloat16")
    train_head(policy)
    exact = [chunk(policy, seed) for seed in range(2)]
    policy.config.change(engine="+fp8")
    policy._host = None
    monkeypatch.setattr(fp8, "scaled_product", lambda *given: -3 * emulated(*given))
    with caplog.at_level(logging.WARNING):
        found = [chunk(policy, seed) for seed in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))
    assert caplog.text.count("no fp8 from here on") == 1
    assert "at least 0.995 is allowed" in caplog.text
    assert not policy.host.levers.fp8


def test_who_cannot_multiply_in_float8_is_told_so_when_it_is_asked_for():
    with pytest.raises(ValueError, match=r"policy\.engine='\+fp8': a smolvla_ofp policy has no path"):
        tiny_policy(host="smolvla", engine="+fp8")
    with pytest.raises(ValueError, match=r"policy\.dtype is 'float32'; set --policy\.dtype=bfloat16"):
        tiny_policy(engine="+fp8")
    policy = tiny_policy(dtype="bfloat16", engine="+fp8")
    with pytest.raises(DeviceError, match=r"needs a GPU.*the policy is on 'cpu': leave \+fp8 out"):
        chunk(policy)
