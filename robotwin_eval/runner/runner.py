"""Runs an evaluation: seed manifest, episodes on worker processes, results in `RUN/run.sqlite`.

Which episodes count and how each goes depends on the settings alone: not on the number of workers, on which
of them crash, or on how often the run was killed and resumed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from robotwin_eval.host import host, versions
from robotwin_eval.policy.client import RemotePolicy
from robotwin_eval.policy.protocol import DELAY, NoiseKey
from robotwin_eval.runner.building import build, read_incidents
from robotwin_eval.runner.episodes import run_pending
from robotwin_eval.runner.planning import Plan, episodes_of, shard_of
from robotwin_eval.runner.pool import WorkerPool, describe, open_pool
from robotwin_eval.runner.preflight import (
    check_chunk,
    check_server,
    chosen_tasks,
    longest_sentences,
    masked_cameras,
    reference_outcomes,
    with_own_execute,
)
from robotwin_eval.runner.progress import Board
from robotwin_eval.runner.server_process import policy_server
from robotwin_eval.runner.settings import RunSettings
from robotwin_eval.runs.loading import Run, load_run
from robotwin_eval.runs.locking import WriterLock
from robotwin_eval.runs.manifest import MANIFEST, Manifest, ManifestError
from robotwin_eval.runs.run_info import (
    RunInfo,
    Session,
    acts_by,
    differences,
    fixed_at_start,
    session_of,
)
from robotwin_eval.runs.store import RunError, RunStore, now, run_file
from robotwin_eval.runs.videos import VIDEOS, encode_raw, remove_empty
from robotwin_eval.sim.seeds import evaluation_start

CHECKS = "checks.jsonl"
INCIDENTS = "incidents.jsonl"
LOCK = "runner.lock"
SERVER_LOG = "server.log"


def run(
    settings: RunSettings,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    manifest: Manifest | str | os.PathLike[str] | None = None,
    preflight: bool = True,
    console: Console | None = None,
    progress: bool = True,
) -> Run:
    """Runs an evaluation, or what is left of it.

    Args:
        settings: what to run.
        folder: the run's folder; must be new unless `resume`.
        resume: continue a run that was stopped or killed; starts anew if there is none.
        manifest: a manifest or its file; by default one is built, and kept in the folder.
        preflight: ask for chunks first, and again with the longest sentence once the episodes are known, and
            refuse a policy that cannot answer. False lets such a policy fail its episodes instead, as in a
            comparison that must go on with the others.
        console: where progress is shown; stderr by default.
        progress: show it.

    Returns:
        The run with all of its results.

    Raises:
        RunStopped: the infrastructure failed too often; resume when it works again.
        RunError: the folder, the server or the simulator do not fit the settings.
        ManifestError: the manifest does not fit them.
        OSError: the policy server cannot be reached.
    """
    folder, console = Path(folder), console or Console(stderr=True)
    if bool(settings.policy_url) == (settings.server is not None):
        raise RunError("policy: give a server's address (ws://host:port), or a checkpoint to serve")
    if manifest is not None and not isinstance(manifest, Manifest):
        manifest = Manifest.load(manifest)
    with _claimed(folder, resume), _served(settings, folder) as settings:
        metadata = _metadata(settings)
        settings = with_own_execute(settings, metadata)
        with open_pool(settings) as pool:
            simulator = describe(pool, settings.retries)
            check_server(settings, metadata, simulator)
            setup = _Setup(settings, folder, pool, simulator, console, progress)
            setup.introduce(metadata)
            reference = reference_outcomes(settings, setup.tasks, setup.split, simulator["provenance"])
            known = setup.known(manifest)
            if preflight:
                setup.preflight(known)
            frozen = setup.manifest(known)
            if preflight and known is None:
                setup.preflight(frozen)
            info = setup.info(metadata, frozen)
            with _store(folder, info, setup.session(info)) as store:
                store.fill((), read_incidents(folder / INCIDENTS))
                (folder / INCIDENTS).unlink(missing_ok=True)
                run_pending(settings, store, frozen, pool, folder / VIDEOS, setup.board, reference)
        encode_raw(folder / VIDEOS, lambda text: console.print(text, markup=False, highlight=False))
        remove_empty(folder / VIDEOS)
    return load_run(folder)


def build_manifest(
    settings: RunSettings,
    path: str | os.PathLike[str],
    *,
    console: Console | None = None,
    progress: bool = True,
) -> Manifest:
    """Builds the manifest of a run without a policy; continues one that was killed.

    Args:
        settings: as for `run`.
        path: file of the manifest. While it is being built, the checks are kept beside it; what went wrong
            with the infrastructure stays there, in a file that ends in `.incidents.jsonl`.
        console: where progress is shown; stderr by default.
        progress: show it.

    Raises:
        RunStopped: the infrastructure failed too often; call again when it works again.
        RunError: the file exists, or the settings do not fit the simulator.
    """
    path, console = Path(path), console or Console(stderr=True)
    if path.exists():
        raise RunError(f"{path}: this manifest exists, and a manifest is never changed: choose another name")
    journal = path.with_name(f"{path.name}.checks.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f"{path.name}.lock")), open_pool(settings) as pool:
        setup = _Setup(settings, path.parent, pool, describe(pool, settings.retries), console, progress)
        manifest = setup.build(journal, path.with_name(f"{path.name}.{INCIDENTS}"))
        manifest.save(path)
    journal.unlink()
    return manifest


@dataclass
class _Setup:
    """What the parts of a run share once the simulator is known."""

    settings: RunSettings
    folder: Path
    pool: WorkerPool
    simulator: dict[str, Any]
    console: Console
    progress: bool

    def __post_init__(self) -> None:
        self.tasks = chosen_tasks(self.settings, self.simulator)
        split = self.settings.split
        self.split = self.simulator["official_split"] if split == "official" else split

    def introduce(self, metadata: dict[str, Any]) -> None:
        """Says which policy is run, and how it acts."""
        acts = acts_by(metadata)
        if self.progress:
            name = self.name_of(metadata).removesuffix(f": {acts}")
            known = [f"policy {name}", acts and f"acts by {acts}", fingerprint(metadata)]
            if self.settings.execute is not None:
                known.append(f"{self.settings.execute} of {metadata['horizon']} actions carried out")
            if self.settings.delay is not None:
                known.append(f"chunks {self.settings.delay} control steps late")
            lines = [", ".join(part for part in known if part)]
            if masked := masked_cameras(self.settings, metadata, self.simulator):
                lines.append(
                    f"note: the policy acts without its cameras {masked}, which the simulator does not have"
                )
            if self.settings.delay is not None and DELAY not in metadata.get("understands", ()):
                lines.append(
                    "note: the server takes no word of the delay: its chunks do not continue the running ones"
                )
            if remark := metadata["policy"].get("remark"):
                lines.append(f"note: {remark}")
            self.console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)

    def name_of(self, metadata: dict[str, Any]) -> str:
        """What results are filed under."""
        return self.settings.policy or str(metadata["policy"]["name"])

    def board(self, what: str, wanted: dict[str, int]) -> Board:
        return Board(self.console, what, wanted, shown=self.progress)

    def known(self, given: Manifest | None) -> Manifest | None:
        """The folder's manifest, or the given one; None if there is none yet."""
        own = self.folder / MANIFEST
        if own.exists():
            kept = Manifest.load(own)
            if given is not None and given.hash != kept.hash:
                raise ManifestError(
                    f"manifest, field 'hash': the run was begun with {kept.hash!r}, the given one has "
                    f"{given.hash!r}: resume without --manifest, or choose another folder"
                )
            given = kept
        if given is not None:
            self.check(given)
        return given

    def check(self, manifest: Manifest) -> None:
        """Makes sure that a manifest is one of this run.

        Raises:
            ManifestError: one of its fields differs.
        """
        settings = self.settings
        manifest.check(
            self.simulator["provenance"],
            settings.simulator.suite,
            settings.config,
            self.split,
            self.tasks,
            settings.episodes,
            settings.seed,
        )

    def manifest(self, known: Manifest | None) -> Manifest:
        """The known manifest or a new one; in the folder when this returns."""
        if known is None:
            known = self.build(self.folder / CHECKS, self.folder / INCIDENTS)
            self.check(known)
        if not (self.folder / MANIFEST).exists():
            known.save(self.folder / MANIFEST)
        return known

    def preflight(self, manifest: Manifest | None) -> None:
        """Asks the policy with the run's longest sentences, or with a task's name while there are none."""
        settings = self.settings
        key = NoiseKey(settings.noise_seed, self.tasks[0], evaluation_start(settings.seed), 0)
        sentences = [self.tasks[0].replace("_", " ")]
        if manifest is not None:
            episodes = shard_of(episodes_of(manifest, self.tasks, settings.episodes), settings.shard)
            sentences = longest_sentences([episode.instruction for _, episode in episodes])
        with _connected(settings) as policy:
            for sentence in sentences:
                check_chunk(policy, sentence, key)

    def build(self, journal: Path, incidents: Path) -> Manifest:
        settings = self.settings
        plan = Plan(
            settings.simulator.suite,
            settings.config,
            self.split,
            settings.seed,
            self.simulator["provenance"],
            self.tasks,
            settings.episodes,
        )

        with self.board("seeds", dict.fromkeys(self.tasks, settings.episodes)) as board:
            return build(self.pool, plan, journal, incidents, retries=settings.retries, board=board)

    def info(self, metadata: dict[str, Any], manifest: Manifest) -> RunInfo:
        settings = self.settings
        name = self.name_of(metadata)
        stop = settings.early_stop
        harness = {
            "camera_map": dict(settings.cameras),
            "early_stop": None if stop is None else dataclasses.asdict(stop),
        }
        return RunInfo(
            policy=name,
            label=settings.label or name,
            suite=settings.simulator.suite,
            config=settings.config,
            split=self.split,
            tasks=self.tasks,
            episodes=settings.episodes,
            run_seed=settings.noise_seed,
            execute=settings.execute,
            checkpoint=fingerprint(metadata),
            simulator=self.simulator["provenance"],
            server={**metadata, "harness": harness},
            manifest=manifest.hash,
            command=settings.command,
            created=now(),
            versions={**versions(), **self.simulator["versions"]},
            host=host(),
            shard=settings.shard,
            delay=settings.delay,
        )

    def session(self, info: RunInfo) -> Session:
        """This start of the run, with the machine of the worker that described the simulator."""
        return dataclasses.replace(session_of(info), worker=dict(self.simulator["host"]))


def fingerprint(metadata: dict[str, Any]) -> str:
    """The hash of weights and settings that a server gives for its policy."""
    return str(metadata["policy"].get("fingerprint", ""))


def _metadata(settings: RunSettings) -> dict[str, Any]:
    with _connected(settings) as policy:
        return dict(policy.metadata)


def _connected(settings: RunSettings) -> RemotePolicy:
    return RemotePolicy(settings.policy_url, token=settings.token, timeout=settings.timeouts.inference)


@contextmanager
def _served(settings: RunSettings, folder: Path) -> Iterator[RunSettings]:
    """The settings with the address of a running server, started here if none was given."""
    if settings.server is None:
        yield settings
        return
    with policy_server(settings.server, folder / SERVER_LOG) as (url, token):
        # Nobody else restarts this server, so it is not waited for.
        yield dataclasses.replace(settings, policy_url=url, token=token, server=None, server_wait=0.0)


@contextmanager
def _claimed(folder: Path, resume: bool) -> Iterator[None]:
    """Makes the folder and keeps other runners out of it."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, a run needs a folder")
    # What a start that failed at once leaves behind is not a run yet.
    ignored = {LOCK, SERVER_LOG}
    if not resume and folder.exists() and any(path.name not in ignored for path in folder.iterdir()):
        raise RunError(f"{folder}: exists and is not empty: use --resume to go on, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / LOCK):
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        lock = WriterLock(path)
    except OSError as error:
        raise RunError(f"{path.parent}: {error}") from error
    try:
        yield
    finally:
        lock.release()


def _store(folder: Path, info: RunInfo, session: Session) -> RunStore:
    if not run_file(folder).exists():
        return RunStore.create(folder, info, [session])
    store = RunStore.open(folder)
    try:
        check_resumed(store.info, info)
        store.add_session(session)
    except BaseException:
        store.close()
        raise
    return store


def check_resumed(recorded: RunInfo, present: RunInfo) -> None:
    """Makes sure that a run continues as it began.

    Raises:
        RunError: something that results depend on differs; names both values.
    """
    for name, old, new in differences(fixed_at_start(recorded), fixed_at_start(present)):
        raise RunError(
            f"{name}: the run was begun with {old!r}, now it is {new!r}: "
            f"resume with the same, or choose another folder"
        )
