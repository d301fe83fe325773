"""What every host has: an observation, its encoded prefix, and interval fields bound to a weight role.

Hosts of the openpi family count host time s from data 0 to noise 1 with velocity ε - a; `ofp_vla.core` counts
t = 1 - s, with velocity a - ε. `BoundField` is the edge where the two meet. docs/adding_a_host.md says how to
write a host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ofp_vla.core.field import IntervalField, Query
from ofp_vla.hosts.attention import ATTENTION
from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.observation import Observation, Prefix, PromptExtent
from ofp_vla.hosts.recording.cuda import has_numbers
from ofp_vla.hosts.recording.regions import Layers, Regions
from ofp_vla.hosts.repeating import Repeating
from ofp_vla.hosts.roles import STUDENT, Roles

# Grids of times whose numbers stay on the device.
_KEPT_GRIDS = 64
# Columns of padded prompts, or a multiple, where work is recorded.
_BUCKET = 32
# Height and width; older configurations give one number for both.
_SQUARES = ("image_resolution", "resize_imgs_with_padding")


class FlowHost(Repeating, Layers, ABC):
    """Binds observations to interval fields over one LeRobot core that owns an `interval_head`.

    Args:
        model: LeRobot's core; `model.interval_head` is the φ of `ofp_vla.hosts.interval`.
        roles: weight roles of the policy around it.
        attention: "auto", "sdpa", "grouped", see `ofp_vla.hosts.attention.attend`; "eager" is LeRobot's own
            attention function, always with a mask.
        levers: what the fast path leaves out.

    Attributes:
        lora_targets: regular expression of the layers that LoRA adapts by default, all of them the expert's.
        fixed_settings: configuration fields that, with another value, change what the same weights mean.
        chosen_settings: like those, but fine-tuning may change them on purpose; forgotten ones are refused.
        optional_settings: those of both for which None is a value of its own, not the default.
        unsupported_settings: switches of LeRobot's policy whose weights this host cannot use as meant.
        stock_steps: the original's configuration field for its number of steps.
        stock_names: tensors of stock checkpoints that have another name here, as regular expressions; "" for
            those that this host does not use.
        tied: name of a tensor -> the name of its twin, under which a file may hold it instead.
        reads_state: whether the network reads the state as numbers; otherwise it is part of the prompt.
        output_heads: tensors that no policy reads; loading and merging leave them out.
        title: name of the published model, for model cards; if None, the policy type.
        licence: licence of its published weights, as the Hub names it; if None, "other".
        terms: what that licence has every copy say, after the title; it then stays whatever a user says.
        has_fp8: whether the prefix can multiply in float8.
        passes: how often each part ran, by name ("prefix", "expert").
        fp8_tried: chunks in float8 that were compared with those without, by weight role.
    """

    lora_targets: ClassVar[str]
    fixed_settings: ClassVar[tuple[str, ...]]
    chosen_settings: ClassVar[tuple[str, ...]] = ()
    optional_settings: ClassVar[tuple[str, ...]] = ()
    unsupported_settings: ClassVar[tuple[str, ...]] = ("adapt_to_pi_aloha", "use_delta_joint_actions_aloha")
    stock_steps: ClassVar[str] = "num_inference_steps"
    stock_names: ClassVar[Mapping[str, str]] = {}
    tied: ClassVar[Mapping[str, str]] = {}
    output_heads: ClassVar[tuple[str, ...]] = ()
    reads_state: ClassVar[bool] = True
    title: ClassVar[str | None] = None
    licence: ClassVar[str | None] = None
    terms: ClassVar[str] = ""
    has_fp8: ClassVar[bool] = False

    def __init__(
        self, model: Any, roles: Roles, attention: str = "auto", levers: Levers | None = None
    ) -> None:
        if attention not in ATTENTION:
            raise ValueError(f"attention must be one of {ATTENTION}, got {attention!r}")
        self.model = model
        self.roles = roles
        self.attention = attention
        levers = levers or Levers()
        self.levers = replace(levers, unmasked=levers.unmasked and attention != "eager")
        self.passes: Counter[str] = Counter()
        self.fp8_tried: Counter[str] = Counter()
        self._times: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._begin_repeating()
        self.regions = Regions()

    # ---- what the policy asks of the class

    @staticmethod
    @abstractmethod
    def build(config: Any, rtc_processor: object | None = None) -> nn.Module:
        """LeRobot's core at the size that `config.arch` names, with random weights."""

    @staticmethod
    def initialise(model: Any, config: Any) -> None:
        """Fills a new core with weights that its parts bring; not called if a checkpoint's weights follow."""
        return

    @staticmethod
    @abstractmethod
    def time_width(model: Any) -> int:
        """Width of the time embedding, to which the interval head's residual is added."""

    @staticmethod
    def meaning(name: str, settings: Mapping[str, Any]) -> Any:
        """What the field `name` of a configuration, as JSON, means: equal if two spellings do the same."""
        value = settings.get(name)
        if name in _SQUARES and isinstance(value, int):
            return [value, value]
        return value

    @staticmethod
    def vocabulary(config: Any) -> int | None:
        """Size of the vocabulary that the network of `config` embeds; None if only its weights say."""
        return None

    @classmethod
    @abstractmethod
    def observe(cls, policy: Any, batch: dict[str, Tensor]) -> Observation:
        """The observation in `batch`, prepared by the methods of LeRobot's own `policy`."""

    @classmethod
    @abstractmethod
    def stock_chunk(
        cls, policy: Any, batch: dict[str, Tensor], noise: Tensor | None, steps: int, **kwargs: Any
    ) -> Tensor:
        """(B, H, D) by LeRobot's own many-step sampler, which real-time chunking guides."""

    @staticmethod
    def record(model: Any, config: Any) -> None:
        """Writes into `config` what a checkpoint of the finished core `model` needs and nobody has set."""
        return

    @staticmethod
    @abstractmethod
    def set_trainable(model: Any, config: Any) -> None:
        """Freezes what `train_expert_only` and `freeze_vision_encoder` say, and nothing else."""

    @staticmethod
    def enable_checkpointing(model: Any) -> None:
        """Makes the host trade a second forward pass for memory, layer by layer."""
        model.gradient_checkpointing_enabled = True

    def pack(self, role: str = STUDENT) -> Any:
        """Copies of a role's weights that passes without gradient read now, true at this moment.

        Hashable, and equal exactly as long as passes read the same copies. None where there are none.
        """
        return None

    def refuse_levers(self) -> None:
        """Raises DeviceError if a lever that was asked for needs another device than the model's."""
        return

    def packs_are_true(self) -> bool:
        """Whether all packs are, as far as that is seen without asking the device."""
        return True

    def forget_packs(self) -> None:
        """Drops copies of weights, if the host keeps any; the next pass makes new ones."""
        return

    def verify_packs(self) -> None:
        """Drops copies whose originals have other bits than when they were copied; may wait."""
        return

    # ---- what a host computes

    @abstractmethod
    def vlm_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of the vision-language model."""

    @abstractmethod
    def _encode(self, observation: Observation) -> Prefix:
        """Keys and values of the prefix."""

    @abstractmethod
    def condition(self, s: Tensor, length: Tensor) -> Tensor:
        """What the expert reads of N intervals, (N, W).

        Args:
            s: (N,) host time of the start, 1 = noise.
            length: (N,) interval length s - s' in [0, s].
        """

    def modulations(self, condition: Tensor) -> Sequence[Any]:
        """What `expert` makes of a condition (N, W) before it reads anything else, for each of its N rows."""
        return condition.split(1)

    def prepared(self, intervals: Sequence[tuple[float, float]]) -> Sequence[Any]:
        """What `expert` makes of each interval (t, r) before it reads anything else."""
        return self.modulations(self.conditions(intervals))

    def conditions(self, intervals: Sequence[tuple[float, float]]) -> Tensor:
        """`condition` of each interval (t, r)."""
        device = self.device
        wanted = device, tuple(intervals)
        t, r = self._times.get(wanted) or (
            # Filled, not copied, so that a recording may hold it.
            torch.cat([torch.full((1,), x, device=device) for x in ends])
            for ends in zip(*intervals, strict=True)
        )
        if len(self._times) < _KEPT_GRIDS and has_numbers():
            self._times[wanted] = t, r
        return self.condition(1.0 - t, r - t)

    def rows_of(self, levels: Sequence[Any], index: Tensor) -> Any:
        """Entries of `modulations`, one for each level, laid out for rows (n,) of these levels."""
        return torch.cat(tuple(levels))[index]

    @abstractmethod
    def expert(self, prefix: Prefix, z: Tensor, condition: Any, null: Tensor | None) -> Tensor:
        """One pass of the action expert over all packed queries; counts it in `passes`.

        Args:
            prefix: cached prefix of B observations.
            z: (B, Q, H, D) noisy chunks.
            condition: (B*Q, W) of `condition`; or, for all rows alike or for each of them, of `modulations`.
            null: (B, Q) bool, True for queries that must not see the condition; None if there is none.

        Returns:
            (B, Q, H, D) float32 velocities in the host's sign (noise minus data).
        """

    def encode_shared(self, observation: Observation) -> Prefix:
        """The part of the prefix that is the same for every role while the VLM is frozen."""
        return self.encode(observation)

    def complete(self, shared: Prefix, observation: Observation) -> Prefix:
        """A role's own prefix from the shared part, run with the role's weights."""
        return shared

    # ---- the same for every host

    @property
    def prefix_is_frozen(self) -> bool:
        """Whether no parameter of the vision-language model is trained."""
        return not any(p.requires_grad for p in self.vlm_parameters())

    def bind(self, observation: Observation, role: str = STUDENT) -> BoundField:
        """Interval field of `role` for one batch of observations; the prefix is encoded on first use."""
        return BoundField(self, observation, role)

    def bind_all(self, observation: Observation, names: Sequence[str]) -> dict[str, BoundField]:
        """One field per role. A frozen VLM's part of the prefix is the same for all and is encoded once."""
        shared = None
        if self.prefix_is_frozen:
            shared = cache(partial(self.encode_repeated, self.encode_shared, observation))
        return {
            name: BoundField(self, observation, name, shared) for name in dict.fromkeys((STUDENT, *names))
        }

    def encode(self, observation: Observation) -> Prefix:
        """Keys and values of the prefix; without autograd graph if the VLM is frozen."""
        self.passes["prefix"] += 1
        with torch.no_grad() if torch.is_grad_enabled() and self.prefix_is_frozen else nullcontext():
            return self._encode(observation)

    def _trimmed(self, observation: Observation) -> tuple[Tensor, Tensor, bool]:
        """Prompt and mask without the columns that are padding in every row, and whether none is left.

        Exact: padding is masked and adds no position.
        """
        tokens, mask = observation.tokens, observation.token_mask
        extent = observation.extent or PromptExtent.of(PromptExtent.measure(mask).tolist())
        if self.levers.trim:
            columns = max(extent.longest, 1)
            tokens, mask = tokens[:, :columns], mask[:, :columns]
            if self.levers.buckets and self.repeats and (extent.shortest < columns or self.model.training):
                # Few shapes where each is recorded; rows of other lengths have a mask anyway.
                missing = (0, -columns % _BUCKET)
                tokens, mask = nn.functional.pad(tokens, missing), nn.functional.pad(mask, missing)
        return tokens, mask, extent.shortest == mask.shape[1]

    def _pictures(self, embed: Callable[[Tensor], Tensor], images: tuple[Tensor, ...]) -> list[Tensor]:
        """Features of each camera's pictures, (B, P, W) for every (B, 3, S, S)."""
        if not self.levers.cameras:
            return [self._checkpointed(embed, image) for image in images]
        return list(self._checkpointed(embed, torch.cat(images)).split(len(images[0])))

    def _velocity(self, hidden: Tensor) -> Tensor:
        """Output projection in float32, regardless of autocast."""
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            return self.model.action_out_proj(hidden.to(torch.float32)).float()


class BoundField:
    """`IntervalField` for one observation batch and one weight role.

    The weights of a role that is not trained are constants: its answers have a gradient to queries alone.
    """

    def __init__(
        self,
        host: FlowHost,
        observation: Observation,
        role: str,
        shared: Callable[[], Prefix] | None = None,
    ) -> None:
        self.host = host
        self.observation = observation
        self.role = role
        self._shared = shared

    @cached_property
    def prefix(self) -> Prefix:
        """The encoded prefix, its own or completed from the shared one."""
        host = self.host
        if self._shared is None and not torch.is_grad_enabled():
            return host.encode_repeated(host.encode, self.observation, self.role)
        shared = None if self._shared is None else self._shared()
        with host.roles.use(self.role):
            if shared is None:
                return host.encode(self.observation)
            return host.complete(shared, self.observation)

    def __call__(self, queries: Sequence[Query]) -> list[Tensor]:
        """Mean velocities u(z, t, r), each (B, H, D) float32, all queries in one pass of the expert."""
        z = torch.stack([q.z for q in queries], dim=1)
        t, r = (torch.stack([getattr(q, name) for q in queries], dim=1).float() for name in ("t", "r"))
        inputs = z, t, r, self._null(queries)
        if torch.is_grad_enabled():
            velocity = self._pass(self.prefix, *inputs)
        else:
            full = self.prefix.full

            def answer(kept: Sequence[Tensor | None], *inputs: Any) -> Tensor:
                return self._pass(Prefix.of(kept, full=full), *inputs)

            kept = self.prefix.kept
            velocity = self.host.repeated("a pass", (self.role, full), answer, *inputs, kept=kept)
        return list((-velocity).unbind(dim=1))

    def _pass(self, prefix: Prefix, z: Tensor, t: Tensor, r: Tensor, null: Tensor | None) -> Tensor:
        t, r = t.flatten(), r.flatten()
        with self.host.roles.use(self.role):
            return self.host.expert(prefix, z, self.host.condition(1.0 - t, r - t), null)

    def _null(self, queries: Sequence[Query]) -> Tensor | None:
        """(B, Q) bool, which queries must not see the condition; None if none has to be told."""
        if all(q.null is None for q in queries) and self.host.levers.unmasked:
            return None
        kept = torch.zeros_like(queries[0].t, dtype=torch.bool)
        return torch.stack([kept if q.null is None else q.null for q in queries], dim=1)

    def stepped(
        self, levels: Sequence[Sequence[tuple[float, float]]], level_of_row: Tensor | None
    ) -> Sequence[IntervalField]:
        """See `SteppedField`: what the expert makes of the times is computed here, for all steps together.

        The fields live for one sampling, and so does it, unless it is a constant of packed weights. Each
        level is computed by itself: a row's numbers do not depend on the levels beside it.
        """
        steps = len(levels[0])
        if not self.host.levers.times:
            return [self] * steps
        with self.host.roles.use(self.role):
            known = [self.host.prepared(level) for level in levels]
        return [partial(self._at, [level[step] for level in known], level_of_row) for step in range(steps)]

    def _at(
        self, levels: Sequence[Any], level_of_row: Tensor | None, queries: Sequence[Query]
    ) -> list[Tensor]:
        z = torch.stack([q.z for q in queries], dim=1)
        condition = levels[0]
        if level_of_row is not None:
            condition = self.host.rows_of(levels, level_of_row.repeat_interleave(len(queries)))
        prefix, null = self.prefix, self._null(queries)
        with self.host.roles.use(self.role):
            velocity = self.host.expert(prefix, z, condition, null)
        return list((-velocity).unbind(dim=1))

    def of_rows(self, rows: Tensor) -> BoundField:
        """The field of some of the observations, by their indices (n,); no prefix is encoded again."""
        part = BoundField(self.host, self.observation, self.role)
        part.prefix = self.prefix.of_rows(rows)
        return part
