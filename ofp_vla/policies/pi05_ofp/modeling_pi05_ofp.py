"""The one-step π0.5 policy: LeRobot's `PI05Policy`, an interval head, OFP and warm starts."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from ofp_vla.assets import PACKAGED_BASE, tiny_base
from ofp_vla.core.draws import normal
from ofp_vla.core.ema import EmaDecay, update_ema
from ofp_vla.core.field import ActionChunk
from ofp_vla.core.objectives import OFP, FlowMatching
from ofp_vla.core.path import interpolate
from ofp_vla.core.sampling import integrate
from ofp_vla.errors import CheckpointError, DataError
from ofp_vla.hosts.interval import IntervalHead
from ofp_vla.hosts.pi05 import Observation, Pi05Host
from ofp_vla.hosts.pi05_arch import build_pi05, expert_geometry
from ofp_vla.hosts.roles import EMA, STUDENT, AdapterRoles, Roles, TensorRoles, has_adapters, make_roles
from ofp_vla.policies.guard import (
    ActionGuard,
    check_action_size,
    limits_from_stats,
    refuse_full_prompts,
    refuse_nonfinite,
)
from ofp_vla.policies.loading import (
    HEAD,
    CheckpointFiles,
    load_strictly,
    read_tensors,
    read_weights,
    write_tensors,
)
from ofp_vla.policies.normalization import normalization_line
from ofp_vla.policies.pi05_ofp.configuration_pi05_ofp import POLICY_CONFIG, PI05OFPConfig
from ofp_vla.policies.stock import check_settings, pi05_weights
from ofp_vla.policies.warm_start import LastChunk, rebase, relative_scale

logger = logging.getLogger(__name__)

EXPERT_LINEARS = (
    r"(.*\.gemma_expert\.model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|dense)"
    r"|model\.(time_mlp_in|time_mlp_out|action_in_proj|action_out_proj))"
)
EMPTY_CAMERA = "empty_camera"
EMA_DISTANCE_EVERY = 10


class PI05OFPPolicy(PI05Policy):
    """π0.5 that gives its whole action chunk in one evaluation of its action expert."""

    config_class = PI05OFPConfig
    name = "pi05_ofp"

    def __init__(
        self,
        config: PI05OFPConfig,
        dataset_stats: dict[str, Any] | None = None,
        dataset_meta: Any = None,
        **_: Any,
    ) -> None:
        PreTrainedPolicy.__init__(self, config)
        config.validate_features()
        self.config: PI05OFPConfig = config
        if dataset_stats is not None:
            adopt_statistics(config, dataset_stats)
        check_action_size(self._action_size, config)
        self.init_rtc_processor()
        self.model = build_pi05(config, self.rtc_processor)
        width = expert_geometry(self.model).width
        self.model.interval_head = IntervalHead(width, config.min_period, config.max_period)
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.to(config.device)
        self.objective = (
            FlowMatching(config.flow_matching) if config.objective == "flow_matching" else OFP(config.ofp)
        )
        self._host: Pi05Host | None = None
        self._guard = ActionGuard(config.action_low, config.action_high, config.action_margin)
        self._ema_distance = 0.0
        self.reset()

    # ---- weights

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        force_download: bool = False,
        resume_download: bool | None = None,
        proxies: dict | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> PI05OFPPolicy:
        """Loads a `pi05_ofp` checkpoint, or a stock `pi05` one whose interval head is then new.

        Raises:
            CheckpointError: Nothing there, corrupt, another policy type, or keys that do not match.
        """
        if not strict:
            raise CheckpointError("strict=False is not supported: a partly loaded policy must not act")
        hub = {"token": token, "cache_dir": cache_dir, "revision": revision, "proxies": proxies}
        hub |= {"local_files_only": local_files_only, "force_download": force_download}
        files = CheckpointFiles(pretrained_name_or_path, **hub)
        if config is None:
            files.need("config.json")
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, **hub)
        check_settings(files, config)
        policy = cls(_as_ofp_config(config, files.source), **kwargs)
        weights = read_weights(files)
        policy._load_weights(weights, files.source)
        policy._load_tensor_roles(files)
        policy.to(policy.config.device)
        policy.eval()
        return policy

    def _load_weights(self, weights: dict[str, Tensor], source: str) -> None:
        fix = partial(self._fix_pytorch_state_dict_keys, model_config=self.config)
        named = pi05_weights(weights, self.state_dict().keys(), fix)
        head = load_strictly(self, named, source, new=(HEAD,))
        if head:
            logger.info(
                "%s has no interval head; it starts at zero, so the policy equals the original", source
            )

    def _load_tensor_roles(self, files: CheckpointFiles) -> None:
        """Restores whole-tensor roles (`ema.safetensors`, `teacher.safetensors`) saved beside the weights."""
        # Under an adapter these files are the base's, and the adapter has roles of its own.
        if self.config.use_peft or (self.config.trained_steps == 0 and self.config.inference_role == STUDENT):
            return
        for role in (EMA, "teacher"):
            path = files.get(f"{role}.safetensors")
            if path is not None:
                roles = self.host.roles
                if isinstance(roles, TensorRoles):
                    try:
                        roles.load(role, read_tensors(path))
                    except ValueError as error:
                        raise CheckpointError(f"{path}: {error}") from error

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)
        if self._host is not None and isinstance(self._host.roles, TensorRoles):
            for role in sorted(self._host.roles.available - {STUDENT}):
                write_tensors(Path(save_directory) / f"{role}.safetensors", self._host.roles.tensors(role))

    @property
    def host(self) -> Pi05Host:
        """The host around this policy's core; made again when PEFT has wrapped the policy since."""
        if self._host is None or has_adapters(self) != isinstance(self._host.roles, AdapterRoles):
            self._host = Pi05Host(self.model, make_roles(self), self.config.attention)
        return self._host

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """Every linear layer of the action expert and the time MLP by LoRA; the new interval head in full."""
        return {"target_modules": EXPERT_LINEARS, "modules_to_save": ["interval_head"], "lora_alpha": 32}

    def wrap_with_peft(self, peft_config: Any = None, peft_cli_overrides: dict | None = None) -> Any:
        """LeRobot's wrapping; an adapter on the packaged base names it by alias, not by path."""
        wrapped = super().wrap_with_peft(peft_config, peft_cli_overrides)
        if Path(str(self.config.pretrained_path)).resolve() == tiny_base().resolve():
            for adapter in wrapped.peft_config.values():
                adapter.base_model_name_or_path = PACKAGED_BASE
        return wrapped

    def _build_peft_config(self, cli_overrides: dict[str, Any]) -> Any:
        _need_lora(cli_overrides.get("method_type") or "LORA")
        return super()._build_peft_config(cli_overrides)

    def _validate_peft_config(self, peft_config: Any) -> None:
        super()._validate_peft_config(peft_config)
        _need_lora(peft_config.peft_type)

    # ---- training

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Trained parameters, the interval head in a group of its own; makes the weight roles."""
        self._prepare_roles()
        named = [(n, p) for n, p in self.named_parameters() if p.requires_grad]
        head = [p for n, p in named if HEAD in n]
        rest = [p for n, p in named if HEAD not in n]
        for _, parameter in named:
            setattr(parameter, POLICY_CONFIG, self.config)
        lr = self.config.optimizer_lr
        groups = [{"params": rest}, {"params": head, "lr": lr * self.config.interval_lr_scale}]
        return [g for g in groups if g["params"]]

    def _prepare_roles(self) -> Roles:
        roles = self.host.roles
        for role in sorted(self.objective.roles - {STUDENT} - roles.available):
            roles.add(role)
            saved = self.config.pretrained_path
            if self.config.trained_steps and saved and isinstance(roles, AdapterRoles):
                _restore_adapter(
                    roles, role, CheckpointFiles(saved, revision=self.config.pretrained_revision)
                )
        return roles

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Loss of one step and plain numbers for the log.

        Args:
            batch: a preprocessed LeRobot batch.
            reduction: "mean" for a scalar, "none" for (B,) losses.

        Raises:
            DataError: The batch holds NaN or infinity (with the rows), or a camera is missing.
        """
        refuse_nonfinite(batch)
        self._prepare_roles()
        observation = self._observation(batch)
        fields = self.host.bind_all(observation, sorted(self.objective.roles))
        losses = self.objective(fields, self._chunk(batch), progress=self.config.progress, generator=None)
        log = {name: float(values.detach().mean()) for name, values in losses.terms.items()}
        log |= losses.metrics
        log["ema_distance"] = self._ema_distance
        loss = losses.total if reduction == "mean" else losses.per_sample
        return loss, log

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

    def _observation(self, batch: dict[str, Tensor]) -> Observation:
        missing = [k for k in self.config.image_features if k not in batch and EMPTY_CAMERA not in k]
        if missing and not self.config.allow_missing_cameras:
            have = sorted(k for k in batch if k.startswith("observation.images"))
            raise DataError(
                f"the checkpoint needs cameras {missing}, the batch has {have}; rename them with "
                f"--rename_map, or set --policy.allow_missing_cameras=true to act without"
            )
        mask = batch[OBS_LANGUAGE_ATTENTION_MASK]
        refuse_full_prompts(mask, self.config.tokenizer_max_length)
        present = [k for k in self.config.image_features if k in batch]
        images, _ = self._preprocess_images(batch)
        return Observation(tuple(images[: len(present)]), batch[OBS_LANGUAGE_TOKENS], mask)

    # ---- acting

    def reset(self) -> None:
        """Forgets the queued actions and the last chunk; call it when an episode starts."""
        self._action_queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)
        self._queue_state: Tensor | None = None
        self._last: LastChunk | None = None

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Next action (B, A) in normalised units; predicts a chunk when the queue is empty.

        Raises:
            DataError: NaN in the state, or several relative actions a chunk without `rebase_scale`.
        """
        self.eval()
        refuse_nonfinite({key: batch[key] for key in (OBS_STATE,) if key in batch})
        scale = self.relative_scale()
        if self.config.use_relative_actions and scale is None and self.config.n_action_steps > 1:
            raise DataError(
                "queued relative actions need policy.rebase_scale, which this checkpoint lacks; train with "
                "this package, call adopt_statistics(), or set --policy.n_action_steps=1"
            )
        if not self._action_queue:
            actions = self.predict_action_chunk(batch, **kwargs)[:, : self.config.n_action_steps]
            self._action_queue.extend(actions.transpose(0, 1))
            self._queue_state = batch.get(OBS_STATE)
        action = self._action_queue.popleft()
        if scale is not None and self._queue_state is not None and OBS_STATE in batch:
            # The post-processor adds the state of this step, the chunk is relative to the state of its
            # prediction.
            action = rebase(action, self._queue_state, batch[OBS_STATE], scale)
        return action

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        *,
        noise: Tensor | None = None,
        num_steps: int | None = None,
        executed: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Chunk of actions (B, H, A) in normalised units.

        Args:
            batch: a preprocessed observation batch.
            noise: (B, H, max_action_dim) start; drawn where None.
            num_steps: network evaluations; `config.inference_steps` where None.
            executed: actions of the last chunk executed since, for the warm start; `n_action_steps` where
                None.
            **kwargs: real-time-chunking arguments, which need LeRobot's own sampler.

        Raises:
            NonFiniteActionError: NaN or infinity came out of the network.
        """
        self.eval()
        if self._rtc_enabled() or kwargs.get("prev_chunk_left_over") is not None:
            return self._stock_chunk(batch, noise, num_steps, **kwargs)
        warm = self._warm_chunk(batch, self.config.n_action_steps if executed is None else executed)
        chunk = self.generate(batch, noise=noise, num_steps=num_steps, warm=warm)
        self._last = LastChunk(chunk, batch.get(OBS_STATE))
        return chunk[..., : self._action_size]

    @torch.no_grad()
    def generate(
        self,
        batch: dict[str, Tensor],
        *,
        noise: Tensor | None = None,
        num_steps: int | None = None,
        warm: Tensor | None = None,
        warm_rows: Tensor | None = None,
        sampler: str | None = None,
    ) -> Tensor:
        """Samples chunks (B, H, max_action_dim); keeps no state.

        Args:
            batch: a preprocessed observation batch.
            noise: (B, H, max_action_dim) start; drawn where None.
            num_steps: network evaluations; `config.inference_steps` where None.
            warm: (B, H, max_action_dim) chunk to start near, aligned with this chunk's time.
            warm_rows: (B,) bool, which rows use `warm`; all of them where None.
            sampler: "interval" or "host"; `config.sampler` where None.
        """
        config = self.config
        # A state that is no number would become an ordinary word of the prompt.
        refuse_nonfinite({key: batch[key] for key in (OBS_STATE,) if key in batch})
        observation = self._observation(batch)
        rows, device = observation.tokens.shape[0], observation.tokens.device
        shape = (rows, config.chunk_size, config.max_action_dim)
        if noise is None:
            noise = normal(shape, device)
        elif tuple(noise.shape) != shape:
            raise DataError(f"noise has shape {tuple(noise.shape)}, the policy needs {shape}")
        z, start = noise.float(), torch.zeros(rows, device=device)
        if warm is not None:
            use = torch.ones_like(start, dtype=torch.bool) if warm_rows is None else warm_rows.to(device)
            start = torch.where(use, torch.full_like(start, config.warm_start_time), start)
            z = interpolate(z, warm.to(z), start)
        role = config.inference_role if config.inference_role in self._inference_roles() else STUDENT
        field = self.host.bind(observation, role)
        diagonal = (sampler or config.sampler) == "host"
        chunk = integrate(field, [z], [start], steps=num_steps or config.inference_steps, diagonal=diagonal)[
            0
        ]
        return torch.cat(
            [self._guard(chunk[..., : self._action_size]), chunk[..., self._action_size :]], dim=-1
        )

    def _inference_roles(self) -> frozenset[str]:
        roles = self.host.roles
        wanted = self.config.inference_role
        if wanted not in roles.available:
            saved = self.config.pretrained_path
            if not isinstance(roles, AdapterRoles) or saved is None:
                raise CheckpointError(
                    f"policy.inference_role={wanted!r}, but the checkpoint has no such weights"
                )
            roles.add(wanted)
            _restore_adapter(roles, wanted, CheckpointFiles(saved, revision=self.config.pretrained_revision))
        return roles.available

    def _stock_chunk(
        self, batch: dict[str, Tensor], noise: Tensor | None, steps: int | None, **kwargs: Any
    ) -> Tensor:
        """LeRobot's own many-step sampler, for real-time chunking."""
        if self.config.sampler != "host":
            raise DataError("real-time chunking guides many small steps; set --policy.sampler=host")
        images, masks = self._preprocess_images(batch)
        tokens, token_mask = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        steps = steps or self.config.inference_steps
        chunk = self.model.sample_actions(
            images, masks, tokens, token_mask, noise=noise, num_steps=steps, **kwargs
        )
        return self._guard(chunk[..., : self._action_size])

    @property
    def _action_size(self) -> int:
        return self.config.output_features[ACTION].shape[0]

    def relative_scale(self) -> Tensor | None:
        """`scale` of `warm_start.rebase`; None where actions are absolute or statistics unknown."""
        scale = self.config.rebase_scale
        return torch.tensor(scale) if self.config.use_relative_actions and scale is not None else None

    def _warm_chunk(self, batch: dict[str, Tensor], executed: int) -> Tensor | None:
        last, state = self._last, batch.get(OBS_STATE)
        if not self.config.warm_start or last is None or len(last.chunk) != len(batch[OBS_LANGUAGE_TOKENS]):
            return None
        relative = self.config.use_relative_actions
        return last.continued(
            min(executed, self.config.chunk_size), state, self.relative_scale(), relative=relative
        )


def adopt_statistics(config: PI05OFPConfig, stats: dict[str, Any]) -> None:
    """Takes what acting needs from the dataset's statistics into the config, which is saved.

    Raises:
        DataError: Quantile normalisation is asked for and the dataset has no q01/q99.
    """
    lines = {}
    for key, kind in ((OBS_STATE, "STATE"), (ACTION, "ACTION")):
        mode = config.normalization_mapping.get(kind, NormalizationMode.IDENTITY)
        lines[key] = normalization_line(stats.get(key, {}), mode)
        lacking = [q for q in ("q01", "q99") if q not in stats.get(key, {})]
        if mode == NormalizationMode.QUANTILES and key in stats and lacking:
            raise DataError(
                f"dataset statistics of {key!r} lack {lacking}, which QUANTILES normalisation needs; run "
                f"python -m lerobot.scripts.augment_dataset_quantile_stats --repo-id=<dataset>"
            )
    mode = config.normalization_mapping.get("ACTION", NormalizationMode.IDENTITY)
    limits = limits_from_stats(stats.get(ACTION, {}), mode)
    if limits is not None:
        config.action_low, config.action_high = limits
    state, action = lines[OBS_STATE], lines[ACTION]
    if config.use_relative_actions and state is not None and action is not None:
        config.rebase_scale = relative_scale(
            state, action, config.action_feature_names, config.relative_exclude_joints
        )


def _need_lora(method: Any) -> None:
    name = str(getattr(method, "value", method)).upper()
    if name != "LORA":
        raise ValueError(f"peft.method_type: pi05_ofp keeps its EMA in LoRA adapters only, got {name}")


def _as_ofp_config(config: PreTrainedConfig, source: str) -> PI05OFPConfig:
    if isinstance(config, PI05OFPConfig):
        return config
    if not isinstance(config, PI05Config):
        raise CheckpointError(
            f"checkpoint {source!r} is a {config.type!r} policy; pi05_ofp loads pi05 and pi05_ofp"
        )
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(PI05Config) if f.init}
    values["num_inference_steps"] = None
    return PI05OFPConfig(**values)


def _restore_adapter(roles: AdapterRoles, role: str, files: CheckpointFiles) -> None:
    """Copies the adapter that PEFT saved under `<checkpoint>/<role>/` into `role`."""
    saved = read_tensors(files.need(f"{role}/adapter_model.safetensors"))
    target = roles.tensors(role)
    found = {k.removeprefix("base_model.model."): v for k, v in saved.items()}
    strip = {k.replace(".modules_to_save.", "."): k for k in target}
    missing, unexpected = sorted(strip.keys() - found.keys()), sorted(found.keys() - strip.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{role} adapter in {files.source!r}: missing {missing[:6]}, unexpected {unexpected[:6]}"
        )
    with torch.no_grad():
        for name, key in strip.items():
            target[key].copy_(found[name])
