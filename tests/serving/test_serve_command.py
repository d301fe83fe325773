"""`ofp-vla serve` as a process: its ready file, its options and its end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from typer.testing import CliRunner

from ofp_vla.cli import main as cli
from ofp_vla.cli import serve as cli_serve
from ofp_vla.serving.local_policy import LocalPolicy
from robotwin_eval.policy.client import IncompatibleServer, RemotePolicy, ServerLost
from tests.support.acting import HORIZON, request, write_checkpoint
from tests.support.serving import serve_command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("serve") / "checkpoint")


@pytest.mark.slow
def test_it_says_when_it_is_ready_serves_and_stops_on_ctrl_c(checkpoint, tmp_path):
    ready, token = tmp_path / "made" / "ready.json", tmp_path / "token"
    token.write_text("s3cret\n")
    options = ["--port", "0", "--ready-file", str(ready), "--token-file", str(token), "--executed", "8"]
    options += ["--steps", "2", "--warm", "--batch-invariant", "--rename", "top=cam_high", "--name", "mine"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ofp_vla.cli.main", "serve", str(checkpoint), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not ready.exists() and process.poll() is None:
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()[1][-2000:]
        told = json.loads(ready.read_text())
        assert told["pid"] == process.pid
        assert told["url"] == f"ws://127.0.0.1:{told['port']}"
        with pytest.raises(IncompatibleServer, match="without a token"):
            RemotePolicy(told["url"])
        with RemotePolicy(told["url"], token="s3cret") as remote:
            policy = remote.metadata["policy"]
            assert (policy["name"], policy["steps"], policy["warm"]) == ("mine", 2, True)
            assert remote.metadata["batch_invariant"] is True
            asked = request(0)
            asked.observation.images["top"] = asked.observation.images.pop("cam_high")
            assert remote.infer([asked])[0].actions.shape == (HORIZON, 14)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "stopped"
    assert "mine at ws://127.0.0.1" in out
    assert not ready.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_a_second_one_ends_it_at_once(number):
    stop = threading.Event()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        cli_serve._stop_on_signal(stop)
        signal.raise_signal(number)
        assert stop.is_set()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--host", "192.0.2.1", "--insecure"], "cannot listen on 192.0.2.1:8000"),
        (["--host", "0.0.0.0"], "host '0.0.0.0' can be reached from other machines"),
        (["--token-file", "{empty}"], "expected one line with the token"),
        (["--token-file", "{missing}"], "No such file"),
        (["--rename", "top"], "--rename 'top': expected NAME=VALUE"),
        (["--rename", "a=b", "--rename", "a=c"], "each name once"),
    ],
)
def test_bad_options_are_named_before_the_weights_are_read(tmp_path, options, error):
    (tmp_path / "empty").write_text("\n")
    paths = {"empty": tmp_path / "empty", "missing": tmp_path / "missing"}
    result = CliRunner().invoke(cli.app, ["serve", "nowhere", *(each.format(**paths) for each in options)])
    assert result.exit_code == 2
    assert error in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_token_from_the_environment_opens_other_addresses(monkeypatch):
    monkeypatch.setitem(os.environ, "OFP_TOKEN", "s3cret")
    result = CliRunner().invoke(cli.app, ["serve", "/no/such/checkpoint", "--host", "0.0.0.0"])
    assert result.exit_code == 2
    assert "reached from other machines" not in result.stderr
    assert "/no/such/checkpoint" in result.stderr


def test_it_ends_with_an_error_once_the_accelerator_has_failed(checkpoint, tmp_path, monkeypatch):
    ready, results = tmp_path / "ready.json", []

    def fail_after_warm_up(self, requests):
        if requests[0].session == "warm-up":
            return infer(self, requests)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def ask():
        while not ready.exists():
            time.sleep(0.05)
        with RemotePolicy(json.loads(ready.read_text())["url"]) as remote:
            try:
                results.append(remote.infer([request(0)]))
            except ServerLost as error:
                results.append(error)

    infer = LocalPolicy.infer
    monkeypatch.setattr(LocalPolicy, "infer", fail_after_warm_up)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    ended = CliRunner().invoke(cli.app, ["serve", str(checkpoint), "--port", "0", "--ready-file", str(ready)])
    asking.join(20)
    assert ended.exit_code == 2, ended.output
    assert "illegal memory access" in ended.stderr
    assert "start it again" in ended.stderr
    assert isinstance(results[0], ServerLost)


@pytest.mark.parametrize(
    ("fields", "words", "way"),
    [
        ({"sampler": "host", "num_inference_steps": 6, "warm_start": False}, [], ("host", 6, False)),
        ({"num_inference_steps": 2}, [], ("interval", 2, True)),
        ({"num_inference_steps": 2}, ["--sampler", "host", "--no-warm"], ("host", 10, False)),
        ({"num_inference_steps": 3}, ["--engine", "-times,-trim"], ("interval", 3, True)),
        ({"sampler": "host"}, ["--steps", "4"], ("host", 4, True)),
    ],
)
def test_it_acts_as_the_checkpoint_says_and_options_change_only_what_they_name(fields, words, way, tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", **fields)
    with serve_command(folder, tmp_path, *words) as (metadata, printed):
        said = metadata["policy"]
    assert (said["sampler"], said["steps"], said["warm"]) == way
    assert metadata["engine"] == ("-times,-trim" if "--engine" in words else "on")
    start = "warm" if way[2] else "cold"
    assert f"acts by {way[0]}@{way[1]} {start}" in printed[0]
    assert any("--executed" in line for line in printed) is way[2]


def test_an_unknown_lever_is_refused_as_the_configuration_does(checkpoint):
    refused = CliRunner().invoke(cli.app, ["serve", str(checkpoint), "--port", "0", "--engine", "-time"])
    assert refused.exit_code == 2
    assert "policy.engine: must be 'on', 'off', or levers to leave out" in refused.stderr


def test_a_way_to_act_that_the_checkpoint_did_not_learn_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", objective="imle", trained_steps=3)
    refused = CliRunner().invoke(cli.app, ["serve", str(folder), "--port", "0", "--sampler", "host"])
    assert refused.exit_code == 2
    assert "'imle'" in refused.stderr
    with serve_command(folder, tmp_path, "--sampler", "interval", "--steps", "1") as (metadata, _):
        assert metadata["policy"]["steps"] == 1
