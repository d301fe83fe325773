"""Two processes, or a batch in parts, train as one process does on the same frames: losses, weights, EMA."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import (
    _validate_launch_command,
    launch_command_parser,
    prepare_multi_gpu_env,
)
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file

from ofp_vla.policies import load_policy
from tests.support.tiny import random_stats, tiny_policy
from tests.training.conftest import arguments

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "training.md"
DRIVER = Path(__file__).with_name("parallel_driver.py")
STEPS, SAVED, FRAMES = 3, 2, 4
# Adam divides each gradient by its own size: where the true one is zero, rounding alone would make whole
# steps. An eps above the rounding leaves the differences that these tests are about.
EPS = 1e-3
# How far apart rounding may take two trainings, as a share of the student's way from its average. On three
# kernels and three hosts it was 3e-4 at most; a gradient of twice the size makes 4 and more.
TOLERANCE = 0.01
ROLES = ("student", "ema")
OTHERS = ("pi0", "smolvla")


@dataclass(frozen=True)
class Job:
    """A training: from which base, a batch in how many parts, by LoRA or whole, sharded or not.

    With `resumes`, the training of that name goes on from its checkpoint. To Adam, gradients of twice the
    size are an `eps` of half the size.
    """

    base: Path
    parts: int = 1
    lora: bool = False
    fsdp: bool = False
    resumes: str | None = None
    eps: float = EPS


def make_base(folder, words, host="pi05"):
    """A tiny policy with its processors."""
    policy = tiny_policy(host=host, tokenizer_name=str(words))
    for part in (policy, *make_pre_post_processors(policy.config, dataset_stats=random_stats())):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(words, tmp_path_factory):
    """What every training of π0.5 starts from."""
    return make_base(tmp_path_factory.mktemp("base") / "base", words)


@pytest.fixture(scope="module")
def others(words, tmp_path_factory):
    """What every training of the other hosts starts from."""
    folder = tmp_path_factory.mktemp("others")
    return {host: make_base(folder / host, words, host) for host in OTHERS}


def documented_sharding(folder):
    """What `accelerate launch` tells the processes of the FSDP configuration in docs/training.md."""
    path = folder / "fsdp.yaml"
    path.write_text(re.search(r"```yaml\n(# fsdp.yaml\n.*?)```", DOCUMENT.read_text(), re.DOTALL).group(1))
    settings, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    )
    told = prepare_multi_gpu_env(settings)
    return {name: value for name, value in told.items() if name.startswith("FSDP_")}


def run(folder, dataset, processes, jobs):
    """Trains each of `jobs` in so many processes, in one launch; gives what each process saw and made."""
    listed = []
    for name, job in jobs.items():
        place = folder / name
        place.mkdir()
        peft = {"peft__method_type": "LORA", "peft__r": 4} if job.lora else {}
        command = arguments(
            dataset,
            place / "run",
            policy__path=job.base,
            policy__optimizer_lr=1e-2,
            policy__optimizer_eps=job.eps,
            policy__ema_decay=0.9,
            policy__scheduler_warmup_steps=0,
            steps=STEPS,
            save_freq=SAVED,
            batch_size=FRAMES // processes,
            **peft,
        )
        if job.resumes:
            saved = folder / job.resumes / "run" / "checkpoints" / f"{SAVED:06d}" / "pretrained_model"
            command = [f"--config_path={saved / 'train_config.json'}", "--resume=true"]
        listed.append({"folder": str(place), "arguments": command, "parts": job.parts, "fsdp": job.fsdp})
    (folder / "jobs.json").write_text(json.dumps(listed))
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    environment = {
        **os.environ,
        **documented_sharding(folder),
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*launcher, str(DRIVER), str(folder / "jobs.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: [torch.load(folder / name / f"rank{rank}.pt") for rank in range(processes)] for name in jobs
    }


@pytest.fixture(scope="module")
def alone(base, others, images, tmp_path_factory):
    """One process on batches of four frames, whole and in four parts, and by LoRA for every host."""
    jobs = {"whole": Job(base), "parts": Job(base, parts=4), "lora": Job(base, lora=True)}
    jobs |= {host: Job(other, lora=True) for host, other in others.items()}
    jobs |= {"whole doubled": Job(base, eps=EPS / 2)}
    jobs |= {"smolvla doubled": Job(others["smolvla"], lora=True, eps=EPS / 2)}
    return run(tmp_path_factory.mktemp("alone"), images, 1, jobs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def together(base, others, images, folder):
    """Two processes on two frames each, in one launch.

    Under DDP whole, in two parts and by LoRA; under FSDP by LoRA, whole and in two parts, and for every host.
    """
    jobs = {
        "whole": Job(base),
        "parts": Job(base, parts=2),
        "lora": Job(base, lora=True),
        "fsdp": Job(base, lora=True, fsdp=True),
        "fsdp parts": Job(base, parts=2, lora=True, fsdp=True),
        "fsdp resumed": Job(base, lora=True, fsdp=True, resumes="fsdp"),
        **{host: Job(other, lora=True, fsdp=True) for host, other in others.items()},
    }
    return run(folder, images, 2, jobs)


def size(base):
    """Numbers in the base's weights."""
    return sum(tensor.numel() for tensor in load_file(base / "model.safetensors").values())


def gaps(tensors, others):
    """Name -> how far apart two states of the same weights are, as Euclidean norms."""
    assert tensors.keys() == others.keys()
    return {name: float((tensor - others[name]).double().norm()) for name, tensor in tensors.items()}


def apart(whole, other):
    """Greatest gap in a tensor of either role, as a share of the student's way from its average there.

    In a tensor that hardly moved, of the way in a tensor on average.
    """
    way = gaps(whole["student"], whole["ema"])
    usual = math.sqrt(sum(gap**2 for gap in way.values()) / len(way))
    return max(
        gap / max(way[name], usual) for role in ROLES for name, gap in gaps(other[role], whole[role]).items()
    )


def assert_same_training(whole, ranks):
    """`ranks` trained as the one process `whole` did, on the same frames at each step."""
    for step, frames in enumerate(whole["frames"]):
        assert len(frames) == FRAMES
        assert sorted(frame for rank in ranks for frame in rank["frames"][step]) == sorted(frames)
    losses = [sum(step) / len(ranks) for step in zip(*(rank["losses"] for rank in ranks), strict=True)]
    assert losses == pytest.approx(whole["losses"], rel=1e-5)
    for rank in ranks:
        assert rank["steps"] == whole["steps"] == STEPS
        assert apart(whole, rank) < TOLERANCE


@pytest.mark.parametrize("name", ["whole", "smolvla"])
def test_gradients_of_twice_the_size_would_be_far_outside_the_tolerance(alone, name):
    (once,), (twice,) = alone[name], alone[f"{name} doubled"]
    assert apart(once, twice) > 50 * TOLERANCE
    assert len(set(once["losses"])) == STEPS


def test_a_batch_in_parts_trains_as_the_whole_batch(alone):
    assert_same_training(alone["whole"][0], alone["parts"])


def test_two_processes_under_ddp_train_as_one_on_the_same_frames(alone, together):
    assert not set(together["whole"][0]["frames"][0]) & set(together["whole"][1]["frames"][0])
    assert_same_training(alone["whole"][0], together["whole"])


def test_both_ranks_of_ddp_hold_the_same_bits_and_one_of_them_saved_them(together, folder):
    first, second = together["whole"]
    checkpoint = folder / "whole" / "run" / "checkpoints" / f"{STEPS:06d}" / "pretrained_model"
    for role, file in (("student", "model.safetensors"), ("ema", "ema.safetensors")):
        saved = load_file(checkpoint / file)
        assert first[role].keys() == second[role].keys()
        for name, tensor in first[role].items():
            assert torch.equal(tensor, second[role][name]), (role, name)
            assert torch.equal(tensor, saved[name]), (role, name)
    assert any(not torch.equal(first["ema"][name], tensor) for name, tensor in first["student"].items())
    assert [rank["total"] for rank in together["whole"]] == [STEPS] * 2


def test_two_processes_with_their_batches_in_parts_train_as_one(alone, together):
    assert_same_training(alone["whole"][0], together["parts"])


def test_two_processes_under_ddp_train_adapters_as_one(alone, together):
    assert_same_training(alone["lora"][0], together["lora"])
    assert together["lora"][0]["sharded"] == 0


def test_two_processes_under_fsdp_train_adapters_as_one(base, alone, together):
    ranks = together["fsdp"]
    assert_same_training(alone["lora"][0], ranks)
    # Each process holds its half of most of the base.
    assert [rank["sharded"] for rank in ranks] == [ranks[0]["sharded"]] * 2
    assert ranks[0]["sharded"] > 0.4 * size(base)


@pytest.mark.parametrize("host", OTHERS)
def test_two_processes_under_fsdp_train_adapters_of_other_hosts_as_one(host, alone, together):
    assert_same_training(alone[host][0], together[host])
    assert together[host][0]["sharded"] > 0


def test_two_processes_under_fsdp_with_their_batches_in_parts_train_as_one(alone, together):
    assert_same_training(alone["lora"][0], together["fsdp parts"])


def test_fsdp_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(together):
    for whole, rest in zip(together["fsdp"], together["fsdp resumed"], strict=True):
        assert rest["frames"] == whole["frames"][SAVED:]
        assert rest["losses"] == pytest.approx(whole["losses"][SAVED:], rel=1e-5)
        assert apart(whole, rest) < TOLERANCE


def test_a_checkpoint_that_fsdp_trained_holds_adapter_average_and_step(together, folder):
    checkpoint = folder / "fsdp" / "run" / "checkpoints" / "last" / "pretrained_model"
    policy = load_policy(checkpoint).policy
    assert policy.config.trained_steps == STEPS
    roles = policy._prepare_roles()
    for role in ROLES:
        saved, trained = roles.tensors(role), together["fsdp"][0][role]
        assert saved.keys() == trained.keys()
        assert all(torch.equal(saved[name], tensor) for name, tensor in trained.items()), role
