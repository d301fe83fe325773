"""What every one-step policy's configuration adds to its LeRobot host's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub.constants import CONFIG_NAME
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig, LRSchedulerConfig
from lerobot.utils.constants import ACTION
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ofp_vla.checkpoints.assets import PACKAGED_BASES, tiny_base
from ofp_vla.checkpoints.files import CheckpointFiles
from ofp_vla.core.choosing import RULES
from ofp_vla.core.ema import EmaDecay
from ofp_vla.core.objectives import OBJECTIVES, Objective
from ofp_vla.hosts import host_of
from ofp_vla.hosts.attention import ATTENTION
from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.roles import EMA, STUDENT
from ofp_vla.lerobot_seams.parsing import show_block, shown_by_parser
from ofp_vla.policies.features import adopt_features
from ofp_vla.policies.sampling import DOUBT, SAMPLERS, Sampling
from ofp_vla.policies.switches import refuse_unused

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig as HostConfig
else:
    # A plain mixin: fields of PreTrainedConfig would otherwise override the host's own defaults.
    HostConfig = object

ARCHITECTURES = ("full", "tiny", "small")
INFERENCE_ROLES = (STUDENT, EMA)

# A field for each objective, under its name: its settings.
_Blocks: Any = make_dataclass(
    "_Blocks",
    [(name, kind.settings, field(default_factory=kind.settings)) for name, kind in OBJECTIVES.items()],
)
for _kind in OBJECTIVES.values():
    show_block(_kind.settings)

# Attribute that a trained parameter has until the schedule is built: the configuration of its policy.
POLICY_CONFIG = "_ofp_policy_config"


@LRSchedulerConfig.register_subclass("ofp_cosine")
@dataclass
class ProgressCosineSchedulerConfig(CosineDecayWithWarmupSchedulerConfig):
    """LeRobot's cosine decay, which also tells the policy how many steps the run has.

    LeRobot's trainer gives the number of steps only to the scheduler; the objective's schedules need it too.
    On resume the trainer reads this object from the checkpoint, so the optimiser's parameters are the only
    way from here to the policy.
    """

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        """LeRobot's schedule over `num_training_steps`, told to the policy's configuration."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                config = parameter.__dict__.pop(POLICY_CONFIG, None)
                if config is not None:
                    config.total_steps = num_training_steps
        return super().build(optimizer, num_training_steps)


@dataclass
class OneStepConfig(_Blocks, HostConfig):
    """A host policy whose action head also takes a target time, trained by a one-step objective.

    A policy's configuration inherits from this class first and from its host's configuration second.

    Attributes:
        arch: "full" is the published size; "tiny" and "small" are the same classes for two CPU cores.
        tokenizer_name: Hub id or folder, or "ofp_vla/tiny" for the packaged one; it is stored inside the
            checkpoint's processor.
        objective: a name in `ofp_vla.core.objectives.OBJECTIVES`, such as "ofp"; docs/objectives.md compares
            them. Each reads the block of its own name (`ofp`, `onedp`, ...), see the class of its settings.
        sampler: "interval" jumps with the mean velocity; "host" integrates the instantaneous one by Euler.
        num_inference_steps: network evaluations per chunk; None is 1 for "interval" and the host's own number
            for "host". With `sampler` and `warm_start` it says how the checkpoint acts by default, see
            `ofp_vla.policies.sampling`.
        warm_start: start from the previous chunk, shifted by the executed actions, after the first chunk.
        draws: chunks drawn in the same evaluations, of which one is carried out; more cost little.
        choose: which of them, "dense", "walk" or "first", see `ofp_vla.core.choosing`.
        doubt_steps: evaluations where the draws disagree, 0 for no more than elsewhere.
        doubt: spread of the draws beyond which they do, root mean square in normalised units.
        warm_start_time: level t_w at which a warm start enters the path (paper: 0.15).
        inference_role: which weights act, "student" or "ema".
        attention: "auto", "sdpa", "grouped" or "eager", see `ofp_vla.hosts.host.FlowHost`.
        engine: "on", "off", or levers of the fast path to leave out and to ask for, as in "-times,+fp8",
            see `ofp_vla.hosts.engine`.
        ema_decay: upper limit of the EMA's decay; it starts lower so that it suits short runs.
        ema_half_life: optional cap, as a share of the run.
        interval_lr_scale: learning rate of the interval head relative to the rest; it starts at zero.
        train_expert_only: freeze the vision-language model; its prefix is then encoded once for all roles.
        train_on_padding: count the repeated last action after the end of an episode as a target, as π0.5
            does.
        drop_n_last_frames: frames at the end of an episode that LeRobot's sampler leaves out; chunk_size - 1
            trains on whole chunks only.
        allow_missing_cameras: act without a camera that the checkpoint names (it is masked, as LeRobot does).
        action_low: lowest action allowed per dimension, in normalised units; None learns it.
        action_high: highest action, likewise. Both are set from the dataset's min and max in training.
        action_margin: how far beyond the dataset's range an action may go, as a share of that range.
        dimension_names: feature -> names of its dimensions that the weights were trained on, set in training;
            a dataset with the same names in another order is refused.
        rebase_scale: factor from a state difference to an action difference, both normalised; set in
            training.
        teacher_steps: steps of flow matching on the same data that the start of the run had before, as with
            `ofp-vla train --teacher-steps`; for the model card.
        trained_steps: optimiser steps done; kept here so that a resumed run continues its schedules.
        total_steps: optimiser steps of the run; LeRobot's trainer sets it through the scheduler preset.
    """

    architectures: ClassVar[tuple[str, ...]] = ARCHITECTURES

    arch: str = "full"
    tokenizer_name: str = "google/paligemma-3b-pt-224"

    objective: str = "ofp"

    sampler: str = "interval"
    num_inference_steps: int | None = None
    warm_start: bool = True
    draws: int = 1
    choose: str = RULES[0]
    doubt_steps: int = 0
    doubt: float = DOUBT
    warm_start_time: float = 0.15
    inference_role: str = "student"
    attention: str = "auto"
    engine: str = "on"

    ema_decay: float = 0.999
    ema_half_life: float | None = None
    interval_lr_scale: float = 1.0
    train_expert_only: bool = True
    train_on_padding: bool = False

    drop_n_last_frames: int = 0
    allow_missing_cameras: bool = False
    action_low: list[float] | None = None
    action_high: list[float] | None = None
    action_margin: float = 0.1
    dimension_names: dict[str, list[str]] = field(default_factory=dict)
    rebase_scale: list[float] | None = None

    teacher_steps: int = 0
    trained_steps: int = 0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        with shown_by_parser():
            super().__post_init__()
            refuse_unused(self)
            self._check()
        # What LeRobot itself keeps; its factory replaces it by the dataset's before it asks this class.
        names = self._own_action_names = getattr(self, "action_feature_names", None)
        # Set by the check of a run: dataset's name -> this policy's name of a feature.
        self.rename_map: dict[str, str] = {}
        # Likewise: LeRobot's settings of the dataset.
        self.trained_on: Any = None
        # Data and pre-processor of a run that is about to begin, see `one_step.teacher_check`.
        self.material: Any = None
        if names and ACTION not in self.dimension_names:
            self.dimension_names = {**self.dimension_names, ACTION: list(names)}
        base = str(self.pretrained_path)  # type: ignore[has-type]
        if base in PACKAGED_BASES:
            # LeRobot would look for its processors on the Hub.
            self.pretrained_path = tiny_base(base)

    def change(self, **fields: Any) -> None:
        """Gives fields other values and checks them.

        Raises:
            ValueError: no such field, or a bad value.
        """
        for name, value in fields.items():
            if not hasattr(self, name):
                raise ValueError(f"policy.{name}: {type(self).__name__} has no such field")
            setattr(self, name, value)
        self.__post_init__()

    def _check(self) -> None:
        choices = {
            "arch": self.architectures,
            "objective": tuple(OBJECTIVES),
            "sampler": SAMPLERS,
            "choose": RULES,
            "inference_role": INFERENCE_ROLES,
            "attention": ATTENTION,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"policy.{name}: must be one of {list(allowed)}, got {getattr(self, name)!r}"
                )
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(
                f"policy.num_inference_steps: must be at least 1, got {self.num_inference_steps}"
            )
        if self.draws < 1:
            raise ValueError(f"policy.draws: must be at least 1, got {self.draws}")
        if not 0 <= self.warm_start_time < 1:
            raise ValueError(f"policy.warm_start_time: must be in [0, 1), got {self.warm_start_time}")
        try:
            levers = Levers.of(self.engine)
        except ValueError as error:
            raise ValueError(f"policy.engine: {error}") from error
        if levers.fp8 and not host_of(self.type).has_fp8:
            raise ValueError(f"policy.engine={self.engine!r}: a {self.type} policy has no path in float8")
        if levers.fp8 and getattr(self, "dtype", None) != "bfloat16":
            raise ValueError(
                f"policy.engine={self.engine!r}: float8 stands in for bfloat16, and policy.dtype is "
                f"{getattr(self, 'dtype', None)!r}; set --policy.dtype=bfloat16, or leave +fp8 out"
            )
        self._check_warm_start()
        if self.inference_role == EMA and EMA not in self.make_objective().roles:
            raise ValueError(
                f"policy.inference_role='ema': policy.objective={self.objective!r} keeps no moving average; "
                f"use 'student'"
            )
        for name in ("interval_lr_scale", "optimizer_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"policy.{name}: must be positive, got {getattr(self, name)}")
        for name in ("action_margin", "drop_n_last_frames"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"policy.{name}: must not be negative, got {getattr(self, name)}")
        try:
            EmaDecay(self.ema_decay, self.ema_half_life)
        except ValueError as error:
            raise ValueError(f"policy.ema_decay, policy.ema_half_life: {error}") from error
        Sampling.of(self)  # refuses what the objective does not train

    def set_dataset_feature_metadata(self, features: dict[str, Any]) -> None:
        """Pairs the policy with a dataset by names, see `adopt_features`; LeRobot's factory calls it."""
        adopt_features(self, features)

    def _check_warm_start(self) -> None:
        name = self.objective
        block = getattr(self, name)
        if getattr(block, "warm_share", 0) > 0 and block.t_w != self.warm_start_time:
            raise ValueError(
                f"policy.warm_start_time={self.warm_start_time} and policy.{name}.t_w={block.t_w} must be "
                f"equal: a warm start reads the network where {name}.warm_share trained it; set both"
            )

    def make_objective(self) -> Objective[Any]:
        """The objective that the policy is trained by, with its settings."""
        return OBJECTIVES[self.objective](getattr(self, self.objective))

    def _save_pretrained(self, save_directory: Path) -> None:
        """LeRobot's config.json, without the settings of other objectives than the policy's."""
        super()._save_pretrained(save_directory)
        path = save_directory / CONFIG_NAME
        others = OBJECTIVES.keys() - {self.objective}
        kept = {name: value for name, value in json.loads(path.read_text()).items() if name not in others}
        path.write_text(json.dumps(kept, indent=4))

    @property
    def start(self) -> CheckpointFiles:
        """Files of the checkpoint that the weights start from, where `pretrained_path` names one."""
        return CheckpointFiles(str(self.pretrained_path), revision=self.pretrained_revision)

    @property
    def levers(self) -> Levers:
        """Which levers of the fast path are on."""
        return Levers.of(self.engine)

    @property
    def sampling(self) -> Sampling:
        """How the policy acts by default."""
        return Sampling.of(self)

    @property
    def progress(self) -> float:
        """Share of the run done, in [0, 1]."""
        if not self.total_steps:
            raise ValueError(
                "policy.total_steps is not known: the run uses its own scheduler, so pass "
                "--policy.total_steps=<the same number as --steps>"
            )
        return min(self.trained_steps / self.total_steps, 1.0)

    def get_scheduler_preset(self) -> Any:
        """Cosine decay with warm-up. Asked for only at the start of a run, so it resets the step count."""
        self.trained_steps = 0
        return ProgressCosineSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )
