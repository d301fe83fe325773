"""Loads a trained policy for acting: full checkpoint or LoRA adapter, with the processors saved beside it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from draccus.utils import DecodingError
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.processor import PolicyProcessorPipeline, RenameObservationsProcessorStep
from lerobot.utils.device_utils import is_torch_device_available

from ofp_vla.checkpoints.files import ADAPTER_CONFIG, CheckpointFiles, read_json, resolve_checkpoint
from ofp_vla.errors import CheckpointError, DeviceError
from ofp_vla.policies.configuration import OneStepConfig
from ofp_vla.policies.one_step.policy import OneStepPolicy
from ofp_vla.policies.processors.saved import load_processors


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy ready to act.

    Attributes:
        policy: the policy itself, with any LoRA layers inside.
        preprocess: raw observation batch -> model batch.
        postprocess: normalised actions -> robot actions.
        source: where it came from.
    """

    policy: OneStepPolicy
    preprocess: PolicyProcessorPipeline
    postprocess: PolicyProcessorPipeline
    source: str


def load_policy(checkpoint: str | Path, *, revision: str | None = None, **overrides: Any) -> LoadedPolicy:
    """Loads `checkpoint`, a folder or Hub name; a LoRA adapter brings its base.

    Args:
        checkpoint: folder of a checkpoint or of a training run, or a Hub repository.
        revision: Hub revision.
        **overrides: configuration fields to change, such as `num_inference_steps` or `sampler`.

    Raises:
        CheckpointError: the checkpoint, its base or its processors are missing, damaged or do not match.
        ValueError: an override is not a field of the configuration or has a bad value.
        DeviceError: `device` was given, and PyTorch does not find it; or `engine` asks for what it cannot do.
    """
    if overrides.get("device") is not None:
        refuse_missing(str(overrides["device"]))
    source = resolve_checkpoint(checkpoint)
    files = CheckpointFiles(source, revision=revision)
    config = _saved_config(files)
    if not isinstance(config, OneStepConfig):
        raise CheckpointError(
            f"checkpoint {source!r} is a {config.type!r} policy, not one of this package; load it with "
            f"LeRobot and give it to ofp_vla.patch"
        )
    policy_class = get_policy_class(config.type)
    if overrides.get("sampler", config.sampler) != config.sampler:
        overrides = {"num_inference_steps": None} | overrides  # the saved number is its own sampler's
    config.change(**overrides)
    config.pretrained_path = Path(source)
    config.use_peft |= files.get(ADAPTER_CONFIG) is not None
    preprocess, postprocess = load_processors(config, files)
    _keep_own_names(preprocess, config)
    policy = policy_class.from_pretrained(source, config=config, revision=revision)
    policy.eval()
    policy.host.refuse_levers()
    return LoadedPolicy(policy, preprocess, postprocess, source)


def _saved_config(files: CheckpointFiles) -> PreTrainedConfig:
    read_json(files, "config.json")
    path = files.need("config.json")
    try:
        return PreTrainedConfig.from_pretrained(path.parent)
    except (DecodingError, ValueError) as error:
        reason = textwrap.shorten(str(error), 300)
        raise CheckpointError(f"{path}: {reason}; another version of ofp_vla may have written it") from error


def refuse_missing(device: str) -> None:
    """Raises DeviceError if a device that was asked for is not there; LeRobot would take the CPU instead."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device {device!r} is none that PyTorch knows; cpu, cuda, cuda:1, mps") from error
    if wanted.type == "cpu" or is_torch_device_available(wanted.type):
        found = torch.cuda.device_count() if wanted.type == "cuda" else 1
        if (wanted.index or 0) < found:
            return
        raise DeviceError(
            f"device {device!r} was asked for, and there are {found}: cuda:0 to cuda:{found - 1}"
        )
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    raise DeviceError(
        f"device {device!r} was asked for, and PyTorch {torch.__version__} ({built}) finds none; "
        f"ofp-vla doctor says what it finds. Leave the device out, or take cpu"
    )


def _keep_own_names(before: PolicyProcessorPipeline, config: OneStepConfig) -> None:
    """Makes a training's rename_map leave alone what already has the names that the policy reads.

    A map may swap two cameras of a dataset, so that both names are the policy's too.
    """
    for step in before.steps:
        if isinstance(step, RenameObservationsProcessorStep):
            own = config.input_features or {}
            step.rename_map = {old: new for old, new in step.rename_map.items() if old not in own}
