"""Episodes in which the world moves on while the policy thinks: which action is carried out when."""

import dataclasses

import numpy as np
import pytest

from robotwin_eval.policy.protocol import Reply
from robotwin_eval.worker.episode import EpisodeJob, run_episode
from tests.robotwin_eval.toy_simulator import ToySimulator

HORIZON = 8
JOB = EpisodeJob("far", 100000, "stand still", noise_seed=5)


class Numbered:
    """Action k of chunk c is (0, c / 100, k / 100): it moves nothing and says which one it is."""

    name, cameras, horizon = "numbered", ("head",), HORIZON

    def __init__(self):
        self.requests = []

    def infer(self, requests):
        (request,) = requests
        self.requests.append(request)
        chunk = np.zeros((HORIZON, 3))
        chunk[:, 1], chunk[:, 2] = (len(self.requests) - 1) / 100, np.arange(HORIZON) / 100
        return [Reply(chunk, 0.0)]


class Recorder(ToySimulator):
    def reset(self, task, seed):
        super().reset(task, seed)
        self.carried_out = []

    def step(self, action):
        super().step(action)
        self.carried_out.append(tuple(np.round(100 * action[1:]).astype(int)))


def played(execute, delay):
    policy, simulator = Numbered(), Recorder()
    outcome = run_episode(simulator, policy, dataclasses.replace(JOB, execute=execute, delay=delay))
    assert len(simulator.carried_out) == outcome.steps == 22
    return simulator.carried_out, policy.requests


def span(chunk, start, stop):
    return [(chunk, place) for place in range(start, stop)]


@pytest.mark.parametrize(
    ("execute", "delay", "begin", "executed", "counted"),
    [
        (3, 0, span(0, 0, 3) + span(1, 0, 3) + span(2, 0, 3), 3, 3),
        # Asked for after three; the two actions of the delay are those of the running chunk.
        (3, 2, span(0, 0, 5) + span(1, 2, 5) + span(2, 2, 5), 3, 5),
        # The next one is asked for as soon as a chunk is there.
        (3, 4, span(0, 0, 7) + span(1, 4, 8), None, 8),
        # Nothing is left: the last target is held, and no action is too late.
        (None, 3, span(0, 0, 8) + 3 * [(0, 7)] + span(1, 0, 8) + 3 * [(1, 7)], 8, 8),
        # Four are left for a delay of six.
        (4, 6, span(0, 0, 8) + 2 * [(0, 7)] + span(1, 4, 8) + 2 * [(1, 7)], 4, 8),
    ],
)
def test_late_chunks_begin_with_the_action_that_is_due(execute, delay, begin, executed, counted):
    carried_out, requests = played(execute, delay)
    assert carried_out[: len(begin)] == begin
    assert requests[0].executed == 0
    if executed is not None:
        assert {request.executed for request in requests[1:]} == {executed}
    assert {(request.delay, request.execute) for request in requests} == {(delay, counted)}


def test_without_a_delay_the_world_waits_as_with_none():
    waiting, told = played(3, None)
    assert waiting == played(3, 0)[0]
    assert {(request.delay, request.execute) for request in told} == {(None, 3)}
