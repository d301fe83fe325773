"""`ofp-vla bench` end to end at the tiny size: what it measures, writes, continues and refuses."""

import json
import os
import subprocess
import sys

import pytest
import torch
import typer
from typer.testing import CliRunner

from ofp_vla.bench import acting, counts, stages, timing, training
from ofp_vla.bench.rows import FILE, MEASURED, SKIPPED, Results
from ofp_vla.bench.run import plan
from ofp_vla.bench.settings import PARTS, BenchSettings
from ofp_vla.bench.tables import digits
from ofp_vla.checkpoints.assets import PACKAGED_BASE
from ofp_vla.cli.main import app
from ofp_vla.counting import Cost
from tests.commands.reading import ROOT

TINY = ("--random-init", "--size", "tiny", "--dtype", "float32", "--device", "cpu")


def bench(*options):
    return CliRunner().invoke(app, ["bench", *map(str, options)])


def refusal(*options):
    """The message, on one line, of a call that was refused as a user's error."""
    done = bench(*options)
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    chosen = ("--parts", "acting,stages,training", "--only", "one step,flow_matching,wire,prefix,images")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(timing, "MOST", timing.FEWEST)
        done = bench(*TINY, "--batches", "1", *chosen, "--seconds", "300", "--output", folder)
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_its_numbers_its_page_and_its_last_line_say_the_same(measured):
    folder, output = measured
    written = json.loads((folder / FILE).read_text())
    told = json.loads(output.rstrip().rpartition("\n")[2])
    rows = [row for row in written["rows"] if row["status"] == MEASURED]
    assert told["rows"][MEASURED] == len(rows)
    names = {(row["part"], row["name"]) for row in rows}
    assert {(acting.PART, acting.ONE), (acting.PART, acting.LEROBOT_ONE)} <= names
    assert {("stages", stages.WHOLE), ("stages", stages.SERVED), ("stages", stages.WIRE)} <= names
    assert {("stages", stages.IMAGES), (training.PART, training.FLOW)} <= names
    page = (folder / "bench.html").read_text()
    assert next(r for r in rows if r["name"] == acting.ONE)["cosine"] == pytest.approx(1, abs=1e-4)
    for row in rows:
        if row["name"] == stages.IMAGES:
            continue  # a difference has no quantiles
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["per_second"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"])
        assert row["calls"] >= timing.FEWEST
        assert row["name"] in page
        assert row["name"] in output
    facts = written["provenance"]
    assert facts["Versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"Machine", "Date", "Load", "Commands", "Weights"} <= facts.keys()
    assert {"copy", "flops"} == written["ceilings"].keys()


def test_what_is_there_is_not_measured_again_and_is_shown_as_markdown(measured):
    folder, _ = measured
    before = Results.read(folder / FILE)
    again = bench(*TINY, "--parts", "acting", "--batches", "1", "--only", "one step", "--output", folder)
    assert again.exit_code == 0, again.output
    after = Results.read(folder / FILE)
    assert (after.rows, after.ceilings) == (before.rows, before.ceilings)
    assert len(after.provenance["Commands"]) == len(before.provenance["Commands"]) == 1  # by sys.argv
    shown = bench("--show", folder / FILE)
    row = next(row for row in after.rows if row.name == acting.ONE)
    assert f"| {row.name} | 1 | {digits(row.p50_ms)} | " in shown.output


def test_a_checkpoint_acts_and_trains_as_random_weights_do(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "MOST", timing.FEWEST)
    chosen = ("--parts", "acting,training,counts", "--only", "LeRobot,flow_matching")
    done = bench(PACKAGED_BASE, *chosen, "--batches", "1", "--device", "cpu", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    rows = {row.name: row for row in Results.read(tmp_path / FILE).rows}
    assert {row.status for row in rows.values()} == {MEASURED}
    assert {acting.LEROBOT_ONE, training.LEROBOT, training.FLOW} <= rows.keys()
    assert "only random weights of a known size are counted" in done.output
    assert "does not exist" in refusal(tmp_path / "nowhere", "--output", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_rows_of_another_size_do_not_stand_beside_these(measured):
    folder, _ = measured
    said = refusal("--random-init", "--size", "small", "--device", "cpu", "--output", folder)
    assert "of other weights (random, π0.5 of size tiny; here random, π0.5 of size small)" in said
    assert "give another --output" in said


def test_what_the_time_does_not_reach_is_listed(tmp_path):
    done = bench(*TINY, "--parts", "training", "--batches", "2", "--seconds", "1", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    rows = Results.read(tmp_path / FILE).rows
    assert {row.name for row in rows} == {training.OFP, training.FLOW, training.LEROBOT, *training.OTHERS}
    skipped = [row for row in rows if row.status == SKIPPED]
    assert skipped
    assert all("budget" in row.reason for row in skipped)
    assert skipped[-1].name in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--random-init", "outputs/x"), "one of the two"),
        ((), "one of the two"),
        (("--random-init", "--parts", "acting,sleeping"), "sleeping given, choose among acting"),
        (("--random-init", "--batches", "1,x"), "expected numbers such as 1,8,32"),
        (("--show", "nowhere.json"), "no results of ofp-vla bench"),
        (("--random-init", "--device", "gpu"), "device 'gpu' is none that PyTorch knows"),
        (
            (*TINY, "--only", "two hands"),
            "--only two hands: no row has such a name; there are one step; ",
        ),
    ],
)
def test_bad_options_are_one_line(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(*options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_cuda_asked_for_and_missing_is_said_before_anything_is_made(tmp_path):
    assert "finds none" in refusal("--random-init", "--device", "cuda", "--output", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_plan_begins_with_what_matters_most_and_ends_with_what_compiles(tmp_path):
    settings = BenchSettings(
        checkpoint="",
        size="tiny",
        parts=PARTS,
        batches=(1, 8, 32),
        dtype=None,
        device=torch.device("cpu"),
        seconds=1.0,
        output=tmp_path,
        compile_mode="default",
    )
    groups = plan(settings)
    order = [(group.part, group.batch) for group in groups]
    assert order[:6] == [
        ("acting", 1),
        ("training", 8),
        ("training", 32),
        ("stages", 1),
        ("acting", 8),
        ("acting", 32),
    ]
    assert [group.late for group in groups] == sorted(group.late for group in groups)
    compiled = [group.batch for group in groups if acting.COMPILED in group.stands[0].arms]
    assert compiled == [group.batch for group in groups[-3:]] == [1, 8, 32]


def test_a_page_shows_kept_results_once_and_renews_them(measured, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import document

    monkeypatch.setattr(document, "RESULTS", tmp_path)
    name = document.keep(measured[0] / FILE)
    page = "# Speed\n\nWords.\n\n## Measured on an older card\n\nNumbers.\n"
    once = document.added(page, name)
    assert once.index("<!-- bench bench_cpu.json -->") < once.index("## Measured on an older card")
    assert bench("--show", tmp_path / name).output in once
    assert document.added(once, name) == document.renewed(once) == once
    stale = once.replace("| one step | 1 | ", "| one step | 1 | 9")
    assert document.renewed(stale) == once != stale


def test_the_tables_of_the_documentation_are_those_of_their_files(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import document

    page = document.PAGE.read_text()
    assert document.renewed(page) == page


def test_sizes_with_patches_of_their_own_are_counted_in_bfloat16_too():
    counter = counts.Counter("tiny", "bfloat16")
    assert counter.prefix(counter.policy()).calls > 0


def test_what_cannot_be_counted_is_told(tmp_path, monkeypatch):
    def fails(size, dtype):
        yield acting.ONE, Cost(1, 2, 3, 4)
        raise RuntimeError("no such operator")

    monkeypatch.setattr(counts, "count_all", fails)
    done = bench(*TINY, "--parts", "counts", "--output", tmp_path)
    assert done.exit_code == 0, done.output
    found = Results.read(tmp_path / FILE)
    assert found.counts[acting.ONE]["flops"] == 1
    assert "Counts: RuntimeError: no such operator" in done.output


def test_a_step_counted_without_numbers_costs_what_a_real_one_does():
    # In a process of its own: what PyTorch keeps of other tests' graphs and modes is not counted then.
    command = [sys.executable, ROOT / "tests" / "bench" / "compare_steps.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[{")]
    assert len(lines) == 2
    for counted, real in lines:
        assert {**counted, "calls": 0, "waits": 0} == {**real, "calls": 0, "waits": 0}
        assert counted["waits"] == 0


def test_on_a_gpu_lerobots_training_has_the_memory_for_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = BenchSettings("", "full", ("training",), (1, 8, 32), None, torch.device("cuda"), 9.0, tmp_path)
    order = [
        ([name for stand in group.stands for name in stand.arms], group.batch, group.alone)
        for group in plan(settings)
    ]
    ours = [training.OFP, training.FLOW]
    assert order[:4] == [
        (ours, 8, False),
        (ours, 32, False),
        ([training.LEROBOT], 8, True),
        ([training.LEROBOT], 32, True),
    ]


def test_the_script_for_a_bare_machine_asks_for_what_exists(tmp_path):
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", tmp_path],
        env={**os.environ, "PYTHON": "echo", "SECONDS_COMPILED": "600"},
        capture_output=True,
        text=True,
        check=True,
    )
    asked = [line.split() for line in done.stdout.splitlines()]
    assert [words[:3] for words in asked] == [["-m", "ofp_vla.cli.main", "bench"]] * 3
    command = typer.main.get_command(app).commands["bench"]
    for words in asked:
        command.make_context("bench", words[3:])


def test_float8_without_its_card_or_type_is_no_failure(tmp_path):
    for dtype, said in (("float32", "float8 stands in for bfloat16"), ("bfloat16", "needs a GPU")):
        chosen = (*TINY[:3], "--dtype", dtype, "--device", "cpu", "--parts", "acting", "--only", "fp8")
        done = bench(*chosen, "--batches", "1", "--seconds", "60", "--output", tmp_path / dtype)
        assert done.exit_code == 0, done.output
        rows = Results.read(tmp_path / dtype / FILE).rows
        assert {row.status for row in rows} == {SKIPPED}
        assert all(said in row.reason for row in rows)
