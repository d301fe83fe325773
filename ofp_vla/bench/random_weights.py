"""π0.5 of a chosen size with random weights, made on its device: no checkpoint and no network are needed."""

from __future__ import annotations

import math
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import nn
from torch.overrides import TorchFunctionMode

from ofp_vla.checkpoints.assets import PACKAGED_TOKENIZER
from ofp_vla.checkpoints.loading import unfilled
from ofp_vla.policies.checkpoint import LoadedPolicy
from ofp_vla.policies.pi05_ofp.configuration_pi05_ofp import PI05OFPConfig
from ofp_vla.policies.pi05_ofp.modeling_pi05_ofp import PI05OFPPolicy

# Side of a picture, cameras, actions a chunk, their padded width.
SHAPES = {"tiny": (64, 2, 16, 14), "small": (224, 3, 50, 32), "full": (224, 3, 50, 32)}
ROBOT = 14  # joints of two arms with grippers: state and action
_FILLING = ("normal_", "uniform_", "kaiming_uniform_", "trunc_normal_")
TOTAL_STEPS = 10_000  # of the run whose first steps are timed
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")


def random_config(size: str, dtype: str, device: str, **changes: Any) -> PI05OFPConfig:
    """The configuration of `random_policy`: features and sizes as published, unless tiny."""
    side, cameras, horizon, width = SHAPES[size]
    picture = PolicyFeature(FeatureType.VISUAL, (3, side, side))
    settings: dict[str, Any] = {
        "arch": size,
        "dtype": dtype,
        "device": device,
        "tokenizer_name": PACKAGED_TOKENIZER,
        "image_resolution": (side, side),
        "chunk_size": horizon,
        "n_action_steps": horizon,
        "max_action_dim": width,
        "max_state_dim": width,
        "push_to_hub": False,
        "total_steps": TOTAL_STEPS,
        "input_features": {
            **{f"{OBS_IMAGES}.{name}": picture for name in CAMERAS[:cameras]},
            OBS_STATE: PolicyFeature(FeatureType.STATE, (ROBOT,)),
        },
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (ROBOT,))},
    }
    return PI05OFPConfig(**{**settings, **changes})


def random_policy(config: PI05OFPConfig, device: torch.device) -> PI05OFPPolicy:
    """A policy in evaluation mode. Output heads that nothing reads are left out, as loading does."""
    host = PI05OFPPolicy.host_class
    with device, unfilled(), _Unstarted():
        core = host.build(config)
    for name in host.output_heads:
        parent, _, head = name.removeprefix("model.").removesuffix(".weight").rpartition(".")
        setattr(core.get_submodule(parent), head, nn.Identity())
    fill(core, device)
    config.pretrained_path = "random weights of ofp-vla bench"  # type: ignore[assignment]
    return PI05OFPPolicy.around(core, config).eval()


class _Unstarted(TorchFunctionMode):
    """Inside, parameters are not given their first values: nobody reads them, and that takes minutes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in _FILLING:  # of a tensor, or of torch.nn.init
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@torch.no_grad()
def fill(core: nn.Module, device: torch.device, seed: int = 0) -> None:
    """Gives parameters without memory normal values that keep the size of what passes through them."""
    generator = torch.Generator(device).manual_seed(seed)
    made: dict[int, nn.Parameter] = {}
    for module in core.modules():
        for name, old in module._parameters.items():
            if old is None or not old.is_meta:
                continue
            if id(old) not in made:  # tied names share one parameter
                value = torch.empty(old.shape, dtype=old.dtype, device=device)
                scale = 1 / math.sqrt(math.prod(old.shape[1:])) if old.ndim > 1 else 0.02
                value.normal_(0, scale, generator=generator)
                if isinstance(module, nn.LayerNorm) and name == "weight":
                    value += 1
                made[id(old)] = nn.Parameter(value, requires_grad=old.requires_grad)
            module._parameters[name] = made[id(old)]


def random_loaded(config: PI05OFPConfig, device: torch.device) -> LoadedPolicy:
    """`random_policy` with the processors that a checkpoint of it would have."""
    span = torch.ones(ROBOT)
    known = {"min": -span, "q01": -span, "mean": 0 * span, "std": span, "q99": span, "max": span}
    before, after = make_pre_post_processors(config, dataset_stats={OBS_STATE: known, ACTION: known})
    return LoadedPolicy(random_policy(config, device), before, after, "random weights")
