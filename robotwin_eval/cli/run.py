"""`robotwin-eval run`: a policy on a simulator's episodes; `manifest`: chooses the episodes beforehand."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robotwin_eval.cli.options import (
    EPISODES,
    FAILURES,
    Action,
    Config,
    CpuCheck,
    Engine,
    EngineOption,
    Episodes,
    InferenceTimeout,
    KeepGoing,
    PerWorker,
    Quiet,
    RayAddress,
    RayGpus,
    ResetTimeout,
    Retries,
    Root,
    Seed,
    ServerWait,
    SimPython,
    Split,
    Splits,
    StartTimeout,
    StepTimeout,
    Suite,
    SuiteOption,
    Tasks,
    Workers,
    option,
    pairs,
    rate,
    settings_of,
    shard_of,
    token_of,
)
from robotwin_eval.cli.run_file import SERVE

if TYPE_CHECKING:
    from robotwin_eval.runner.settings import EarlyStop

POLICY, STOP = "Policy", "Early stop"


def run(
    ctx: typer.Context,
    policy: Annotated[
        str,
        option(POLICY, "ws://host:port of a policy server, or a checkpoint (folder or Hub name) to serve."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; must be new.")],
    execute: Annotated[
        int | None,
        option(POLICY, "Actions to carry out of each chunk; as the policy's server says, or all.", min=1),
    ] = None,
    delay: Annotated[
        int | None,
        option(
            POLICY,
            "Control steps that each chunk comes late, while the robot goes on; without it the world waits.",
            min=0,
        ),
    ] = None,
    camera: Annotated[
        list[str] | None,
        option(POLICY, "POLICY=SIMULATOR if camera names differ; several times."),
    ] = None,
    name: Annotated[
        str, option(POLICY, "Name that results are filed under; the server's if not given.")
    ] = "",
    label: Annotated[str, option(POLICY, "Name for readers of the report.")] = "",
    token_file: Annotated[
        Path | None, option(POLICY, "File with the server's token; else OFP_TOKEN, if set.")
    ] = None,
    noise_seed: Annotated[int, option(POLICY, "Seed of the policy's sampling noise.")] = 0,
    suite: Suite = "robotwin",
    config: Config = None,
    robotwin_root: Root = None,
    action: Action = None,
    cpu_check: CpuCheck = False,
    option: SuiteOption = None,
    sim_python: SimPython = None,
    tasks: Tasks = "all",
    episodes: Episodes = 100,
    seed: Seed = 0,
    split: Splits = Split.official,
    manifest: Annotated[
        Path | None,
        option(EPISODES, "Frozen list of episodes; built by the expert's checks if not given."),
    ] = None,
    shard: Annotated[
        str, option(EPISODES, "I/N: run every N-th episode from the I-th on, 0 <= I < N.")
    ] = "0/1",
    video: Annotated[int, option(EPISODES, "Episodes of each task to film.", min=0)] = 0,
    stop_against: Annotated[
        str | None,
        option(STOP, "Stop early once this is decided: a success rate, or the folder of a run to compare."),
    ] = None,
    stop_alpha: Annotated[float, option(STOP, "Error rate of the early stop.")] = 0.05,
    workers: Workers = 1,
    episodes_per_worker: PerWorker = None,
    resume: Annotated[bool, option(FAILURES, "Go on where a run was stopped or killed.", "--resume")] = False,
    retries: Retries = 3,
    keep_going: KeepGoing = False,
    server_wait: ServerWait = 600.0,
    start_timeout: StartTimeout = 600.0,
    reset_timeout: ResetTimeout = 900.0,
    step_timeout: StepTimeout = 120.0,
    inference_timeout: InferenceTimeout = 120.0,
    engine: EngineOption = Engine.local,
    ray_address: RayAddress = None,
    ray_gpus: RayGpus = 0.0,
    quiet: Quiet = False,
) -> None:
    """Evaluate a policy; every result is on disk as soon as its episode ends.

    A RUN.yaml holds options by name, such as `policy: outputs/one_step`; KEY=VALUE changes it, options win.
    What follows -- goes to `ofp-vla serve`, if the policy is a checkpoint: `-- --steps 4 --warm`.
    """
    from robotwin_eval.runner.runner import run as run_settings
    from robotwin_eval.runner.server_process import ServerSpec
    from robotwin_eval.runner.worker_process import Timeouts
    from robotwin_eval.runs.outcome import outcome_words, require_played
    from robotwin_eval.runs.rates import detectable_differences, detectable_words

    remote, served = policy.startswith(("ws://", "wss://")), ctx.meta[SERVE]
    if "://" in policy and not remote:
        raise ValueError(f"--policy {policy!r}: a server's address begins with ws:// or wss://")
    if remote and served:
        raise ValueError(
            f"-- {shlex.join(served)} belongs to a checkpoint; the server at {policy} has its own settings"
        )
    settings = settings_of(
        suite=suite,
        tasks=tasks,
        config=config,
        robotwin_root=robotwin_root,
        action=action,
        cpu_check=cpu_check,
        option=option,
        sim_python=sim_python,
        timeouts=Timeouts(start_timeout, reset_timeout, step_timeout, inference_timeout),
        policy_url=policy if remote else "",
        server=None if remote else ServerSpec(policy, served),
        policy=name,
        label=label,
        split=split.value,
        episodes=episodes,
        seed=seed,
        noise_seed=noise_seed,
        execute=execute,
        delay=delay,
        workers=workers,
        retries=retries,
        keep_going=keep_going,
        server_wait=server_wait,
        videos=video,
        shard=shard_of(shard),
        token=token_of(token_file),
        cameras=pairs("--camera", camera),
        episodes_per_worker=episodes_per_worker,
        engine=engine.value,
        ray_address=ray_address,
        ray_gpus=ray_gpus,
        early_stop=_early_stop(stop_against, stop_alpha),
        command=shlex.join([Path(sys.argv[0]).name, str(ctx.info_name), *ctx.meta["words"]]),
    )
    done = run_settings(settings, output, resume=resume, manifest=manifest, progress=not quiet)
    require_played([done])
    typer.echo(f"{output}: {outcome_words(done)}")
    counted = sum(row.counted for row in done.results)
    if counted and not quiet:
        typer.echo(detectable_words(counted, detectable_differences(counted)))


def _early_stop(against: str | None, alpha: float) -> EarlyStop | None:
    from robotwin_eval.runner.settings import EarlyStop

    if against is None:
        return None
    null = rate(against)
    return EarlyStop(0.5 if null is None else null, alpha, reference=against if null is None else None)


def manifest(
    output: Annotated[Path, typer.Option("--output", "-o", help="File of the new manifest.")],
    suite: Suite = "robotwin",
    tasks: Tasks = "all",
    config: Config = None,
    episodes: Episodes = 100,
    seed: Seed = 0,
    split: Splits = Split.official,
    workers: Workers = 1,
    robotwin_root: Root = None,
    action: Action = None,
    cpu_check: CpuCheck = False,
    option: SuiteOption = None,
    sim_python: SimPython = None,
    retries: Retries = 3,
    start_timeout: StartTimeout = 600.0,
    reset_timeout: ResetTimeout = 900.0,
    episodes_per_worker: PerWorker = None,
    engine: EngineOption = Engine.local,
    ray_address: RayAddress = None,
    ray_gpus: RayGpus = 0.0,
    quiet: Quiet = False,
) -> None:
    """Let the expert choose the episodes and freeze them in a file that runs and shards share."""
    from robotwin_eval.runner.runner import build_manifest
    from robotwin_eval.runner.worker_process import Timeouts

    settings = settings_of(
        suite=suite,
        tasks=tasks,
        config=config,
        robotwin_root=robotwin_root,
        action=action,
        cpu_check=cpu_check,
        option=option,
        sim_python=sim_python,
        timeouts=Timeouts(start_timeout, reset_timeout),
        split=split.value,
        episodes=episodes,
        seed=seed,
        workers=workers,
        retries=retries,
        episodes_per_worker=episodes_per_worker,
        engine=engine.value,
        ray_address=ray_address,
        ray_gpus=ray_gpus,
    )
    built = build_manifest(settings, output, progress=not quiet)
    accepted = sum(len(seeds.accepted) for seeds in built.tasks.values())
    skipped = sum(len(seeds.skipped) for seeds in built.tasks.values())
    typer.echo(f"{output}: {accepted} episodes of {len(built.tasks)} tasks, {skipped} seeds skipped")
    typer.echo(f"hash: {built.hash}")
