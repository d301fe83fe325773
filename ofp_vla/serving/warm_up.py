"""What a policy does before its first client comes, so that this one does not wait for what is made once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from ofp_vla.serving.local_policy import WARM_UP, LocalPolicy
from robotwin_eval.policy.protocol import NoiseKey, Observation, Request

# States that are tried: where a state is text, prompts have many lengths, each recorded by itself.
STATES = 24
# After so many seconds what is not recorded yet is left to the clients' calls.
PATIENCE = 30.0


def warm_up(policy: LocalPolicy, task: str) -> str:
    """Makes chunks of empty scenes, each way twice where that records it for repetition.

    Batches of one request only: how many clients will ask together is not known.

    Returns:
        What was done, for the log.

    Raises:
        DataError: the policy cannot take the task.
    """
    began = time.perf_counter()
    chunks = 0
    try:
        for request in _requests(policy, task):
            policy.infer([request])
            chunks += 1
            if time.perf_counter() - began > PATIENCE:
                break
    finally:
        policy.forget(WARM_UP)
    captures = policy.loaded.policy.host.captures
    recorded = f", {captures.made} recordings for repetition" if captures.made else ""
    refused = "".join(f"; {name} runs operator by operator: {why}" for name, why in captures.reasons.items())
    return f"{chunks} chunks of empty scenes in {time.perf_counter() - began:.1f} s{recorded}{refused}"


def _requests(policy: LocalPolicy, task: str) -> Iterator[Request]:
    images = {camera: np.zeros((64, 64, 3), np.uint8) for camera in policy.cameras}
    # Without recordings one chunk makes all that is made once.
    repeats = policy.loaded.policy.host.repeats
    starts = (
        [(True, 0), (True, 0)] + [(False, 1), (False, 1)] * policy.sampling.warm if repeats else [(True, 0)]
    )
    for state in _states(policy, STATES if repeats else 1):
        for reset, executed in starts:
            yield Request(
                WARM_UP,
                Observation(images, state),
                task,
                NoiseKey(0, "", 0, 0),
                reset=reset,
                executed=executed,
            )


def _states(policy: LocalPolicy, number: int) -> list[np.ndarray]:
    """Zero, and states of the range that the policy was trained on."""
    zero = np.zeros(policy.state_dim or 0, np.float32)
    known = policy.range_of("state")
    if known is None or known.shape[1:] != zero.shape:
        return [zero]
    shares = np.random.default_rng(0).random((number - 1, len(zero)), np.float32)
    return [zero, *(known[0] + shares * (known[1] - known[0])).astype(np.float32)]
