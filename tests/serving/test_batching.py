import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

from ofp_vla.serving.batching import BatchQueue
from tests.support.serving import Arithmetic, request


@pytest.fixture
def policy():
    policy = Arithmetic()
    policy.gate = threading.Event()
    return policy


def queue_of(policy, request, **settings):
    made = BatchQueue(policy, **settings)
    request.addfinalizer(made.close)
    if policy.gate is not None:
        request.addfinalizer(policy.gate.set)
    return made


def chunks(futures):
    return [future.result(10).reply.actions for future in futures]


def hold_first(policy, queue, row=99):
    """Starts a pass that waits at the gate, so that what follows piles up."""
    first = queue.submit(request_(row))
    assert policy.entered.acquire(timeout=10)
    return first


request_ = request


def test_what_arrives_during_a_pass_is_joined_into_the_next(policy, request):
    queue = queue_of(policy, request)
    first = hold_first(policy, queue)
    later = [queue.submit(request_(row)) for row in range(8)]
    policy.gate.set()
    chunks([first, *later])
    assert policy.passes == [["s99"], [f"s{row}" for row in range(8)]]
    assert [future.result().batch for future in [first, *later]] == [1] + [8] * 8


class Slow(Arithmetic):
    """A pass takes its time, whatever its size."""

    seconds = 0.3

    def infer(self, requests):
        time.sleep(self.seconds)
        return super().infer(requests)


def ask_again_and_again(queue, row, times, pause=0.0):
    for number in range(times):
        if number:
            time.sleep(pause)
        queue.submit(request_(row)).result(60)


def test_clients_that_ask_again_at_once_share_a_pass_instead_of_taking_turns(request):
    policy = Slow()
    queue = queue_of(policy, request)
    threads = [threading.Thread(target=ask_again_and_again, args=(queue, row, 8)) for row in range(2)]
    threads[0].start()
    time.sleep(policy.seconds / 2)  # so that the second one asks during the first one's pass
    threads[1].start()
    for thread in threads:
        thread.join()
    assert [sorted(names) for names in policy.passes].count(["s0", "s1"]) >= 5


def test_a_client_that_carries_out_its_chunk_first_is_not_waited_for(request):
    policy = Slow()
    queue = queue_of(policy, request)
    robot = threading.Thread(target=ask_again_and_again, args=(queue, 0, 2, 10 * policy.seconds))
    robot.start()
    robot.join()
    waited = [queue.submit(request_(1)).result(60).waited for _ in range(3)]
    assert max(waited) < policy.seconds / 2


def test_one_request_a_pass_where_the_batch_is_limited_to_one(policy, request):
    queue = queue_of(policy, request, max_batch=1)
    first = hold_first(policy, queue)
    later = [queue.submit(request_(row)) for row in range(3)]
    policy.gate.set()
    chunks([first, *later])
    assert policy.passes == [["s99"], ["s0"], ["s1"], ["s2"]]


def test_requests_of_one_session_keep_their_order_and_never_share_a_pass(policy, request):
    queue = queue_of(policy, request, max_batch=2)
    first = hold_first(policy, queue)
    asked = [request_(0, 0), request_(0, 1), request_(1, 0), request_(0, 2), request_(2, 0)]
    later = [queue.submit(each) for each in asked]
    policy.gate.set()
    chunks([first, *later])
    assert policy.passes == [["s99"], ["s0", "s1"], ["s0", "s2"], ["s0"]]
    served = [each.key.chunk for each in policy.requests if each.session == "s0"]
    assert served == [0, 1, 2]


def test_images_of_another_size_wait_for_a_pass_of_their_own(policy, request):
    queue = queue_of(policy, request)
    first = hold_first(policy, queue)
    later = [queue.submit(request_(row, side=16 if row % 2 else 32)) for row in range(4)]
    policy.gate.set()
    chunks([first, *later])
    assert policy.passes[1:] == [["s0", "s2"], ["s1", "s3"]]


def test_a_bad_request_fails_alone(policy, request):
    queue = queue_of(policy, request)
    first = hold_first(policy, queue)
    rows = [queue.submit(request_(row, instruction="fail" if row == 1 else "press")) for row in range(3)]
    policy.gate.set()
    assert first.result(10).batch == 1
    with pytest.raises(ValueError, match="cannot fail"):
        rows[1].result(10)
    alone = Arithmetic()
    for row in (0, 2):
        expected = alone.infer([request_(row)])[0].actions
        np.testing.assert_array_equal(rows[row].result(10).reply.actions, expected)


def test_a_cancelled_request_is_not_run_and_its_session_is_forgotten(policy, request):
    queue = queue_of(policy, request, forget=policy.forget)
    first = hold_first(policy, queue)
    gone, kept = queue.submit(request_(0)), queue.submit(request_(1))
    assert gone.cancel()
    queue.end("s99")  # its pass is still running
    policy.gate.set()
    chunks([first, kept])
    chunks([queue.submit(request_(2))])
    assert policy.passes == [["s99"], ["s1"], ["s2"]]
    assert set(policy.sessions) == {"s1", "s2"}


def test_it_gathers_up_to_the_largest_batch(policy, request):
    policy.gate.set()
    queue = queue_of(policy, request, max_batch=3, gather=30.0)
    chunks([queue.submit(request_(row)) for row in range(3)])
    assert policy.passes == [["s0", "s1", "s2"]]


def test_queues_that_share_a_lock_never_run_together(policy, request):
    lock, other = threading.Lock(), Arithmetic()
    one = queue_of(policy, request, lock=lock)
    two = BatchQueue(other, lock=lock)
    request.addfinalizer(two.close)
    request.addfinalizer(policy.gate.set)
    first = hold_first(policy, one)
    second = two.submit(request_(0))
    assert not other.entered.acquire(timeout=0.2)
    policy.gate.set()
    chunks([first, second])
    assert other.passes == [["s0"]]


def test_closing_finishes_the_running_pass_and_cancels_the_rest(policy, request):
    queue = queue_of(policy, request)
    first = hold_first(policy, queue)
    waiting = queue.submit(request_(0))
    threading.Timer(0.1, policy.gate.set).start()
    queue.close()
    assert first.result(0).batch == 1
    with pytest.raises(CancelledError):
        waiting.result(0)
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(request_(1))
    assert policy.passes == [["s99"]]


def test_a_policy_that_loses_replies_is_an_error(request):
    class Forgetful(Arithmetic):
        def infer(self, requests):
            return super().infer(requests)[:0]

    queue = BatchQueue(Forgetful())
    request.addfinalizer(queue.close)
    with pytest.raises(RuntimeError, match="0 replies to 1 requests"):
        queue.submit(request_(0)).result(10)


@pytest.mark.parametrize(
    ("settings", "message"), [({"max_batch": 0}, "max_batch is 0"), ({"gather": -1}, "gather")]
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchQueue(Arithmetic(), **settings)
