"""The streams of chunks of one connection: which request continues which chunk, and with what noise."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ofp_vla.serving.observations import BadRequest, Control
from robotwin_eval.policy.protocol import NoiseKey, Observation, Request

logger = logging.getLogger(__name__)


@dataclass
class _Stream:
    """One session: `fresh` until the first chunk of its episode has been made."""

    episode: int = -1
    chunk: int = 0
    fresh: bool = True
    task: str = ""


class Sessions:
    """Sessions of one connection; their names never coincide with those of another one.

    A lost connection takes its sessions with it: a client that returns starts a new episode, and is told so.

    Args:
        connection: unique name of the connection.
        seed: noise of requests without a key is keyed by (seed, session, episode, chunk), counted here.
        executed: actions of each chunk carried out by a client that does not say; None means unknown, and
            then no chunk starts from the one before.
        limit: most sessions of the connection.
    """

    def __init__(self, connection: str, *, seed: int, executed: int | None, limit: int) -> None:
        self._connection, self._seed, self._executed, self._limit = connection, seed, executed, limit
        self._streams: dict[str, _Stream] = {}

    def restart(self, session: str | None = None) -> None:
        """Makes the next chunk of a session, or of all sessions if None, start an episode.

        Raises:
            BadRequest: more sessions than the connection may have.
        """
        for stream in self._streams.values() if session is None else [self._stream(session)]:
            stream.fresh = True

    def request(self, observation: Observation, instruction: str, control: Control) -> Request:
        """The policy's request for the next chunk of a session.

        Raises:
            BadRequest: more sessions than the connection may have.
        """
        stream = self._stream(control.session)
        # openpi's own clients never say that an episode starts, but run one task after another.
        mute = control == Control(control.session)
        fresh = stream.fresh or control.reset or (mute and stream.task != instruction)
        stream.task = instruction
        if fresh:
            stream.episode, stream.chunk, stream.fresh = stream.episode + 1, 0, False
        key = control.key or NoiseKey(self._seed, control.session, stream.episode, stream.chunk)
        stream.chunk += 1
        executed = self._executed if control.executed is None else control.executed
        if fresh and not control.reset and control.executed:
            logger.warning(
                "session %r goes on with an episode whose last chunk is not here (its connection was lost, "
                "or the server started anew): its next chunk starts cold",
                control.session,
            )
        cold = fresh or executed is None
        execute = self._executed if control.execute is None else control.execute
        return Request(
            session=self._name(control.session),
            observation=observation,
            instruction=instruction,
            key=key,
            reset=cold,
            executed=0 if executed is None or fresh else executed,
            execute=execute,
            delay=control.delay,
        )

    def begins(self, session: str) -> bool:
        """Whether the last request of a session was the first of an episode, as seen here."""
        return self._stream(session).chunk == 1

    def failed(self, session: str) -> None:
        """Notes that the last request made no chunk; if it began an episode, the next one begins it."""
        stream = self._stream(session)
        if stream.chunk == 1:
            stream.fresh, stream.episode = True, stream.episode - 1

    def names(self) -> list[str]:
        """Names of the sessions as the policy knows them."""
        return [self._name(session) for session in self._streams]

    def _name(self, session: str) -> str:
        return f"{self._connection}/{session}"

    def _stream(self, session: str) -> _Stream:
        if session not in self._streams:
            if len(self._streams) >= self._limit:
                raise BadRequest(
                    f"ofp.session: {session[:80]!r} would be one more than the {self._limit} sessions that a "
                    "connection may have; reuse them, or open another connection"
                )
            self._streams[session] = _Stream()
        return self._streams[session]
