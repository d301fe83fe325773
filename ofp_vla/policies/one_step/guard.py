"""Guards inputs and outputs: no NaN, no cut prompt, nothing beyond the limits passes silently."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from lerobot.configs.types import NormalizationMode
from torch import Tensor

from ofp_vla.errors import DataError, NonFiniteActionError
from ofp_vla.normalization.lines import normalization_line
from ofp_vla.policies.configuration import OneStepConfig
from ofp_vla.policies.facts import Facts

logger = logging.getLogger(__name__)

# Normalised state or action beyond which a batch is refused; data that fit their statistics stay below 100.
LARGEST = 1e4
# Normalised state beyond which acting warns: data that fit their statistics rarely go there.
UNLIKELY_STATE = 10.0


class Looked(NamedTuple):
    """What the guard has found in actions (B, H, A), still on their device."""

    bad: Tensor  # (B,) bool, rows that are not finite
    changed: Tensor | None  # values beyond the limits in each limited dimension
    numbers: Tensor  # whether a row is bad and, if there are limits, the sum of `changed`


class ActionGuard:
    """Limits of normalised actions; counts what it had to clip, and warns of states unlike the data's.

    Args:
        low: (A,) lowest allowed, or None for no lower limit.
        high: (A,) highest allowed, or None.
        margin: share of (high - low) by which an action may exceed the limits.
    """

    def __init__(self, low: list[float] | None, high: list[float] | None, margin: float) -> None:
        self.limits: tuple[Tensor, Tensor] | None = None
        self._placed: dict[Hashable, tuple[object, Tensor, Tensor]] = {}
        self.clipped = 0
        self._told = False
        self._told_of_state = False
        if low is not None and high is not None:
            lowest, highest = torch.tensor(low), torch.tensor(high)
            slack = margin * (highest - lowest).clamp(min=1e-3)
            self.limits = (lowest - slack, highest + slack)

    @classmethod
    def of(cls, guard: ActionGuard | Callable[[Tensor], Tensor]) -> ActionGuard:
        """A guard as it is, or one that does to actions what a function does and refuses nothing."""
        return guard if isinstance(guard, ActionGuard) else _Function(guard)

    @property
    def key(self) -> int:
        """Another number for other limits, as long as those it was asked of live."""
        return id(self.limits)

    def __call__(self, actions: Tensor) -> Tensor:
        """Checks and clips (B, H, A) normalised actions; waits for them once.

        Raises:
            NonFiniteActionError: some row holds NaN or infinity.
        """
        inside, looked = self.look(actions)
        self.judge(looked)
        return inside

    def look(self, actions: Tensor) -> tuple[Tensor, Looked]:
        """(B, H, A) actions within the limits, and what `judge` reads; waits for nothing."""
        bad = ~torch.isfinite(actions).flatten(1).all(dim=1)
        if self.limits is None:
            return actions, Looked(bad, None, bad.any()[None])
        low, high = self._limits_beside(actions, self.limits)
        size = low.shape[0]
        inside = actions[..., :size].clamp(low, high)
        changed = (inside != actions[..., :size]).flatten(0, -2).sum(dim=0)
        numbers = torch.stack([bad.any().long(), changed.sum()])
        return torch.cat([inside, actions[..., size:]], dim=-1), Looked(bad, changed, numbers)

    def judge(self, looked: Looked) -> None:
        """Reads what `look` has found, the one wait for a chunk, and counts it.

        Raises:
            NonFiniteActionError: some row holds NaN or infinity.
        """
        any_bad, *count = looked.numbers.tolist()
        self._refuse(looked.bad, bool(any_bad))
        if looked.changed is not None and count[0]:
            self._count(looked.changed, count[0])

    def _limits_beside(self, actions: Tensor, limits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The limits on the actions' device, kept there: a copy from the host would wait for the device."""
        place = id(limits), actions.device, actions.dtype
        if place not in self._placed:
            low, high = (limit.to(actions) for limit in limits)
            # All of them are kept: a recording may read them. The limits are, so that their id stays theirs.
            self._placed[place] = limits, low, high
        _, low, high = self._placed[place]
        return low, high

    @staticmethod
    def _refuse(bad: Tensor, any_bad: bool) -> None:
        if any_bad:
            rows = bad.nonzero().flatten().tolist()
            raise NonFiniteActionError(
                f"the policy computed NaN or infinite actions for batch rows {rows}; nothing was returned. "
                f"Check the checkpoint and the observation statistics of these rows"
            )

    def _count(self, changed: Tensor, count: int) -> None:
        if not self._told:
            dimensions = changed.nonzero().flatten().tolist()
            logger.warning(
                "%d predicted action values beyond the limits were clipped (dimensions %s); later "
                "ones are counted without a message",
                count,
                dimensions,
            )
        self._told = True
        self.clipped += count

    def watch_state(self, state: Tensor, facts: Facts) -> None:
        """Warns, once, of a normalised state (B, S) far beyond the training data; it is used as it is."""
        if self._told_of_state or not state.numel():
            return
        largest = state.detach().abs().reshape(-1, state.shape[-1]).amax(dim=0).max(dim=0)
        facts.ask(torch.stack([largest.values, largest.indices.to(largest.values)]), self._tell_of_state)

    def _tell_of_state(self, largest: list[float]) -> None:
        value, dimension = largest
        if not UNLIKELY_STATE < value < float("inf"):  # NaN and infinity are refused elsewhere
            return
        self._told_of_state = True
        logger.warning(
            "The state reaches %.3g once normalised (dimension %d), where training data are about 1: its "
            "units or the order of its values may differ from the training data's. Actions may be wrong; "
            "later such states are not told of",
            value,
            int(dimension),
        )

    def tell_again(self) -> None:
        """Makes the next clipped value and unlikely state be reported again, for a new listener."""
        self._told = self._told_of_state = False


class _Function(ActionGuard):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(None, None, 0.0)
        self._function = function

    @property
    def key(self) -> int:
        return id(self._function)

    def look(self, actions: Tensor) -> tuple[Tensor, Looked]:
        nothing = torch.zeros(len(actions), dtype=torch.bool, device=actions.device)
        return self._function(actions), Looked(nothing, None, nothing[:1])

    def judge(self, looked: Looked) -> None:
        return


def check_action_size(size: int, config: OneStepConfig) -> None:
    """Compares the robot's number of action dimensions with what the checkpoint was made for.

    Raises:
        DataError: more dimensions than the network has, or other limits, with both sizes.
    """
    if size > config.max_action_dim:
        raise DataError(
            f"the environment or dataset has {size} action dimensions, the policy at most "
            f"max_action_dim={config.max_action_dim}"
        )
    for name in ("action_low", "action_high"):
        limits = getattr(config, name)
        if limits is not None and len(limits) != size:
            raise DataError(
                f"the environment or dataset has {size} action dimensions, the checkpoint was trained with "
                f"{len(limits)} (policy.{name}); use one with {len(limits)}, or train on the new robot's data"
            )


def limits_from_stats(
    action: Mapping[str, Any], mode: NormalizationMode | str, measured: Mapping[str, Any] | None = None
) -> tuple[list[float], list[float]] | None:
    """The smallest and largest action of the data in normalised units, or None without statistics.

    Args:
        action: statistics by name of the actions that the policy normalises.
        mode: how it normalises them.
        measured: "min" and "max" of these actions in the data; those of `action` if None.
    """
    line = normalization_line(action, mode)
    ends = action if measured is None else measured
    if line is None or not {"min", "max"} <= ends.keys():
        return None
    slope, offset = line
    low, high = (slope * torch.as_tensor(ends[k]).float().flatten() + offset for k in ("min", "max"))
    return low.tolist(), high.tolist()


def refuse_full_prompts(mask: Tensor, longest: int, limit: int) -> None:
    """Raises DataError if a prompt, mask (B, L), leaves none of `limit` tokens free; the `longest` is known.

    In a pipeline that was not made through its factory, LeRobot's own tokenizer step silently cuts a long
    prompt, and a cut prompt cannot be told from one that just fits; so both are refused, as by ours.
    """
    if longest == mask.shape[1] >= limit:
        rows = mask.bool().all(dim=1).nonzero().flatten().tolist()
        raise DataError(
            f"prompts of batch rows {rows} fill all {mask.shape[1]} tokens and may have been cut, which "
            f"loses the robot's state at their end; raise --policy.tokenizer_max_length above {limit} or "
            f"shorten the task"
        )


def refuse_uneven_rows(batch: Mapping[str, Any], keys: Collection[str]) -> None:
    """Raises DataError if prompts, states and pictures of a batch are not of the same observations.

    Hosts lay the pictures of all cameras in one row after another: with one prompt, two observations would
    become one with twice as many cameras.
    """
    rows = {key: len(batch[key]) for key in keys if key in batch}
    if len(set(rows.values())) > 1:
        raise DataError(
            f"the batch holds different numbers of observations: {rows}; each observation has its own "
            f"pictures, state and task: of several, `task` is a list of as many sentences"
        )


def refuse_bad_numbers(
    batch: Mapping[str, Any], keys: Collection[str], facts: Facts, normalised: Collection[str] = ()
) -> None:
    """Refuses NaN, infinity and absurdly large values in the `keys` that the policy reads of a batch.

    `normalised` are those of them that the data's statistics brought to about 1. When `facts` is read it
    raises DataError with the key, the rows and, if known, their indices in the dataset.
    """
    for key in keys:
        value = batch.get(key)
        if not (isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 1):
            continue
        # NaN fails the comparison too.
        most = LARGEST if key in normalised else torch.finfo(value.dtype).max
        bad = ~(value.abs() <= most).reshape(len(value), -1).all(dim=1)
        facts.ask(bad.any(), partial(_refuse_rows, batch, key, bad, most))


def _refuse_rows(batch: Mapping[str, Any], key: str, bad: Tensor, most: float, any_bad: list[float]) -> None:
    if not any_bad[0]:
        return
    value, rows = batch[key], bad.nonzero().flatten()
    where = f"batch rows {rows.tolist()}"
    if isinstance(batch.get("index"), Tensor):
        where += f", dataset indices {batch['index'].flatten()[rows.to(batch['index'].device)].tolist()}"
    if bool(value[rows].isfinite().all()):
        dimensions = (value.abs() > most).reshape(-1, value.shape[-1]).any(dim=0).nonzero().flatten()
        raise DataError(
            f"{key!r} reaches {float(value.abs().max()):.3g} once normalised (dimensions "
            f"{dimensions.tolist()}) in {where}: its statistics are not those of the data. "
            f"ofp-vla data check says which are wrong and how to fix them"
        )
    raise DataError(f"{key!r} holds NaN or infinity in {where}; the step was refused. Repair these frames")
