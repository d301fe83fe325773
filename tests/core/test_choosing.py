"""Choosing among draws whose neighbourhoods are known."""

import pytest
import torch

from ofp_vla.core.choosing import RULES, choose, distances, spread


def draws(*places):
    """(1, K, 1, 1) draws at places on a line."""
    return torch.tensor(places).reshape(1, -1, 1, 1)


def place(chunks, rule):
    index = choose(distances(chunks), rule)
    return float(chunks[0, index[0]])


def test_distances_are_root_mean_squares_over_what_is_executed():
    chunks = torch.zeros(1, 2, 4, 3)
    chunks[0, 1, :2] = 3.0
    assert distances(chunks, executed=2)[0, 0, 1] == 3
    assert distances(chunks)[0, 1, 0] == pytest.approx(3 / 2**0.5)
    chunks[0, 1, 2:] = 1e6
    assert distances(chunks, executed=2)[0, 0, 1] == 3
    assert distances(chunks).diagonal(dim1=1, dim2=2).eq(0).all()


def test_observations_may_differ_in_what_is_executed():
    chunks = torch.randn(3, 4, 6, 2, generator=torch.Generator().manual_seed(0))
    counts = (1, 6, 4)
    each = [distances(chunks[row : row + 1], count) for row, count in enumerate(counts)]
    torch.testing.assert_close(distances(chunks, torch.tensor(counts)), torch.cat(each))


def test_spread_is_the_mean_distance_of_two_draws():
    assert spread(distances(draws(0.0, 0.0, 3.0))) == pytest.approx(2)
    assert spread(distances(draws(1.0))) == 0


def test_a_draw_between_two_ways_is_never_carried_out():
    # Four draws on each of two ways, and first the one in the middle.
    chunks = draws(0.5, 0.0, 1.0, 0.01, 1.01, 0.02, 1.02, 0.03, 1.03)
    assert place(chunks, "first") == 0.5
    for rule in ("dense", "walk"):
        assert min(abs(place(chunks, rule) - way) for way in (0, 1)) < 0.05


@pytest.mark.parametrize("way", [0.0, 1.0])
def test_walk_stays_on_the_way_that_the_first_draw_is_on_and_dense_takes_the_likelier(way):
    others = (0.01, 0.02, 0.015, 0.005, 1.01, 1.02, 1.03)  # five of nine near 0 with the first at 0
    chunks = draws(way, *others)
    assert abs(place(chunks, "walk") - way) < 0.05
    assert abs(place(chunks, "dense")) < 0.05


def test_walk_keeps_the_share_of_each_way_where_dense_leans():
    generator = torch.Generator().manual_seed(0)
    ways = (torch.rand(4000, 8, generator=generator) < 0.7).float()
    chunks = (ways + 0.05 * torch.randn(4000, 8, generator=generator))[..., None, None]
    apart = distances(chunks)
    rows = torch.arange(4000)
    share = {rule: float(ways[rows, choose(apart, rule)].mean()) for rule in RULES}
    error = 5 * (0.7 * 0.3 / 4000) ** 0.5
    assert share["first"] == pytest.approx(0.7, abs=error)
    # A way that one or two of eight draws are on has no neighbourhood of its own: the walk leaves it.
    lonely = sum(
        float(torch.distributions.Binomial(8, torch.tensor(p)).log_prob(torch.tensor(float(k))).exp()) * k / 8
        for p in (0.3, 0.7)
        for k in (1, 2)
    )
    assert abs(share["walk"] - 0.7) <= lonely + error
    assert share["dense"] > share["walk"] + error


def test_rows_are_chosen_alone_and_units_do_not_matter():
    chunks = torch.randn(5, 8, 4, 3, generator=torch.Generator().manual_seed(1))
    for rule in RULES:
        together = choose(distances(chunks), rule)
        assert torch.equal(together, torch.cat([choose(distances(row[None]), rule) for row in chunks]))
        assert torch.equal(together, choose(distances(4 * chunks), rule))


def test_dense_does_not_depend_on_the_order_of_the_draws():
    chunks = torch.randn(1, 7, 4, 3, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    mixed = chunks[:, order]
    assert torch.equal(
        chunks[0, choose(distances(chunks), "dense")[0]], mixed[0, choose(distances(mixed), "dense")[0]]
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_draws_can_be_chosen_from(rule, count):
    chunks = torch.randn(2, count, 4, 3, generator=torch.Generator().manual_seed(4))
    assert (choose(distances(chunks), rule) < count).all()


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="'best', expected one of"):
        choose(distances(draws(0.0, 1.0)), "best")
