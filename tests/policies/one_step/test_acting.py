"""From a chunk to the robot: warm starts, relative actions across a queue, limits, numbers that are none."""

import copy
import logging
import threading

import pytest
import torch
from lerobot.configs.types import NormalizationMode
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE

from ofp_vla.core import Query, shift_and_pad
from ofp_vla.core.choosing import RULES, choose, distances, spread
from ofp_vla.core.objectives import OFPConfig
from ofp_vla.errors import DataError, NonFiniteActionError
from ofp_vla.policies.one_step.statistics import adopt_statistics
from ofp_vla.policies.one_step.warm_start import rebase
from ofp_vla.policies.sampling import Sampling
from tests.support.tiny import (
    ACTION_NAMES,
    ACTIONS,
    CAMERAS,
    HORIZON,
    HOSTS,
    SENTENCES,
    SIDE,
    WIDTH,
    random_stats,
    tiny_batch,
    tiny_config,
    train_head,
)
from tests.support.tiny import tiny_policy as untrained_policy


def tiny_policy(host="pi05", **changes):
    policy = untrained_policy(host=host, **changes)
    train_head(policy)
    return policy


def noise(seed=0):
    return torch.randn(3, HORIZON, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_chunk_has_the_robots_action_size_and_the_same_noise_gives_the_same_chunk(host):
    policy = tiny_policy(host=host)
    chunk = policy.predict_action_chunk(tiny_batch(), noise=noise())
    assert chunk.shape == (3, HORIZON, ACTIONS)
    policy.reset()
    assert torch.equal(policy.predict_action_chunk(tiny_batch(), noise=noise()), chunk)
    policy.reset()
    assert (policy.predict_action_chunk(tiny_batch(), noise=noise(1)) - chunk).abs().max() > 1e-2
    with pytest.raises(DataError, match="noise has shape"):
        policy.predict_action_chunk(tiny_batch(), noise=noise()[..., :-1])


def test_draws_share_one_pass_and_the_chosen_chunk_is_that_of_its_own_noise(host):
    policy = tiny_policy(host=host)
    batch, several = tiny_batch(), torch.stack([noise(seed) for seed in range(4)], dim=1)
    alone = [
        policy.generate(batch, noise=several[:, k], sampling=Sampling("interval", 1, warm=False))
        for k in range(4)
    ]
    counted = []
    expert = policy.host.expert
    policy.host.expert = lambda *a, **k: counted.append(1) or expert(*a, **k)
    for rule in RULES:
        counted.clear()
        drawn = policy.draw(batch, noise=several, sampling=Sampling("interval", 1, False, 4, rule))
        assert len(counted) == 1
        apart = distances(torch.stack(alone, dim=1)[..., :ACTIONS], policy.config.n_action_steps)
        index = choose(apart, rule)
        for row in range(3):
            torch.testing.assert_close(drawn.chunk[row], alone[index[row]][row], atol=1e-3, rtol=0)
        torch.testing.assert_close(drawn.spread, spread(apart), atol=1e-3, rtol=0)


def test_a_checkpoint_that_draws_several_does_so_in_select_action_and_by_default():
    policy = tiny_policy(draws=4, choose="walk")
    assert policy.config.sampling == Sampling("interval", 1, True, 4, "walk")
    assert str(policy.config.sampling) == "interval@1 warm walk of 4"
    asked = []
    field = policy.host.bind
    policy.host.bind = lambda *a, **k: lambda queries: asked.append(len(queries)) or field(*a, **k)(queries)
    assert policy.select_action(tiny_batch()).shape == (3, ACTIONS)
    assert asked == [4]
    with pytest.raises(DataError, match="noise has shape"):
        policy.generate(tiny_batch(), noise=noise())


def test_draw_that_is_no_number_does_not_leave(host):
    policy = tiny_policy(host=host)
    several = torch.stack([noise(seed) for seed in range(4)], dim=1)
    several[1, 2, 3, 0] = float("nan")
    with pytest.raises(NonFiniteActionError):
        policy.generate(tiny_batch(), noise=several, sampling=Sampling("interval", 1, False, 4, "dense"))


def test_first_chunk_is_cold_the_second_starts_from_the_first_and_reset_forgets_it(host):
    policy = tiny_policy(host=host, warm_start_time=0.15)
    batch, later = tiny_batch(), tiny_batch(seed=1)
    cold = {b: policy.generate(x, noise=noise(b)) for b, x in enumerate((batch, later))}
    first = policy.predict_action_chunk(batch, noise=noise(0))
    assert torch.equal(first, cold[0][..., :ACTIONS])

    executed = 4
    second = policy.predict_action_chunk(later, noise=noise(1), executed=executed)
    warm = policy.generate(later, noise=noise(1), warm=shift_and_pad(cold[0], executed))
    assert torch.equal(second, warm[..., :ACTIONS])
    assert (second - cold[1][..., :ACTIONS]).abs().max() > 1e-3

    policy.reset()
    assert torch.equal(policy.predict_action_chunk(later, noise=noise(1)), cold[1][..., :ACTIONS])


def test_warm_start_at_time_zero_equals_a_cold_start_and_can_be_switched_off(host):
    batch, later = tiny_batch(), tiny_batch(seed=1)
    at_zero = {"warm_start_time": 0.0, "ofp": OFPConfig(t_w=0.0)}
    for changes in (at_zero, {"warm_start": False}):
        policy = tiny_policy(host=host, **changes)
        policy.predict_action_chunk(batch, noise=noise(0))
        again = policy.predict_action_chunk(later, noise=noise(1))
        assert torch.equal(again, policy.generate(later, noise=noise(1))[..., :ACTIONS])


def test_warm_rows_start_warm_and_the_others_cold(host):
    policy = tiny_policy(host=host)
    rows = torch.tensor([True, False, True])
    warm_chunk = noise(5)
    cold = policy.generate(tiny_batch(), noise=noise())
    warm = policy.generate(tiny_batch(), noise=noise(), warm=warm_chunk)
    mixed = policy.generate(tiny_batch(), noise=noise(), warm=warm_chunk, warm_rows=rows)
    assert torch.equal(mixed[rows], warm[rows])
    assert torch.equal(mixed[~rows], cold[~rows])
    assert (warm - cold).abs().amax(dim=(1, 2)).min() > 1e-3


@pytest.mark.parametrize(("engine", "rounding"), [("-times", 0.0), ("on", 1e-3)])
def test_warm_rows_enter_the_path_at_t_w(host, engine, rounding):
    policy = tiny_policy(host=host, warm_start_time=0.15, engine=engine)
    rows, warm = torch.tensor([True, False, True]), noise(5)
    t = torch.where(rows, 0.15, 0.0)
    level = t[:, None, None]
    with torch.no_grad():
        field = policy.host.bind(policy._observation(tiny_batch()), "student")
        z = (1 - level) * noise() + level * warm
        by_hand = z + (1 - level) * field([Query(z, t, torch.ones(3))])[0]
    found = policy.generate(tiny_batch(), noise=noise(), warm=warm, warm_rows=rows)
    torch.testing.assert_close(found, by_hand, rtol=0, atol=rounding)


def test_last_chunk_of_another_number_of_robots_is_not_used(host):
    policy = tiny_policy(host=host)
    policy.predict_action_chunk(tiny_batch(3), noise=noise())
    two = policy.predict_action_chunk(tiny_batch(2), noise=noise()[:2])
    assert torch.equal(two, policy.generate(tiny_batch(2), noise=noise()[:2])[..., :ACTIONS])


def test_queue_hands_out_the_chunk_action_by_action(host):
    policy = tiny_policy(host=host, n_action_steps=3, warm_start=False)
    torch.manual_seed(0)
    taken = [policy.select_action(tiny_batch()) for _ in range(4)]
    torch.manual_seed(0)
    chunks = [policy.predict_action_chunk(tiny_batch()) for _ in range(2)]
    expected = [chunks[0][:, 0], chunks[0][:, 1], chunks[0][:, 2], chunks[1][:, 0]]
    assert all(torch.equal(a, b) for a, b in zip(taken, expected, strict=True))


RELATIVE = {"use_relative_actions": True, "action_feature_names": ACTION_NAMES}
NORMS = {
    "the host's own": {},
    "mean and deviation": {
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    },
    "mixed": {"normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MIN_MAX", "ACTION": "QUANTILES"}},
}


def relative_policy(host, tokenizer, **changes):
    """A policy with relative actions, grippers absolute, and its processors, all from the same statistics."""
    policy = tiny_policy(host=host, **RELATIVE, tokenizer_name=str(tokenizer), **changes)
    stats = random_stats()
    adopt_statistics(policy.config, stats)
    before, after = make_pre_post_processors(policy.config, dataset_stats=stats)
    return policy, before, after


def raw(state, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = {name: torch.rand(3, SIDE, SIDE, generator=g) for name in CAMERAS}
    return {**images, OBS_STATE: state, "task": SENTENCES[0]}


@pytest.fixture(params=NORMS)
def norms(request):
    mapping = NORMS[request.param].get("normalization_mapping")
    return (
        {}
        if mapping is None
        else {"normalization_mapping": {k: NormalizationMode(v) for k, v in mapping.items()}}
    )


def test_relative_chunk_becomes_the_same_absolute_actions_whatever_the_state_when_each_is_taken(
    host, tokenizer, norms
):
    policy, before, after = relative_policy(host, tokenizer, n_action_steps=3, warm_start=False, **norms)
    start = torch.tensor([0.3, -0.2, 0.5, 0.1])

    torch.manual_seed(0)
    batch = before(raw(start))
    wanted = [after(a) for a in policy.predict_action_chunk(batch)[:, :3].transpose(0, 1)]
    policy.reset()
    torch.manual_seed(0)
    for step, expected in enumerate(wanted):
        state = start + step * torch.tensor([0.4, 0.3, -0.2, 0.1])
        taken = after(policy.select_action(before(raw(state, seed=step))))
        torch.testing.assert_close(taken, expected, rtol=0, atol=1e-5)


def test_warm_start_of_relative_actions_means_the_same_absolute_actions_from_the_new_state(
    host, tokenizer, norms
):
    policy, before, after = relative_policy(host, tokenizer, **norms)
    old, new = torch.tensor([0.3, -0.2, 0.5, 0.1]), torch.tensor([0.7, 0.1, 0.2, 0.3])
    chunk = policy.predict_action_chunk(before(raw(old)))
    absolute = [after(a) for a in chunk.transpose(0, 1)]
    batch = before(raw(new))
    warm = policy._warm_chunk(batch, executed=2)
    moved = [after(a) for a in warm[..., :ACTIONS].transpose(0, 1)]
    for now, then in zip(moved, [*absolute[2:], absolute[-1], absolute[-1]], strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=1e-5)
    # in normalised units the arm joints moved and the grippers, which stay absolute, did not
    shift = (warm - shift_and_pad(policy._last.chunk, 2)).abs().amax(dim=(0, 1))[:ACTIONS]
    assert (shift > 1e-3).tolist() == [True, False, True, False]


def test_rebase_is_the_difference_of_states_times_the_ratio_of_the_ranges():
    actions = torch.randn(2, 5, 4)
    old, new = torch.randn(2, 4), torch.randn(2, 4)
    scale = torch.tensor([2.0, 0.0, 0.5])
    moved = rebase(actions, old, new, scale)
    expected = actions.clone()
    expected[..., :3] += ((old - new)[:, :3] * scale)[:, None]
    torch.testing.assert_close(moved, expected)
    assert torch.equal(moved[..., 3], actions[..., 3])
    torch.testing.assert_close(rebase(moved, new, old, scale), actions)


def test_actions_beyond_the_datasets_range_are_clipped_counted_and_reported_once(host, caplog):
    limits = {"action_low": [-0.1] * ACTIONS, "action_high": [0.1] * ACTIONS, "action_margin": 0.5}
    policy = tiny_policy(host=host, **limits)
    free = tiny_policy(host=host).generate(tiny_batch(), noise=noise())
    with caplog.at_level(logging.WARNING):
        chunk = policy.generate(tiny_batch(), noise=noise())
        outside = int((free[..., :ACTIONS].abs() > 0.2).sum())
        assert policy.guard.clipped == outside > 0
        policy.generate(tiny_batch(), noise=noise())
    assert policy.guard.clipped == 2 * outside
    assert len([r for r in caplog.records if "clipped" in r.message]) == 1
    torch.testing.assert_close(chunk[..., :ACTIONS], free[..., :ACTIONS].clamp(-0.2, 0.2))
    assert torch.equal(chunk[..., ACTIONS:], free[..., ACTIONS:])


def test_state_in_other_units_is_told_of_once_a_client_with_its_dimension_and_used_as_it_is(host, caplog):
    policy = tiny_policy(host=host)
    usual, other = tiny_batch()[OBS_STATE], tiny_batch()[OBS_STATE]
    usual[0, 0], other[1, 2] = 4.0, -91.0
    told = []
    for state, anew in ((usual, False), (other, False), (other, False), (other, True)):
        if anew:
            policy.guard.tell_again()
        policy.predict_action_chunk(tiny_batch(**{OBS_STATE: state}))
        told.append([each.message for each in caplog.records if "once normalised" in each.message])
    assert [len(messages) for messages in told] == [0, 1, 1, 2]
    assert "The state reaches 91 once normalised (dimension 2)" in told[-1][0]
    assert "units or the order of its values may differ" in told[-1][0]


def test_state_that_is_not_normalised_may_have_any_size(caplog):
    mapping = dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    policy = tiny_policy(normalization_mapping=mapping)
    policy.predict_action_chunk(tiny_batch(**{OBS_STATE: tiny_batch()[OBS_STATE] + 90}))
    assert "once normalised" not in caplog.text


def test_limits_are_the_datasets_extremes_in_the_units_of_the_policys_own_normaliser(host, tokenizer, norms):
    policy = tiny_policy(host=host, tokenizer_name=str(tokenizer), **norms)
    stats = random_stats()
    adopt_statistics(policy.config, stats)
    _, after = make_pre_post_processors(policy.config, dataset_stats=stats)
    for limit, extreme in ((policy.config.action_low, "min"), (policy.config.action_high, "max")):
        torch.testing.assert_close(after(torch.tensor([limit]))[0], stats[ACTION][extreme], rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_action_that_is_no_number_is_an_error_that_names_the_row_and_leaves_nothing_behind(host, value):
    policy = tiny_policy(host=host)
    noise = torch.zeros(3, HORIZON, WIDTH)
    noise[1, 0, 0] = value
    with pytest.raises(NonFiniteActionError, match=r"batch rows \[1\]"):
        policy.select_action(tiny_batch(), noise=noise)
    assert not policy._action_queue
    assert policy._last is None


def test_state_that_is_no_number_is_refused_before_it_becomes_a_word_of_the_prompt(host):
    state = tiny_batch()[OBS_STATE]
    state[2, 1] = float("nan")
    with pytest.raises(DataError, match=r"observation\.state.*batch rows \[2\]"):
        tiny_policy(host=host).predict_action_chunk(tiny_batch(**{OBS_STATE: state}))


@pytest.mark.parametrize("queued", [False, True], ids=["empty queue", "filled queue"])
def test_state_that_is_no_number_is_refused_also_where_a_queued_action_is_rebased_to_it(
    host, tokenizer, queued
):
    policy, _, _ = relative_policy(host, tokenizer)
    if queued:
        policy.select_action(tiny_batch())
    state = tiny_batch()[OBS_STATE]
    state[2, 1] = float("nan")
    before = len(policy._action_queue)
    with pytest.raises(DataError, match=r"observation\.state.*batch rows \[2\]"):
        policy.select_action(tiny_batch(**{OBS_STATE: state}))
    assert len(policy._action_queue) == before


def test_queued_relative_actions_without_statistics_are_refused_and_single_ones_are_not(host):
    single = tiny_policy(host=host, **RELATIVE, n_action_steps=1)
    assert single.select_action(tiny_batch()).shape == (3, ACTIONS)
    with pytest.raises(DataError, match=r"rebase_scale.*--policy\.n_action_steps=1"):
        tiny_policy(host=host, **RELATIVE, n_action_steps=2).select_action(tiny_batch())


@pytest.mark.parametrize("size", [ACTIONS - 1, ACTIONS + 1])
def test_limits_of_another_robot_are_refused_with_both_sizes_unless_new_statistics_replace_them(host, size):
    limits = {"action_low": [-1.0] * size, "action_high": [1.0] * size}
    with pytest.raises(DataError, match=rf"{ACTIONS} action dimensions.*trained with {size}"):
        tiny_policy(host=host, **limits)
    policy = HOSTS[host](tiny_config(host=host, **limits), dataset_stats=random_stats())
    assert len(policy.config.action_low) == ACTIONS


def test_more_action_dimensions_than_the_network_has_are_refused_with_both_sizes(host):
    with pytest.raises(DataError, match=rf"{ACTIONS} action dimensions.*max_action_dim={ACTIONS - 1}"):
        tiny_policy(host=host, max_action_dim=ACTIONS - 1)


def test_threads_take_turns_with_a_policy_whose_weight_roles_are_one_state():
    policy = tiny_policy()
    policy.config.pretrained_path = "base"
    policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.2)
    policy.config.trained_steps = 1
    teacher, student = Sampling("host", 2, False), Sampling("interval", 2, False)
    batch, found = tiny_batch(), {}

    def draw(way):
        found[way] = policy.draw(batch, noise=noise(), sampling=way).chunk

    for way in (teacher, student):
        draw(way)
    alone, expert = dict(found), policy.host.expert
    inside, go = threading.Event(), threading.Event()

    def slow(*inputs):
        inside.set()
        assert go.wait(60)
        return expert(*inputs)

    first = threading.Thread(target=draw, args=[teacher])
    others = [threading.Thread(target=draw, args=[student]), threading.Thread(target=policy.reset)]
    found.clear()
    policy.host.expert = slow
    first.start()
    assert inside.wait(60)
    del policy.host.expert
    for other in others:
        other.start()
        other.join(0.05)
        assert other.is_alive()
    go.set()
    for thread in (first, *others):
        thread.join()
    assert all(torch.equal(found[way], alone[way]) for way in alone)
    assert copy.deepcopy(policy).turn is not policy.turn
