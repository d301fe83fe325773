"""A policy behind a socket: the client of `ofp-vla serve`, in openpi's websocket protocol.

Beside openpi's observation the evaluation sends a block `ofp` with the session, the noise key, whether an
episode starts and how many actions were carried out, so that an episode does not depend on the connection;
and, to servers that take it, how many of the chunk's actions count and how late it will be.
"""

from __future__ import annotations

import dataclasses
import inspect
import ipaddress
import math
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.protocol import State
from websockets.sync.client import ClientConnection, connect

from robotwin_eval.policy.protocol import (
    DELAY,
    EXECUTE,
    PROTOCOL,
    PolicyError,
    Reply,
    Request,
    check_reply,
)
from robotwin_eval.policy.wire import MAX_BYTES, WireError, pack, unpack

# Requests sent ahead of their answers on one connection: few enough that unread answers never fill the
# socket.
AHEAD = 8


class ServerLost(OSError):
    """The server could not be reached, went away or did not answer in time; says nothing about the policy."""


class ServerUnreachable(ServerLost):
    """Nobody answers at the server's address, or it takes no further client; a later try may work."""


class IncompatibleServer(ValueError):
    """Not a server for this evaluation: no policy server, a refused token, or other cameras or shapes."""


class RemotePolicy:
    """One connection to a policy server at `ws://host:port`, as a `ChunkPolicy`.

    Args:
        url: `ws://host:port`.
        token: the token that the server was started with, if any.
        timeout: seconds that an answer may take.
        connect_timeout: seconds that connecting and the server's first message may take.

    Attributes:
        name: the policy's name.
        cameras: the cameras that it needs.
        optional_cameras: those of them that an observation may lack.
        horizon: actions per chunk.
        action_dim: values of an action.
        state_dim: values that it expects of a state; None if any number will do.
        metadata: what the server says about itself.

    Raises:
        ServerUnreachable: nothing listens there, or it did not answer in time.
        IncompatibleServer: the token is refused, or it is no server of this protocol and version.
    """

    def __init__(
        self, url: str, *, token: str | None = None, timeout: float = 60.0, connect_timeout: float = 30.0
    ) -> None:
        if timeout <= 0 or connect_timeout <= 0:
            raise ValueError(f"timeout {timeout} and connect_timeout {connect_timeout} must be above 0")
        self.url, self._timeout, self._lost = url, timeout, ""
        self._connection = _connect(url, token, connect_timeout)
        try:
            _limit_sending(self._connection.socket, timeout)
            self.metadata = self._greeting(connect_timeout)
            self._read_metadata()
        except BaseException:
            self.close()
            raise

    def _greeting(self, timeout: float) -> Mapping[str, Any]:
        try:
            message = self._connection.recv(timeout=timeout)
        except (TimeoutError, ConnectionClosed, OSError) as error:
            raise ServerUnreachable(f"{self.url}: no metadata after connecting ({_reason(error)})") from error
        try:
            metadata = None if isinstance(message, str) else unpack(message)
        except WireError as error:
            raise IncompatibleServer(
                f"{self.url}: its first message is not of openpi's form: {error}"
            ) from error
        if not isinstance(metadata, dict):
            raise IncompatibleServer(f"{self.url}: its first message is no metadata; is it a policy server?")
        return metadata

    def _read_metadata(self) -> None:
        version = self.metadata.get("protocol")
        if version != PROTOCOL:
            raise IncompatibleServer(
                f"{self.url}: metadata.protocol is {version!r}, this client speaks {PROTOCOL}; "
                "start `ofp-vla serve` of the same version as this evaluation"
            )
        policy = self._entry("policy", dict)
        name = policy.get("name")
        if not isinstance(name, str) or not name:
            raise IncompatibleServer(f"{self.url}: metadata.policy.name is {name!r}, expected text")
        cameras = self._entry("cameras", list)
        if not all(isinstance(camera, str) for camera in cameras):
            raise IncompatibleServer(f"{self.url}: metadata.cameras is {cameras!r}, expected names")
        self.name: str = name
        self.cameras: tuple[str, ...] = tuple(cameras)
        self.optional_cameras: tuple[str, ...] = tuple(self.metadata.get("optional_cameras") or ())
        self.horizon: int = self._entry("horizon", int)
        self.action_dim: int = self._entry("action_dim", int)
        if min(self.horizon, self.action_dim) < 1:
            raise IncompatibleServer(
                f"{self.url}: chunks of {self.horizon} actions with {self.action_dim} values"
            )
        free = self.metadata.get("state_dim") is None
        self.state_dim: int | None = None if free else self._entry("state_dim", int)
        unsaid = self.metadata.get("max_message_bytes") is None
        self._understands: tuple[str, ...] = tuple(self.metadata.get("understands") or ())
        self._max_bytes: int = MAX_BYTES if unsaid else self._entry("max_message_bytes", int)

    def _entry(self, name: str, kind: type) -> Any:
        value = self.metadata.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise IncompatibleServer(f"{self.url}: metadata.{name} is {value!r}, expected {kind.__name__}")
        return value

    def infer(self, requests: Sequence[Request]) -> list[Reply]:
        """Returns one reply per request, in order.

        Raises:
            PolicyError: the server answered a request with an error or without a finite chunk of the promised
                shape. The connection stays usable.
            ServerLost: the connection broke or an answer took too long. The connection is closed.
            IncompatibleServer: an observation is larger than the server accepts.
        """
        if self._lost:
            raise ServerLost(self._lost)
        messages = [self._message(request) for request in requests]
        replies: list[Reply] = []
        error: PolicyError | None = None
        for first in range(0, len(messages), AHEAD):
            for message in messages[first : first + AHEAD]:
                self._send(message)
            for request in requests[first : first + AHEAD]:
                # After an error the remaining answers are still read, or the next call would take them for
                # its own.
                answer = self._receive()
                try:
                    replies.append(self._reply(answer, request))
                except PolicyError as caught:
                    error = error or caught
        if error is not None:
            raise error
        return replies

    def _message(self, request: Request) -> bytes:
        key = request.key
        more = {EXECUTE: request.execute, DELAY: request.delay}
        message = pack(
            {
                "images": request.observation.images,
                "state": request.observation.state,
                "prompt": request.instruction,
                "ofp": {
                    "session": request.session,
                    "key": [int(key.run_seed), key.task, int(key.episode_seed), int(key.chunk)],
                    "reset": bool(request.reset),
                    "executed": int(request.executed),
                    **{
                        name: int(value)
                        for name, value in more.items()
                        if value is not None and name in self._understands
                    },
                },
            }
        )
        if len(message) > self._max_bytes:
            raise IncompatibleServer(
                f"{self.url}: an observation takes {len(message)} bytes, the server accepts "
                f"{self._max_bytes}; start it with a larger --max-message-mb"
            )
        return message

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send(message)
        except (ConnectionClosed, OSError) as error:
            raise self._lose("the request could not be sent", error) from error

    def _receive(self) -> bytes | str:
        try:
            answer: bytes | str = self._connection.recv(timeout=self._timeout)
        except TimeoutError as error:
            raise self._lose(f"no answer within {self._timeout:g} s", error) from error
        except (ConnectionClosed, OSError) as error:
            raise self._lose("the connection broke before the answer", error) from error
        return answer

    def _lose(self, what: str, error: Exception) -> ServerLost:
        self._lost = f"{self.url}: {what} ({_reason(error)})"
        self.close()
        return ServerLost(self._lost)

    def _reply(self, answer: bytes | str, request: Request) -> Reply:
        if isinstance(answer, str):
            raise PolicyError(f"the server answered: {' '.join(answer.split())[:2000]}")
        try:
            content = unpack(answer)
        except WireError as error:
            raise PolicyError(f"the server's answer cannot be read: {error}") from error
        timing = content.get("server_timing", {}) if isinstance(content, dict) else None
        if not isinstance(timing, dict) or "actions" not in content:
            raise PolicyError(f"the server's answer is no chunk: {str(content)[:200]}")
        milliseconds, batch = timing.get("infer_ms", 0.0), timing.get("batch", 1)
        if not isinstance(milliseconds, (int, float)) or not math.isfinite(milliseconds):
            raise PolicyError(f"the server's answer has server_timing.infer_ms {milliseconds!r}")
        spread, doubted = timing.get("spread"), timing.get("doubted")
        reply = Reply(
            content["actions"],
            milliseconds / 1000,
            batch if isinstance(batch, int) else 1,
            spread if isinstance(spread, float) else None,
            doubted if isinstance(doubted, bool) else None,
        )
        check_reply(reply, request, self.horizon, self.action_dim)
        return dataclasses.replace(reply, actions=np.asarray(reply.actions))

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as is known without asking."""
        return not self._lost and self._connection.protocol.state is State.OPEN

    def close(self) -> None:
        """Ends the connection; the server forgets its sessions."""
        self._lost = self._lost or f"{self.url}: the connection was closed here"
        self._connection.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _connect(url: str, token: str | None, timeout: float) -> ClientConnection:
    options: dict[str, Any] = {
        "compression": None,  # camera images do not shrink
        "max_size": MAX_BYTES,
        "open_timeout": timeout,
        "close_timeout": 1.0,
        "additional_headers": {"Authorization": f"Bearer {token}"} if token else None,
    }
    # Options that came with websockets 15 to 17: no proxy on the way to one's own machine, and a connection
    # instead of an iterator of connections.
    known = inspect.signature(connect).parameters
    if "proxy" in known and _is_loopback(url):
        options["proxy"] = None
    # A server that computes may leave pings unanswered; the time-out of each answer is what counts.
    if "ping_interval" in known:
        options["ping_interval"] = None
    if "legacy" in known:
        options["legacy"] = True
    started = time.monotonic()
    try:
        return connect(url, **options)
    except InvalidURI as error:
        raise IncompatibleServer(f"{url!r} is no address such as ws://127.0.0.1:8000") from error
    except InvalidStatus as error:
        status = error.response.status_code
        if status == 401:
            raise IncompatibleServer(
                f"{url}: the server refused the {'token' if token else 'connection without a token'} (401)"
            ) from error
        if status >= 500:
            raise ServerUnreachable(f"{url}: the server is not available ({status})") from error
        raise IncompatibleServer(f"{url}: answered {status} instead of opening a websocket") from error
    except InvalidHandshake as error:
        raise IncompatibleServer(f"{url}: what listens there is no websocket server ({error})") from error
    except (OSError, ConnectionClosed, EOFError) as error:
        waited = time.monotonic() - started
        raise ServerUnreachable(f"{url}: cannot connect ({_reason(error)}, {waited:.1f} s)") from error


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _limit_sending(connection: socket.socket, timeout: float) -> None:
    """Bounds how long a server that reads nothing can hold up a request; receiving has its own limit."""
    seconds = int(timeout)
    limit = struct.pack("ll", seconds, int((timeout - seconds) * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
