"""The scheduler on a point world: actions move a point, success is to reach the goal."""

import dataclasses
import re

import numpy as np
import pytest

from robotwin_eval.protocol import Reply
from robotwin_eval.results import ResultsLog, counted, read_results
from robotwin_eval.rollout import Episode, SimulatorError, run_episodes
from robotwin_eval.sim.base import CAMERAS, Observation

SLOW = 0  # the seed of "far" that takes more than one chunk
EPISODES = [Episode(task, seed, f"{task} it") for task in ("near", "far") for seed in range(7)]


class PointWorld:
    control_hz = 10.0

    def __init__(self, crash_at=None):
        self.crash_at, self.renders, self.closed = crash_at, [], False

    def tasks(self):
        return ("near", "far")

    def step_limit(self, task):
        return {"near": 20, "far": 45}[task]

    def reset(self, task, seed):
        rng = np.random.default_rng([seed, len(task)])
        self.position, self.solved, self.steps, self.here = 0.0, False, 0, (task, seed)
        self.goal = rng.choice([-1, 1]) * rng.uniform(0.5, 1.5) * {"near": 1, "far": 3}[task]

    def observe(self, cameras=CAMERAS):
        self.renders.append((self.here, tuple(cameras)))
        column = int(np.clip(16 + 3 * self.position, 0, 31))
        images = {camera: np.zeros((8, 32, 3), np.uint8) for camera in cameras}
        for image in images.values():
            image[:, column] = 255
        return Observation(images, np.array([self.position, self.goal], np.float32))

    def step(self, action):
        if abs(action[0]) > 1:
            raise ValueError(f"action: waist is {action[0]:.2f}, outside [-1, 1]")
        self.steps += 1
        if self.crash_at is not None and self.here == self.crash_at[:2] and self.steps == self.crash_at[2]:
            raise FloatingPointError("the simulation diverged")
        self.position += action[0]
        self.solved |= abs(self.position - self.goal) < 0.1

    def success(self):
        return self.solved

    def mode(self):
        return ("left" if self.goal < 0 else "right") if self.solved else ""

    def close(self):
        self.closed = True


class Walker:
    """Walks to the goal with keyed noise and remembers, per session, where its last chunk ended."""

    cameras, horizon = ("cam_high",), 8

    def __init__(self, name="walker", noise=0.12, spoil=None):
        self.name, self.noise, self.spoil = name, noise, spoil
        self.batches, self.requests, self.memory = [], [], {}

    def infer(self, requests):
        self.batches.append(len(requests))
        for request in requests:
            if (
                self.spoil is not None
                and self.spoil[0] == request.key.episode_seed
                and self.spoil[1] == "raise"
            ):
                raise RuntimeError("out of tricks")
        return [self._reply(request) for request in requests]

    def _reply(self, request):
        self.requests.append(request)
        if request.reset:
            self.memory[request.session] = 0.0
        position, goal = request.observation.state
        drift = 0.1 * self.memory[request.session]
        actions = np.zeros((self.horizon, 2))
        rng = np.random.default_rng(request.key.seed())
        actions[:, 0] = np.clip((goal - position) / self.horizon + drift, -0.3, 0.3)
        actions[:, 0] += self.noise * rng.normal(size=self.horizon)
        self.memory[request.session] = float(actions[request.executed - 1, 0]) if request.executed else 0.1
        if self.spoil is not None and self.spoil[0] == request.key.episode_seed and request.key.chunk == 1:
            actions[3, 0] = {"nan": np.nan, "huge": 40.0, "raise": 0.0}[self.spoil[1]]
        return Reply(actions, 0.01 * self.batches[-1])


def without_timing(results):
    return [dataclasses.replace(result, latencies=(), batches=()) for result in results]


def test_results_are_the_same_for_one_slot_and_for_four_and_for_many():
    runs = [run_episodes(PointWorld, Walker(), EPISODES, run_seed=3, slots=slots) for slots in (1, 4, 100)]
    assert without_timing(runs[0]) == without_timing(runs[1]) == without_timing(runs[2])
    outcomes = {result.success for result in runs[0]}
    assert outcomes == {True, False}, "the world is too easy or too hard to show a difference"
    assert {result.mode for result in runs[0] if result.success} == {"left", "right"}


def test_another_run_seed_changes_the_episodes():
    runs = [run_episodes(PointWorld, Walker(), EPISODES, run_seed=seed) for seed in (0, 1)]
    assert without_timing(runs[0]) != [dataclasses.replace(r, run_seed=0) for r in without_timing(runs[1])]


def test_requests_are_batched_over_the_simulators_and_batch_sizes_are_recorded():
    policy = Walker()
    results = run_episodes(PointWorld, policy, EPISODES, run_seed=0, slots=5)
    assert max(policy.batches) == policy.batches[0] == 5
    assert sum(policy.batches) == sum(result.chunks for result in results)
    assert all(len(result.batches) == len(result.latencies) == result.chunks for result in results)
    assert results[0].batches[0] == 5


@pytest.mark.parametrize(("execute", "expected"), [(None, 8), (3, 3)])
def test_a_chunk_is_executed_as_far_as_asked_and_the_policy_is_told(execute, expected):
    policy = Walker(noise=0.0)
    (result,) = run_episodes(PointWorld, policy, [Episode("far", 0, "go")], run_seed=0, execute=execute)
    assert result.execute == expected
    assert [request.executed for request in policy.requests] == [0] + [expected] * (len(policy.requests) - 1)
    assert [request.reset for request in policy.requests] == [True] + [False] * (len(policy.requests) - 1)
    assert [request.key.chunk for request in policy.requests] == list(range(result.chunks))
    assert len(policy.requests) == -(-result.steps // expected)


def test_an_episode_ends_at_its_step_limit():
    class Idle(Walker):
        def _reply(self, request):
            return Reply(np.zeros((8, 2)), 0.0)

    (result,) = run_episodes(PointWorld, Idle(), [Episode("near", 0, "go")], run_seed=0)
    assert (result.success, result.steps, result.chunks, result.error) == (False, 20, 3, "")


def test_resume_skips_what_is_done_and_gives_the_same_results(tmp_path):
    straight = run_episodes(PointWorld, Walker(), EPISODES, run_seed=3, checkpoint="ab")
    path = tmp_path / "results.jsonl"

    class Killed(Exception):
        pass

    def open_log():
        return ResultsLog(path, policy="walker", checkpoint="ab", run_seed=3)

    log = open_log()

    def die_after_five(result):
        log.append(result)
        if len(log.done) == 5:
            raise Killed

    with pytest.raises(Killed):
        run_episodes(PointWorld, Walker(), EPISODES, run_seed=3, checkpoint="ab", on_result=die_after_five)
    log, policy = open_log(), Walker()
    remaining = log.remaining(EPISODES)
    assert len(remaining) == len(EPISODES) - 5
    run_episodes(PointWorld, policy, remaining, run_seed=3, checkpoint="ab", slots=2, on_result=log.append)
    assert {(r.key.task, r.key.episode_seed) for r in policy.requests} == {
        (e.task, e.seed) for e in remaining
    }

    def by_key(results):
        return sorted(without_timing(results), key=lambda result: result.key)

    assert by_key(read_results(path)) == by_key(straight)
    assert open_log().remaining(EPISODES) == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"actions\[3, 0\] = nan"),
        ("huge", "action refused: action: waist is 40.00"),
        ("raise", "RuntimeError: out of tricks"),
    ],
)
def test_a_faulty_chunk_fails_its_own_episode_with_the_reason_and_no_other(kind, message):
    good = run_episodes(PointWorld, Walker(noise=0.0), EPISODES[7:], run_seed=0, slots=4)
    bad = run_episodes(PointWorld, Walker(noise=0.0, spoil=(SLOW, kind)), EPISODES[7:], run_seed=0, slots=4)
    for before, after in zip(without_timing(good), without_timing(bad), strict=True):
        if after.seed != SLOW:
            assert after == before
            continue
        assert (after.success, after.error_source, after.counted) == (False, "policy", True)
        assert re.search(message, after.error)


def test_limits_clip_actions_that_the_simulator_would_refuse():
    limits = (np.full(2, -1.0), np.full(2, 1.0))
    (result,) = run_episodes(
        PointWorld,
        Walker(noise=0.0, spoil=(SLOW, "huge")),
        [Episode("far", SLOW, "go")],
        run_seed=0,
        limits=limits,
    )
    assert result.error == ""


@pytest.mark.parametrize("error", [ConnectionResetError("server gone"), MemoryError()])
def test_a_policy_that_cannot_be_reached_stops_the_run_and_fails_no_episode(error):
    class Gone(Walker):
        def infer(self, requests):
            raise error

    results = []
    with pytest.raises(type(error)):
        run_episodes(PointWorld, Gone(), EPISODES, run_seed=0, on_result=results.append)
    assert results == []


def test_a_simulator_that_crashes_once_is_replaced_and_changes_no_result():
    worlds = []

    def make():
        worlds.append(PointWorld(crash_at=("far", 2, 9) if len(worlds) == 0 else None))
        return worlds[-1]

    with pytest.warns(
        UserWarning, match="task 'far' seed 2 after 8 steps: FloatingPointError: the simulation diverged"
    ):
        results = run_episodes(make, Walker(), EPISODES, run_seed=3, slots=1)
    assert len(worlds) == 2
    assert all(world.closed for world in worlds)
    assert without_timing(results) == without_timing(run_episodes(PointWorld, Walker(), EPISODES, run_seed=3))


def test_a_simulator_that_crashes_twice_stops_the_run_and_is_not_counted(tmp_path):
    log = ResultsLog(tmp_path / "results.jsonl", policy="walker", checkpoint="", run_seed=3)
    twice = pytest.raises(SimulatorError, match="seed 2")
    with pytest.warns(UserWarning, match="trying once more"), twice as caught:
        run_episodes(
            lambda: PointWorld(crash_at=("far", 2, 9)),
            Walker(),
            EPISODES,
            run_seed=3,
            slots=3,
            on_result=log.append,
        )
    assert isinstance(caught.value.__cause__, FloatingPointError)
    crashed = [result for result in read_results(log.path) if result.error_source == "simulator"]
    assert [(result.task, result.seed) for result in crashed] == [("far", 2)]
    assert ("far", 2) not in {(result.task, result.seed) for result in counted(read_results(log.path))}
    assert Episode("far", 2, "far it") in log.remaining(EPISODES)


def test_only_what_the_policy_looks_at_and_what_is_filmed_is_rendered():
    worlds, films, filmed = [], [], EPISODES[9]

    def make():
        worlds.append(PointWorld())
        return worlds[-1]

    results = run_episodes(
        make,
        Walker(),
        EPISODES,
        run_seed=3,
        slots=3,
        record={filmed},
        on_film=films.append,
        film_camera="cam_left_wrist",
        film_every=2,
    )
    renders = [render for world in worlds for render in world.renders]
    film_renders = [here for here, cameras in renders if cameras == ("cam_left_wrist",)]
    assert set(film_renders) == {(filmed.task, filmed.seed)}
    assert len(renders) - len(film_renders) == sum(result.chunks for result in results)
    (film,) = films
    result = results[9]
    assert (film.policy, film.task, film.seed, film.success) == (
        "walker",
        filmed.task,
        filmed.seed,
        result.success,
    )
    assert len(film.frames) == len(film_renders) == 1 + -(-result.steps // 2)
    assert film.hz == 5.0
    assert any((film.frames[0] != frame).any() for frame in film.frames[1:])
    assert without_timing(results) == without_timing(run_episodes(PointWorld, Walker(), EPISODES, run_seed=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"execute": 9}, r"execute is 9, expected 1\.\.8"),
        ({"execute": 0}, "execute is 0"),
        ({"slots": 0}, "slots is 0"),
        ({"film_every": 0}, "film_every is 0"),
        ({"record": [Episode("near", 99, "")]}, "not among the episodes"),
        ({"episodes": [EPISODES[0], EPISODES[0]]}, "listed twice"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_runs(arguments, message):
    with pytest.raises(ValueError, match=message):
        run_episodes(
            lambda: pytest.fail("made a simulator"),
            Walker(),
            **{"episodes": EPISODES, "run_seed": 0, **arguments},
        )


def test_no_episodes_give_no_results():
    assert run_episodes(PointWorld, Walker(), [], run_seed=0) == []
