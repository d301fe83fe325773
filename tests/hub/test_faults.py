"""Broken networks, failing servers, damaged files: nothing is left half done, and it goes on later."""

import hashlib
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ofp_vla.checkpoints.files import file_hash, verify_cached
from ofp_vla.errors import CheckpointError
from tests.hub.loopback import Fault
from tests.support.checkpoints import act

NAME = "ada/one-step"
UPLOAD = r"^/lfs/"
STORAGE = r"^/cdn/"
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A push waits for a hundredth of its time before it tries again."""
    waiting = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 100))
    monkeypatch.setattr("ofp_vla.hub.push.time", waiting)


@pytest.mark.parametrize(
    ("path", "what"),
    [(r"/preupload/", 503), (r"/commit/", 503), (r"/commit/", "cut"), (r"/repos/create", 502)],
    ids=["preupload", "commit", "commit cut off", "create"],
)
def test_push_goes_on_after_a_passing_failure_and_makes_one_commit(hub, client, adapter, path, what):
    hub.fail("POST", path, what)
    pushed = client("push", adapter, NAME)
    assert pushed.code == 0, pushed.error
    assert hub.faults[0].seen > 1
    assert len(hub.repositories[NAME].history()) == 1


def test_commit_whose_answer_is_lost_is_not_made_twice(hub, client, adapter):
    hub.fail("POST", r"/commit/", "lose answer")
    pushed = client("push", adapter, NAME)
    assert pushed.code == 0, pushed.error
    assert len(hub.repositories[NAME].history()) == 1
    assert ADAPTER in hub.files(NAME)


def test_connection_cut_in_the_middle_of_an_upload_is_taken_up_by_the_client(hub, client, adapter):
    hub.fail("PUT", UPLOAD, "cut")
    pushed = client("push", adapter, NAME)
    assert pushed.code == 0, pushed.error
    weights = (adapter / ADAPTER).read_bytes()
    assert hub.files(NAME)[ADAPTER] == weights
    assert hub.count("PUT", UPLOAD) > len(set(hub.received))


def test_killed_upload_is_resumed_without_sending_again_what_is_there(hub, client, adapter):
    weights = hashlib.sha256((adapter / ADAPTER).read_bytes()).hexdigest()
    hub.fail("PUT", UPLOAD + f".*{weights}", "stall")
    running = client.begin("push", adapter, NAME)
    assert hub.stalled.wait(60)
    end = time.monotonic() + 30
    # The small objects, of which two are the same bytes, go up beside the one that hangs.
    while len(set(hub.received)) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    running.kill()
    hub.resume.set()
    before = set(hub.received)
    assert before
    assert weights not in before
    assert hub.repositories[NAME].history() == []
    hub.requests.clear()
    assert client("push", adapter, NAME).code == 0
    assert {path.rsplit("/", 1)[1] for method, path in hub.requests if method == "PUT"} == {weights}
    assert len(hub.repositories[NAME].history()) == 1


def test_hub_that_stays_down_is_an_error_of_one_line(hub, client, adapter):
    hub.fail("POST", r"/repos/create", 503, times=100)
    failed = client("push", adapter, NAME)
    assert failed.code == 2
    assert "unavailable (503" in failed.error
    assert "Traceback" not in failed.error


def test_server_that_is_not_there_is_an_error_that_names_its_address(hub, client, adapter):
    nowhere = client("pull", NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert nowhere.code == 2
    assert "http://127.0.0.1:9" in nowhere.error
    assert "Traceback" not in nowhere.error


@pytest.mark.parametrize("status", [409, 412])
def test_commit_of_somebody_else_in_between_is_reported(hub, client, adapter, status):
    hub.fail("POST", r"/commit/", status)
    failed = client("push", adapter, NAME)
    assert failed.code == 2
    assert "changed meanwhile" in failed.error


def test_download_that_breaks_off_is_resumed_where_it_stopped(hub, client, adapter, tmp_path):
    assert client("push", adapter, NAME).code == 0
    hub.fail("GET", STORAGE, "break off")
    pulled = client("pull", NAME, "--output", tmp_path / "here")
    assert pulled.code == 0, pulled.error
    assert (tmp_path / "here" / ADAPTER).read_bytes() == (adapter / ADAPTER).read_bytes()


@pytest.mark.parametrize("what", ["truncate", "corrupt"])
@pytest.mark.parametrize("place", ["folder", "cache"])
def test_damaged_download_is_detected_and_the_next_pull_mends_it(hub, client, adapter, tmp_path, what, place):
    assert client("push", adapter, NAME).code == 0
    weights = hashlib.sha256((adapter / ADAPTER).read_bytes()).hexdigest()
    hub.fail("GET", STORAGE + weights, what, times=1)
    command = ["pull", NAME, *(["--output", tmp_path / "here"] if place == "folder" else [])]
    damaged = client(*command)
    assert damaged.code == 2, damaged.out
    assert "damaged" in damaged.error or "incomplete" in damaged.error
    assert "Traceback" not in damaged.error
    assert not (tmp_path / "here").exists()
    mended = client(*command)
    assert mended.code == 0, mended.error
    if place == "folder":
        assert (tmp_path / "here" / ADAPTER).read_bytes() == (adapter / ADAPTER).read_bytes()
        assert sorted(path.name for path in tmp_path.glob(".here*")) == []


def test_pull_to_a_full_disk_is_an_error_and_leaves_no_folder(hub, client, adapter, tmp_path):
    assert client("push", adapter, NAME).code == 0
    full = client("pull", NAME, "--output", tmp_path / "here", file_limit=100_000)
    assert full.code == 2, full.error
    assert "Free some space" in full.error
    assert not (tmp_path / "here").exists()
    assert client("pull", NAME, "--output", tmp_path / "here").code == 0


def test_pull_refuses_a_folder_that_exists(hub, client, adapter, tmp_path):
    (tmp_path / "here").mkdir()
    refused = client("pull", NAME, "--output", tmp_path / "here")
    assert refused.code == 2
    assert "exists" in refused.error
    assert hub.requests == []


def test_damage_in_the_cache_is_found_by_the_name_of_the_content(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    content = b"weights"
    names = [hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob 7\0" + content).hexdigest()]
    for name in names:
        (blobs / name).write_bytes(content)
        link = tmp_path / f"link-{len(name)}"
        link.symlink_to(blobs / name)
        assert verify_cached(link) == link
        assert file_hash(link, name) == name
        (blobs / name).write_bytes(b"Weights")
        with pytest.raises(CheckpointError, match="damaged"):
            verify_cached(link)
    (tmp_path / "plain").write_bytes(b"anything")
    assert verify_cached(tmp_path / "plain").name == "plain"


@pytest.mark.parametrize("file", [ADAPTER, "policy_postprocessor_step_*.safetensors"])
def test_a_policy_is_not_loaded_from_a_damaged_cache(hub, client, adapter, file):
    assert client("push", adapter, NAME).code == 0
    client.call(act, NAME)
    cache = Path(client.environment["HF_HOME"]) / "hub"
    (damaged,) = (link.resolve() for link in cache.glob(f"models--ada--one-step/snapshots/*/{file}"))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1  # of the same size, and still safetensors
    damaged.write_bytes(content)
    refused = client.start(act, NAME).wait()
    assert refused.code != 0
    assert f"{damaged} in the Hub cache is damaged" in refused.error


def test_a_fault_strikes_as_often_as_it_was_told():
    fault = Fault("GET", "x", 503, times=2, after=1)
    assert [fault.strikes("GET", "/x") for _ in range(4)] == [False, True, True, False]
