"""Where the time of a chunk goes: from a camera's file to the actions of the robot, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from lerobot.utils.constants import OBS_STATE

from ofp_vla.bench.groups import Group, Stand, Unavailable
from ofp_vla.bench.subjects import Subject, batch_of, request
from ofp_vla.bench.timing import Arm
from ofp_vla.core.field import Query
from ofp_vla.encoded_pictures import decode
from ofp_vla.hosts.observation import PromptExtent
from ofp_vla.policies.checkpoint import LoadedPolicy
from ofp_vla.policies.sampling import Sampling
from ofp_vla.serving.local_policy import LocalPolicy
from robotwin_eval.policy.wire import pack, unpack

PART = "stages"
DECODE, BEFORE, RESIZE = (
    "decode JPEG files",
    "pre-processing: tokenise, normalise",
    "resize and scale pictures",
)
PREFIX, EXPERT, AFTER = "images and prefix", "expert, one pass", "post-processing"
# As many words as there are patches, so that the difference to `PREFIX` is what the pictures cost.
LAYERS = "prefix, words in place of pictures"
IMAGES, STEP = "images (the difference)", "expert, one of ten passes (the difference over nine)"
WIRE = "wire: a request and its reply"
WHOLE = "observation to actions, one step"
WHOLE_TEN = "observation to actions, ten steps"
SERVED = "served policy, one step"


def stages(on: Subject) -> Group:
    """The stages of one observation."""
    arms: dict[str, Callable[[LoadedPolicy], Arm]] = {
        WHOLE: lambda loaded: _whole(loaded, 1),
        WHOLE_TEN: lambda loaded: _whole(loaded, 10),
        SERVED: _served,
        DECODE: _decode,
        BEFORE: _before,
        RESIZE: _resize,
        PREFIX: _prefix,
        LAYERS: _layers,
        EXPERT: _expert,
        AFTER: _after,
        WIRE: _wire,
    }
    derived: dict[str, Callable[[Mapping[str, float]], float]] = {
        IMAGES: lambda known: known[PREFIX] - known[LAYERS],
        STEP: lambda known: (known[WHOLE_TEN] - known[WHOLE]) / 9,
    }
    return Group(PART, 1, [Stand(on, arms)], weight=1.5, derived=derived)


def _asked(loaded: LoadedPolicy) -> tuple[LocalPolicy, Any]:
    local = LocalPolicy(loaded, "bench", steps=1, sampler="interval", warm=False, draws=1)
    return local, request(local.cameras, local.state_dim or 0)


def _raw(loaded: LoadedPolicy) -> dict[str, object]:
    """An observation as LeRobot's datasets and environments give it: pictures (B, 3, H, W) in [0, 1]."""
    _, asked = _asked(loaded)
    keys = loaded.policy.config.image_features
    pictures = {
        key: torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        for key, picture in zip(keys, asked.observation.images.values(), strict=False)
    }
    return {
        **pictures,
        OBS_STATE: torch.from_numpy(asked.observation.state)[None],
        "task": [asked.instruction],
    }


def _whole(loaded: LoadedPolicy, steps: int) -> Arm:
    raw, policy = _raw(loaded), loaded.policy
    way = Sampling("interval", steps, False)
    size = policy.config.output_features["action"].shape[0]

    def run() -> np.ndarray:
        chunk = policy.generate(loaded.preprocess(dict(raw)), sampling=way)
        return loaded.postprocess(chunk[..., :size]).float().cpu().numpy()

    return Arm(run)


def _served(loaded: LoadedPolicy) -> Arm:
    local, asked = _asked(loaded)
    return Arm(lambda: local.infer([asked]))


def _decode(loaded: LoadedPolicy) -> Arm:
    _, asked = _asked(loaded)
    files = [cv2.imencode(".jpg", picture)[1].tobytes() for picture in asked.observation.images.values()]
    return Arm(lambda: [decode(file, "a camera's picture") for file in files])


def _before(loaded: LoadedPolicy) -> Arm:
    raw = _raw(loaded)
    return Arm(lambda: loaded.preprocess(dict(raw)))


def _resize(loaded: LoadedPolicy) -> Arm:
    policy = loaded.policy
    batch = loaded.preprocess(_raw(loaded))
    return Arm(torch.no_grad()(lambda: policy.host_class.observe(policy, batch)))


def _prefix(loaded: LoadedPolicy) -> Arm:
    policy = loaded.policy
    observation, _ = policy.read(batch_of(policy, 1))
    return Arm(torch.no_grad()(lambda: policy.host.bind(observation).prefix))


@torch.no_grad()
def _layers(loaded: LoadedPolicy) -> Arm:
    policy = loaded.policy
    observation, _ = policy.read(batch_of(policy, 1))
    columns = policy.host.bind(observation).prefix.mask.shape[1]
    tokens = observation.tokens.new_full((1, columns), 7)
    whole = torch.ones_like(tokens, dtype=torch.bool)
    words = replace(
        observation, images=(), tokens=tokens, token_mask=whole, extent=PromptExtent(columns, columns)
    )
    if (found := policy.host.bind(words).prefix.mask.shape[1]) != columns:
        raise Unavailable(f"{columns} words are encoded as {found}, so the two cannot be compared")
    return Arm(torch.no_grad()(lambda: policy.host.bind(words).prefix))


def _expert(loaded: LoadedPolicy) -> Arm:
    policy = loaded.policy
    observation, chunk = policy.read(batch_of(policy, 1))
    field = policy.host.bind(observation)
    start = torch.zeros(1, device=chunk.actions.device)
    query = Query(torch.randn_like(chunk.actions), start, start + 1, ordered=True)
    return Arm(torch.no_grad()(lambda: field([query])))


def _after(loaded: LoadedPolicy) -> Arm:
    policy = loaded.policy
    batch = batch_of(policy, 1)
    chunk = policy.generate(batch)[..., : policy.config.output_features["action"].shape[0]]
    return Arm(lambda: loaded.postprocess(chunk).float().cpu().numpy())


def _wire(loaded: LoadedPolicy) -> Arm:
    local, asked = _asked(loaded)
    seen = asked.observation
    message = {"images": seen.images, "state": seen.state, "prompt": asked.instruction}
    actions = np.zeros((local.horizon, local.action_dim), np.float32)

    def run() -> None:
        unpack(pack(message))
        unpack(pack({"actions": actions, "server_timing": {"infer_ms": 0.0}}))

    return Arm(run)
