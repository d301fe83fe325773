"""The one-step policy over any host: interval head, objective, weight roles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import torch
from lerobot.configs.types import NormalizationMode
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import (
    ACTION,
    OBS_IMAGES,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
)
from torch import Tensor, nn

from ofp_vla.checkpoints.loading import unfilled
from ofp_vla.core.ema import EmaDecay, update_ema
from ofp_vla.core.field import ActionChunk
from ofp_vla.core.readings import Readings
from ofp_vla.errors import DataError
from ofp_vla.hosts.host import FlowHost, Observation, PromptExtent
from ofp_vla.hosts.interval import HEAD, IntervalHead
from ofp_vla.hosts.roles import (
    EMA,
    STUDENT,
    TRAINED,
    AdapterRoles,
    Roles,
    TensorRoles,
    has_adapters,
    make_roles,
)
from ofp_vla.normalization.lines import modes
from ofp_vla.policies.configuration import POLICY_CONFIG, OneStepConfig
from ofp_vla.policies.facts import Facts
from ofp_vla.policies.features import EMPTY_CAMERA
from ofp_vla.policies.one_step.acting import Acting
from ofp_vla.policies.one_step.guard import (
    ActionGuard,
    check_action_size,
    refuse_bad_numbers,
    refuse_full_prompts,
    refuse_uneven_rows,
)
from ofp_vla.policies.one_step.persistence import Persistence
from ofp_vla.policies.one_step.sharding import prepare_sharding
from ofp_vla.policies.one_step.statistics import adopt_statistics, normalization_mode
from ofp_vla.policies.one_step.turns import Turn
from ofp_vla.policies.pictures import read_pictures

logger = logging.getLogger(__name__)

EMA_DISTANCE_EVERY = 10


class OneStepPolicy(Persistence, Acting):
    """A host policy that gives its whole action chunk in one evaluation of its action expert.

    A policy inherits from this class first and from its host's LeRobot policy second.

    Attributes:
        stock_class: LeRobot's policy of the host.
        host_class: the host.
        guard: checks and clips the actions, and counts.
    """

    stock_class: ClassVar[type[PreTrainedPolicy]]
    host_class: ClassVar[type[FlowHost]]
    # Asked before there is one, while LeRobot's constructors run.
    _host: FlowHost | None = None

    def __init__(
        self,
        config: OneStepConfig,
        dataset_stats: dict[str, Any] | None = None,
        dataset_meta: Any = None,
        *,
        weights_follow: bool = False,
        **_: Any,
    ) -> None:
        self._begin(config, dataset_stats, dataset_meta)
        with unfilled() if weights_follow else nullcontext():
            core = self.host_class.build(config, self.rtc_processor)
        self._take(core)
        if not weights_follow:
            self.host_class.initialise(self.model, config)
            self.model.to(config.device)

    @classmethod
    def around(cls, model: nn.Module, config: OneStepConfig) -> Self:
        """A policy around the core `model` as it is, on its device; only the interval head is new."""
        policy = cls.__new__(cls)
        policy._begin(config)
        device = next(model.parameters()).device
        config.device = str(device)
        cls.host_class.record(model, config)
        policy._take(model)
        policy.model.interval_head.to(device)
        policy.model.rtc_processor = policy.rtc_processor
        return policy

    def _begin(
        self, config: OneStepConfig, dataset_stats: dict[str, Any] | None = None, dataset_meta: Any = None
    ) -> None:
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.config: OneStepConfig = config
        if dataset_stats is None and dataset_meta is not None:
            # No meta/stats.json. LeRobot's trainer gives the processors what stands here; with nothing they
            # would not normalise.
            dataset_meta.stats = dataset_stats = {}
        if dataset_stats is not None:
            adopt_statistics(config, dataset_stats, dataset_meta)
        check_action_size(self._action_size, config)
        state = config.robot_state_feature
        if self.host_class.reads_state and state is not None and state.shape[0] > config.max_state_dim:
            raise DataError(
                f"the environment or dataset has {state.shape[0]} state dimensions, the policy at most "
                f"max_state_dim={config.max_state_dim}"
            )
        self.init_rtc_processor()

    def _take(self, model: Any) -> None:
        config = self.config
        self.model = model
        width = self.host_class.time_width(model)
        model.interval_head = IntervalHead(width, config.min_period, config.max_period)
        if config.gradient_checkpointing:
            self.host_class.enable_checkpointing(model)
        self.objective = config.make_objective()
        self._host = None
        self.turn = Turn()
        # Set by ofp_vla.patch, which gives the original back from it.
        self.handover: Any = None
        self._guard = ActionGuard(config.action_low, config.action_high, config.action_margin)
        self._ema_distance: float | Tensor = 0.0
        self._told_of_masked = False
        self.reset()

    @property
    def guard(self) -> ActionGuard:
        """What refuses NaN and clips actions, and counts what it clipped."""
        return self._guard

    @property
    def host(self) -> FlowHost:
        """The host around this policy's core; made again for another core, and once PEFT has wrapped it."""
        host = self._host
        if (
            host is None
            or host.model is not self.model
            or has_adapters(self) != isinstance(host.roles, AdapterRoles)
        ):
            host = self.host_class(self.model, make_roles(self), self.config.attention, self.config.levers)
            self._host = host
        return host

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # `to`, `half`, `cpu`: what was recorded or copied keeps memory where the weights were.
        if self._host is not None:
            self._host.captures.drop()
            self._host.forget_packs()
        return super()._apply(fn, recurse)

    @property
    def _action_size(self) -> int:
        return self.config.output_features[ACTION].shape[0]

    @property
    def head_is_trained(self) -> bool:
        """Whether the interval head has left its initial zeros, so that jumps differ from Euler's steps."""
        head = self.model.interval_head.named_parameters()
        return any(bool(weight.any()) for name, weight in head if "output." in name)

    @property
    def _read(self) -> tuple[str, ...]:
        """Features of a batch that training reads; others may hold anything."""
        return (ACTION, OBS_STATE, *self.config.image_features)

    @property
    def _normalised(self) -> tuple[str, ...]:
        identity = NormalizationMode.IDENTITY
        return tuple(
            key for key in (ACTION, OBS_STATE) if normalization_mode(self.config, key) is not identity
        )

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; what is trained makes copies of the weights untrue."""
        if mode and not self.training and self._host is not None:
            self._host.forget_packs()
        return super().train(mode)

    def adapted(self) -> None:
        """Takes the base as the teacher once PEFT has put an adapter on it.

        Raises:
            ValueError: the target modules, which decide what is trained, contradict `train_expert_only`.
        """
        adapted = any(p.requires_grad for p in self.host.vlm_parameters())
        if adapted and self.config.train_expert_only:
            raise ValueError(
                "policy.train_expert_only=true, but peft.target_modules adapts the vision-language model "
                "too; set policy.train_expert_only=false, or name layers of the action expert alone"
            )
        if not adapted and not self.config.train_expert_only:
            raise ValueError(
                "policy.train_expert_only=false, but the adapters reach nothing of the vision-language "
                "model; name its layers in peft.target_modules, as recipe pi05_ofp_vlm_lora does, or set "
                "policy.train_expert_only=true"
            )
        cast(AdapterRoles, self.host.roles).teach_by_base()

    # ---- training

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Trained parameters; the interval head and roles trained beside the student form their own groups.

        LeRobot's trainer asks before it wraps the policy: the roles are made here, and FSDP is prepared.
        Whole tensors are in float32 from here on, whatever the policy's type: bfloat16 rounds most steps
        away.
        """
        if isinstance(self.host.roles, TensorRoles):
            self._train_in_float32()
            if self.config.trained_steps == 0:
                self.host.roles.forget()
        roles = self._prepare_roles()
        prepare_sharding(self, roles)
        trained = sorted(roles.available & (set(TRAINED) - {STUDENT}))
        beside = {role: list(roles.tensors(role).values()) for role in trained}
        apart = {id(p) for tensors in beside.values() for p in tensors}
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad and id(p) not in apart]
        head = [p for n, p in named if HEAD in n]
        rest = [p for n, p in named if HEAD not in n]
        lr = self.config.optimizer_lr
        groups = [{"params": rest}, {"params": head, "lr": lr * self.config.interval_lr_scale}]
        for role, tensors in beside.items():
            groups.append({"params": tensors, "lr": lr * self.objective.learning_rates.get(role, 1.0)})
        for parameter in (p for group in groups for p in group["params"]):
            setattr(parameter, POLICY_CONFIG, self.config)
        return [g for g in groups if g["params"]]

    def _prepare_roles(self) -> Roles:
        roles = self.host.roles
        for role in sorted(self.objective.roles - {STUDENT} - roles.available):
            resumed = self.config.trained_steps and self.config.pretrained_path
            if resumed and isinstance(roles, AdapterRoles):
                self._restore_adapter(roles, role)
                continue
            try:
                roles.add(role)
            except ValueError as error:
                ways = [f"--policy.{setting}" for setting in self.objective.instead.get(role, ())]
                advice = f", or set {' or '.join(ways)}, which need no such role" if ways else ""
                raise ValueError(f"{error}{advice}") from error
        return roles

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, Readings]:
        """Loss of one step and plain numbers for the log, which nobody waits for until they are looked at.

        Args:
            batch: a preprocessed LeRobot batch.
            reduction: "mean" for a scalar, "none" for (B,) losses.

        Raises:
            DataError: what is read of the batch holds NaN, infinity or values that no statistics of the same
                data give (with the rows), or a camera is missing.
        """
        facts = self._facts()
        refuse_bad_numbers(batch, self._read, facts, self._normalised)
        self._prepare_roles()
        self.tell_of_masked(batch)
        observation, chunk = self.read(batch, facts)
        fields = self.host.bind_all(observation, sorted(self.objective.roles))
        losses = self.objective(fields, chunk, progress=self.config.progress, generator=None)
        loss = losses.total if reduction == "mean" else losses.per_sample
        return loss, losses.metrics | {"ema_distance": self._ema_distance}

    def update(self) -> None:
        """Moves the EMA after an optimiser step and counts the step; LeRobot's trainer calls it."""
        config = self.config
        roles = self.host.roles
        if EMA in roles.available and EMA in self.objective.roles:
            decay = EmaDecay(config.ema_decay, config.ema_half_life)(config.trained_steps, config.total_steps)
            student, ema = roles.tensors(STUDENT), roles.tensors(EMA)
            update_ema([student[k] for k in ema], list(ema.values()), decay)
            if config.trained_steps % EMA_DISTANCE_EVERY == 0:
                self._ema_distance = roles.distance()
        config.trained_steps += 1

    def read(self, batch: dict[str, Tensor], facts: Facts | None = None) -> tuple[Observation, ActionChunk]:
        """What training takes from a preprocessed batch; `facts` are read with it.

        Raises:
            DataError: see `forward`; or the actions have another shape than the policy's.
        """
        return self._observation(batch, facts), self._chunk(batch)

    def _chunk(self, batch: dict[str, Tensor]) -> ActionChunk:
        expected = (self.config.chunk_size, self._action_size)
        if tuple(batch[ACTION].shape[1:]) != expected:
            raise DataError(
                f"{ACTION!r} has shape {tuple(batch[ACTION].shape)}, the policy needs (batch, chunk_size="
                f"{expected[0]}, action dimensions={expected[1]}); train on a dataset with these or change "
                f"the policy's output_features and chunk_size"
            )
        actions = self.prepare_action(batch)
        valid = torch.ones_like(actions, dtype=torch.bool)
        valid[..., batch[ACTION].shape[-1] :] = False
        padding = batch.get("action_is_pad")
        if padding is not None and not self.config.train_on_padding:
            valid &= ~padding.bool()[..., None]
        return ActionChunk(actions, valid)

    # ---- observation

    def _facts(self) -> Facts:
        return Facts(together=self.config.levers.one_wait)

    def _observation(self, batch: dict[str, Tensor], facts: Facts | None = None) -> Observation:
        """The host's observation of a batch; reads `facts`, and with them what it asks itself."""
        facts = facts or self._facts()
        missing = self._missing_cameras(batch)
        if missing and not self.config.allow_missing_cameras:
            have = sorted(k for k in batch if k.startswith("observation.image"))
            raise DataError(
                f"the checkpoint needs cameras {missing}, the batch has {have}; rename them with "
                f"--rename_map, or set --policy.allow_missing_cameras=true to act without"
            )
        batch = self._readable(batch, facts)
        mask = batch[OBS_LANGUAGE_ATTENTION_MASK]
        extent: list[float] = []
        facts.ask(PromptExtent.measure(mask), extent.extend)
        facts.read()
        known = PromptExtent.of(extent)
        refuse_full_prompts(mask, known.longest, self.config.tokenizer_max_length)
        return replace(self.host_class.observe(self, batch), extent=known)

    def _missing_cameras(self, batch: Mapping[str, Any]) -> list[str]:
        return [k for k in self.config.image_features if k not in batch and EMPTY_CAMERA not in k]

    def tell_of_masked(self, batch: Mapping[str, Any]) -> None:
        """Warns, once, of cameras that a batch lacks: a misspelt one looks like an absent one."""
        missing = self._missing_cameras(batch)
        if missing and not self._told_of_masked and self.config.allow_missing_cameras:
            self._told_of_masked = True
            logger.warning(
                "Cameras %s are in no batch and are masked, as policy.allow_missing_cameras allows; batches "
                "have %s",
                missing,
                sorted(key for key in batch if key.startswith(OBS_IMAGES)),
            )

    def _readable(self, batch: dict[str, Tensor], facts: Facts) -> dict[str, Tensor]:
        if OBS_LANGUAGE_TOKENS not in batch:
            raise DataError(
                "the batch has no tokens of a prompt: pass the observation through the checkpoint's "
                "pre-processor first"
            )
        cameras = self.config.image_features
        plain = modes(self.config.normalization_mapping)["VISUAL"] == NormalizationMode.IDENTITY.value
        batch = read_pictures(batch, cameras, facts, plain=plain)
        refuse_uneven_rows(batch, (OBS_LANGUAGE_TOKENS, OBS_STATE, *cameras))
        return batch
