"""The runner with workers that crash and hang: results depend on nothing but the settings."""

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from robotwin_eval.report import report_from_runs
from robotwin_eval.runner.building import append_incident, read_incidents
from robotwin_eval.runner.dispatch import RunStopped
from robotwin_eval.runner.runner import RunSettings, build_manifest
from robotwin_eval.runner.settings import EarlyStop
from robotwin_eval.runner.worker_process import Timeouts
from robotwin_eval.runs.loading import load_run
from robotwin_eval.runs.manifest import Manifest, ManifestError
from robotwin_eval.runs.merging import merge_runs
from robotwin_eval.runs.run_info import Incident
from robotwin_eval.runs.store import RunError, RunStore
from tests.robotwin_eval.toy_runs import HERE, accepted_seeds, quiet, settings, table, toy
from tests.robotwin_eval.toy_server import HORIZON, ToyServer

pytestmark = pytest.mark.usefixtures("workers_find_the_toy")


def test_the_undisturbed_run_is_worth_comparing_with(undisturbed):
    assert len(undisturbed.results) == 8
    assert {row.success for row in undisturbed.results} == {True, False}
    assert {row.mode for row in undisturbed.results if row.success} == {"left", "right"}
    assert any(seeds.skipped for seeds in undisturbed.manifest.tasks.values())
    assert not undisturbed.incidents
    assert set(undisturbed.frames) == {(r.task, r.seed) for r in undisturbed.results if not r.success}


def test_one_and_four_workers_give_identical_manifests_and_results(server, undisturbed, tmp_path):
    four = quiet(settings(server, workers=4, simulator=toy(pause=0.002)), tmp_path / "run")
    assert table(four.results) == table(undisturbed.results)
    files = [folder / "manifest.json" for folder in (undisturbed.folder, four.folder)]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("kind", ["segfault", "exit", "hang", "hang-c", "raise"])
def test_a_worker_that_fails_once_is_replaced_and_changes_no_result(kind, server, undisturbed, tmp_path):
    manifest = undisturbed.manifest
    near, far = (manifest.tasks[task].accepted for task in ("near", "far"))
    slow = next(row for row in undisturbed.results if row.task == "far" and row.steps > 11)
    skipped = next(iter(manifest.tasks["near"].skipped))
    faults = {f"far:{slow.seed}:step": kind, f"near:{near[1].seed}:expert": kind}
    faults |= {f"near:{near[3].seed}:reset": kind, f"near:{skipped}:expert": kind}
    simulator = toy(faults=faults, markers=str(tmp_path))
    again = quiet(settings(server, simulator=simulator, timeouts=Timeouts(60, 2, 2, 60)), tmp_path / "run")
    assert table(again.results) == table(undisturbed.results)
    assert again.manifest.hash == manifest.hash
    assert {(i.task, i.seed) for i in again.incidents} == {
        ("far", slow.seed),
        ("near", near[1].seed),
        ("near", near[3].seed),
        ("near", skipped),
    }
    expected = {"segfault": "crash", "exit": "crash", "raise": "simulator"}.get(kind, "hang")
    assert {incident.kind for incident in again.incidents} == {expected}
    assert {row.seed: row.attempts for row in again.results if row.task == "far"}[slow.seed] == 2
    assert far[0].seed not in {incident.seed for incident in again.incidents} or far[0].seed == slow.seed


def test_a_simulator_that_always_fails_stops_the_run_which_can_be_resumed(server, undisturbed, tmp_path):
    seed = undisturbed.manifest.tasks["far"].accepted[2].seed
    bad = settings(server, simulator=toy(faults={f"far:{seed}:reset": "raise always"}), retries=1, workers=1)
    with pytest.raises(RunError, match="diverged"):
        # The check's own reset fails as well, so the manifest of the good simulator is used.
        quiet(bad, tmp_path / "first")
    with pytest.raises(RunStopped, match=rf"'far' seed {seed} failed 2 times .*use --resume.*diverged"):
        quiet(bad, tmp_path / "run", manifest=undisturbed.manifest)
    stopped = load_run(tmp_path / "run")
    assert [incident.attempt for incident in stopped.incidents] == [1, 2]
    assert seed not in {row.seed for row in stopped.results if row.task == "far"}
    assert 0 < len(stopped.results) < 8
    resumed = quiet(settings(server), tmp_path / "run", resume=True)
    assert table(resumed.results) == table(undisturbed.results)


def test_attempts_before_a_resume_count_as_well(server, undisturbed, tmp_path):
    """Two crashes of one episode, the run stopped after each of them, and a crash in an expert's check."""
    seed = undisturbed.manifest.tasks["far"].accepted[2].seed
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        simulator = toy(faults={f"far:{seed}:reset": "segfault"}, markers=str(tmp_path / str(number)))
        bad = settings(server, simulator=simulator, retries=0)
        with pytest.raises(RunStopped, match="failed 1 times"):
            quiet(bad, tmp_path / "run", resume=True, manifest=undisturbed.manifest)
    append_incident(
        tmp_path / "run" / "incidents.jsonl",
        Incident("near", 100000, "crash", "in the expert's check", 1, ""),
    )
    done = quiet(settings(server), tmp_path / "run", resume=True)
    assert table(done.results) == table(undisturbed.results)
    attempts = {(row.task, row.seed): row.attempts for row in done.results}
    assert attempts.pop(("far", seed)) == 3
    assert set(attempts.values()) == {1}
    assert [i.attempt for i in done.incidents if i.task == "far"] == [1, 2]
    (run,) = report_from_runs([done]).runs
    assert (run.retried, len(run.incidents)) == (1, 3)


def test_an_episode_that_the_simulator_cannot_run_is_left_out_where_asked_for(server, undisturbed, tmp_path):
    seed = undisturbed.manifest.tasks["far"].accepted[2].seed
    simulator = toy(faults={f"far:{seed}:reset": "raise always"})
    bad = settings(server, simulator=simulator, retries=1, workers=1)
    with pytest.raises(RunStopped):
        quiet(bad, tmp_path / "run", manifest=undisturbed.manifest)
    going = dataclasses.replace(bad, keep_going=True)
    done = quiet(going, tmp_path / "run", resume=True)
    (left_out,) = [row for row in done.results if not row.counted]
    assert (left_out.task, left_out.seed, left_out.error_source, left_out.attempts) == (
        *("far", seed, "simulator"),
        4,
    )
    assert "given up after 4 attempts" in left_out.error  # two of them before the resume
    assert "diverged" in left_out.error
    expected = [row for row in undisturbed.results if (row.task, row.seed) != ("far", seed)]
    assert table(row for row in done.results if row.counted) == table(expected)
    assert quiet(going, tmp_path / "run", resume=True).results == done.results
    # Without it the episode is tried again.
    mended = quiet(settings(server), tmp_path / "run", resume=True)
    assert table(row for row in mended.results if row.counted) == table(undisturbed.results)


def test_a_fault_of_the_machine_stops_a_run_that_keeps_going(server, undisturbed, tmp_path):
    seed = undisturbed.manifest.tasks["far"].accepted[2].seed
    simulator = toy(faults={f"far:{seed}:reset": "full always"})
    bad = settings(server, simulator=simulator, retries=0, workers=1, keep_going=True)
    with pytest.raises(RunStopped, match=r"\(machine\).*No space left"):
        quiet(bad, tmp_path / "run", manifest=undisturbed.manifest)
    assert all(row.counted for row in load_run(tmp_path / "run").results)


@pytest.mark.parametrize(
    ("misdeed", "message"), [("nan", "not finite"), ("error", "out of tricks"), ("shape", "shape")]
)
def test_a_policy_error_is_a_failed_episode_and_is_not_tried_again(misdeed, message, undisturbed, tmp_path):
    guilty = next(row for row in undisturbed.results if row.chunks > 1 and row.success)
    with ToyServer({(guilty.task, guilty.seed): misdeed}) as server:
        done = quiet(settings(server), tmp_path / "run")
    rows = {(row.task, row.seed): row for row in done.results}
    failed = rows.pop((guilty.task, guilty.seed))
    assert (failed.success, failed.error_source, failed.attempts, failed.counted) == (
        False,
        "policy",
        1,
        True,
    )
    assert message in failed.error
    expected = [row for row in undisturbed.results if (row.task, row.seed) != (guilty.task, guilty.seed)]
    assert table(rows.values()) == table(expected)


def test_a_lost_connection_is_tried_again_and_never_counts_as_a_failure(undisturbed, tmp_path):
    victim = next(row for row in undisturbed.results if row.chunks > 1)
    with ToyServer({(victim.task, victim.seed): "drop"}) as server:
        done = quiet(settings(server), tmp_path / "run")
        assert server.drops == 1
    assert table(done.results) == table(undisturbed.results)
    assert [(i.task, i.seed, i.kind) for i in done.incidents] == [(victim.task, victim.seed, "server")]


@pytest.mark.slow
def test_a_server_that_goes_away_is_waited_for_by_time_and_not_by_attempts(undisturbed, tmp_path):
    victim = next(row for row in undisturbed.results if row.chunks > 1)
    frozen = undisturbed.manifest
    with ToyServer({(victim.task, victim.seed): "leave"}) as first:
        base = settings(first, retries=1, workers=1)
        impatient = dataclasses.replace(base, server_wait=1)
        with pytest.raises(RunStopped, match=r"has not answered for [123] s \(--server-wait\).*use --resume"):
            quiet(impatient, tmp_path / "run", manifest=frozen)
    finished = {(row.task, row.seed) for row in load_run(tmp_path / "run").results}
    assert (victim.task, victim.seed) not in finished

    def come_back():
        assert first.left.wait(60)
        time.sleep(2.5)  # the attempts would be over
        back.append(ToyServer(port=first.port).__enter__())

    back = []
    thread = threading.Thread(target=come_back)
    with ToyServer({(victim.task, victim.seed): "leave"}, port=first.port) as first:
        thread.start()
        done = quiet(base, tmp_path / "run", resume=True)
    thread.join()
    back[0].__exit__()
    assert table(done.results) == table(undisturbed.results)
    assert {incident.kind for incident in done.incidents} == {"server"}
    assert any("waiting for it, 600 s at most" in incident.message for incident in done.incidents)
    assert len(done.incidents) <= 8  # each outage once an episode, not each of its pauses


def test_actions_outside_the_action_space_are_clipped_and_recorded(undisturbed, tmp_path):
    victim = next(row for row in undisturbed.results if row.chunks > 1)
    with ToyServer({(victim.task, victim.seed): "huge"}) as server:
        done = quiet(settings(server), tmp_path / "run")
    (incident,) = done.incidents
    assert (incident.task, incident.seed, incident.kind) == (victim.task, victim.seed, "clipped")
    assert "1 action values" in incident.message


def test_the_policy_is_told_how_many_actions_were_carried_out(tmp_path):
    with ToyServer() as server:
        quiet(settings(server, execute=3, episodes=1, workers=1, tasks=("far",)), tmp_path / "run")
        told = [request["ofp"] for request in server.requests]
    assert [row["executed"] for row in told] == [0] + [3] * (len(told) - 1)
    assert [row["reset"] for row in told] == [True] + [False] * (len(told) - 1)
    assert [row["key"][3] for row in told] == list(range(len(told)))
    assert {tuple(row["key"][:2]) for row in told} == {(3, "far")}


@pytest.mark.parametrize("understands", [["execute", "delay"], ["delay", "more"], []])
def test_a_server_is_told_of_the_delay_if_it_takes_that(tmp_path, understands):
    one = {"episodes": 1, "workers": 1, "tasks": ("far",), "execute": 3}
    with ToyServer(understands=understands) as server:
        done = quiet(settings(server, delay=2, **one), tmp_path / "run")
    for row in (request["ofp"] for request in server.requests):
        sent = {"execute": 5, "delay": 2}
        assert {name: row[name] for name in sent if name in row} == {
            name: value for name, value in sent.items() if name in understands
        }
    assert done.info.delay == 2


def test_as_many_actions_are_carried_out_as_the_policy_says_unless_told_otherwise(tmp_path):
    one = {"episodes": 1, "workers": 1, "tasks": ("far",)}
    with ToyServer(execute=3) as server:
        own = quiet(settings(server, **one), tmp_path / "own")
        whole = quiet(settings(server, execute=HORIZON, **one), tmp_path / "whole")
    assert [(run.info.execute, run.results[0].execute) for run in (own, whole)] == [(3, 3), (8, 8)]
    with ToyServer(execute=HORIZON) as server:
        assert quiet(settings(server, **one), tmp_path / "same").info.execute is None


def test_cameras_of_other_names_are_mapped_and_the_map_is_kept(undisturbed, tmp_path):
    with ToyServer(cameras=["cam_high"]) as server:
        with pytest.raises(RunError, match=r"needs \['cam_high'\], the simulator has \['head', 'wrist'\]"):
            quiet(settings(server), tmp_path / "other")
        done = quiet(settings(server, cameras={"cam_high": "wrist"}), tmp_path / "run")
        with pytest.raises(RunError, match="cam_high"):
            quiet(settings(server, cameras={"cam_high": "head"}), tmp_path / "run", resume=True)
    assert [row.success for row in table(done.results)] == [row.success for row in table(undisturbed.results)]


def test_what_a_simulator_prints_does_not_disturb_the_pipe(server, undisturbed, tmp_path):
    done = quiet(settings(server, simulator=toy(noisy=True)), tmp_path / "run")
    assert table(done.results) == table(undisturbed.results)


def test_a_folder_with_a_run_needs_resume_and_resume_refuses_other_settings(server, undisturbed, tmp_path):
    base = settings(server, episodes=1)
    quiet(base, tmp_path / "run")
    with pytest.raises(RunError, match="--resume"):
        quiet(base, tmp_path / "run")
    for changes, message in [
        ({"noise_seed": 4}, "run_seed: the run was begun with 3, now it is 4"),
        ({"execute": 2}, "execute: the run was begun with None, now it is 2"),
        ({"delay": 2}, "delay: the run was begun with None, now it is 2"),
        ({"policy": "other"}, "policy: the run was begun with 'walker', now it is 'other'"),
    ]:
        with pytest.raises(RunError, match=message):
            quiet(dataclasses.replace(base, **changes), tmp_path / "run", resume=True)
    with ToyServer(fingerprint="beef") as other, pytest.raises(RunError, match="'f00d', now it is 'beef'"):
        quiet(dataclasses.replace(base, policy_url=other.url), tmp_path / "run", resume=True)
    with pytest.raises(ManifestError, match=r"simulator.version.*'1'.*'2'"):
        quiet(dataclasses.replace(base, simulator=toy(version="2")), tmp_path / "run", resume=True)
    with pytest.raises(ManifestError, match="hash"):
        quiet(base, tmp_path / "run", resume=True, manifest=undisturbed.manifest)


def test_a_server_that_changes_its_checkpoint_in_the_middle_stops_the_run(undisturbed, tmp_path):
    """A worker that comes back finds another checkpoint behind the same address."""
    seed = undisturbed.manifest.tasks["near"].accepted[2].seed
    simulator = toy(faults={f"near:{seed}:reset": "exit"}, markers=str(tmp_path))
    with ToyServer() as server:

        def swap():
            while not (tmp_path / f"near-{seed}-reset").exists():
                time.sleep(0.01)
            server.metadata["policy"]["fingerprint"] = "beef"

        thread = threading.Thread(target=swap)
        thread.start()
        with pytest.raises(RunError, match="'beef', this run began with 'f00d'"):
            quiet(
                settings(server, simulator=simulator, workers=1),
                tmp_path / "run",
                manifest=undisturbed.manifest,
            )
        thread.join()


def test_a_manifest_is_built_once_and_reused(server, undisturbed, tmp_path):
    base = dataclasses.replace(settings(server), policy_url="")
    path = tmp_path / "seeds" / "manifest.json"
    manifest = build_manifest(base, path, progress=False)
    assert manifest == Manifest.load(path) == undisturbed.manifest
    assert sorted(p.name for p in path.parent.iterdir()) == ["manifest.json", "manifest.json.lock"]
    with pytest.raises(RunError, match="never changed"):
        build_manifest(base, path, progress=False)
    # An expert that always fails proves that nothing is checked again.
    faults = {f"{task}:{100000 + k}:expert": "raise always" for task in ("near", "far") for k in range(40)}
    reused = quiet(settings(server, simulator=toy(faults=faults), retries=0), tmp_path / "run", manifest=path)
    assert table(reused.results) == table(undisturbed.results)
    with pytest.raises(ManifestError, match=r"simulator.version.*'1'.*'9'"):
        quiet(settings(server, simulator=toy(version="9")), tmp_path / "foreign", manifest=path)


def test_incidents_of_a_manifest_and_of_a_killed_run_s_checks_are_kept(server, undisturbed, tmp_path):
    simulator = toy(faults={"near:100000:expert": "segfault"}, markers=str(tmp_path))
    base = settings(server, simulator=simulator, episodes=1, policy_url="")
    build_manifest(base, tmp_path / "seeds.json", progress=False)
    (incident,) = read_incidents(tmp_path / "seeds.json.incidents.jsonl")
    assert (incident.task, incident.seed, incident.kind, incident.attempt) == ("near", 100000, "crash", 1)
    folder = tmp_path / "run"
    folder.mkdir()
    append_incident(folder / "incidents.jsonl", incident)
    with (folder / "incidents.jsonl").open("a") as file:
        file.write('{"task": "ne')
    done = quiet(settings(server, episodes=1), folder, resume=True, manifest=undisturbed.manifest)
    assert done.incidents == (incident,)
    assert not (folder / "incidents.jsonl").exists()


def test_shards_together_are_the_whole_run(server, undisturbed, tmp_path):
    manifest = undisturbed.manifest
    parts = []
    for index in range(3):
        part = quiet(settings(server, shard=(index, 3)), tmp_path / str(index), manifest=manifest)
        parts.append(part.folder)
    counts = [len(load_run(part).results) for part in parts]
    assert counts == [3, 3, 2]
    merge_runs(parts, tmp_path / "merged")
    assert table(load_run(tmp_path / "merged").results) == table(undisturbed.results)


def test_a_resumed_run_stamps_rows_with_its_own_versions_and_keeps_its_shard(
    server, undisturbed, tmp_path, monkeypatch
):
    half = settings(server, shard=(0, 2), episodes=2)
    quiet(half, tmp_path / "run", manifest=undisturbed.manifest)
    with pytest.raises(RunError, match=r"shard: the run was begun with .*\[?0, 2"):
        quiet(dataclasses.replace(half, shard=(1, 2)), tmp_path / "run", resume=True)
    connection = sqlite3.connect(tmp_path / "run" / "run.sqlite")
    with connection:
        connection.execute("DELETE FROM frames")
        connection.execute("DELETE FROM episodes WHERE task = 'far'")
    connection.close()
    monkeypatch.setattr("robotwin_eval.runner.runner.versions", lambda: {"numpy": "9.9"})
    done = quiet(half, tmp_path / "run", resume=True)
    assert {row.task: row.versions["numpy"] == "9.9" for row in done.results} == {"near": False, "far": True}
    assert [session.versions["numpy"] == "9.9" for session in done.sessions] == [False, True]
    assert all(session.worker["cores"] for session in done.sessions)
    (page,) = report_from_runs([done]).provenance.values()
    assert [row["Versions"]["numpy"] for row in page["Sessions"].values()][1] == "9.9"


def test_films_are_made_of_the_first_episodes_of_each_task(server, undisturbed, tmp_path):
    av = pytest.importorskip("av")
    done = quiet(settings(server, videos=1), tmp_path / "run")
    assert table(done.results) == table(undisturbed.results)
    films = sorted((tmp_path / "run" / "videos").glob("*.mp4"))
    rows = {(row.task, row.seed): row for row in done.results}
    expected = []
    for task, accepted in accepted_seeds(done.manifest):
        row = rows[task, accepted[0].seed]
        expected.append(f"{task}-{row.seed}-{'success' if row.success else 'failure'}.mp4")
        with av.open(str(tmp_path / "run" / "videos" / expected[-1])) as film:
            assert sum(1 for _ in film.decode(video=0)) == row.steps + 1
    assert [film.name for film in films] == sorted(expected)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_replacing_workers_after_every_episode_changes_no_result(server, undisturbed, tmp_path):
    done = quiet(settings(server, episodes=2, episodes_per_worker=1), tmp_path / "run")
    first = {(task, each.seed) for task, seeds in accepted_seeds(undisturbed.manifest) for each in seeds[:2]}
    assert table(done.results) == table(r for r in undisturbed.results if (r.task, r.seed) in first)


def test_the_time_of_an_episode_is_accounted_for(undisturbed):
    for row in undisturbed.results:
        parts = row.seconds["reset"] + row.seconds["simulation"] + row.seconds["inference"]
        assert 0 < parts <= row.seconds["total"]
        assert row.latencies == (0.0015,) * row.chunks


RUNNER = """
import sys
from robotwin_eval.runner.runner import RunSettings, run
from robotwin_eval.sim.factory import SimulatorSpec
url, folder = sys.argv[1:]
simulator = SimulatorSpec("toy_simulator:ToySimulator", {"pause": 0.01})
run(RunSettings(simulator, url, episodes=4, workers=2, noise_seed=3), folder, resume=True, progress=False)
"""


def _descendants(pid):
    """Processes that run the worker's script for a runner."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(part.endswith(b"worker_main.py") for part in command) and str(pid).encode() in command:
                found.append(int(entry.name))
    return found


def test_a_killed_runner_leaves_no_worker_and_resumes_without_losing_or_repeating(
    server, undisturbed, tmp_path
):
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    folder = tmp_path / "run"
    for rows in (-1, 2, 5):  # in the checks, and twice in the episodes
        runner = subprocess.Popen([sys.executable, "-c", RUNNER, server.url, str(folder)], env=environment)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and runner.poll() is None:
            if rows < 0 and _lines(folder / "checks.jsonl") >= 3:
                break
            if rows >= 0 and _rows(folder) >= rows:
                break
            time.sleep(0.01)
        workers = _descendants(runner.pid)
        assert workers
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        while time.monotonic() < deadline and _descendants(runner.pid):
            time.sleep(0.05)
        assert not _descendants(runner.pid)
    assert _rows(folder) < 8, "the runner was not killed in the middle"
    done = quiet(settings(server, workers=2, simulator=toy(pause=0.01)), folder, resume=True)
    assert table(done.results) == table(undisturbed.results)


def _lines(path):
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def _rows(folder):
    if not (folder / "run.sqlite").exists():
        return -1
    with RunStore.open(folder, readonly=True) as store:
        return len(store.done())


def test_two_runners_cannot_work_in_one_folder(server, tmp_path):
    slow = settings(server, simulator=toy(pause=0.02))
    thread = threading.Thread(target=lambda: quiet(slow, tmp_path / "run"))
    thread.start()
    while not (tmp_path / "run" / "runner.lock").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    with pytest.raises(RunError, match="is writing this run"):
        quiet(slow, tmp_path / "run", resume=True)
    thread.join()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "workers"),
        ({"shard": (2, 2)}, "shard"),
        ({"split": "other"}, "split"),
        ({"engine": "slurm"}, "engine"),
        ({"tasks": ("near", "near")}, "twice"),
        ({"seed": -1}, "seed"),
        ({"early_stop": EarlyStop(), "shard": (0, 2)}, "early stop"),
        ({"early_stop": EarlyStop(), "keep_going": True}, "early stop"),
        ({"server_wait": -1}, "server_wait"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RunSettings(toy(), "ws://127.0.0.1:1", **changes)


def test_the_horizon_is_what_a_chunk_executes_by_default(undisturbed):
    assert {row.execute for row in undisturbed.results} == {HORIZON}
