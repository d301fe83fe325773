"""A loaded policy behind `robotwin_eval.policy.protocol.ChunkPolicy`, in the evaluation's own process.

Noise comes from each request's key and a warm start from its session, so an episode does not depend on what
ran beside it, up to float32 rounding: matrix products of another batch size may differ in the last bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_PREFIX, OBS_STATE
from torch import Tensor

from ofp_vla.checkpoints.places import checkpoint_title
from ofp_vla.errors import DataError
from ofp_vla.policies.checkpoint import LoadedPolicy
from ofp_vla.policies.features import EMPTY_CAMERA
from ofp_vla.policies.fingerprint import fingerprint
from ofp_vla.policies.one_step.warm_start import LastChunk
from ofp_vla.policies.sampling import Sampling
from ofp_vla.provenance import versions
from ofp_vla.serving.continuing import draw_continued, left_over
from robotwin_eval.host import driver
from robotwin_eval.policy.protocol import DELAY, EXECUTE, PREFLIGHT, NoiseKey, PolicyError, Reply, Request

logger = logging.getLogger(__name__)

# Sessions of made-up states, which need no warnings: a server's first chunk and the preflight's.
WARM_UP = "warm-up"
_MADE_UP = (WARM_UP, PREFLIGHT)


def graphics_card(device: str) -> dict[str, str]:
    """Name, driver and CUDA version of the graphics card that a device stands for; empty for the CPU."""
    if torch.device(device).type != "cuda":
        return {}
    return {
        "name": torch.cuda.get_device_name(device),
        "driver": driver() or "unknown",
        "cuda": torch.version.cuda or "unknown",
    }


def _camera_names(keys: Sequence[str]) -> dict[str, str]:
    """Camera -> its feature: `cam_high` is `observation.images.cam_high`, `image` is `observation.image`."""
    found = {}
    for key in keys:
        name = key.removeprefix(f"{OBS_IMAGES}.")
        short = name.removeprefix(OBS_PREFIX)
        found[name if f"{OBS_IMAGES}.{short}" in keys else short] = key
    return found


class LocalPolicy:
    """One way to sample a loaded policy; several of them may share the same weights.

    Args:
        loaded: the policy and its processors; nothing in it is changed except by `may_miss`.
        name: what results are filed under.
        steps: evaluations per chunk; None, as in the next four, keeps the checkpoint's (`Sampling.of`).
        sampler: "interval" or "host".
        warm: start each chunk after the first of an episode from the one before.
        draws: chunks drawn for one that is carried out.
        choose: which of them is carried out.
        doubt_steps: evaluations where the draws disagree; None, as here below, as the checkpoint says.
        doubt: spread beyond which they do.
        limits: (low, high) of the robot, (A,) each, that actions are clipped to; `clipped` counts how often.

    Attributes:
        sampling: how it acts.
        cameras: cameras that the checkpoint names.
        optional_cameras: those of them that an observation may lack: all if the checkpoint allows it.
        horizon: actions per chunk, H.
        action_dim: values of an action, A.
        state_dim: values of the state; None if the policy takes none.
        clipped: action values that were outside the limits.

    Raises:
        ValueError: a way to act that does not exist or that the checkpoint did not learn, or limits of
            another length than the actions.
        CheckpointError: the checkpoint lacks the weights that act in this way.
    """

    def __init__(
        self,
        loaded: LoadedPolicy,
        name: str,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        warm: bool | None = None,
        draws: int | None = None,
        choose: str | None = None,
        doubt_steps: int | None = None,
        doubt: float | None = None,
        limits: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        config = loaded.policy.config
        self.loaded, self.name = loaded, name
        self.sampling = Sampling.of(
            config,
            sampler=sampler,
            steps=steps,
            warm=warm,
            draws=draws,
            choose=choose,
            doubt_steps=doubt_steps,
            doubt=doubt,
        )
        loaded.policy.acting_role(self.sampling)  # refuses a way to act that the weights cannot
        self._pictures = _camera_names([key for key in config.image_features if EMPTY_CAMERA not in key])
        self.cameras = tuple(self._pictures)
        self.optional_cameras = self.cameras if config.allow_missing_cameras else ()
        self.horizon: int = config.chunk_size
        self.clipped = 0
        self.action_dim: int = config.output_features[ACTION].shape[0]
        state = config.robot_state_feature
        self.state_dim: int | None = None if state is None else state.shape[0]
        self._limits = limits
        if limits is not None and {len(limit) for limit in limits} != {self.action_dim}:
            raise ValueError(
                f"{loaded.source!r} gives actions of {self.action_dim} values, and the robot here takes "
                f"{len(limits[0])}; give a checkpoint that was trained for this robot"
            )
        self._sessions: dict[str, LastChunk] = {}
        self._clipped_before = (0, 0)  # when serving began, when the last client came

    def title(self, checkpoint: str) -> str:
        """Default name of the results of `checkpoint` when sampled in this way."""
        return f"{checkpoint_title(checkpoint)}: {self.sampling}"

    @property
    def remark(self) -> str:
        """What must be known about its results before they are read; "" for nothing."""
        return self.loaded.policy.remark(self.sampling)

    @torch.no_grad()
    def infer(self, requests: Sequence[Request]) -> list[Reply]:
        """Returns one chunk of robot actions (H, A) per request; sessions move on only if all succeed.

        Raises:
            PolicyError: an observation lacks a camera, or the state has another length than the policy's.
            NonFiniteActionError: NaN or infinity came out of the network.
            DataError: the prompt is too long, or a session has two requests.
        """
        if not requests:
            return []
        started = time.perf_counter()
        sessions = [request.session for request in requests]
        if len(set(sessions)) < len(sessions):
            raise DataError(f"policy {self.name!r}: sessions {sessions} ask twice in one call")
        policy = self.loaded.policy
        if any(request.reset for request in requests):
            policy.verify_packs()
        batch = self.loaded.preprocess(self._raw(requests))
        # A server puts the connection's name before the client's own.
        real = [row for row, each in enumerate(sessions) if each.rpartition("/")[2] not in _MADE_UP]
        noise = torch.stack([self._noise(request.key) for request in requests]).to(policy.config.device)
        previous = self._previous(requests, batch)
        left = left_over(requests, previous, self.action_dim)
        late = {row for row, request in enumerate(requests) if request.delay is not None}
        # Without anything left to continue, a chunk that comes late starts cold, as in LeRobot's engine.
        near = {row: chunk for row, chunk in previous.items() if row in left or row not in late}
        warm, warm_rows = _stacked(near, len(requests))
        drawn = draw_continued(
            policy,
            batch,
            left,
            noise=noise,
            sampling=self.sampling,
            warm=warm,
            warm_rows=warm_rows,
            watched=real,
            executed=self._counted(requests),
        )
        chunk = drawn.chunk
        actions = self.loaded.postprocess(chunk[..., : self.action_dim]).float().cpu().numpy()
        seconds = time.perf_counter() - started
        actions = self._clip(actions)
        state = batch.get(OBS_STATE)
        if self.sampling.warm:
            for row, session in enumerate(sessions):
                own = None if state is None else state[row : row + 1]
                self._sessions[session] = LastChunk(chunk[row : row + 1], own)
        told = [
            [None] * len(requests) if value is None else value.tolist()
            for value in (drawn.spread, drawn.doubted)
        ]
        return [Reply(row, seconds, len(requests), *each) for row, *each in zip(actions, *told, strict=True)]

    def forget(self, session: str) -> None:
        """Drops the warm start of a session that has ended."""
        self._sessions.pop(session, None)

    def may_miss(self, cameras: Sequence[str]) -> None:
        """From here on observations may lack these cameras, which are then masked."""
        if cameras:
            self.optional_cameras = tuple(dict.fromkeys((*self.optional_cameras, *cameras)))
            self.loaded.policy.config.allow_missing_cameras = True

    def range_of(self, quantity: str) -> np.ndarray | None:
        """Lowest and highest "state" or "action" that it was trained on, (2, D), in the robot's units.

        The 1 % quantiles if known, else the extremes. None if nothing is known, and for relative actions,
        whose statistics are of differences.
        """
        if quantity == "action" and self.loaded.policy.config.use_relative_actions:
            return None
        key = {"state": OBS_STATE, "action": ACTION}[quantity]
        known: dict[str, Tensor] = {}
        for pipeline in (self.loaded.preprocess, self.loaded.postprocess):
            for step in pipeline.steps:
                known |= step.state_dict()
        for low, high in (("q01", "q99"), ("min", "max")):
            if {f"{key}.{low}", f"{key}.{high}"} <= known.keys():
                ends = [known[f"{key}.{name}"].detach().cpu().flatten().numpy() for name in (low, high)]
                return np.stack(ends)
        return None

    def serving_begins(self) -> None:
        """Resets the count: what was clipped so far, in a first chunk of nothing, is no client's."""
        clipped = self.loaded.policy.guard.clipped
        self._clipped_before = (clipped, clipped)
        self.loaded.policy.guard.tell_again()

    def client_came(self) -> None:
        """Reports and counts clipped values anew."""
        self._clipped_before = (self._clipped_before[0], self.loaded.policy.guard.clipped)
        self.loaded.policy.guard.tell_again()

    def clipping(self) -> dict[str, int]:
        """Action values beyond the limits, since serving began and since the last client came."""
        clipped = self.loaded.policy.guard.clipped
        began, last = self._clipped_before
        return {"clipped_values": clipped - began, "since_last_client": clipped - last}

    def describe(self) -> dict[str, Any]:
        """What a server says about the policy: name, fingerprint, sampling, what it may be told, versions.

        `policy.dimension_names` has the names of "state" and "action", if the checkpoint has them.
        """
        config, way = self.loaded.policy.config, self.sampling
        names = self._dimension_names()
        return {
            "policy": {
                "name": self.name,
                "checkpoint": self.loaded.source,
                "fingerprint": fingerprint(self.loaded, self.sampling),
                "type": config.type,
                **way.describe(),
                **({"dimension_names": names} if names else {}),
                **({"remark": self.remark} if self.remark else {}),
            },
            # LeRobot's guided sampler, which continues what is running, draws one chunk.
            "understands": [EXECUTE, *([] if way.sampler == "host" and way.draws > 1 else [DELAY])],
            # How many actions of a chunk the checkpoint intends to be carried out, as LeRobot does.
            "execute": min(config.n_action_steps, self.horizon),
            "engine": config.engine,
            "device": str(config.device),
            "gpu": graphics_card(config.device),
            "versions": versions(),
        }

    def _dimension_names(self) -> dict[str, list[str]]:
        known = self.loaded.policy.config.dimension_names
        sizes = {"state": (OBS_STATE, self.state_dim), "action": (ACTION, self.action_dim)}
        return {
            quantity: [str(name) for name in known[key]]
            for quantity, (key, size) in sizes.items()
            if known.get(key) and len(known[key]) == size
        }

    def _raw(self, requests: Sequence[Request]) -> dict[str, object]:
        """The batch as LeRobot's datasets give it, before any processing."""
        batch: dict[str, object] = {}
        for camera in self.cameras:
            views = [request.observation.images.get(camera) for request in requests]
            if camera in self.optional_cameras and all(view is None for view in views):
                continue
            if any(view is None for view in views):
                seen = sorted({name for request in requests for name in request.observation.images})
                raise PolicyError(f"policy {self.name!r} needs camera {camera!r}, the observation has {seen}")
            pictures = np.stack([view for view in views if view is not None])
            batch[self._pictures[camera]] = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255.0
        states = np.stack([request.observation.state for request in requests]).astype(np.float32)
        if self.state_dim is not None and states.shape[1:] != (self.state_dim,):
            raise PolicyError(
                f"policy {self.name!r} needs a state of shape {(self.state_dim,)}, got {states.shape[1:]}"
            )
        batch[OBS_STATE] = torch.from_numpy(states)
        batch["task"] = [request.instruction for request in requests]
        return batch

    def _noise(self, key: NoiseKey) -> Tensor:
        """(H, D), or (K, H, D), standard normal, drawn on the CPU so that every device starts from the same.

        The first draw is that of a policy that takes one.
        """
        size = (self.horizon, self.loaded.policy.config.max_action_dim)
        draws = [
            torch.randn(size, generator=torch.Generator().manual_seed(key.seed(draw)))
            for draw in range(self.sampling.draws)
        ]
        return draws[0] if len(draws) == 1 else torch.stack(draws)

    def _counted(self, requests: Sequence[Request]) -> int | Tensor | None:
        """How many actions of each chunk count in choosing among draws, see `Acting.draw`."""
        if self.sampling.draws == 1:
            return None
        own = min(self.loaded.policy.config.n_action_steps, self.horizon)
        counted = [own if request.execute is None else request.execute for request in requests]
        if len(set(counted)) == 1:
            return counted[0]
        return torch.tensor(counted, device=self.loaded.policy.config.device)

    def _previous(self, requests: Sequence[Request], batch: dict[str, Tensor]) -> dict[int, Tensor]:
        """Row -> its session's last chunk (H, D), aligned with the present."""
        if not self.sampling.warm:
            return {}
        policy = self.loaded.policy
        state = batch.get(OBS_STATE)
        found: dict[int, Tensor] = {}
        for row, request in enumerate(requests):
            last = None if request.reset else self._sessions.get(request.session)
            if last is None:
                continue
            chunk = last.continued(
                request.executed,
                None if state is None else state[row : row + 1],
                policy.relative_scale(),
                relative=policy.config.use_relative_actions,
            )
            if chunk is not None:
                found[row] = chunk[0]
        return found

    def _clip(self, actions: np.ndarray) -> np.ndarray:
        if self._limits is None:
            return actions
        inside = np.clip(actions, *self._limits)
        outside = inside != actions
        if outside.any():
            if self.clipped == 0:
                excess = float(np.abs(inside - actions).max())
                logger.info(
                    "policy %r: %d action values were outside the robot's limits, by %.4f at most, and were "
                    "clipped; later ones are counted without a message",
                    self.name,
                    int(outside.sum()),
                    excess,
                )
            self.clipped += int(outside.sum())
        return inside


def _stacked(found: Mapping[int, Tensor], rows: int) -> tuple[Tensor | None, Tensor | None]:
    """Chunks by row as (rows, H, D), and which rows have one; None if no row has."""
    if not found:
        return None, None
    empty = torch.zeros_like(next(iter(found.values())))
    warm = torch.stack([found.get(row, empty) for row in range(rows)])
    return warm, torch.tensor([row in found for row in range(rows)])
