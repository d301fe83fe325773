"""What a policy does before its first client comes, so that this one does not wait for what is made once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from ofp_vla.errors import MemoryFullError
from ofp_vla.serving.local_policy import WARM_UP, LocalPolicy
from robotwin_eval.policy.protocol import NoiseKey, Observation, Request

# States that are tried: where a state is text, prompts have many lengths, each recorded by itself.
STATES = 24
# After so many seconds what is not recorded yet is left to the clients' calls.
PATIENCE = 30.0


def warm_up(policy: LocalPolicy, task: str, max_batch: int = 1) -> str:
    """Makes chunks of empty scenes, each way twice where that records it for repetition.

    Only batches of one request are recorded: how many clients will ask together is not known. Batches of two
    and three are made once, after which what is compiled is compiled for all sizes.

    Args:
        policy: the policy.
        task: of all scenes.
        max_batch: requests of the largest batch.

    Returns:
        What was done, for the log.

    Raises:
        DataError: the policy cannot take the task.
    """
    began = time.perf_counter()
    chunks = 0
    for requests in _batches(policy, task, max_batch):
        try:
            policy.infer(requests)
        except MemoryFullError:
            if len(requests) == 1:
                raise
            break
        finally:
            for request in requests[1:]:
                policy.forget(request.session)
        chunks += len(requests)
        if time.perf_counter() - began > PATIENCE:
            break
    policy.forget(WARM_UP)
    captures = policy.loaded.policy.host.captures
    recorded = f", {captures.made} recordings for repetition" if captures.made else ""
    refused = "".join(f"; {name} runs operator by operator: {why}" for name, why in captures.reasons.items())
    return f"{chunks} chunks of empty scenes in {time.perf_counter() - began:.1f} s{recorded}{refused}"


def _batches(policy: LocalPolicy, task: str, max_batch: int) -> Iterator[list[Request]]:
    images = {camera: np.zeros((64, 64, 3), np.uint8) for camera in policy.cameras}
    repeats = policy.loaded.policy.host.repeats
    states = _states(policy, STATES if repeats else 1)

    def request(row: int, state: np.ndarray, executed: int = 0) -> Request:
        session = f"{row}/{WARM_UP}" if row else WARM_UP
        seen, key = Observation(images, state), NoiseKey(0, "", row, 0)
        return Request(session, seen, task, key, reset=not executed, executed=executed)

    for state in states:
        # Cold, and after a chunk.
        for executed in (0, 1) if repeats and policy.sampling.warm else (0,):
            for _ in range(2 if repeats else 1):
                yield [request(0, state, executed)]
        if repeats and state is states[0]:
            for size in range(2, 1 + min(max_batch, 3)):
                # Prompts of one length, and of several if states are text.
                for chosen in ([state] * size, states[:size]):
                    yield [request(row, each) for row, each in enumerate(chosen)]


def _states(policy: LocalPolicy, number: int) -> list[np.ndarray]:
    """Zero, and states of the range that the policy was trained on."""
    zero = np.zeros(policy.state_dim or 0, np.float32)
    known = policy.range_of("state")
    if known is None or known.shape[1:] != zero.shape:
        return [zero]
    shares = np.random.default_rng(0).random((number - 1, len(zero)), np.float32)
    return [zero, *(known[0] + shares * (known[1] - known[0])).astype(np.float32)]
