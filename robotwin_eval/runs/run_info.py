"""A run's record besides its results: its description, its sessions, its incidents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What may differ from session to session and from part to part: where, how and when each was run.
OWN = ("command", "created", "host", "versions", "label")
# The server's metadata on which an episode depends; names, paths and versions may change between sessions.
SERVER_FIELDS = ("cameras", "horizon", "action_dim", "state_dim", "batch_invariant", "harness")
POLICY_FIELDS = ("name", "fingerprint", "type", "sampler", "steps", "warm")
# The server's metadata that may change from session to session.
SERVER_OWN = ("version", "device", "gpu", "versions")
# Kept among the incidents, but not a failure of the infrastructure.
CLIPPED = "clipped"


@dataclass(frozen=True)
class RunInfo:
    """What a run evaluates and with what.

    Attributes:
        policy: name that results are filed under.
        label: what a reader sees.
        suite: simulator suite.
        config: its configuration.
        split: "seen" or "unseen" instructions.
        tasks: tasks, in the order of the report.
        episodes: counted episodes wanted of each task, over all shards.
        run_seed: seed of the sampling noise.
        execute: actions carried out of each chunk, None for the whole chunk.
        checkpoint: fingerprint from the server's metadata.
        simulator: `Simulator.provenance()`.
        server: the server's metadata.
        manifest: hash of the seed manifest.
        command: command line of the run.
        created: when it was started, ISO 8601.
        versions: versions on the harness side, by name.
        host: machine: GPU, CPU, system, by name.
        shard: (i, n), the part of the whole run that this one is.
        delay: control steps that each chunk came late; None if the world waited for it.
    """

    policy: str
    label: str
    suite: str
    config: str
    split: str
    tasks: tuple[str, ...]
    episodes: int
    run_seed: int
    execute: int | None
    checkpoint: str
    simulator: Mapping[str, str]
    server: Mapping[str, Any]
    manifest: str
    command: str
    created: str
    versions: Mapping[str, str]
    host: Mapping[str, str]
    shard: tuple[int, int] = (0, 1)
    delay: int | None = None

    @property
    def acts(self) -> str:
        """How the policy drew its chunks, see `acts_by`."""
        return acts_by(self.server)


def acts_by(metadata: Mapping[str, Any]) -> str:
    """Sampler, evaluations, start and draws as in a server's metadata: "host@10 cold"; "" for none."""
    policy = metadata.get("policy", {})
    if not policy.get("sampler") or not policy.get("steps"):
        return ""
    start = {True: " warm", False: " cold"}.get(policy.get("warm"), "")
    draws = policy.get("draws") or 1
    chosen = f" {policy.get('choose', 'one')} of {draws}" if draws > 1 else ""
    if policy.get("doubt_steps"):
        chosen += f", {policy['doubt_steps']} where they spread beyond {policy['doubt']:g}"
    return f"{policy['sampler']}@{policy['steps']}{start}{chosen}"


@dataclass(frozen=True)
class Session:
    """One start of the runner on a run, the first one or a resumed one: what may differ between them.

    Attributes:
        created: when, ISO 8601.
        command: command line.
        versions: versions on the harness's and the simulator's side; also with each of its results.
        host: the runner's machine.
        worker: the machine of the worker that was started first; empty if it is not known.
        server: checkpoint, version, device, graphics card and versions of the server.
        shard: (i, n), as in `RunInfo`.
    """

    created: str
    command: str
    versions: Mapping[str, str]
    host: Mapping[str, str]
    worker: Mapping[str, str]
    server: Mapping[str, Any]
    shard: tuple[int, int]


def session_of(info: RunInfo) -> Session:
    """Returns the session described by a run's description, which is its first."""
    server = {name: info.server[name] for name in SERVER_OWN if name in info.server}
    if "checkpoint" in (policy := info.server.get("policy", {})):
        server = {"checkpoint": policy["checkpoint"], **server}
    return Session(info.created, info.command, info.versions, info.host, {}, server, info.shard)


@dataclass(frozen=True)
class Incident:
    """A failure of the infrastructure.

    Attributes:
        task: task of the episode that was running.
        seed: its seed.
        kind: what happened, such as "crash", "hang" or "server".
        message: in words.
        attempt: which attempt at the episode it ended, from 1.
        created: when, ISO 8601.
    """

    task: str
    seed: int
    kind: str
    message: str
    attempt: int
    created: str


def as_json(value: Any) -> Any:
    """Returns mappings as dicts and sequences as lists, all the way down, as JSON gives them back."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value


def differences(a: Any, b: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Returns (dotted name, value of a, value of b) of every leaf in which two JSON-like values differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        found = []
        for key in sorted(a.keys() | b.keys(), key=str):
            found += differences(a.get(key), b.get(key), f"{name}.{key}" if name else str(key))
        return found
    return [] if as_json(a) == as_json(b) else [(name, a, b)]


def fixed_at_start(info: RunInfo) -> dict[str, Any]:
    """Returns what must stay the same when a run is resumed or, except the shard, when parts are merged."""
    server = {name: info.server.get(name) for name in SERVER_FIELDS}
    policy = info.server.get("policy", {})
    server["policy"] = {name: policy.get(name) for name in POLICY_FIELDS}
    fields = {f.name: getattr(info, f.name) for f in dataclasses.fields(RunInfo) if f.name not in OWN}
    return {**fields, "server": server}


def part_differences(a: RunInfo, b: RunInfo) -> list[tuple[str, Any, Any]]:
    """Returns what keeps two runs from being parts of one."""
    return [row for row in differences(fixed_at_start(a), fixed_at_start(b)) if row[0] != "shard"]


def info_differences(a: RunInfo, b: RunInfo, ignore: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """Returns what differs between two runs' descriptions, except the fields named in `ignore`."""
    found = []
    for field in dataclasses.fields(RunInfo):
        if field.name not in ignore:
            found += differences(getattr(a, field.name), getattr(b, field.name), field.name)
    return found
