"""RoboTwin's episode seeds: evaluation from 100000 * (1 + run seed), demonstrations from 0."""

from __future__ import annotations

from dataclasses import dataclass

from robotwin_eval.sim.base import Simulator

EVALUATION_BLOCK = 100_000


@dataclass(frozen=True)
class SeedWalk:
    """Outcome of a walk in seed order.

    Attributes:
        accepted: the seeds that the expert solved, ascending.
        skipped: seed -> why the expert did not solve it.
    """

    accepted: tuple[int, ...]
    skipped: dict[int, str]


def evaluation_start(run_seed: int = 0) -> int:
    """First episode seed of an evaluation run, 100000 * (1 + run_seed), as in RoboTwin's eval_policy.py.

    Raises:
        ValueError: negative run seed.
    """
    if run_seed < 0:
        raise ValueError(f"run_seed: expected a number >= 0, got {run_seed}")
    return EVALUATION_BLOCK * (1 + run_seed)


def demonstration_seed(index: int) -> int:
    """The seed of the index-th demonstration: the index, which must stay below the evaluation's seeds.

    Raises:
        ValueError: outside 0..99999.
    """
    if not 0 <= index < EVALUATION_BLOCK:
        raise ValueError(
            f"demonstration seed: expected 0..{EVALUATION_BLOCK - 1}, got {index}; "
            f"seeds from {EVALUATION_BLOCK} on belong to the evaluation"
        )
    return index


def solvable_seeds(sim: Simulator, task: str, count: int, start: int, *, max_failures: int = 100) -> SeedWalk:
    """Walks up from ``start`` until ``count`` seeds are found that the scripted expert solves.

    An expert that raises counts as not solving the seed, as in RoboTwin; a walk that starts among the
    demonstration seeds must also end there.

    Args:
        sim: the simulator; its current episode is lost.
        task: the task's name.
        count: how many seeds to accept.
        start: the first seed to try.
        max_failures: give up after so many seeds in a row without a solution.

    Raises:
        ValueError: unknown task, negative start, or a walk out of the demonstration seeds.
        RuntimeError: ``max_failures`` seeds in a row were not solved.
    """
    sim.step_limit(task)
    if start < 0:
        raise ValueError(f"start: expected a seed >= 0, got {start}")
    accepted: list[int] = []
    skipped: dict[int, str] = {}
    seed, failures = start, 0
    while len(accepted) < count:
        if start < EVALUATION_BLOCK:
            demonstration_seed(seed)
        try:
            demonstration = sim.expert(task, seed)
            reason = "" if demonstration.solved else demonstration.reason
        except Exception as error:  # a simulator may fail in any way on an unstable scene
            reason = f"{type(error).__name__}: {error}"
        if reason:
            skipped[seed] = reason
            failures += 1
            if failures >= max_failures:
                raise RuntimeError(
                    f"{task}: {failures} seeds in a row up to {seed} unsolved, the last one: {reason}"
                )
        else:
            accepted.append(seed)
            failures = 0
        seed += 1
    return SeedWalk(tuple(accepted), skipped)
