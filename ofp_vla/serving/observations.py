"""What clients send, brought into one form: openpi's nested and flat layouts and LeRobot's flat keys.

Layouts: `{"images": {camera: image}, "state", "prompt"}`, `{"observation/state", "observation/<camera>",
"prompt"}` and `{"observation.state", "observation.images.<camera>", "task"}`, or what a named robot's client
sends (`.robots`). An optional block `ofp` carries what `Control` lists.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ofp_vla.encoded_pictures import MAX_SIDE, decode, picture_file, says_standard_colours
from ofp_vla.errors import DataError
from ofp_vla.serving.robots import ROBOTS, Robot
from robotwin_eval.policy.protocol import DELAY, EXECUTE, NoiseKey, Observation

logger = logging.getLogger(__name__)

# No camera is smaller, so a side of 3 is always the colour axis: (3, H, W) and (H, W, 3) cannot be confused.
MIN_SIDE = 8
MAX_PROMPT = 2000
MAX_NAME = 200
LAYOUTS = (
    "images, state, prompt; observation/<camera>, observation/state, prompt; or observation.images.<camera>, "
    "observation.state, task"
)


class BadRequest(ValueError):
    """A request that the policy cannot answer; its line tells the client what to change."""


@dataclass(frozen=True)
class Control:
    """The block `ofp` of a request; fields are None if the client did not give them.

    Attributes:
        session: stream of chunks within the connection.
        key: what the sampling noise depends on.
        reset: whether an episode starts.
        executed: actions of the last chunk that were carried out.
        execute: actions of the chunk asked for that count, see `Request`.
        delay: control steps until that chunk is there.
    """

    session: str = ""
    key: NoiseKey | None = None
    reset: bool = False
    executed: int | None = None
    execute: int | None = None
    delay: int | None = None


_CONTROL = tuple(field.name for field in fields(Control))


class ObservationReader:
    """Reads observations for one policy and refuses what it would misread.

    Args:
        cameras: what the policy needs; images of other cameras are ignored.
        state_dim: values of its state; None for any number.
        horizon: actions per chunk, the most that can have been executed.
        rename: a client's camera name -> the policy's.
        optional: cameras that an observation may lack.
        robot: whose client's names are understood too.
        default_prompt: the task of clients that send none; None refuses their requests.

    Raises:
        ValueError: `rename` names a camera that the policy does not need, or one camera twice.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        state_dim: int | None,
        horizon: int,
        rename: Mapping[str, str] | None = None,
        *,
        optional: Sequence[str] = (),
        robot: Robot | None = None,
        default_prompt: str | None = None,
    ) -> None:
        self.cameras, self.state_dim, self.horizon = tuple(cameras), state_dim, horizon
        self.rename, self.optional = dict(rename or {}), tuple(optional)
        self._aliases = {} if robot is None else robot.cameras
        self._state_parts = {} if robot is None else robot.state_parts
        self._absent = () if robot is None else robot.absent
        self._told: set[frozenset[str]] = set()
        self.default_prompt = None if default_prompt is None else read_prompt(default_prompt)
        for theirs, ours in self.rename.items():
            if ours not in self.cameras:
                raise ValueError(
                    f"rename {theirs}={ours}: the policy has no camera {ours!r}, its cameras are {cameras}"
                )
        if len(set(self.rename.values())) < len(self.rename):
            raise ValueError(f"rename {self.rename}: two names stand for one camera")

    def read(self, message: Mapping[str, Any]) -> tuple[Observation, str]:
        """Reads the observation and the instruction of a decoded message.

        Raises:
            BadRequest: an unknown key, something missing or given twice, an image that is not uint8 HWC or
                CHW with three colours, a state that has another length or is not finite, or a prompt that is
                empty or too long.
        """
        images: dict[str, Any] = {}
        parts: dict[str, Any] = {}
        joints: dict[str, Any] = {}
        for key, value in message.items():
            place, name = _place(key, value)
            if key == "ofp":
                continue
            if key in self._state_parts:
                joints[key] = value
            elif place == "images" and not name:
                for camera, image in _map(value, key).items():
                    _once(images, camera, image, f"{key}.{camera}")
            elif place == "images":
                _once(images, name, value, key)
            elif place:
                _once(parts, place, value, key)
            else:
                robots = [name for name, robot in ROBOTS.items() if key in robot.state_parts]
                hint = f"; start the server with --robot {robots[0]}" if robots else ""
                raise BadRequest(f"unknown key {key[:80]!r}; accepted are {LAYOUTS}, and ofp{hint}")
        if joints:
            _once(parts, "state", self._joined(joints), next(iter(joints)))
        if "state" not in parts:
            raise BadRequest(f"the observation lacks its state; accepted are {LAYOUTS}")
        if "prompt" not in parts and self.default_prompt is None:
            raise BadRequest(
                "the observation lacks its prompt (or task); send one, or start the server with "
                "--default-prompt"
            )
        return self.build(images, parts["state"], parts.get("prompt"))

    def build(
        self,
        images: Mapping[str, Any],
        state: Any,
        prompt: Any,
        *,
        aliases: Mapping[str, Sequence[str]] | None = None,
        swapped: bool = False,
    ) -> tuple[Observation, str]:
        """Checks the parts of an observation and puts them together.

        Args:
            images: camera -> image, in the client's names.
            state: (S,) numbers.
            prompt: the task in words; if it is empty or None, the default applies, if there is one.
            aliases: a client's camera name -> the policy's that it can stand for, in this order.
            swapped: see `read_image`.

        Raises:
            BadRequest: see `read`.
        """
        names = {theirs: self._camera(theirs, aliases or self._aliases) for theirs in images}
        found: dict[str, np.ndarray] = {}
        for theirs, image in images.items():
            camera = names[theirs]
            if camera in found:
                raise BadRequest(f"camera {camera!r} is given twice, also as {theirs[:80]!r}")
            if camera in self.cameras:
                found[camera] = read_image(image, theirs, swapped=swapped)
        missing = [camera for camera in self.cameras if camera not in found]
        self._warn(missing, images)
        if set(missing) - set(self.optional) or not found:
            raise BadRequest(
                f"the policy needs cameras {missing}, the observation has {sorted(map(str, images))[:16]}; "
                "send them by these names or start the server with --rename SENT=NEEDED"
            )
        empty = prompt is None or (isinstance(prompt, str) and not prompt.strip())
        task = self.default_prompt if empty and self.default_prompt else read_prompt(prompt)
        return Observation(found, self._state(state)), task

    def _warn(self, missing: Sequence[str], images: Mapping[str, Any]) -> None:
        """Tells a client once what is masked: a misspelt camera must not look like one that is absent."""
        masked = frozenset(missing) & frozenset(self.optional) - frozenset(self._absent)
        if masked and masked not in self._told:
            self._told.add(masked)
            logger.warning(
                "requests lack cameras %s, which the checkpoint allows: they are masked; the client sends %s",
                sorted(masked),
                sorted(map(str, images))[:16],
            )

    def tell_again(self) -> None:
        """Makes the next message report again what is masked, for a new listener."""
        self._told.clear()

    def _camera(self, theirs: str, aliases: Mapping[str, Sequence[str]]) -> str:
        """The policy's name of a client's camera; the client's own if the policy has no such camera."""
        if theirs in self.rename:
            return self.rename[theirs]
        if theirs in self.cameras:
            return theirs
        return next((known for known in aliases.get(theirs, ()) if known in self.cameras), theirs)

    def _joined(self, joints: Mapping[str, Any]) -> np.ndarray:
        """The state, joined from the parts in which a robot's client sends it."""
        pieces = []
        for key, length in self._state_parts.items():
            if key not in joints:
                raise BadRequest(f"the observation lacks {key!r}, a part of its state")
            piece = np.atleast_1d(np.asarray(joints[key]))
            if piece.shape != (length,) or piece.dtype.kind not in "iuf":
                raise BadRequest(f"{key}: {piece.dtype} of shape {piece.shape}, expected {length} numbers")
            pieces.append(piece.astype(np.float64))
        return np.concatenate(pieces)

    def _state(self, value: Any) -> np.ndarray:
        try:
            numbers = np.asarray(value)
        except ValueError as error:
            raise BadRequest(f"state: not an array of numbers ({error})") from error
        if numbers.dtype.kind not in "iuf":
            raise BadRequest(f"state: dtype {numbers.dtype}, expected numbers")
        wanted = "(S,)" if self.state_dim is None else f"({self.state_dim},)"
        if numbers.ndim != 1 or (self.state_dim is not None and len(numbers) != self.state_dim):
            raise BadRequest(f"state: shape {numbers.shape}, the policy needs {wanted}")
        with np.errstate(over="ignore"):
            state = numbers.astype(np.float32)
        if not np.isfinite(state).all():
            index = int(np.argmin(np.isfinite(state)))
            raise BadRequest(f"state[{index}] is {numbers[index]}, expected finite numbers")
        return state

    def control(self, message: Any) -> Control:
        """Reads the block `ofp` of a decoded message.

        Raises:
            BadRequest: the message is no map, or the block holds something unknown or of a wrong type.
        """
        if not isinstance(message, dict):
            raise BadRequest(f"the message is a {type(message).__name__}, expected a map with {LAYOUTS}")
        if message.get("ofp") is None:
            return Control()
        content = _map(message["ofp"], "ofp")
        unknown = sorted(set(content) - set(_CONTROL))
        if unknown:
            raise BadRequest(
                f"ofp: unknown keys {unknown[:8]}; known are {', '.join(_CONTROL[:-1])} and {_CONTROL[-1]}"
            )
        session, reset = content.get("session", ""), content.get("reset", False)
        executed = content.get("executed")
        if not isinstance(session, str) or len(session) > MAX_NAME:
            raise BadRequest(f"ofp.session: expected a text of at most {MAX_NAME} characters")
        if not isinstance(reset, (bool, np.bool_)):
            raise BadRequest(f"ofp.reset is a {type(reset).__name__}, expected true or false")
        if executed is not None:
            executed = _whole(executed, "ofp.executed")
            if not 0 <= executed <= self.horizon:
                raise BadRequest(
                    f"ofp.executed is {executed}, a chunk of this policy has {self.horizon} actions"
                )
        execute, delay = content.get(EXECUTE), content.get(DELAY)
        if execute is not None:
            execute = _whole(execute, "ofp.execute")
            if not 1 <= execute <= self.horizon:
                raise BadRequest(
                    f"ofp.execute is {execute}, a chunk of this policy has {self.horizon} actions"
                )
        if delay is not None:
            delay = _whole(delay, "ofp.delay")
            if delay < 0:
                raise BadRequest(f"ofp.delay is {delay}, expected a number of control steps, 0 or more")
        key = content.get("key")
        return Control(session, None if key is None else _key(key), bool(reset), executed, execute, delay)


def read_image(value: Any, camera: str, *, swapped: bool = False) -> np.ndarray:
    """Returns an image as uint8 (H, W, 3); one with colours first, (3, H, W), is transposed.

    An encoded picture, bytes or a uint8 array of one dimension, is decoded if its colours are known.

    Args:
        value: what the client sent.
        camera: the client's name of the camera.
        swapped: encoded pictures without the mark `XPL-RGB1` come from RoboTwin's and XPolicyLab's writers,
            which swap red and blue; otherwise nothing tells their colours and they are refused.

    Raises:
        BadRequest: not an array, another dtype (floats are not rescaled: their range cannot be known), a
            shape that is neither, or an encoded picture that is cut or whose colours cannot be known.
    """
    where = f"image {camera[:80]!r}"
    if isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.ndim == 1):
        value = _decoded(value, where, swapped)
    if not isinstance(value, np.ndarray):
        raise BadRequest(f"{where}: a {type(value).__name__}, expected a uint8 array")
    if value.dtype != np.uint8:
        raise BadRequest(f"{where}: dtype {value.dtype}, expected uint8 from 0 to 255")
    if value.ndim == 3 and value.shape[-1] == 3 and min(value.shape[:2]) >= MIN_SIDE:
        image = value
    elif value.ndim == 3 and value.shape[0] == 3 and min(value.shape[1:]) >= MIN_SIDE:
        image = value.transpose(1, 2, 0)
    else:
        raise BadRequest(
            f"{where}: shape {value.shape}, expected (height, width, 3) or (3, height, width) with sides of "
            f"at least {MIN_SIDE}"
        )
    if max(image.shape) > MAX_SIDE:
        raise BadRequest(f"{where}: shape {value.shape}, sides may have {MAX_SIDE} pixels at most")
    return image


def _decoded(value: bytes | np.ndarray, where: str, swapped: bool) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.dtype != np.uint8:
        raise BadRequest(f"{where}: {value.dtype} of shape {value.shape}, expected a uint8 array")
    try:
        file = picture_file(value, where)
        if not swapped and not says_standard_colours(file):
            raise BadRequest(
                f"{where}: an encoded picture that does not say how it is coloured (XPL-RGB1): red and blue "
                "may be swapped; send the decoded picture as a uint8 array"
            )
        return decode(file, where)
    except DataError as error:
        raise BadRequest(f"{error}; or send the decoded picture as a uint8 array") from error


def read_prompt(value: Any) -> str:
    """Returns the instruction.

    Raises:
        BadRequest: not text, empty, or longer than `MAX_PROMPT` characters.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size == 1:
        value = value.item()
    if not isinstance(value, str):
        raise BadRequest(f"prompt: a {type(value).__name__}, expected text")
    if not value.strip():
        raise BadRequest("prompt: empty; the policy needs the task in words")
    if len(value) > MAX_PROMPT:
        raise BadRequest(f"prompt: {len(value)} characters, at most {MAX_PROMPT} are accepted")
    return str(value)


def _place(key: str, value: Any) -> tuple[str, str]:
    """Where a top-level key belongs ("images", "state", "prompt" or nowhere), and its camera's name."""
    if key in ("images", "state", "prompt"):
        return key, ""
    if key == "task":
        return "prompt", ""
    if key in ("observation/state", "observation.state"):
        return "state", ""
    for prefix in ("observation.images.", "observation/images/"):
        if key.startswith(prefix) and len(key) > len(prefix):
            return "images", key.removeprefix(prefix)
    name = key.removeprefix("observation/").removeprefix("observation.")
    arrays = isinstance(value, np.ndarray) and (
        value.ndim == 3 or (value.ndim == 1 and value.dtype == np.uint8)
    )
    if name and name != key and not name.endswith(".") and (arrays or isinstance(value, bytes)):
        return "images", name
    return "", ""


def _once(target: dict[str, Any], name: str, value: Any, key: str) -> None:
    if name in target:
        raise BadRequest(f"{name[:80]!r} is given twice, the second time as {key[:80]!r}")
    target[name] = value


def _map(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{name}: a {type(value).__name__}, expected a map")
    return value


def _key(value: Any) -> NoiseKey:
    if not isinstance(value, list) or len(value) != 4 or not isinstance(value[1], str):
        raise BadRequest("ofp.key: expected [run seed, task, episode seed, chunk]")
    if len(value[1]) > MAX_NAME:
        raise BadRequest(f"ofp.key: a task's name has at most {MAX_NAME} characters")
    names = ("run seed", "", "episode seed", "chunk")
    numbers = [_whole(value[i], f"ofp.key: {names[i]}") for i in (0, 2, 3)]
    return NoiseKey(numbers[0], value[1], numbers[1], numbers[2])


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise BadRequest(f"{name} is a {type(value).__name__}, expected a whole number")
    return int(value)
