"""Whether the fast path does on a GPU what the tests say of its stand-ins on a CPU: π0.5 with random weights.

    python benchmarks/gpu_check.py [levers] [acting] [failures] [training] [--size full] [--seconds 75]

A line of JSON for each finding; the last one has the checks that failed, and the exit code is their number.
Nothing but PyTorch, LeRobot and this package is needed.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ofp_vla.bench.random_weights import random_config, random_policy
from ofp_vla.bench.subjects import RANK, batch_of, stock_forward
from ofp_vla.counting import count
from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.recording import captures as recording
from ofp_vla.policies.sampling import Sampling

WAYS = {
    "one step": Sampling("interval", 1, False),
    "eight draws": Sampling("interval", 1, False, 8),
    "ten steps": Sampling("interval", 10, False),
    "one step, warm": Sampling("interval", 1, True),
}
ACTING = [("one step", 1), ("eight draws", 1), ("ten steps", 1), ("one step, warm", 1), ("one step", 8)]
# Training with and without recordings: the same functions, then with all that is rounded otherwise.
RUNS = {
    "-graphs,-compile,-packed,-buckets": 4,
    "-compile,-packed,-buckets": 4,
    "-graphs,-compile": 4,
    "-compile": 7,
    "on": 6,
}
# Gradients of a run in bfloat16 against those of the same functions unrecorded.
SAME, ROUNDED = 1e-2, 0.3


class Checks:
    """Findings, printed as they come, within a time.

    Attributes:
        failed: names of the checks that failed.
    """

    def __init__(self, seconds: float, device: torch.device) -> None:
        self._ends = time.perf_counter() + seconds
        self.device = device
        self.failed: list[str] = []

    def left(self) -> float:
        """Seconds left."""
        return self._ends - time.perf_counter()

    def say(self, name: str, *, holds: bool | None = None, **facts: Any) -> None:
        """Prints a finding; one that does not hold is kept."""
        if holds is False:
            self.failed.append(name)
        found = {"check": name} | ({} if holds is None else {"holds": holds}) | facts
        print(json.dumps(found, default=str), flush=True)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part whose error does not end the others."""
        try:
            yield
        except Exception as error:
            logging.exception("%s", name)
            self.say(name, holds=False, error=f"{type(error).__name__}: {error}"[:300])

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What work gives, and its milliseconds until the device has done it."""
        self._wait()
        began = time.perf_counter()
        out = work()
        self._wait()
        return out, (time.perf_counter() - began) * 1e3

    def quantiles(self, work: Callable[[], Any], times: int) -> list[float]:
        """Median and longest time of several calls, milliseconds."""
        took = sorted(self.timed(work)[1] for _ in range(times))
        return [round(statistics.median(took), 2), round(took[-1], 2)]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def made(options: argparse.Namespace) -> Any:
    """A policy whose interval head is not zero."""
    torch.manual_seed(0)
    config = random_config(options.size, options.dtype, options.device)
    policy = random_policy(config, torch.device(options.device))
    with torch.no_grad():
        policy.model.interval_head.output.weight.normal_(0, 0.02)
    return policy


def noise(policy: Any, rows: int, way: Sampling, seed: int = 0) -> Tensor:
    """Starts of chunks, the same on every device."""
    config = policy.config
    shape = (rows, *([way.draws] if way.draws > 1 else []), config.chunk_size, config.max_action_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(config.device)


@contextmanager
def engine(policy: Any, text: str) -> Iterator[None]:
    """Other levers inside."""
    before, policy.host.levers = policy.host.levers, Levers.of(text)
    try:
        yield
    finally:
        policy.host.levers = before


def chunks(policy: Any, name: str, rows: int) -> Callable[[str], Tensor]:
    """Draws a chunk by the levers of a word."""
    way, batch = WAYS[name], batch_of(policy, rows)
    start = noise(policy, rows, way)
    warm = noise(policy, rows, WAYS["one step"], 5) if way.warm else None

    def draw(text: str = "") -> Tensor:
        with engine(policy, text) if text else nullcontext():
            return policy.draw(batch, noise=start, sampling=way, warm=warm).chunk

    return draw


def acting(checks: Checks, policy: Any) -> None:
    """Recorded chunks against unrecorded ones and those without levers; times; weights that change."""
    for name, rows in ACTING:
        if checks.left() < 5:
            checks.say(f"acting, {name}, batch {rows}", skipped="no time left")
            continue
        with checks.part(f"acting, {name}, batch {rows}"):
            _one_way(checks, policy, name, rows)
    with checks.part("weights that change"):
        _changes(checks, policy)


def _one_way(checks: Checks, policy: Any, name: str, rows: int) -> None:
    draw, captures = chunks(policy, name, rows), policy.host.captures
    before = captures.made
    calls = [round(checks.timed(draw)[1], 1) for _ in range(4)]
    chunk, plain, off = draw(), draw("-graphs"), draw("off")
    cosine = torch.cosine_similarity(chunk.flatten(1).double(), off.flatten(1).double()).min()
    around = count(draw)
    recorded = next(reversed(captures._recordings.values()), None)
    checks.say(
        f"acting, {name}, batch {rows}",
        holds=captures.made == before + 1 and bool(torch.equal(chunk, plain)) and float(cosine) >= 0.995,
        first_calls_ms=calls,
        largest_from_unrecorded=float((chunk - plain).abs().max()),
        cosine_without_levers=float(cosine),
        p50_and_longest_ms=checks.quantiles(draw, 30),
        repetition_alone_ms=checks.quantiles(recorded.repeat, 30) if recorded else None,
        unrecorded_ms=checks.quantiles(lambda: draw("-graphs"), 4),
        calls_around=around.calls,
        waits=around.waits,
        reasons=captures.reasons,
    )


def _changes(checks: Checks, policy: Any) -> None:
    draw, captures = chunks(policy, "one step", 1), policy.host.captures
    before = [draw() for _ in range(4)][-1]
    weight = policy.model.action_out_proj.weight
    for name in ("a weight written in place", "a weight moved"):
        dropped = captures.dropped
        with torch.no_grad():
            if name == "a weight moved":
                weight.data = weight.data * 1.5
            else:
                weight.mul_(1.5)
        found = draw()
        same = bool(torch.equal(found, draw("-graphs")))
        seen = bool((found - before).abs().max() > 1e-3)
        checks.say(name, holds=same and seen, dropped=captures.dropped - dropped)
        before = [draw() for _ in range(4)][-1]


def levers(checks: Checks, policy: Any) -> None:
    """Chunks by each lever's path against float32 without any; the stages' time, captured by hand."""
    ways = ["off", "-packed,-graphs", "-compile,-graphs", "-graphs"]
    ways += ["-graphs,+fp8"] if checks.device.type == "cuda" else []
    compared = ways + [f"-graphs,-{name}" for name in Levers.names() if name not in ("graphs", "compile")]
    draws = {name: chunks(policy, name, 1) for name in ("one step", "eight draws")}
    found = {text: {name: draw(text) for name, draw in draws.items()} for text in ways}
    found |= {text: {"one step": draws["one step"](text)} for text in compared if text not in found}
    if checks.device.type == "cuda":
        for text in ("-compile", "on", "+fp8"):
            with engine(policy, text), checks.part(f"stages, {text}"):
                checks.say(f"stages, {text}", **_stages(checks, policy))
    types = {parameter: parameter.dtype for parameter in policy.parameters()}
    policy.model.float()
    exact = {name: draw("off") for name, draw in draws.items()}
    for parameter, dtype in types.items():
        parameter.data = parameter.data.to(dtype)
    for text, by_name in found.items():
        for name, chunk in by_name.items():
            cosine = float(torch.cosine_similarity(chunk.flatten(1), exact[name].flatten(1)).min())
            error = float((chunk - exact[name]).norm() / exact[name].norm())
            checks.say(f"{text}, {name}, to float32", holds=cosine >= 0.995, cosine=cosine, error=error)


@torch.no_grad()
def _stages(checks: Checks, policy: Any) -> dict[str, Any]:
    """Milliseconds of the prefix, and of the expert for one chunk and for eight, each recorded by itself."""
    host = policy.host
    seen = host.fitted(policy._observation(batch_of(policy, 1)))
    prefix, (times,) = host.encode(seen), host.prepared([(0.0, 1.0)])
    stages: dict[str, Callable[[], Any]] = {"prefix": lambda: host.encode(seen)}
    for name in ("one step", "eight draws"):
        z = noise(policy, 1, WAYS[name]).view(1, -1, policy.config.chunk_size, policy.config.max_action_dim)
        stages[f"expert, {name}"] = lambda z=z: host.expert(prefix, z, times, None)
    took = {}
    for name, stage in stages.items():
        recorder = recording.RECORDERS["cuda"](checks.device)
        with recorder.aside():
            for _ in range(3):
                stage()
        repeat, kept = recorder.record(stage)
        took[name] = checks.quantiles(repeat, 30)
        del kept
    return took


def failures(checks: Checks, policy: Any) -> None:
    """What cannot be recorded, fails while it is, or finds no memory; and that all works afterwards."""
    captures, x = policy.host.captures, torch.ones(4, 4, device=checks.device)

    @torch.no_grad()
    def run(name: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        return [captures.run(name, name, function, x) for _ in range(3)][-1]

    def waits(x: Tensor) -> Tensor:
        return x * float(x.sum())

    def too_much(x: Tensor) -> Tensor:
        return x + torch.empty(2**44, device=x.device, dtype=torch.uint8)[:4].float().sum()

    run("a wait", waits)
    rehearse, recording.rehearse = recording.rehearse, lambda work: None
    try:
        right = bool(torch.equal(run("a capture that fails", waits), x * 16))
        checks.say("a capture that fails", holds=right, reason=captures.reasons.get("a capture that fails"))
    finally:
        recording.rehearse = rehearse
    before, recording.CALLS_BEFORE = recording.CALLS_BEFORE, 0
    try:
        run("too much memory", too_much)
        checks.say("too much memory", holds=False)
    except RuntimeError as error:  # the work itself finds none either
        refused = "no memory is left" in captures.reasons.get("too much memory", "")
        checks.say("too much memory", holds=refused or checks.device.type == "cpu", error=str(error)[:80])
    finally:
        recording.CALLS_BEFORE = before
    drawn = torch.randn(5, device=checks.device)
    right = bool(torch.equal(run("after failures", lambda x: x @ x), x @ x))
    checks.say(
        "after failures", holds=right and captures.kept[-1:] == ["after failures"], drawn=float(drawn.sum())
    )
    draw = chunks(policy, "one step", 1)
    checks.say("acting after failures", ms=[round(checks.timed(draw)[1], 1) for _ in range(5)])


def training(checks: Checks, policy: Any, rows: int) -> None:
    """Steps of OFP by several sets of levers from one start: losses, gradients, times, memory."""
    policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": RANK})
    policy.train()
    policy.get_optim_params()
    start = {name: p.detach().clone() for name, p in policy.named_parameters() if p.dtype == torch.float32}
    batches = [batch_of(policy, rows, seed) for seed in (0, 1)]
    gradients: dict[str, list[Tensor]] = {}
    first: list[Tensor] = []
    for text, steps in RUNS.items():
        if checks.left() < (25 if text == "on" else 6):
            checks.say(f"training, {text}", skipped="no time left")
            continue
        facts, gradients[text] = _steps(checks, policy, start, batches, text, steps)
        first = first or gradients[text]
        apart = [float((a - b).norm() / b.norm()) for a, b in zip(gradients[text], first, strict=False)]
        exact = text == "-compile,-packed,-buckets"
        checks.say(
            f"training, {text}, batch {rows}",
            holds=max(apart) <= (SAME if exact else ROUNDED),
            gradients_apart=apart,
            uncompiled=policy.host.regions.reason,
            reasons=policy.host.captures.reasons,
            made=policy.host.captures.made,
            **facts,
        )
    if checks.left() > 5:
        checks.say("LeRobot's own step", ms=_stock(checks, policy, batches[0]))


def _autocast(policy: Any) -> torch.autocast:
    device = torch.device(policy.config.device)
    return torch.autocast(device.type, torch.bfloat16, enabled=policy.config.dtype == "bfloat16")


def _steps(
    checks: Checks, policy: Any, start: dict[str, Tensor], batches: list[Any], text: str, steps: int
) -> tuple[dict[str, Any], list[Tensor]]:
    """Facts of some steps, and a part of the gradients of each."""
    with torch.no_grad():
        for name, tensor in policy.named_parameters():
            if name in start:
                tensor.copy_(start[name])
    policy.config.trained_steps = 0
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    torch.manual_seed(1)
    cuda = checks.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    losses, gradients, took = [], [], []

    def step(batch: Any) -> float:
        with _autocast(policy):
            loss, _ = policy.forward(batch)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten()[:500] for p in trained if p.grad is not None]).float())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        policy.update()
        return float(loss.detach())

    with engine(policy, text):
        for number in range(steps):
            batch = batches[number % len(batches)]
            loss, ms = checks.timed(lambda batch=batch: step(batch))
            losses.append(loss)
            took.append(round(ms, 1))
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None
    return {"losses": losses, "ms": took, "peak_gb": peak}, gradients


def _stock(checks: Checks, policy: Any, batch: Any) -> list[float]:
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer, forward = torch.optim.AdamW(trained, lr=1e-4), stock_forward(policy)

    def step() -> None:
        with _autocast(policy):
            loss, _ = forward(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    return checks.quantiles(step, 3)


def main() -> int:
    """Runs the parts; the number of checks that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["levers", "acting", "failures", "training"])
    parser.add_argument("--size", default="full", choices=("tiny", "small", "full"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--batch", type=int, default=8, help="samples of a training step")
    parser.add_argument("--seconds", type=float, default=75)
    options = parser.parse_args()
    checks = Checks(options.seconds, torch.device(options.device))
    policy = made(options)
    checks.say("policy", left=round(checks.left(), 1), parameters=sum(p.numel() for p in policy.parameters()))
    for name in ("levers", "acting", "failures"):
        if name in options.parts:
            with checks.part(name):
                globals()[name](checks, policy)
    if "training" in options.parts:
        with checks.part("training"):
            training(checks, policy, options.batch)
    print(json.dumps({"failed": checks.failed, "left": round(checks.left(), 1)}))
    return len(checks.failed)


if __name__ == "__main__":
    raise SystemExit(main())
