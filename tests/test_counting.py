"""What `ofp_vla.counting` counts of attention, however it is computed."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ofp_vla.counting import count


@pytest.mark.parametrize("masked", [False, True])
def test_attention_counts_its_two_products_and_backward_at_least_twice_as_many(masked):
    rows, heads, queries, keys, width = 2, 3, 5, 7, 8
    q, k, v = (torch.randn(rows, heads, n, width, requires_grad=True) for n in (queries, keys, keys))
    mask = torch.ones(rows, 1, queries, keys, dtype=torch.bool) if masked else None
    found = []
    forward = count(lambda: found.append(scaled_dot_product_attention(q, k, v, mask)))
    products = 2 * (2 * rows * heads * queries * keys * width)
    assert forward.flops == products
    backward = count(lambda: found[0].sum().backward())
    assert 2 * products <= backward.flops <= 2.5 * products
