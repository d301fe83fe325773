"""Serves a policy over websockets: openpi's protocol, XPolicyLab's, health, metadata, metrics.

The event loop and the policy have a thread each, so that a slow or vanished client delays no other, and
several servers can live in one process.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Protocol

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from ofp_vla._version import __version__
from ofp_vla.serving.admission import Admission, CannotServe, check_address
from ofp_vla.serving.batching import BatchQueue
from ofp_vla.serving.fronts.openpi import OpenPiFront
from ofp_vla.serving.fronts.xpolicylab import XPolicyLabFront
from ofp_vla.serving.metrics import Metrics
from ofp_vla.serving.observations import ObservationReader
from ofp_vla.serving.robots import Robot
from ofp_vla.serving.service import PolicyDown, ServedPolicy, Service
from ofp_vla.serving.sessions import Sessions
from robotwin_eval.policy.protocol import DELAY, EXECUTE, PROTOCOL

logger = logging.getLogger(__name__)
# Handshakes that strangers break are not worth an entry in our log.
_quiet = logging.getLogger(f"{__name__}.websockets")
_quiet.setLevel(logging.CRITICAL)

INTERNAL_ERROR = 1011


class Front(Protocol):
    """One connection's side of a protocol."""

    ordered: bool
    sessions: Sessions

    def greeting(self) -> bytes | None:
        """What the server says first; None if the client speaks first."""
        ...

    async def answer(self, message: bytes | str) -> bytes | str | None:
        """The answer to a message; None ends the connection."""
        ...


_FRONTS: dict[str, type[OpenPiFront] | type[XPolicyLabFront]] = {
    "openpi": OpenPiFront,
    "xpolicylab": XPolicyLabFront,
}


class PolicyServer:
    """A policy on a port; `with PolicyServer(policy) as server: RemotePolicy(server.url)`.

    Clients find openpi's protocol at `/` and `/openpi`, XPolicyLab's at `/xpolicylab`.

    Args:
        policy: what is served, asked from one thread.
        host: address to listen on.
        port: 0 for any free one.
        token: what clients have to present: `Authorization: Bearer TOKEN`, `Api-Key TOKEN` (openpi), or the
            password of a URL (`ws://any:TOKEN@host`, for clients that take a URL only).
        insecure: allow an address that other machines reach without a token.
        metadata: entries beside those that follow from `policy`, see `LocalPolicy.describe`.
        protocol: what `/` speaks, "openpi" or "xpolicylab".
        rename: a client's camera name -> the policy's.
        robot: whose client's names and units are understood; `policy` then is its `RobotPolicy`.
        default_prompt: the task of clients that send none.
        executed: actions of a chunk carried out by clients that do not say; None starts their chunks anew.
        seed: seed of the noise of requests without a key.
        batch_invariant: one request per forward pass, so that answers do not depend on what else runs even in
            the last bit. Otherwise matrix products of another batch size may round differently.
        max_batch: most requests per pass.
        gather: seconds to wait for more requests before a pass.
        lock: held during each pass; servers whose policies share weights must share it.
        max_bytes: largest message.
        max_connections: further ones are answered with 503.
        max_sessions: sessions per connection.
        patience: seconds after which a client that does not read its answers is dropped. A silent one keeps
            its connection and its episode; pings, which it need not answer, show whether its machine is gone.
        on_client: called when a client has connected.
        live: entries of `/metadata` that change while the server runs; `clipped_values` is in `/metrics` too.
        on_fault: called if the accelerator failed (see `fault`): this process cannot use it any more.

    Raises:
        ValueError: an address that other machines reach without a token, or a bad setting.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        insecure: bool = False,
        metadata: Mapping[str, Any] | None = None,
        protocol: str = "openpi",
        rename: Mapping[str, str] | None = None,
        robot: Robot | None = None,
        default_prompt: str | None = None,
        executed: int | None = None,
        seed: int = 0,
        batch_invariant: bool = False,
        max_batch: int = 32,
        gather: float = 0.0,
        lock: AbstractContextManager[object] | None = None,
        max_bytes: int = 64 * 1024 * 1024,
        max_connections: int = 256,
        max_sessions: int = 64,
        patience: float = 60.0,
        on_client: Callable[[], None] = lambda: None,
        live: Callable[[], Mapping[str, Any]] = dict,
        on_fault: Callable[[], None] = lambda: None,
    ) -> None:
        check_address(host, token, insecure=insecure)
        if protocol not in _FRONTS:
            raise ValueError(f"protocol {protocol!r} is none of {list(_FRONTS)}")
        if executed is not None and not 1 <= executed <= policy.horizon:
            raise ValueError(f"executed is {executed}, a chunk of this policy has {policy.horizon} actions")
        self._host, self._port, self._protocol = host, port, protocol
        self._patience, self._on_client = patience, on_client
        optional = getattr(policy, "optional_cameras", ())
        reader = ObservationReader(
            policy.cameras,
            policy.state_dim,
            policy.horizon,
            rename,
            optional=optional,
            robot=robot,
            default_prompt=default_prompt,
        )
        self._queue = BatchQueue(
            policy,
            max_batch=1 if batch_invariant else max_batch,
            gather=0.0 if batch_invariant else gather,
            forget=policy.forget,
            lock=lock,
        )
        self.metadata = (
            {
                "server": "ofp_vla",
                "protocol": PROTOCOL,
                "understands": [EXECUTE, DELAY],
                "version": __version__,
                "policy": {"name": policy.name},
                "cameras": list(policy.cameras),
                "optional_cameras": list(optional),
                "robot": robot.name if robot else None,
                "default_prompt": reader.default_prompt,
                "horizon": policy.horizon,
                "action_dim": policy.action_dim,
                "state_dim": policy.state_dim,
                "batch_invariant": batch_invariant,
                "max_message_bytes": max_bytes,
            }
            | dict(robot.metadata if robot else {})
            | dict(metadata or {})
        )
        self._service = Service(
            policy,
            self._queue,
            reader,
            metadata=self.metadata,
            max_bytes=max_bytes,
            seed=seed,
            executed=executed,
            max_sessions=max_sessions,
            on_fault=on_fault,
        )
        self._admission = Admission(
            token,
            lambda: self.metadata | dict(live()),
            lambda: self.metrics.text(clients=self._admission.open, clipped=live().get("clipped_values")),
            paths=("", *_FRONTS),
            max_connections=max_connections,
        )
        self._connections = itertools.count()
        self._listening: Future[str] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens, `ws://host:port`.

        Raises:
            RuntimeError: it was not started.
        """
        if self._thread is None:
            raise RuntimeError("the server was not started")
        return self._listening.result()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rsplit(":", 1)[1])

    @property
    def fault(self) -> str:
        """How the accelerator failed, after which every request is refused; "" while it works."""
        return self._service.fault

    @property
    def metrics(self) -> Metrics:
        """What it has counted since it was made."""
        return self._service.metrics

    def start(self) -> PolicyServer:
        """Listens, in a thread of its own; returns when clients can connect.

        Raises:
            CannotServe: the address is taken or does not exist here.
        """
        if self._thread is not None:
            raise RuntimeError("the server was started before")
        self._thread = threading.Thread(target=self._run, name="policy-server", daemon=True)
        self._thread.start()
        try:
            self._listening.result()
        except OSError as error:
            self._queue.close()
            reason = error.strerror or str(error)
            raise CannotServe(f"cannot listen on {self._host}:{self._port}: {reason}") from error
        return self

    def stop(self) -> None:
        """Closes the connections and returns when the running pass has ended; a second call does nothing."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join()
        self._queue.close()

    def __enter__(self) -> PolicyServer:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            if self._listening.done():
                raise
            self._listening.set_exception(error)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with serve(
            self._converse,
            self._host,
            self._port,
            process_request=self._admission.check,
            origins=[None],  # no web page may use a visitor's own server
            compression=None,
            max_size=self._service.max_bytes,
            max_queue=2,
            open_timeout=min(20.0, self._patience),
            ping_interval=self._patience,
            # A robot may wait minutes for a person; if its machine is gone, a ping ends the connection.
            ping_timeout=None,
            close_timeout=min(2.0, self._patience),
            logger=_quiet,
        ) as server:
            self._listening.set_result(self._address(server))
            await self._stopping.wait()

    def _address(self, server: Server) -> str:
        host, port = next(iter(server.sockets)).getsockname()[:2]
        if ipaddress.ip_address(host).is_unspecified:
            host = "127.0.0.1" if "." in host else "::1"
        return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"

    # ---- connections

    async def _converse(self, connection: ServerConnection) -> None:
        name = str(next(self._connections))
        path = connection.request.path.split("?", 1)[0].strip("/") if connection.request else ""
        front: Front = _FRONTS[path or self._protocol](self._service, name)
        self._admission.open += 1
        self._service.reader.tell_again()
        self._on_client()
        try:
            await self._exchange(connection, front)
        except ConnectionClosed:
            pass
        finally:
            self._admission.open -= 1
            for session in front.sessions.names():
                self._queue.end(session)

    async def _exchange(self, connection: ServerConnection, front: Front) -> None:
        greeting = front.greeting()
        if greeting is not None:
            await self._send(connection, greeting)
        room = _Room(messages=16, size=self._service.max_bytes)
        tasks: set[asyncio.Task[None]] = set()
        before: asyncio.Task[None] | None = None
        try:
            async for message in connection:
                await room.enter(len(message))
                task = asyncio.create_task(
                    self._deliver(connection, front, message, before if front.ordered else None)
                )
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(room.leaver(len(message)))
                before = task
        finally:
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(
        self,
        connection: ServerConnection,
        front: Front,
        message: bytes | str,
        before: asyncio.Task[None] | None,
    ) -> None:
        """Answers one message; if the order counts, after the answer to the message before."""
        try:
            answer = await front.answer(message)
        except PolicyDown as error:
            await connection.close(INTERNAL_ERROR, str(error).encode()[:120].decode(errors="ignore"))
            return
        if before is not None:
            await asyncio.wait([before])
        if answer is None:
            await connection.close()
        else:
            await self._send(connection, answer)

    async def _send(self, connection: ServerConnection, answer: bytes | str) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await connection.send(answer)
        except TimeoutError:
            logger.warning("a client does not read its answers; its connection is dropped")
            connection.transport.abort()
        except ConnectionClosed:
            pass


class _Room:
    """Bounds how much of one connection may be in work: messages, and bytes beyond the first message."""

    def __init__(self, messages: int, size: int) -> None:
        self._messages, self._size = messages, size
        self._held = self._bytes = 0
        self._free = asyncio.Event()

    async def enter(self, size: int) -> None:
        while self._held and (self._held >= self._messages or self._bytes + size > self._size):
            self._free.clear()
            await self._free.wait()
        self._held += 1
        self._bytes += size

    def leaver(self, size: int) -> Any:
        def leave(_: object) -> None:
            self._held -= 1
            self._bytes -= size
            self._free.set()

        return leave
