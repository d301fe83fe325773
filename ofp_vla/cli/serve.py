"""The command `ofp-vla serve`: a checkpoint behind openpi's websocket protocol."""

from __future__ import annotations

import json
import os
import signal
import threading
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ofp_vla.cli.options import Choose, Doubt, DoubtSteps, Draws, Engine, SamplerOption, Steps, Warm
from ofp_vla.errors import OFPError
from robotwin_eval.cli.options import pairs, token_of
from robotwin_eval.files import replace_file


class RobotName(StrEnum):
    """A robot of openpi's published clients, see `ofp_vla.serving.robots`."""

    aloha = "aloha"
    aloha_pi = "aloha-pi"
    droid = "droid"
    libero = "libero"


class FrontProtocol(StrEnum):
    """What clients speak at `/`; both protocols are always available at `/openpi` and `/xpolicylab`."""

    openpi = "openpi"
    xpolicylab = "xpolicylab"


def serve(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder of a checkpoint or a training run, or a Hub name.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that clients must present; else OFP_TOKEN, if set."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines connect without a token.")
    ] = False,
    steps: Steps = None,
    sampler: SamplerOption = None,
    warm: Warm = None,
    draws: Draws = None,
    choose: Choose = None,
    doubt_steps: DoubtSteps = None,
    doubt: Doubt = None,
    engine: Engine = None,
    executed: Annotated[
        int | None,
        typer.Option(min=1, help="Actions of a chunk carried out by clients that do not say."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise for clients that send no key.")] = 0,
    batch_invariant: Annotated[
        bool,
        typer.Option("--batch-invariant", help="One request per pass: answers never depend on others."),
    ] = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Most requests joined into one pass.")] = 32,
    gather_ms: Annotated[
        float, typer.Option(min=0, help="Milliseconds to wait for more requests before a pass.")
    ] = 0.0,
    max_message_mb: Annotated[int, typer.Option(min=1, help="Largest message in MiB.")] = 64,
    robot: Annotated[
        RobotName | None,
        typer.Option(help="Whose client connects, of openpi's published ones: their names and units."),
    ] = None,
    default_prompt: Annotated[
        str | None,
        typer.Option(help="Task of clients that send none; else the only sentence of the training data."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(help="A client's camera name, as SENT=NEEDED; may be given several times."),
    ] = None,
    protocol: Annotated[
        FrontProtocol, typer.Option(help="What clients speak at the bare address.")
    ] = FrontProtocol.openpi,
    name: Annotated[str | None, typer.Option(help="Name that results are filed under.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the checkpoint's own.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a checkpoint on the Hub.")] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(help='File that gets {"port", "pid", "url"} once clients can connect.'),
    ] = None,
) -> None:
    """Serve a checkpoint to simulators and robots over websockets (openpi's and XPolicyLab's protocols)."""
    token = token_of(token_file)
    if default_prompt is not None and not default_prompt.strip():
        raise ValueError("--default-prompt is empty; give the task in words, or leave it out")
    cameras = pairs("--rename", rename)
    from ofp_vla.serving.admission import check_address, check_free

    # Checked before the weights are loaded, which may take minutes.
    check_address(host, token, insecure=insecure)
    check_free(host, port)

    from ofp_vla.policies.checkpoint import load_policy
    from ofp_vla.serving.known_task import only_task
    from ofp_vla.serving.local_policy import LocalPolicy
    from ofp_vla.serving.robots import ROBOTS, RobotPolicy, caution
    from ofp_vla.serving.server import PolicyServer
    from ofp_vla.serving.warm_up import warm_up

    given = {"device": device, "engine": engine}
    overrides = {name: value for name, value in given.items() if value is not None}
    loaded = load_policy(checkpoint, revision=revision, **overrides)
    # Limits are the robot's or simulator's own: the server does not know which of them will connect.
    policy = LocalPolicy(
        loaded,
        name or "",
        steps=steps,
        sampler=sampler and sampler.value,
        warm=warm,
        draws=draws,
        choose=choose and choose.value,
        doubt_steps=doubt_steps,
        doubt=doubt,
    )
    policy.name = name or policy.title(loaded.source)
    known = ROBOTS[robot.value] if robot else None
    task = default_prompt or only_task(loaded.source, revision)
    stop = threading.Event()
    server = PolicyServer(
        RobotPolicy(policy, known, cameras) if known else policy,
        host=host,
        port=port,
        token=token,
        insecure=insecure,
        metadata=policy.describe(),
        protocol=protocol.value,
        rename=cameras,
        robot=known,
        default_prompt=task,
        executed=executed,
        seed=seed,
        batch_invariant=batch_invariant,
        max_batch=max_batch,
        gather=gather_ms / 1000,
        max_bytes=max_message_mb * 1024 * 1024,
        on_client=policy.client_came,
        live=policy.clipping,
        on_fault=stop.set,
    )
    warmed_up = warm_up(policy, task or "wait", 1 if batch_invariant else max_batch)
    policy.serving_begins()
    _stop_on_signal(stop)
    with server:
        typer.echo(
            f"{policy.name} at {server.url}: acts by {policy.sampling}; cameras "
            f"{', '.join(policy.cameras)}; state of {policy.state_dim}; chunks of {policy.horizon} x "
            f"{policy.action_dim}"
        )
        if loaded.policy.host.repeats:
            typer.echo(f"warmed up: {warmed_up}")
        if policy.remark:
            typer.echo(f"note: {policy.remark}")
        if policy.sampling.warm and executed is None:
            typer.echo(
                "chunks of clients that do not say how many actions they carried out start cold; tell it by "
                "--executed"
            )
        if (known is None or not known.pi_joints) and caution(policy, cameras):
            typer.echo(caution(policy, cameras))
        typer.echo(
            f"where a client sends no prompt: {task!r}"
            if task
            else "requests without a prompt are refused (openpi's ALOHA clients send none): --default-prompt"
        )
        if ready_file is not None:
            ready = {"port": server.port, "pid": os.getpid(), "url": server.url}
            replace_file(ready_file, json.dumps(ready) + "\n")
        try:
            stop.wait()
        finally:
            if ready_file is not None:
                ready_file.unlink(missing_ok=True)
    if server.fault:
        # Only a new process gets a new context of the accelerator.
        raise OFPError(f"{server.fault}; the server ends: start it again")
    clipped = policy.clipping()
    if clipped["clipped_values"]:
        typer.echo(
            f"{clipped['clipped_values']} action values were beyond the limits and clipped, "
            f"{clipped['since_last_client']} of them since the last client came"
        )
    typer.echo("stopped")


def _stop_on_signal(stop: threading.Event) -> None:
    """Sets the event on SIGTERM or Ctrl-C; a second one ends the process at once."""

    def handle(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
