import numpy as np
import pytest

from ofp_vla.serving.observations import BadRequest, ObservationReader
from robotwin_eval.policy.protocol import NoiseKey

CAMERAS = ("cam_high", "cam_wrist")
HIGH = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
WRIST = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
STATE = np.array([0.5, -1.0], np.float32)

LAYOUTS = {
    "nested": {"images": {"cam_high": HIGH, "cam_wrist": WRIST}, "state": STATE, "prompt": "lift"},
    "openpi": {
        "observation/cam_high": HIGH,
        "observation/cam_wrist": WRIST,
        "observation/state": STATE,
        "prompt": "lift",
    },
    "openpi-images": {
        "observation/images/cam_high": HIGH,
        "observation/images/cam_wrist": WRIST,
        "observation/state": STATE,
        "prompt": "lift",
    },
    "lerobot": {
        "observation.images.cam_high": HIGH,
        "observation.images.cam_wrist": WRIST,
        "observation.state": STATE,
        "task": "lift",
    },
}


@pytest.fixture
def reader():
    return ObservationReader(CAMERAS, 2, 8)


def nested(**changes):
    content = dict(LAYOUTS["nested"]) | changes
    return {key: value for key, value in content.items() if value is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_observation(reader, layout):
    observation, instruction = reader.read(LAYOUTS[layout])
    assert instruction == "lift"
    np.testing.assert_array_equal(observation.images["cam_high"], HIGH)
    np.testing.assert_array_equal(observation.images["cam_wrist"], WRIST)
    assert observation.state.dtype == np.float32
    np.testing.assert_array_equal(observation.state, STATE)


def test_camera_outside_lerobots_images_is_read_under_lerobots_key():
    reader = ObservationReader(("image",), 2, 8)
    for key in ("observation.image", "observation/image"):
        observation, _ = reader.read({key: HIGH, "observation.state": STATE, "task": "push"})
        np.testing.assert_array_equal(observation.images["image"], HIGH)


def test_colours_first_and_colours_last_give_the_same_image(reader):
    turned = {"cam_high": HIGH.transpose(2, 0, 1), "cam_wrist": WRIST.transpose(2, 0, 1)}
    observation, _ = reader.read(nested(images=turned))
    np.testing.assert_array_equal(observation.images["cam_high"], HIGH)
    np.testing.assert_array_equal(observation.images["cam_wrist"], WRIST)


def test_lists_of_numbers_and_text_arrays_are_accepted(reader):
    observation, instruction = reader.read(nested(state=[1, 2], prompt=np.array("lift")))
    np.testing.assert_array_equal(observation.state, [1, 2])
    assert (instruction, type(instruction)) == ("lift", str)


def test_cameras_are_renamed_and_those_not_needed_ignored():
    reader = ObservationReader(CAMERAS, 2, 8, {"head": "cam_high"})
    images = {"head": HIGH, "cam_wrist": WRIST, "front": "no picture"}
    observation, _ = reader.read(nested(images=images))
    assert set(observation.images) == set(CAMERAS)
    with pytest.raises(BadRequest, match="'cam_high' is given twice"):
        reader.read(nested(images=images | {"cam_high": HIGH}))
    with pytest.raises(ValueError, match="no camera 'top'"):
        ObservationReader(CAMERAS, 2, 8, {"head": "top"})
    with pytest.raises(ValueError, match="two names stand for one"):
        ObservationReader(CAMERAS, 2, 8, {"a": "cam_high", "b": "cam_high"})


def only(image):
    return nested(images={"cam_high": image, "cam_wrist": WRIST})


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            nested(images={"cam_high": HIGH}),
            r"needs cameras \['cam_wrist'\], the observation has \['cam_high'\]",
        ),
        (nested(images=[HIGH]), "images: a list, expected a map"),
        (nested(images=None), "needs cameras"),
        (only(HIGH.astype(np.float32) / 255), "'cam_high': dtype float32, expected uint8"),
        (only(HIGH.astype(np.int64)), "dtype int64, expected uint8"),
        (only(HIGH[..., :1]), r"shape \(24, 32, 1\)"),
        (only(np.zeros((24, 32, 4), np.uint8)), r"shape \(24, 32, 4\)"),
        (only(HIGH[None]), r"shape \(1, 24, 32, 3\)"),
        (only(np.zeros((3, 16, 3), np.uint8)), r"shape \(3, 16, 3\)"),
        (only(np.zeros((3, 3, 16), np.uint8)), r"shape \(3, 3, 16\)"),
        (only(np.zeros((0, 0, 3), np.uint8)), r"shape \(0, 0, 3\)"),
        (only(np.zeros((8, 9000, 3), np.uint8)), "8192 pixels at most"),
        (only(b"\xff\xd8\xff"), "send the decoded picture"),
        (only("picture"), "a str, expected a uint8 array"),
        (nested(state=None), "lacks its state"),
        (nested(state=np.zeros(3)), r"state: shape \(3,\), the policy needs \(2,\)"),
        (nested(state=np.zeros((1, 2))), r"state: shape \(1, 2\)"),
        (nested(state=[0.0, np.nan]), r"state\[1\] is nan"),
        (nested(state=np.array([1e300, 0.0])), r"state\[0\] is 1e\+300"),
        (nested(state=np.array([True, False])), "dtype bool"),
        (nested(state=["a", "b"]), "expected numbers"),
        (nested(state=[[1], [1, 2]]), "not an array of numbers"),
        (nested(prompt=None), "lacks its prompt"),
        (nested(prompt=b"lift"), "prompt: a bytes"),
        (nested(prompt=["lift"]), "prompt: a list"),
        (nested(prompt="  "), "prompt: empty"),
        (nested(prompt="a" * 2001), "2001 characters"),
        (nested(task="lift"), "'prompt' is given twice"),
        (nested(actions=STATE), "unknown key 'actions'"),
        (nested(**{"observation/joint": STATE}), "unknown key 'observation/joint'"),
        (nested(**{"observation.images.": HIGH}), "unknown key"),
        (nested(**{"observation/cam_high": HIGH}), "'cam_high' is given twice"),
    ],
)
def test_what_would_be_misread_is_refused_in_one_line(reader, message, error):
    with pytest.raises(BadRequest, match=error) as caught:
        reader.read(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_control_block_is_read(reader):
    block = {"session": "w1", "key": [1, "lift", 100000, 3], "reset": True, "executed": 8}
    block |= {"execute": 8, "delay": 20}
    control = reader.control(nested(ofp=block))
    assert control.key == NoiseKey(1, "lift", 100000, 3)
    assert (control.session, control.reset, control.executed) == ("w1", True, 8)
    assert (control.execute, control.delay) == (8, 20)
    bare = reader.control(nested())
    assert (bare.session, bare.key, bare.reset, bare.executed) == ("", None, False, None)
    assert (bare.execute, bare.delay) == (None, None)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ([], "ofp: a list"),
        ({"sesion": "a"}, r"unknown keys \['sesion'\]"),
        ({"session": 3}, "ofp.session"),
        ({"session": "a" * 201}, "at most 200 characters"),
        ({"reset": 1}, "ofp.reset is a int"),
        ({"executed": 9}, "ofp.executed is 9, a chunk of this policy has 8"),
        ({"executed": -1}, "ofp.executed is -1"),
        ({"executed": 2.0}, "ofp.executed is a float"),
        ({"execute": 0}, "ofp.execute is 0, a chunk of this policy has 8"),
        ({"execute": 9}, "ofp.execute is 9, a chunk of this policy has 8"),
        ({"delay": -1}, "ofp.delay is -1"),
        ({"delay": True}, "ofp.delay is a bool"),
        ({"key": [1, "a", 2]}, "ofp.key: expected"),
        ({"key": [1, 2, 3, 4]}, "ofp.key: expected"),
        ({"key": [1, "a", 2, True]}, "ofp.key: chunk is a bool"),
        ({"key": [1, "a" * 201, 2, 3]}, "at most 200"),
    ],
)
def test_a_wrong_control_block_is_refused(reader, block, error):
    with pytest.raises(BadRequest, match=error):
        reader.control(nested(ofp=block))


@pytest.mark.parametrize("message", [None, 3, "text", [1], b"bytes"])
def test_a_message_must_be_a_map(reader, message):
    with pytest.raises(BadRequest, match="expected a map"):
        reader.control(message)
