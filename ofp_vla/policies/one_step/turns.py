"""One thread at a time: weight roles, queued actions and the last chunk are one state of a policy.

LeRobot's real-time engine draws chunks in one thread and resets the policy in another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import Concatenate, Protocol


class Turn:
    """A lock that its holder may take again; a copy of its owner has one of its own."""

    def __init__(self) -> None:
        self._lock = RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


class _TakesTurns(Protocol):
    @property
    def turn(self) -> Turn: ...


def in_turn[S: _TakesTurns, **P, T](
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[S, P], T]:
    """A method that waits until no other thread is in one of its object's."""

    @wraps(method)
    def waiting(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.turn:
            return method(self, *args, **kwargs)

    return waiting
