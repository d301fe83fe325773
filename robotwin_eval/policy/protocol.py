"""How the evaluation meets a policy: requests in, action chunks out, noise keyed by episode and chunk.

The policy may live in the same process or behind a socket; the evaluation knows no framework.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

# Version of the messages between client and server; both sides compare it.
PROTOCOL = 1
# What a server may be told beyond the first clients' messages; one that says so in `understands` takes it.
EXECUTE, DELAY = "execute", "delay"
# Session of the chunks, for a made-up scene, that a runner asks for before the first episode.
PREFLIGHT = "preflight"


class PolicyError(RuntimeError):
    """The policy broke its contract (no reply, wrong shape, a value that is not finite): a failed episode."""


@dataclass(frozen=True)
class Observation:
    """What a policy sees: camera name -> uint8 (H, W, 3), and the robot's state (S,) float32."""

    images: dict[str, np.ndarray]
    state: np.ndarray


@dataclass(frozen=True)
class NoiseKey:
    """All that the sampling noise of one chunk depends on.

    The policy's name is not part of it: two policies compared on one episode draw the same noise.

    Attributes:
        run_seed: seed of the whole evaluation.
        task: name of the task.
        episode_seed: seed that the simulator was reset with.
        chunk: index of the chunk within its episode, from 0.
    """

    run_seed: int
    task: str
    episode_seed: int
    chunk: int

    def seed(self, draw: int = 0) -> int:
        """Returns the key as an integer in [0, 2**63), the same on every machine and in every process.

        Args:
            draw: which of the chunks drawn for this one.
        """
        parts = [self.run_seed, self.task, self.episode_seed, self.chunk, *([draw] if draw else [])]
        text = json.dumps(parts, ensure_ascii=True)
        return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Request:
    """One episode asking for its next chunk.

    Attributes:
        session: names the stream of chunks that this one continues. Sessions are reused from episode to
            episode, so a policy that keeps state per session keeps a bounded number of them.
        observation: what the policy sees, with the cameras it asked for.
        instruction: the task in words.
        key: determines the sampling noise.
        reset: True on the first chunk of an episode: forget what the session held.
        executed: how many actions of the previous chunk were carried out, 0 on the first: a warm start shifts
            the previous chunk by as many.
        execute: how many actions of this chunk, from its first on, count: those behind are replaced by the
            next chunk's. None if that is not known.
        delay: control steps until this chunk is there, in which the robot goes on with the previous one: the
            first `delay` actions of this chunk come too late. None if the robot waits for it.
    """

    session: str
    observation: Observation
    instruction: str
    key: NoiseKey
    reset: bool
    executed: int
    execute: int | None = None
    delay: int | None = None


@dataclass(frozen=True)
class Reply:
    """A chunk of actions.

    Attributes:
        actions: (H, A) float, in the units of the simulator's `step`.
        seconds: wall time of the inference call that made this chunk; shared by the chunks of one batch.
        batch: number of chunks that were made in that call.
        spread: how far apart the draws lay from which this one was chosen; None for a single draw.
        doubted: whether they lay so far apart that more steps were taken; None if none ever are.
    """

    actions: np.ndarray
    seconds: float
    batch: int = 1
    spread: float | None = None
    doubted: bool | None = None


@runtime_checkable
class ChunkPolicy(Protocol):
    """A policy that answers an observation with a chunk of actions.

    `infer` gets at most one request per session. Replies must not depend on how requests were batched. A call
    that raises must leave its sessions untouched, because the evaluation then asks again, one request at a
    time. `OSError` and `MemoryError` mean that the policy could not be reached or run, and stop the
    evaluation; any other exception counts as a failure of the episode that caused it.
    """

    name: str
    cameras: tuple[str, ...]
    horizon: int

    def infer(self, requests: Sequence[Request]) -> list[Reply]:
        """Returns one reply per request, in order."""
        ...


def check_reply(reply: Reply, request: Request, horizon: int, action_dim: int | None = None) -> np.ndarray:
    """Checks a reply against its request, the promised horizon H and the values A of an action.

    By default A is the length of the observation's state.

    Returns:
        The actions, (H, A) float64.

    Raises:
        PolicyError: wrong type or shape, a value that is not finite, or an impossible latency.
    """
    where = f"task {request.key.task!r} seed {request.key.episode_seed} chunk {request.key.chunk}"
    expected = (horizon, int(request.observation.state.shape[0]) if action_dim is None else action_dim)
    try:
        actions = np.asarray(reply.actions, dtype=np.float64)
        seconds = float(reply.seconds)
    except (AttributeError, TypeError, ValueError) as error:
        raise PolicyError(f"{where}: the reply is no chunk of numbers: {error}") from error
    if actions.shape != expected:
        raise PolicyError(f"{where}: actions have shape {actions.shape}, expected {expected}")
    if not np.isfinite(actions).all():
        step, dimension = (int(i) for i in np.argwhere(~np.isfinite(actions))[0])
        value = actions[step, dimension]
        count = int((~np.isfinite(actions)).sum())
        raise PolicyError(
            f"{where}: {count} of {actions.size} action values are not finite, "
            f"first actions[{step}, {dimension}] = {value}"
        )
    if not np.isfinite(seconds) or seconds < 0:
        raise PolicyError(f"{where}: seconds is {seconds}, expected a finite duration")
    return actions
