"""How one-step policies act: chunks from noise or a warm start, queued actions, limits."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.utils.constants import OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from ofp_vla.core.draws import normal
from ofp_vla.errors import CheckpointError, DataError
from ofp_vla.hosts.roles import TEACHER, AdapterRoles
from ofp_vla.lerobot_seams.policy_hooks import HostPolicy
from ofp_vla.policies.facts import Facts
from ofp_vla.policies.one_step.continuation import LeftOver, check_guidance
from ofp_vla.policies.one_step.drawing import Drawing, Drawn, Start
from ofp_vla.policies.one_step.first_chunks import draw_compared
from ofp_vla.policies.one_step.guard import ActionGuard, refuse_bad_numbers
from ofp_vla.policies.one_step.turns import Turn, in_turn
from ofp_vla.policies.one_step.warm_start import LastChunk, rebase
from ofp_vla.policies.sampling import Sampling, trains_one_jump

logger = logging.getLogger(__name__)


class Acting(HostPolicy):
    """`select_action`, `predict_action_chunk` and the stateless `generate` of a one-step policy."""

    turn: Turn
    _remarked = False

    @in_turn
    def reset(self) -> None:
        """Forgets the queued actions and the last chunk; call it when an episode starts.

        Copies of weights are compared with the weights here, whatever wrote into those.
        """
        self._action_queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)
        self._queue_state: Tensor | None = None
        self._last: LastChunk | None = None
        self.verify_packs()

    @in_turn
    def verify_packs(self) -> None:
        """Drops copies of weights that have other bits by now; may wait for the device."""
        if self._host is not None:
            self._host.verify_packs()

    @in_turn
    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Next action (B, A) in normalised units; predicts a chunk when the queue is empty.

        Raises:
            DataError: NaN in the state, or several relative actions per chunk without `rebase_scale`.
        """
        self.eval()
        if self._action_queue:  # a new chunk checks what it is made from
            with self._facts() as facts:
                refuse_bad_numbers(batch, (OBS_STATE,), facts)
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
            # The post-processor adds the state of this step, but the chunk is relative to the state of its
            # prediction.
            action = rebase(action, self._queue_state, batch[OBS_STATE], scale)
        return action

    @in_turn
    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        *,
        noise: Tensor | None = None,
        num_steps: int | None = None,
        executed: int | None = None,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """Chunk of actions (B, H, A) in normalised units.

        LeRobot's real-time engine gives `inference_delay`, and what is left of the running chunk once there
        is one. The chunk then continues that, whatever this policy returned last, see
        `ofp_vla.policies.one_step.continuation`; with the host's sampler LeRobot's own guidance does it.

        Args:
            batch: a preprocessed observation batch.
            noise: (B, H, max_action_dim) start; drawn if None.
            num_steps: network evaluations; the configuration's number if None.
            executed: actions of the last chunk executed since, for the warm start; `n_action_steps` if None.
            inference_delay: actions that are carried out until this chunk arrives: they are kept as they are.
            prev_chunk_left_over: (B, T, A) or (T, A) what is left of the running chunk, as returned here;
                relative actions have to be relative to this batch's state.
            execution_horizon: in place of that of `config.rtc_config`.

        Raises:
            NonFiniteActionError: NaN or infinity came out of the network.
            DataError: what is left does not fit the batch, or several draws for LeRobot's guidance.
        """
        self.eval()
        way = Sampling.of(self.config, steps=num_steps)
        self.tell_of_masked(batch)
        if not self._remarked:
            self._remarked = True
            if remark := self.remark(way):
                logger.warning("%s", remark)
        if inference_delay is not None or prev_chunk_left_over is not None:
            self._last = None
            rtc = self.config.rtc_config
            if rtc is not None and execution_horizon is not None:
                rtc = replace(rtc, execution_horizon=execution_horizon)
            left = LeftOver.read(
                # With real-time chunking switched off, the engine queues chunks one behind the other.
                prev_chunk_left_over if rtc is None or rtc.enabled else None,
                inference_delay,
                rows=len(batch.get(OBS_LANGUAGE_TOKENS, ())),
                size=self._action_size,
                horizon=self.config.chunk_size,
            )
            continued = self.guided_chunk if way.sampler == "host" else self._continued_chunk
            return continued(batch, noise, way, left, rtc)
        warm = None
        if way.warm:
            warm = self._warm_chunk(batch, self.config.n_action_steps if executed is None else executed)
        chunk = self.draw(batch, noise=noise, sampling=way, warm=warm, watched=None).chunk
        self._last = LastChunk(chunk, batch.get(OBS_STATE))
        return chunk[..., : self._action_size]

    @in_turn
    @torch.no_grad()
    def generate(
        self,
        batch: dict[str, Tensor],
        *,
        noise: Tensor | None = None,
        sampling: Sampling | None = None,
        sampler: str | None = None,
        num_steps: int | None = None,
        warm: Tensor | None = None,
        warm_rows: Tensor | None = None,
    ) -> Tensor:
        """Samples chunks (B, H, max_action_dim) by the trained weights, whatever the sampler; see `draw`.

        So with "host" it follows the student's own flow, where `draw` would act by the teacher's.

        Args:
            batch: a preprocessed observation batch.
            noise: see `draw`.
            sampling: how; as the configuration says if None.
            sampler: "interval" or "host", in place of `sampling`'s.
            num_steps: network evaluations, in place of `sampling`'s.
            warm: see `draw`.
            warm_rows: see `draw`.
        """
        way = self.config.sampling if sampling is None else sampling
        way = replace(way, sampler=sampler or way.sampler, steps=num_steps or way.steps)
        role = self.acting_role()
        return self.draw(batch, noise=noise, sampling=way, warm=warm, warm_rows=warm_rows, role=role).chunk

    @in_turn
    @torch.no_grad()
    def draw(
        self,
        batch: dict[str, Tensor],
        *,
        noise: Tensor | None = None,
        sampling: Sampling | None = None,
        warm: Tensor | None = None,
        warm_rows: Tensor | None = None,
        role: str | None = None,
        watched: Sequence[int] | None = (),
        executed: int | Tensor | None = None,
    ) -> Drawn:
        """Samples chunks, K per observation if so many draws are asked for, and chooses; keeps no state.

        Args:
            batch: a preprocessed observation batch.
            noise: (B, H, max_action_dim) start, (B, K, H, max_action_dim) for K draws; made here if None.
            sampling: by which sampler and in how many network evaluations; the configuration's if None.
            warm: (B, H, max_action_dim) chunk to start near, aligned with this chunk's time.
            warm_rows: (B,) bool, which rows use `warm`; all of them if None.
            role: whose weights; those that act in this way, see `acting_role`, if None.
            watched: rows that a robot or a simulator sent, None for all of them; a warning tells, once, of a
                state there that lies far beyond 1 when normalised by the training statistics.
            executed: actions of each chunk that will be carried out, which alone count in choosing among
                draws; (B,) if observations differ in it, `n_action_steps` if None.

        Raises:
            DataError: noise of another shape, or a state that is no number.
            CheckpointError: see `acting_role`.
            MemoryFullError: so many draws do not fit in memory.
            NonFiniteActionError: NaN or infinity came out of the network.
        """
        config = self.config
        way = config.sampling if sampling is None else sampling
        facts = self._facts()
        # A state that is no number would become an ordinary word of the prompt.
        refuse_bad_numbers(batch, (OBS_STATE,), facts)
        self._watch_state(batch, watched, facts)
        observation = self._observation(batch, facts)
        rows, device = observation.tokens.shape[0], observation.tokens.device
        shape = (rows, *([way.draws] if way.draws > 1 else []), config.chunk_size, config.max_action_dim)
        if noise is None:
            noise = normal(shape, device)
        elif tuple(noise.shape) != shape:
            raise DataError(f"noise has shape {tuple(noise.shape)}, the policy needs {shape}")
        drawing = Drawing(
            self.host,
            self.acting_role(way) if role is None else role,
            way,
            t_w=config.warm_start_time,
            actions=self._action_size,
            executed=executed if isinstance(executed, int) else config.n_action_steps,
        )
        each = executed if isinstance(executed, Tensor) else None
        start = Start(noise, *(None if x is None else x.to(device) for x in (warm, warm_rows, each)))
        real = watched is None or len(watched) > 0
        guard = ActionGuard.of(self.guard)
        drawn, looked = draw_compared(drawing, observation, start, guard, real=real)
        guard.judge(looked)
        return drawn

    def _watch_state(self, batch: dict[str, Tensor], rows: Sequence[int] | None, facts: Facts) -> None:
        state = batch.get(OBS_STATE)
        unwatched = rows is not None and not rows
        if state is None or unwatched or OBS_STATE not in self._normalised:
            return
        everyone = rows is None or len(rows) == len(state)
        self.guard.watch_state(state if everyone else state[list(rows)], facts)  # type: ignore[arg-type]

    def remark(self, way: Sampling) -> str:
        """What must be known about chunks drawn in some way before they are used; "" for nothing."""
        if way.sampler == "interval" and not self.head_is_trained:
            return (
                f"the interval head of this checkpoint is untrained, so that {way} is Euler's method on the "
                f"original flow in as many steps; the host's own number is --sampler host, or "
                f"policy.sampler=host"
            )
        if way.sampler == "host" and self._distils() and not self._has_teacher():
            return (
                f"{way} follows the flow of the trained weights, which moved while they were distilled: the "
                f"teacher's is not in this checkpoint. The adapter before merging, or the base itself, has it"
            )
        return ""

    def acting_role(self, way: Sampling | None = None) -> str:
        """The weight role that acts, loaded if it was not yet.

        The host's own sampler follows the flow. If a run distils a frozen teacher, or trains no flow, that is
        the teacher's, which training leaves unchanged: under LoRA the base with its adapters off.

        Args:
            way: how chunks are drawn; None for the trained weights.

        Raises:
            CheckpointError: the checkpoint has no weights of `config.inference_role`; or no flow to follow:
                the objective trains one jump, and no teacher is there.
        """
        roles = self.host.roles
        wanted = self.config.inference_role
        if way is not None and way.sampler == "host" and self._distils():
            if self._has_teacher():
                wanted = TEACHER
            elif trains_one_jump(self.config.objective):
                raise CheckpointError(
                    f"{way} follows a flow: the objective {self.config.objective!r} trained one jump and "
                    f"none, and the teacher, whose flow is meant, is not in this checkpoint. Take the adapter"
                    f" before merging, a checkpoint with teacher.safetensors, or the base itself; or jump: "
                    f"--policy.sampler=interval --policy.num_inference_steps=1 (--sampler interval --steps 1)"
                )
        if wanted not in roles.available:
            saved = self.config.pretrained_path
            if not isinstance(roles, AdapterRoles) or saved is None:
                raise CheckpointError(
                    f"policy.inference_role={wanted!r}, but the checkpoint has no such weights"
                )
            self._restore_adapter(roles, wanted)
        return wanted

    def _distils(self) -> bool:
        """Whether training moved the weights away from a flow that a frozen teacher keeps, if it is there."""
        objective = self.config.make_objective()
        return self.config.trained_steps > 0 and (TEACHER in objective.roles or not objective.diagonal)

    def _has_teacher(self) -> bool:
        roles = self.host.roles
        # Only a teacher that differs from the base is saved beside an adapter, see `_restore_adapter`.
        return isinstance(roles, AdapterRoles) or TEACHER in roles.available

    def real_time_settings(self) -> RTCConfig:
        """LeRobot's real-time settings; from here on its defaults, if the configuration has none.

        What is left then fades over the same share of a chunk, a fifth, as LeRobot's 10 actions are of 50.
        """
        if self.config.rtc_config is None:
            self.config.rtc_config = RTCConfig(execution_horizon=math.ceil(self.config.chunk_size / 5))
            self.init_rtc_processor()
        return self.config.rtc_config

    @in_turn
    def supports_rtc(self) -> bool:
        """Whether LeRobot's real-time engine gets chunks from this policy; a warning says why not."""
        try:
            way = self.config.sampling
            self.acting_role(way)
            check_guidance(way)
        except (CheckpointError, DataError) as error:
            logger.warning("no real-time chunking: %s", error)
            return False
        return True

    def _continued_chunk(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None,
        way: Sampling,
        left: LeftOver | None,
        rtc: RTCConfig | None,
    ) -> Tensor:
        """A chunk that starts near what is left, which then fades out of it; a cold one if nothing is."""
        if left is None:
            return self.draw(batch, noise=noise, sampling=way, watched=None).chunk[..., : self._action_size]
        if not self.config.use_relative_actions:
            left = replace(left, actions=self.guard(left.actions))
        # Limits of relative actions hold from the state of their prediction: what was sent stays as sent.
        horizon = self.config.chunk_size
        warm = left.start(horizon, self.config.max_action_dim) if way.warm else None
        drawn = self.draw(batch, noise=noise, sampling=way, warm=warm, watched=None)
        return self.joined(drawn.chunk[..., : self._action_size], left, rtc)

    def joined(self, chunk: Tensor, left: LeftOver, rtc: RTCConfig | None) -> Tensor:
        """`chunk` (B, H, A) with what is left fading out of it, and the frozen actions in their place."""
        return left.freeze(self.guard(left.fade(chunk, left.weights(rtc, chunk.shape[1]))))

    @in_turn
    def guided_chunk(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None,
        way: Sampling,
        left: LeftOver | None,
        rtc: RTCConfig | None,
    ) -> Tensor:
        """A chunk (B, H, A) by LeRobot's own many-step sampler, guided by what is left.

        Raises:
            DataError: several draws, or something is left and there are no real-time settings.
        """
        check_guidance(way)
        given: dict[str, Any] = {}
        if left is not None:
            if rtc is None:
                raise DataError(
                    f"prev_chunk_left_over with {way}: LeRobot's guidance needs its settings; set "
                    f"config.rtc_config and call init_rtc_processor(), or use --policy.sampler=interval"
                )
            given = {"inference_delay": left.frozen, "prev_chunk_left_over": left.actions}
            given["execution_horizon"] = rtc.execution_horizon
        with self._facts() as facts:
            self._watch_state(batch, None, facts)
            batch = self._readable(batch, facts)
        with self.host.roles.use(self.acting_role(way)):
            chunk = self.host_class.stock_chunk(self, batch, noise, way.steps, **given)
        return self.guard(chunk[..., : self._action_size])

    def relative_scale(self) -> Tensor | None:
        """`scale` of `warm_start.rebase`; None if actions are absolute or statistics unknown."""
        scale = self.config.rebase_scale
        return torch.tensor(scale) if self.config.use_relative_actions and scale is not None else None

    def _warm_chunk(self, batch: dict[str, Tensor], executed: int) -> Tensor | None:
        last, state = self._last, batch.get(OBS_STATE)
        if last is None or len(last.chunk) != len(batch.get(OBS_LANGUAGE_TOKENS, ())):
            return None
        relative = self.config.use_relative_actions
        return last.continued(
            min(executed, self.config.chunk_size), state, self.relative_scale(), relative=relative
        )
