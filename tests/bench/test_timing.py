"""Timing in turns, failures as rows, floors in closed form, counts that add up."""

import itertools
import logging
import time

import pytest
import torch

from ofp_vla.bench import acting, counts, floors
from ofp_vla.bench.floors import Ceilings, Phase, floor
from ofp_vla.bench.groups import Group, Stand, Unavailable, run_group
from ofp_vla.bench.rows import FAILED, MEASURED, SKIPPED, Results, Row
from ofp_vla.bench.subjects import Subject
from ofp_vla.bench.timing import MOST, Arm, Budget, Clock, OutOfTime, Timed, interleave, time_limit
from ofp_vla.counting import Cost

CLOCK = Clock(torch.device("cpu"))


def test_arms_take_turns_and_fast_ones_are_called_more_often_in_each():
    calls = []

    def arm(name, seconds):
        return Arm(lambda: (calls.append(name), time.sleep(seconds)))

    found = interleave({"slow": arm("slow", 0.05), "fast": arm("fast", 0.004)}, CLOCK, 0.5, Budget(20))
    assert len(found["fast"].seconds) > 2 * len(found["slow"].seconds)
    assert min(found["slow"].seconds) >= 0.05
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert turns[:6] == ["slow", "fast"] * 3


def test_an_arm_ends_after_enough_calls():
    found = interleave({"nothing": Arm(lambda: None)}, CLOCK, 60, Budget(60))
    assert MOST <= len(found["nothing"].seconds) < MOST + 20


def test_what_takes_longer_than_the_budget_is_ended():
    with pytest.raises(OutOfTime), time_limit(0.05):
        time.sleep(5)
    time.sleep(0.06)  # no alarm is left


def broken():
    raise ValueError("no such\nkernel")


def run_stands(*stands, seconds=2.0, budget=20.0):
    group, results = Group("acting", 4, stands), Results({})
    rows = group.rows(results, "float32")
    run_group(group, rows, CLOCK, seconds, Budget(budget))
    return {row.name: row for row in results.rows}


def test_a_row_that_fails_keeps_its_reason_and_the_others_go_on():
    def unavailable(_):
        raise Unavailable("this card has no such type")

    def late():
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("CUDA out of memory")

    calls = []
    good, bad = Subject(lambda: 1), Subject(broken)
    rows = run_stands(
        Stand(bad, {"made": lambda _: Arm(lambda: None)}),
        Stand(
            good,
            {
                "called": lambda _: Arm(broken),
                "prepared": lambda _: broken(),
                "absent": unavailable,
                "late": lambda _: Arm(late),
                "fine": lambda thing: Arm(lambda: thing, 4),
            },
        ),
        seconds=0.2,
    )
    assert [rows[name].status for name in ("made", "called", "prepared", "late")] == [FAILED] * 4
    assert rows["made"].reason == rows["called"].reason == "ValueError: no such kernel"
    assert rows["late"].reason == "RuntimeError: CUDA out of memory"
    assert (rows["absent"].status, rows["absent"].reason) == (SKIPPED, "this card has no such type")
    assert rows["fine"].status == MEASURED
    assert rows["fine"].per_second == pytest.approx(4e3 / rows["fine"].p50_ms)


def test_what_is_logged_while_a_row_is_made_is_its_remark():
    def make(_):
        logging.getLogger("ofp_vla.hosts").warning("fp8 is refused:\n cosine %.2f", 0.5)
        return Arm(lambda: None)

    row = run_stands(Stand(Subject(lambda: 1), {"fp8": make}), seconds=0.1)["fp8"]
    assert (row.status, row.reason) == (MEASURED, "fp8 is refused: cosine 0.50")


def test_a_spent_budget_skips_and_makes_nothing():
    made = []
    rows = run_stands(
        Stand(Subject(lambda: made.append(1)), {"later": lambda _: Arm(lambda: None)}), budget=-1.0
    )
    assert (rows["later"].status, made) == (SKIPPED, [])
    assert "budget" in rows["later"].reason


def test_a_wrapped_end_of_the_time_is_no_failure():
    def compiled():
        time.sleep(0.1)
        raise RuntimeError("BackendCompilerFailed: OutOfTime")

    row = run_stands(Stand(Subject(lambda: 1), {"x": lambda _: Arm(compiled)}), budget=0.09)["x"]
    assert row.status == SKIPPED
    assert "budget" in row.reason


def test_quantiles_and_throughput_of_known_times():
    row = Row("acting", "x", 8, "float32")
    row.take(Timed(seconds=[0.001 * k for k in range(1, 102)], peak=2 * 10**9), 8, resident=10**9)
    assert (row.p50_ms, row.p95_ms, row.p99_ms) == pytest.approx((51, 96, 100))
    assert row.per_second == pytest.approx(8 / 0.051)
    assert (row.peak_gb, row.over_floor) == (3.0, None)
    row.floor_ms = 25.5
    assert row.over_floor == pytest.approx(2.0)


def test_a_floor_is_the_larger_of_both_terms_of_each_phase():
    ceilings = Ceilings(copy=4e12, flops=8e14)
    bound_by_products, bound_by_bytes = Phase(4e12, 4e9), Phase(8e10, 8e8, times=10)
    assert floor([bound_by_products], ceilings) == pytest.approx(5.0)
    assert floor([bound_by_bytes], ceilings) == pytest.approx(10 * 0.2)
    assert floor([bound_by_products, bound_by_bytes], ceilings) == pytest.approx(7.0)
    assert floor([Phase.of(Cost(10**12, 0, 4 * 10**9, 0), batch=8)], ceilings) == pytest.approx(10.0)


def test_ceilings_are_numbers_of_this_machine():
    found = floors.measure_ceilings(CLOCK, torch.float32)
    assert found.copy > 1e8
    assert found.flops > 1e8


@pytest.fixture(scope="module")
def counted():
    return dict(itertools.islice(counts.count_all("tiny", "float32"), 7))


def test_a_chunk_is_one_prefix_and_an_expert_pass_a_step(counted):
    prefix, expert, ten = (counted[name] for name in (counts.PREFIX, counts.EXPERT, acting.TEN))
    assert counted[acting.ONE].flops == prefix.flops + expert.flops
    assert ten.flops == pytest.approx(prefix.flops + 10 * expert.flops, rel=0.01)
    assert counted[counts.EXPERT_DRAWS].flops > 4 * expert.flops


def test_every_further_step_costs_the_same():
    counter = counts.Counter("tiny", "float32")
    policy = counter.policy()
    one, two, four = (counter.steps(policy, steps) for steps in (1, 2, 4))
    assert counts.after(4, one, two) == four


@pytest.mark.parametrize(
    ("name", "steps", "expert"),
    [
        (acting.ONE, 1, counts.EXPERT),
        (acting.LEROBOT, 10, counts.EXPERT),
        (acting.TEN + ", engine=off", 10, counts.EXPERT),
        (acting.DRAWS, 1, counts.EXPERT_DRAWS),
    ],
)
def test_rows_have_the_phases_of_their_way_to_act(counted, name, steps, expert):
    known = {key: cost.describe() for key, cost in counted.items()}
    prefix, passes = counts.phases(Row("acting", name, 8, "float32"), known)
    assert prefix.flops == 8 * counted[counts.PREFIX].flops
    assert prefix.bytes == counted[counts.PREFIX].weight_bytes
    assert (passes.times, passes.flops) == (steps, 8 * counted[expert].flops)
    assert not counts.phases(Row("acting", name, 8, "float32"), {})
