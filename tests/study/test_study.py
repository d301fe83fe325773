import io
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy.stats import binomtest, t

from ofp_vla.core.objectives import (
    IMLE,
    OFP,
    Consistency,
    ConsistencyConfig,
    FlowMatching,
    IMLEConfig,
    OFPConfig,
    OneDP,
)
from ofp_vla.study.command import PASS, STEP, Estimate, StudyOptions, run_study
from ofp_vla.study.config import StudyError, read_study, study_names, study_path
from ofp_vla.study.cost import Cost, step_cost, steps_for
from ofp_vla.study.figures import cost as cost_chart
from ofp_vla.study.page import headline, render, write_study
from ofp_vla.study.plan import Cell, make_plan
from ofp_vla.study.pooling import pool
from ofp_vla.study.rows import Row, read_rows, write_rows
from ofp_vla.study.run import StudyRun
from ofp_vla.study.summary import summarise
from ofp_vla.study.units import run_units
from ofp_vla.study.work import RealWork, trainer_run
from robotwin_eval.runs.locking import WriterLock
from robotwin_eval.runs.rates import mcnemar, paired_difference

QUIET = Console(quiet=True)
STUDY = {
    "title": "A study",
    "demonstrations": {"press_button": 4, "lift_bar": 4},
    "bases": {"base": "ofp_vla/pi05_tiny_base"},
    "recipe": "tiny_ofp_lora",
    "steps": 20,
    "seeds": [0, 1],
    "arms": {
        "ofp": {"title": "OFP <b>"},
        "imle": {"recipe": "tiny_imle_lora", "settings": {"policy.imle.teacher_samples": 2}},
    },
    "equal_passes": {"like": "ofp", "seeds": [0], "ways": ["one"]},
    "execute": {"whole": None, "replanning": 8},
    "ways": {
        "ten": {"steps": 10, "sampler": "host", "seeds": [0]},
        "one": {},
        "two": {"steps": 2, "execute": ["whole"]},
    },
    "reference": "ten",
    "headline": ["one"],
    "episodes": 3,
}


def changed(**fields):
    return {**json.loads(json.dumps(STUDY)), **fields}


@pytest.fixture
def written(tmp_path):
    def write(content, name="own"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "own.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return make_plan(read_study(path))


class StandIn:
    """Does no work but writes down what was asked, and stops where it is told."""

    def __init__(self, config, stop=None):
        self.config, self.stop, self.calls = config, stop, []

    def _called(self, name):
        self.calls.append(name)
        if name == self.stop:
            raise KeyboardInterrupt

    def demonstrate(self, folder):
        self._called("demonstrations")
        return {"mode_shares": {"press_button": {"left": 0.5, "right": 0.5}, "lift_bar": {"": 1.0}}}

    def choose_episodes(self, folder):
        self._called("episodes")
        return {}

    def train(self, arm, seed, data, folder):
        self._called(Cell(arm.name, seed).name)
        return {}

    def evaluate(self, arm, cell, checkpoint, study, workers):
        self._called(cell.name)
        rate = 0.2 if arm.name == "imle" else 0.7
        return synthetic(cell.arm, cell.seed, cell.way, cell.execute, rate, self.config.episodes)


def synthetic(arm, seed, way, execute, rate, episodes=3, tasks=("press_button", "lift_bar")):
    rng = np.random.default_rng([len(arm), seed, len(way), len(execute)])
    rows = []
    for task in tasks:
        for episode in range(100_000, 100_000 + episodes):
            solved = bool(rng.random() < rate)
            mode = ("left", "right")[int(rng.random() < 0.3)] if solved and task == "press_button" else ""
            measures = {"tip_error_mm": float(rng.uniform(2, 9)), "jerk_ratio": 1.5}
            rows.append(Row(arm, seed, way, execute, task, episode, solved, mode, "", measures))
    return rows


# --- what a study's file says


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"taskz": 1}, r"own.yaml: taskz: no such field; there are arms"),
        ({"ways": {"one": {"nfe": 2}}}, r"ways.one.nfe: no such field"),
        ({"ways": {"one": {"choose": "best"}, "ten": {}}}, r"ways.one: choose is 'best', expected one of"),
        ({"arms": {"ofp": {"lr": 2}}}, r"arms.ofp.lr: no such field"),
        ({"headline": ["three"]}, r"headline: 'three' is none of ten, one, two"),
        ({"ways": {"one": {}, "ten": {"steps": 10}}}, r"ways.ten: the reference is the base's own flow"),
        ({"episodes": 0}, r"episodes: expected a whole number of at least 1, got 0"),
        ({"demonstrations": {}}, r"demonstrations: missing"),
        ({"arms": {"base": {}, "ofp": {}}}, r"arms.base: there are two of this name"),
        ({"objectives": ["magic"]}, r"objectives: no objective 'magic'; there are ofp"),
        ({"equal_passes": {"like": "base"}}, r"equal_passes: no trained arm 'base'"),
    ],
)
def test_a_file_that_says_something_wrong_is_refused_with_the_field(written, fields, message):
    with pytest.raises(StudyError, match=message):
        read_study(written(changed(**fields)))


def test_settings_that_the_trainer_refuses_name_the_arm_before_anything_runs(written):
    content = changed(arms={"odd": {"settings": {"policy.objective": "magic"}}}, equal_passes=None)
    with pytest.raises(StudyError, match=r"arms\.odd: .*policy\.objective: must be one of .*'magic'"):
        make_plan(read_study(written(content)))


def test_a_base_that_is_not_there_is_named_before_anything_runs(written):
    content = changed(bases=STUDY["bases"] | {"weak": "nowhere/at_all"})
    with pytest.raises(StudyError, match=r"bases\.weak: checkpoint 'nowhere/at_all' is neither"):
        make_plan(read_study(written(content)))


def test_an_unknown_study_is_refused_with_the_names_that_exist():
    with pytest.raises(StudyError, match="no study 'mian'; there are ablations, main, smoke"):
        study_path("mian")


def test_every_shipped_study_can_be_planned():
    for name in study_names():
        plan = make_plan(read_study(study_path(name)))
        cells = plan.cells()
        assert len(cells) == len(set(cells))
        for arm in plan.arms:  # every trained arm is shown in the first table
            ways = {cell.way for cell in cells if cell.arm == arm.name}
            assert not arm.objective or plan.config.headline[0] in ways, (name, arm.name)


def test_all_objectives_become_arms_by_their_own_recipe_where_there_is_one(written):
    config = read_study(written(changed(objectives="all", equal_passes=None)))
    assert config.arm("onedp").recipe == "tiny_onedp_lora"
    assert config.arm("flow_matching").settings == {"policy.objective": "flow_matching"}
    assert config.arm("ofp").title == "OFP <b>"  # one that is described stays as it is


# --- cells


def test_bases_run_first_then_every_arm_of_a_seed_before_the_next_seed(plan):
    units = list(dict.fromkeys(cell.unit for cell in plan.cells()))
    assert units == ["base/0", "ofp/0", "imle/0", "imle@passes/0", "ofp/1", "imle/1"]


def test_an_arm_is_trained_before_it_acts_in_the_ways_that_are_asked_and_that_its_objective_trains(plan):
    def of(unit):
        return [(cell.way, cell.execute) for cell in plan.cells(unit)]

    both = ["whole", "replanning"]
    assert of("ofp/0") == [
        ("", ""),
        *(("ten", execute) for execute in both),
        *(("one", execute) for execute in both),
        ("two", "whole"),
    ]
    assert ("ten", "whole") not in of("ofp/1")  # ways.ten.seeds
    assert ("two", "whole") not in of("imle/0")  # trains one jump
    assert {way for way, _ in of("imle@passes/0")} == {"", "one"}
    assert of("base/0")[0] == ("ten", "whole")


def test_only_takes_an_arm_or_one_of_its_seeds_and_names_them_if_it_is_neither(plan):
    assert {cell.unit for cell in plan.cells("ofp")} == {"ofp/0", "ofp/1"}
    with pytest.raises(StudyError, match="--only ofp/7: no such arm and seed; there are base/0, ofp/0"):
        plan.cells("ofp/7")


def test_an_arm_is_compared_with_the_base_that_it_starts_from(written):
    content = changed(bases={"base": "ofp_vla/pi05_tiny_base", "weak": "ofp_vla/pi05_tiny_base"})
    content |= {"equal_passes": None, "arms": {"ofp": {}, "from_weak": {"base": "weak"}}}
    plan = make_plan(read_study(written(content)))
    rates = {"base": 0.9, "weak": 0.1, "ofp": 0.5, "from_weak": 0.5}
    rows = [
        row
        for arm, rate in rates.items()
        for way in ("ten", "one")
        for row in synthetic(arm, 0, way, "whole", rate, 40)
    ]
    summary = summarise(plan, rows, {})
    reference = [row.success for row in rows if (row.arm, row.way) == ("weak", "ten")]
    assert summary.find("from_weak", "one", "whole").overall.reference == pytest.approx(np.mean(reference))
    assert summary.find("ofp", "one", "whole").overall.difference.estimate < 0
    assert summary.find("from_weak", "one", "whole").overall.difference.low > 0


# --- cost


def test_passes_are_those_that_the_objectives_ask_for():
    assert step_cost(FlowMatching()) == Cost(1, 0)
    assert step_cost(IMLE(IMLEConfig(teacher_samples=4, student_samples=3, teacher_steps=5))) == Cost(3, 20)
    onedp = step_cost(OneDP())
    assert (onedp.with_gradient, onedp.passes) == (8, 3 * 8 + 4)
    # The moving average is not trained: it carries the jump to the data within the graph, the target outside.
    assert step_cost(Consistency(ConsistencyConfig())) == Cost(2, 3, through=1)
    assert step_cost(Consistency(ConsistencyConfig())).passes == 11
    ofp = step_cost(OFP(OFPConfig(queries=2, guidance_weight=0)))
    assert ofp.with_gradient == 2 + 1  # two queries and the anchor's
    assert 10 + 1 <= ofp.without <= 2 * 10 + 2  # the endpoint's steps and the EMA's pass, one to two wide


def test_equal_passes_are_within_half_a_step_of_the_budget(plan):
    ofp, imle = plan.arm("ofp"), plan.arm("imle@passes")
    assert imle.steps == steps_for(ofp.passes / 32, imle.cost) != ofp.steps
    assert abs(imle.passes - ofp.passes) <= imle.cost.passes * 32 / 2


# --- running


def test_a_killed_study_goes_on_and_runs_no_finished_cell_again(plan, tmp_path):
    names = [cell.name for cell in plan.cells()]
    stop = names[5]
    first = StudyRun(plan, tmp_path / "out", QUIET, StandIn(plan.config, stop))
    first.claim()
    with pytest.raises(KeyboardInterrupt):
        first.run(plan.cells())
    assert first.work.calls == ["demonstrations", "episodes", *names[:6]]
    done = list(first.rows())
    second = StudyRun(plan, tmp_path / "out", QUIET, StandIn(plan.config))
    second.claim()
    second.run(plan.cells())
    assert second.work.calls == names[5:]
    assert second.rows()[: len(done)] == done
    assert len(second.rows()) == 6 * sum(bool(cell.way) for cell in plan.cells())


def test_a_unit_that_runs_elsewhere_is_left_to_its_process_and_another_begins(plan, tmp_path):
    first = StudyRun(plan, tmp_path / "out", QUIET, StandIn(plan.config))
    first.run(plan.cells("ofp/0")[:1])
    second = StudyRun(plan, tmp_path / "out", QUIET, StandIn(plan.config))
    held = WriterLock(tmp_path / "out" / "cells" / "ofp" / "0" / "lock")
    prepared = WriterLock(tmp_path / "out" / "prepare.lock")
    with pytest.raises(StudyError, match=r"ofp/0: process \d+ on .* is writing this run: wait for it"):
        second.run(plan.cells("ofp/0"))
    second.run(plan.cells("ofp/1"))
    assert second.work.calls == [cell.name for cell in plan.cells("ofp/1")]
    held.release()
    prepared.release()


def test_a_folder_whose_passes_were_counted_otherwise_is_refused_with_the_reason(plan, tmp_path):
    StudyRun(plan, tmp_path, QUIET, StandIn(plan.config)).claim()
    path = tmp_path / "plan.json"
    made = json.loads(path.read_text())
    now = made["arms.imle@passes.steps"]
    path.write_text(json.dumps(made | {"arms.imle@passes.steps": now + 1}))
    with pytest.raises(StudyError) as refused:
        StudyRun(plan, tmp_path, QUIET, StandIn(plan.config)).claim()
    said = f"arms.imle@passes.steps was {now + 1}, is {now} (the steps of imle@passes follow from the passes"
    assert said in str(refused.value)


def test_a_folder_of_another_configuration_is_refused_with_what_differs(plan, written, tmp_path):
    StudyRun(plan, tmp_path / "out", QUIET, StandIn(plan.config)).claim()
    arms = {"ofp": {"settings": {"policy.ofp.rho_end": 0.2}}, "imle": STUDY["arms"]["imle"]}
    other = make_plan(read_study(written(changed(arms=arms, episodes=5, equal_passes=None))))
    with pytest.raises(StudyError) as refused:
        StudyRun(other, tmp_path / "out", QUIET, StandIn(other.config)).claim()
    said = str(refused.value)
    assert "episodes was 3, is 5" in said
    assert "arms.ofp.policy.ofp.rho_end was 'not given', is 0.2" in said
    assert re.search(r"arms\.ofp\.objective\.rho_end was 0\.1, is 0\.2", said)
    assert "arms.imle@passes.steps was" in said
    assert "arms.imle.objective" not in said  # as it was


def test_a_record_that_cannot_be_read_is_named(plan, tmp_path):
    run = StudyRun(plan, tmp_path, QUIET, StandIn(plan.config))
    run.claim()
    (tmp_path / "plan.json").write_text('{"episodes": ')
    with pytest.raises(StudyError, match=r"plan\.json cannot be read .*another --output"):
        run.claim()


def test_arms_seeds_and_ways_may_be_added_to_a_study(plan, written, tmp_path):
    run = StudyRun(plan, tmp_path / "out", QUIET, StandIn(plan.config))
    run.claim()
    run.run(plan.cells())
    content = changed(seeds=[0, 1, 2])
    content["arms"]["flow"] = {"settings": {"policy.objective": "flow_matching"}}
    content["ways"]["draws"] = {"draws": 8}
    more = make_plan(read_study(written(content)))
    again = StudyRun(more, tmp_path / "out", QUIET, StandIn(more.config))
    again.claim()
    again.run(more.cells())
    before = {cell.name for cell in plan.cells()}
    assert again.work.calls == [cell.name for cell in more.cells() if cell.name not in before]


def test_a_folder_that_is_no_study_is_left_alone(plan, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StudyError, match=r"has no plan\.json: it is not a study"):
        StudyRun(plan, tmp_path, QUIET, StandIn(plan.config)).claim()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_minutes_left_follow_from_the_seconds_of_finished_cells(plan):
    trained, played = Cell("ofp", 0), Cell("ofp", 0, "one", "whole")
    estimate = Estimate.of(plan, [(trained, {"seconds": 40.0}), (played, {"seconds": 3.0})])
    assert estimate.seconds(plan, Cell("ofp", 1)) == pytest.approx(20 * 2.0)
    passes = [plan.arm(name).cost.passes for name in ("ofp", "imle")]
    more = (STEP + PASS * passes[1]) / (STEP + PASS * passes[0])
    assert estimate.seconds(plan, Cell("imle", 1)) == pytest.approx(20 * 2.0 * more)
    assert estimate.seconds(plan, Cell("imle", 1, "one", "whole")) == pytest.approx(6 * 0.5)


def test_a_failed_unit_is_named_with_its_last_words_and_the_others_run(tmp_path):
    def command(unit):
        touch = f"open({str(tmp_path / unit[0])!r}, 'w')"
        fail = "print('out of cheese'); raise SystemExit(3)"
        return [sys.executable, "-S", "-c", fail if unit == "b/0" else touch]

    with pytest.raises(StudyError, match=r"1 of 3 units failed: b/0 \(.*b-0\.log ends: out of cheese\)"):
        run_units(["a/0", "b/0", "c/0"], command, tmp_path / "logs", 2, QUIET)
    assert [(tmp_path / name).exists() for name in "abc"] == [True, False, True]


def test_the_trainer_is_given_the_recipe_the_base_and_the_arms_own_settings(plan, parse, tmp_path):
    work, arm = RealWork(plan.config), plan.arm("imle")
    run = trainer_run(tmp_path / "cell", work.trainer_settings(arm, 1, tmp_path / "dataset"), arm.steps)
    config = parse(*[word for word in run.command() if word.startswith("--")])
    assert (config.steps, config.seed, config.policy.scheduler_decay_steps) == (20, 1, 20)
    assert (config.policy.objective, config.policy.imle.teacher_samples) == ("imle", 2)
    assert config.policy.pretrained_path.name == "pi05_tiny_base"


@pytest.mark.slow
def test_an_evaluation_cell_plays_its_episodes_in_the_simulator(plan, tmp_path):
    config = replace(plan.config, demonstrations={"press_button": 1}, episodes=1)
    plan = replace(plan, config=config)
    run = StudyRun(plan, tmp_path / "out", QUIET)
    run.work.demonstrate = lambda folder: {"mode_shares": {}}
    run.claim()
    cells = [Cell("base", 0, "ten", execute) for execute in ("whole", "replanning")]
    run.run(cells, workers=1)
    rows = run.rows()
    assert [(row.execute, row.task, row.episode) for row in rows] == [
        ("whole", "press_button", 100_000),
        ("replanning", "press_button", 100_000),
    ]
    assert rows[0].measures["tip_error_mm"] > 0


# --- numbers


def test_rows_are_read_back_as_they_were_written(tmp_path):
    rows = [*synthetic("ofp", 1, "one", "whole", 0.5)]
    rows[0] = replace(rows[0], error='said "no", twice\nand stopped', measures={})
    rows = [replace(row, measures={k: float(f"{v:.5g}") for k, v in row.measures.items()}) for row in rows]
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(StudyError, match=r"other\.csv: columns are \['a', 'b'\]"):
        read_rows(tmp_path / "other.csv")


def outcome(solved):
    return {("press_button", 100_000 + i): bool(value) for i, value in enumerate(solved)}


def test_one_training_seed_has_the_exact_test_and_tangos_interval():
    rng = np.random.default_rng(0)
    arm, base = rng.random(80) < 0.8, rng.random(80) < 0.6
    gains, losses = int((arm & ~base).sum()), int((base & ~arm).sum())
    pooled = pool({3: outcome(arm)}, {3: outcome(base)})
    assert pooled.p == pytest.approx(binomtest(gains, gains + losses).pvalue)
    assert pooled.difference == paired_difference(gains, losses, 80)
    assert (pooled.rate, pooled.reference) == (arm.mean(), base.mean())


def test_training_seeds_add_networks_and_no_episodes():
    rng = np.random.default_rng(1)
    base = rng.random(60) < 0.5
    arms = [rng.random(60) < rate for rate in (0.5, 0.6, 0.8)]
    counts = [(int((arm & ~base).sum()), int((base & ~arm).sum())) for arm in arms]
    pooled = pool({s: outcome(arm) for s, arm in enumerate(arms)}, dict.fromkeys(range(3), outcome(base)))

    differences = [(gains - losses) / 60 for gains, losses in counts]
    gains, losses = np.mean(counts, axis=0)
    tango = paired_difference(gains, losses, 60)
    training = t.ppf(0.975, 2) * np.std(differences, ddof=1) / np.sqrt(3)
    estimate = np.mean(differences)
    assert pooled.difference.estimate == pytest.approx(estimate)
    assert pooled.difference.low == pytest.approx(estimate - np.hypot(estimate - tango.low, training))
    assert pooled.difference.high == pytest.approx(estimate + np.hypot(tango.high - estimate, training))
    assert pooled.p == pytest.approx(min(1, 2 * np.mean([mcnemar(*c).two_sided for c in counts])))
    assert pooled.pairs == 60

    # Three copies of one network are no more than that network.
    one = pool({0: outcome(arms[2])}, {0: outcome(base)})
    same = pool(dict.fromkeys(range(3), outcome(arms[2])), dict.fromkeys(range(3), outcome(base)))
    assert same.difference.low == pytest.approx(one.difference.low)
    assert same.difference.high == pytest.approx(one.difference.high)
    assert same.p >= one.p


def test_equal_networks_are_found_different_no_more_often_than_the_level_says():
    rng = np.random.default_rng(2)
    rejected = covered = 0
    trials = 300
    for _ in range(trials):
        hard = rng.random(60)  # how hard an episode is, for base and arm alike
        base = outcome(rng.random(60) < hard)
        arm = {seed: outcome(rng.random(60) < hard) for seed in range(3)}
        pooled = pool(arm, dict.fromkeys(range(3), base))
        rejected += pooled.p < 0.05
        covered += pooled.difference.low <= 0 <= pooled.difference.high
    # Five standard errors of a share of .05 beyond the level.
    assert rejected / trials < 0.05 + 5 * np.sqrt(0.05 * 0.95 / trials)
    assert covered / trials > 0.95 - 5 * np.sqrt(0.05 * 0.95 / trials)


# --- page


class Text(HTMLParser):
    """The cells of a page's tables, row by row, and whether all tags that it opens are closed."""

    VOID = ("meta", "br", "line", "rect", "path", "circle")

    def __init__(self, page):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += " ".join(data.split())


@pytest.fixture(scope="module")
def finished(plan, tmp_path_factory):
    run = StudyRun(
        plan, tmp_path_factory.mktemp("finished") / "out", QUIET, StandIn(replace(plan.config, episodes=40))
    )
    run.claim()
    run.run(plan.cells())
    return run


def test_the_page_holds_the_numbers_of_the_rows(plan, finished):
    page = write_study(finished, f"ofp-vla study own --output={finished.output.resolve()}").read_text()
    assert "ofp-vla study own --output=out" in page
    assert str(finished.output) not in page
    text = Text(page)
    assert text.open == []
    summary = summarise(plan, finished.rows(), finished.mode_shares())
    result = summary.find("imle", "one", "whole")
    rows = finished.rows()
    solved = [row.success for row in rows if (row.arm, row.way, row.execute) == ("imle", "one", "whole")]
    assert result.overall.rate == pytest.approx(np.mean(solved))
    row = next(row for row in text.rows if row[:2] == ["imle", "2"])
    assert row[2].replace("\xa0", " ") == f"{100 * np.mean(solved):.1f} %"
    assert "OFP <b>" in [row[0] for row in text.rows]
    assert "OFP <b>" not in page  # escaped
    numbers = json.loads((finished.output / "study.json").read_text())
    assert numbers["results"][0]["arm"] == "base"
    assert len((finished.output / "rows.csv").read_text().splitlines()) == len(rows) + 1
    errors = [
        row.measures["tip_error_mm"]
        for row in rows
        if (row.arm, row.way, row.execute, row.task) == ("ofp", "one", "whole", "lift_bar")
    ]
    assert summary.find("ofp", "one", "whole").errors["lift_bar"].value == pytest.approx(np.median(errors))
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert path.startswith("data:")


def test_an_unfinished_study_has_a_page_that_says_so(plan, finished):
    rows = [row for row in finished.rows() if row.arm == "base"]
    summary = summarise(plan, rows, finished.mode_shares(), missing=7)
    page = render(summary, {}, "today")
    assert "7 cells of this study are not finished" in page
    assert headline(summary) == "No arm is finished yet."
    assert Text(page).open == []
    assert cost_chart(summary, "whole") is None


def test_the_page_names_arms_that_train_for_other_steps(finished, written):
    arms = {"ofp": {}, "long": {"title": "Long", "steps": 60}, "imle": STUDY["arms"]["imle"]}
    plan = make_plan(read_study(written(changed(arms=arms))))
    page = render(summarise(plan, [], finished.mode_shares(), missing=7), {}, "today")
    assert "from the same base, but for “Long” (60 instead of 20)" in " ".join(page.split())


def test_the_command_lists_cells_without_a_folder_and_rebuilds_the_page_from_rows(
    finished, written, tmp_path
):
    path = written(STUDY)
    lines = Console(record=True, file=io.StringIO(), width=200)
    options = StudyOptions(str(path), tmp_path / "new", dry_run=True, only="ofp/0")
    run_study(options, lines)
    assert not (tmp_path / "new").exists()
    listed = lines.export_text()
    assert "ofp/0/training  (20 steps)" in listed
    assert "6 cells left, about" in listed

    page = finished.output / "study.html"
    page.unlink(missing_ok=True)
    run_study(StudyOptions(str(path), finished.output, report=True), QUIET)
    assert page.exists()
