"""openpi's PyTorch checkpoints as checkpoints of this package.

Format: what openpi's examples/convert_jax_model_to_pytorch.py writes: model.safetensors without the `model.`
prefix, with the tied embedding under its output head's name; config.json with action_dim, action_horizon, the
Gemma variants and precision; assets/<id>/norm_stats.json with mean, std, q01 and q99 of state and actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import NewLineTaskProcessorStep
from torch import Tensor

import ofp_vla.policies  # noqa: F401  registers the policies that are looked up below
from ofp_vla.checkpoints.files import WEIGHTS, CheckpointFiles, read_json, read_weights
from ofp_vla.checkpoints.loading import refuse_mismatch, unfilled
from ofp_vla.checkpoints.staging import need_space, staged_folder
from ofp_vla.checkpoints.stock import policy_names
from ofp_vla.checkpoints.tensors import Planned, Stored, file_size, write_tensors
from ofp_vla.errors import CheckpointError
from ofp_vla.hosts import host_of
from ofp_vla.hosts.architectures.paligemma_arch import SIZES
from ofp_vla.hosts.interval import HEAD
from ofp_vla.interop.norm_stats import find_norm_stats, read_norm_stats
from ofp_vla.policies.one_step.statistics import adopt_statistics
from ofp_vla.policies.processors.steps import make_processors
from ofp_vla.policies.processors.tokenizers import TokenizerError

# openpi's names of its cameras; lerobot/pi05_base uses the same.
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
PRECISIONS = ("float32", "bfloat16")
_PATCH = 14
_POSITIONS = (
    "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model"
    ".embeddings.position_embedding.weight"
)


@dataclass(frozen=True)
class Imported:
    """What was read.

    Attributes:
        kind: policy type of the result, such as "pi05_ofp".
        asset_id: whose statistics it normalises with.
        config: its configuration.
        size: bytes of its weights.
    """

    kind: str
    asset_id: str
    config: Any
    size: int


def import_openpi(
    source: str | Path,
    output: str | Path,
    *,
    revision: str | None = None,
    asset_id: str | None = None,
    action_horizon: int | None = None,
    tokenizer: str | None = None,
    absolute: Sequence[int] | None = None,
    state_in_prompt: bool | None = None,
    overwrite: bool = False,
) -> Imported:
    """Writes openpi's checkpoint `source` as a checkpoint of this package, with processors.

    The result acts as the original, in the host's own ten steps (`sampler` is "host"), until it is trained.
    openpi's robot-specific transforms are code and not part of a checkpoint: states and actions are those
    after such transforms, on which its statistics were computed.

    Args:
        source: folder or Hub name.
        output: folder to write; appears when it is complete.
        revision: Hub revision.
        asset_id: folder of statistics under assets/; may be omitted if there is only one.
        action_horizon: length of the chunk; None for that of config.json.
        tokenizer: Hub id or folder of the tokenizer; None for PaliGemma's, which is gated.
        absolute: dimensions of the action that openpi's DeltaActions leaves absolute, such as grippers; None
            if the whole action is absolute.
        state_in_prompt: whether π0.5 reads the state as words of its prompt, openpi's `discrete_state_input`,
            which no file of a checkpoint says; None for openpi's default, that it does. π0 never does.
        overwrite: replace `output` if it exists.

    Raises:
        CheckpointError: no such files, weights of another model, or statistics that are missing or damaged.
        ValueError: a setting that the model does not have.
        FileExistsError: `output` exists and `overwrite` is False.
        NoSpace: the disk is full.
    """
    files = CheckpointFiles(source, revision=revision)
    weights, host = _weights(files)
    if state_in_prompt and host_of(host).reads_state:
        raise ValueError(f"{files.source!r} is openpi's π0, whose prompts never hold the state")
    found = find_norm_stats(files, asset_id)
    stats = read_norm_stats(found.path, quantiles=host == "pi05")
    config = _config(files, weights, host, stats, action_horizon)
    if tokenizer is not None:
        config.tokenizer_name = tokenizer
    if absolute is not None:
        _make_relative(config, absolute)
    adopt_statistics(config, stats)
    _refuse_other_weights(config, weights, files.source)
    plan = {name: Planned.copy_of(stored) for name, stored in weights.items()}
    processors = _processors(config, stats, state_in_prompt)
    with staged_folder(Path(output), overwrite=overwrite) as folder:
        need_space(folder, file_size(plan))
        config.save_pretrained(folder)
        for processor in processors:
            processor.save_pretrained(folder)
        write_tensors(folder / WEIGHTS, plan)
    return Imported(config.type, found.asset_id, config, file_size(plan))


def _weights(files: CheckpointFiles) -> tuple[dict[str, Stored], str]:
    """The tensors under the policy's names, without output heads, and "pi05" or "pi0"."""
    if files.get(WEIGHTS) is None and files.folder is not None and (files.folder / "params").is_dir():
        raise CheckpointError(
            f"checkpoint {files.source!r} is openpi's JAX checkpoint (params/); convert it by openpi's "
            f"examples/convert_jax_model_to_pytorch.py first"
        )
    stored = read_weights(files)
    adaptive = "time_mlp_in.weight" in stored
    if not adaptive and "action_time_mlp_in.weight" not in stored:
        raise CheckpointError(
            f"checkpoint {files.source!r} is neither openpi's π0.5 nor its π0: it has no time_mlp_in and no "
            f"action_time_mlp_in; its tensors are {', '.join(sorted(stored)[:4])} ..."
        )
    kind = "pi05" if adaptive else "pi0"
    host = host_of(kind)
    named = policy_names(stored, host)
    return {n: s for n, s in named.items() if n not in host.output_heads and HEAD not in n}, kind


def _config(
    files: CheckpointFiles,
    weights: Mapping[str, Stored],
    host: str,
    stats: Mapping[str, Mapping[str, Tensor]],
    horizon: int | None,
) -> Any:
    settings = read_json(files, "config.json") if files.get("config.json") is not None else {}
    if "type" in settings:
        raise CheckpointError(
            f"checkpoint {files.source!r} is LeRobot's ({settings['type']!r}), not openpi's; use it as it is"
        )
    horizon = horizon or settings.get("action_horizon")
    if not isinstance(horizon, int) or horizon < 1:
        raise CheckpointError(
            f"checkpoint {files.source!r} does not say how long its chunks are (config.json, action_horizon: "
            f"{horizon!r}); give --action-horizon"
        )
    width, action_dim = _shape(files, weights, "model.action_in_proj.weight")
    precision = settings.get("precision", "float32")
    if precision not in PRECISIONS:
        raise CheckpointError(
            f"{files.source}/config.json: precision is {precision!r}, expected one of {', '.join(PRECISIONS)}"
        )
    arch = next((name for name, size in SIZES.items() if size.expert_width == width), "full")
    patch = SIZES[arch].patch if arch in SIZES else _PATCH
    side = isqrt(_shape(files, weights, _POSITIONS)[0]) * patch
    sizes = {key: len(values["mean"]) for key, values in stats.items()}
    state_dim = sizes["observation.state"]
    reads_state = host_of(host).reads_state
    if reads_state:
        state_dim = _shape(files, weights, "model.state_proj.weight")[1]
    for key, room in (("observation.state", state_dim), ("action", action_dim)):
        if sizes[key] > room:
            raise CheckpointError(
                f"statistics of {key!r} have {sizes[key]} dimensions, the weights of {files.source!r} have "
                f"room for {room}; give the --asset-id of the robot that it was trained on"
            )
    camera = PolicyFeature(FeatureType.VISUAL, (3, side, side))
    variants = {k: settings[k] for k in ("paligemma_variant", "action_expert_variant") if k in settings}
    return PreTrainedConfig.get_choice_class(f"{host}_ofp")(
        arch=arch,
        # As the original acts: every chunk starts from noise.
        sampler="host",
        warm_start=False,
        image_resolution=(side, side),
        chunk_size=horizon,
        n_action_steps=horizon,
        max_action_dim=action_dim,
        max_state_dim=state_dim if reads_state else max(state_dim, action_dim),
        dtype=precision,
        push_to_hub=False,
        input_features={
            **{f"observation.images.{name}": camera for name in CAMERAS},
            "observation.state": PolicyFeature(FeatureType.STATE, (sizes["observation.state"],)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (sizes["action"],))},
        **variants,
    )


def _shape(files: CheckpointFiles, weights: Mapping[str, Stored], name: str) -> tuple[int, ...]:
    if name not in weights or len(weights[name].shape) != 2:
        raise CheckpointError(f"checkpoint {files.source!r} has no matrix {name.removeprefix('model.')}")
    return weights[name].shape


def _make_relative(config: Any, absolute: Sequence[int]) -> None:
    """Sets LeRobot's relative actions, which excludes joints by words in their names."""
    size = config.output_features["action"].shape[0]
    wrong = [d for d in absolute if not 0 <= d < size]
    if wrong:
        raise ValueError(f"absolute dimensions {wrong} are not among the action's {size}")
    config.use_relative_actions = True
    config.action_feature_names = [f"dim_{d:03d}" for d in range(size)]
    config.relative_exclude_joints = [f"dim_{d:03d}" for d in sorted(set(absolute))]


def _refuse_other_weights(config: Any, weights: Mapping[str, Stored], source: str) -> None:
    host = host_of(config.type)
    with unfilled():
        core = host.build(config)
    own = {f"model.{name}": tensor for name, tensor in core.state_dict().items()}
    refuse_mismatch({n: t for n, t in own.items() if n not in host.output_heads}, weights, source)


def _processors(
    config: Any, stats: dict[str, dict[str, Tensor]], state_in_prompt: bool | None
) -> tuple[Any, Any]:
    try:
        if state_in_prompt is False:
            # openpi's tokenizer then writes the task and a line break, as for π0.
            return make_processors(config, stats, NewLineTaskProcessorStep())
        return make_pre_post_processors(config, dataset_stats=stats)
    except TokenizerError as error:
        raise CheckpointError(
            f"{error.problem}; PaliGemma's is gated: accept its terms on the Hub and log in (hf auth login), "
            f"or give a folder that holds tokenizer.json by --tokenizer FOLDER"
        ) from error
