"""What is measured: policies, made when they are first needed, and the inputs that they are given."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from ofp_vla.bench.random_weights import TOTAL_STEPS, random_config, random_loaded
from ofp_vla.bench.settings import BenchSettings
from ofp_vla.bench.timing import Clock
from ofp_vla.policies.checkpoint import LoadedPolicy, load_policy
from robotwin_eval.policy.protocol import NoiseKey, Observation, Request

PROMPT = 90  # tokens of RoboTwin's prompt with its state
SIDES = (480, 640)  # height and width of a camera's picture
INSTRUCTION = "lift the red bar with both arms and put it down on the other side of the table"
RANK = 16
LORA = {"method_type": "LORA", "r": RANK}  # of every policy in training


@dataclass
class Subject:
    """A thing that several rows are measured on.

    Attributes:
        make: makes it.
        resident: bytes that it holds on the device, once made.
        made: the thing, if it was made.
    """

    make: Callable[[], Any]
    resident: int = 0
    made: list[Any] = field(default_factory=list)

    def get(self, clock: Clock) -> Any:
        """The thing, made on first use."""
        if not self.made:
            before = clock.held()
            self.made.append(self.make())
            clock.wait()
            self.resident = clock.held() - before
        return self.made[0]

    def drop(self, clock: Clock) -> None:
        """Frees it, if it was made."""
        if not self.made:
            return
        self.made.clear()
        gc.collect()  # a policy and its parts know each other
        clock.free()


def loaded(settings: BenchSettings, engine: str) -> LoadedPolicy:
    """The policy to measure with its processors, by an engine."""
    device = str(settings.device)
    if settings.checkpoint:
        typed = {"dtype": settings.dtype} if settings.dtype else {}
        return load_policy(settings.checkpoint, engine=engine, device=device, **typed)
    config = random_config(settings.size, settings.dtype or "bfloat16", device, engine=engine)
    return random_loaded(config, settings.device)


@dataclass
class Trainee:
    """A policy in training: one step of LeRobot's trainer, forward, backward, clipping, AdamW, averages.

    Attributes:
        policy: with LoRA on its action expert, in training mode.
        optimizer: over what it trains.
    """

    policy: Any
    optimizer: torch.optim.Optimizer

    def step(self, batch: dict[str, Tensor], forward: Callable[[Any], tuple[Tensor, Any]]) -> float:
        """One step whose loss `forward` gives, under autocast if the policy is in bfloat16; the loss."""
        config = self.policy.config
        device = torch.device(config.device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            loss, _ = forward(batch)
        loss.backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer_grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.update()
        return float(loss.detach())


def trainee(settings: BenchSettings, objective: str, engine: str = "on") -> Trainee:
    """A policy that is about to be trained by an objective, with its optimiser as its configuration says."""
    found = loaded(settings, engine)
    policy = found.policy
    policy.config.change(objective=objective, total_steps=TOTAL_STEPS)
    policy.objective = policy.config.make_objective()
    policy.wrap_with_peft(peft_cli_overrides=LORA)
    policy.train()
    groups = policy.get_optim_params()
    return Trainee(policy, policy.config.get_optimizer_preset().build(groups))


def batch_of(policy: Any, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """A preprocessed batch on the policy's device: prompts of one length, padded as LeRobot pads them."""
    config = policy.config
    generator = torch.Generator().manual_seed(seed)
    padded = config.tokenizer_max_length
    length = min(PROMPT, padded - 1)
    batch = {
        name: torch.rand(rows, *feature.shape, generator=generator)
        for name, feature in config.image_features.items()
    }
    batch |= {
        OBS_STATE: torch.rand(rows, *config.robot_state_feature.shape, generator=generator) * 2 - 1,
        ACTION: torch.rand(
            rows, config.chunk_size, *config.output_features[ACTION].shape, generator=generator
        )
        * 2
        - 1,
        OBS_LANGUAGE_TOKENS: torch.randint(5, 900, (rows, padded), generator=generator),
        OBS_LANGUAGE_ATTENTION_MASK: torch.arange(padded)[None].expand(rows, -1) < length,
        "action_is_pad": torch.zeros(rows, config.chunk_size, dtype=torch.bool),
    }
    return {name: value.to(config.device) for name, value in batch.items()}


def request(cameras: tuple[str, ...], state: int, chunk: int = 0) -> Request:
    """What a robot sends: camera pictures of 480 by 640, its state and a sentence."""
    rng = np.random.default_rng(chunk)
    # Smooth pictures: noise would make JPEG files several times too large.
    small = {name: rng.integers(0, 256, (6, 8, 3), dtype=np.uint8) for name in cameras}
    images = {name: picture.repeat(80, axis=0).repeat(80, axis=1) for name, picture in small.items()}
    seen = Observation(images, rng.uniform(-1, 1, state).astype(np.float32))
    return Request("bench", seen, INSTRUCTION, NoiseKey(0, "bench", 0, chunk), chunk == 0, 0)


def stock_forward(policy: Any) -> Callable[[Any], tuple[Tensor, Any]]:
    """LeRobot's own loss of the same weights."""
    stock = cast(type[PreTrainedPolicy], policy.stock_class)
    return lambda batch: cast(tuple[Tensor, Any], stock.forward(policy, batch))
