"""What one evaluation run is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from robotwin_eval.runner.server_process import ServerSpec
from robotwin_eval.runner.worker_process import Timeouts
from robotwin_eval.runs.sequential import ALTERNATIVES
from robotwin_eval.sim.factory import SimulatorSpec
from robotwin_eval.sim.seeds import evaluation_start

SPLITS = ("official", "seen", "unseen")
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EarlyStop:
    """When a run may end before all of its episodes, by `robotwin_eval.runs.sequential.SequentialTest`.

    Attributes:
        null: success rate that is tested against; 0.5 over the discordant pairs if there is a reference.
        alpha: probability of a false decision.
        alternative: "two-sided", "greater" or "less".
        reference: folder of the run that this one is compared with, episode by episode; None for `null`.

    Raises:
        ValueError: a value is out of range.
    """

    null: float = 0.5
    alpha: float = 0.05
    alternative: str = "two-sided"
    reference: str | None = None

    def __post_init__(self) -> None:
        for name in ("null", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"early stop: {name} is {getattr(self, name)}, expected a number between 0 and 1"
                )
        if self.alternative not in ALTERNATIVES:
            raise ValueError(
                f"early stop: alternative is {self.alternative!r}, expected one of {list(ALTERNATIVES)}"
            )


@dataclass(frozen=True)
class RunSettings:
    """One run: one policy on one suite.

    Attributes:
        simulator: which simulator the workers make.
        policy_url: `ws://` address of the policy server; "" if only a manifest is built.
        server: a server to start for this run instead.
        policy: name that results are filed under; if "", the server's.
        label: what a reader sees; if "", the policy's name.
        tasks: tasks to run; empty for all.
        config: configuration, such as "demo_clean"; "" if the suite has only one.
        split: instructions, "seen", "unseen" or "official", which is what the suite's protocol prescribes.
        episodes: counted episodes of each task, over all shards.
        seed: block of episode seeds, which start at 100000 * (1 + seed).
        noise_seed: the run's part of the key of the sampling noise.
        execute: actions carried out of each chunk; None for as many as the server says, or all.
        delay: control steps from the view of a chunk to its first action, see `EpisodeJob`; None if the world
            waits for each chunk.
        workers: simulator processes.
        retries: how often an episode is tried again after a failure that is not the policy's.
        keep_going: record an episode as not counted if the simulator raises in every attempt, and go on.
        server_wait: seconds to wait for a server that stopped answering in the middle of a run.
        timeouts: of the workers' watchdog.
        videos: episodes of each task that are filmed.
        shard: (i, n): run the episodes whose index leaves the remainder i when divided by n.
        sim_python: the simulator's interpreter; None for this one.
        token: the server's token.
        cameras: the policy's camera -> the simulator's, if their names differ.
        episodes_per_worker: replace a worker's process after this many jobs; None for never.
        engine: "local" or "ray".
        ray_address: Ray cluster; None for one on this machine.
        ray_gpus: graphics cards that a worker takes of the Ray cluster, possibly a fraction of one.
        early_stop: when the run may end early; None for never.
        command: the command line, for the record.

    Raises:
        ValueError: a value is out of range.
    """

    simulator: SimulatorSpec
    policy_url: str = ""
    server: ServerSpec | None = None
    policy: str = ""
    label: str = ""
    tasks: tuple[str, ...] = ()
    config: str = ""
    split: str = "official"
    episodes: int = 100
    seed: int = 0
    noise_seed: int = 0
    execute: int | None = None
    delay: int | None = None
    workers: int = 1
    retries: int = 3
    keep_going: bool = False
    server_wait: float = 600.0
    timeouts: Timeouts = field(default_factory=Timeouts)
    videos: int = 0
    shard: tuple[int, int] = (0, 1)
    sim_python: str | None = None
    token: str | None = field(default=None, repr=False)
    cameras: Mapping[str, str] = field(default_factory=dict)
    episodes_per_worker: int | None = None
    engine: str = "local"
    ray_address: str | None = None
    ray_gpus: float = 0.0
    early_stop: EarlyStop | None = None
    command: str = ""

    def __post_init__(self) -> None:
        evaluation_start(self.seed)
        least_of = {"episodes": 1, "workers": 1, "retries": 0, "videos": 0, "server_wait": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name, known in (("split", SPLITS), ("engine", ENGINES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {list(known)}, got {getattr(self, name)!r}")
        if not self.ray_gpus >= 0:
            raise ValueError(f"ray_gpus: expected a number >= 0, got {self.ray_gpus}")
        index, count = self.shard
        if not 0 <= index < count:
            raise ValueError(f"shard: expected i/n with 0 <= i < n, got {index}/{count}")
        if self.early_stop is not None and count > 1:
            raise ValueError(
                "early stop: decided on all episodes in their order, which a shard does not have"
            )
        if self.early_stop is not None and self.keep_going:
            raise ValueError("early stop: needs every episode in its turn, so that none can be left out")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: {list(self.tasks)} names one twice")
        if self.execute is not None and self.execute < 1:
            raise ValueError(f"execute: expected at least 1, got {self.execute}")
        if self.delay is not None and self.delay < 0:
            raise ValueError(f"delay: expected a number of control steps, 0 or more, got {self.delay}")
