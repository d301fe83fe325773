"""Batches in parts: how they are cut, what the command line makes of it, and what is refused."""

import runpy
import sys

import pytest
import torch
from lerobot.scripts import lerobot_train
from torch import nn

from ofp_vla.lerobot_seams.trainer import TRAINER
from ofp_vla.training import in_parts as accumulation
from ofp_vla.training.command import IN_PARTS, training_command
from ofp_vla.training.in_parts import split, update_in_parts


def test_parts_hold_every_row_once_and_weigh_by_their_rows():
    batch = {"x": torch.arange(7), "task": list("abcdefg"), "whole": torch.zeros(()), "other": [1, 2]}
    parts = list(split(batch, 3))
    assert [len(part["x"]) for part, _ in parts] == [2, 2, 3]
    assert torch.cat([part["x"] for part, _ in parts]).tolist() == list(range(7))
    assert "".join(letter for part, _ in parts for letter in part["task"]) == "abcdefg"
    assert [share for _, share in parts] == [2 / 7, 2 / 7, 3 / 7]
    assert all(part["whole"].shape == () and part["other"] == [1, 2] for part, _ in parts)


def test_batch_with_fewer_rows_than_parts_is_refused():
    with pytest.raises(ValueError, match="2 rows cannot be split into 3 parts"):
        list(split({"x": torch.zeros(2)}, 3))


class Line(nn.Module):
    """A policy whose loss is the mean square of its outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.updates = 0

    def forward(self, batch):
        loss = self.layer(batch["x"]).square().mean()
        return loss, {"rows": len(batch["x"]), "loss": float(loss.detach())}

    def update(self):
        self.updates += 1


class Meters:
    """Takes what LeRobot's tracker takes."""

    def update_metrics(self, values):
        self.values = values


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_gradient_loss_and_clipping_are_those_of_the_whole_batch_and_the_step_is_one(parts):
    from accelerate import Accelerator

    batch = {"x": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 10}
    ends, losses, norms = [], [], []
    for number in (1, parts):
        torch.manual_seed(0)
        policy = Line()
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        meters, log = update_in_parts(number)(
            Meters(), policy, batch, optimizer, 2.0, Accelerator(cpu=True), schedule
        )
        assert (policy.updates, schedule.last_epoch) == (1, 1)
        assert meters.values is log
        assert log["loss"] == pytest.approx(meters.loss)
        assert all(p.grad is None for p in policy.parameters())
        ends.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
        losses.append(meters.loss)
        norms.append(meters.grad_norm)
    assert norms[0] > 2.0  # clipped
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-7)


def test_our_update_in_one_part_is_lerobots():
    from accelerate import Accelerator

    batch = {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(0))}
    ends = []
    for update in (lerobot_train.update_policy, update_in_parts(1)):
        torch.manual_seed(0)
        policy = Line()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
        meters, _ = update(Meters(), policy, batch, optimizer, 0.5, accelerator=Accelerator(cpu=True))
        ends.append((meters.loss, meters.grad_norm, meters.lr, policy.updates, policy.layer.weight.detach()))
    assert ends[0][:4] == ends[1][:4]
    assert torch.equal(ends[0][4], ends[1][4])


def test_command_runs_lerobots_trainer_or_the_one_in_parts():
    plain, parts = (training_command("tiny_ofp_lora", ["steps=3"], in_parts=n) for n in (1, 4))
    assert TRAINER in plain
    assert not any("in_parts" in word for word in plain)
    place = parts.index(IN_PARTS)
    assert parts[place + 1] == "--in_parts=4"
    assert [w for w in parts if w not in (IN_PARTS, "--in_parts=4")] == [w for w in plain if w != TRAINER]


@pytest.mark.parametrize("arguments", [[], ["--in_parts=0"], ["--in_parts=two"]])
def test_number_of_parts_has_to_be_a_whole_number(arguments):
    with pytest.raises(ValueError, match="--in_parts=N is needed"):
        accumulation.main(arguments)


def test_accumulation_by_accelerate_as_well_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="would divide the loss again"):
        accumulation.main(["--in_parts=4"])


@pytest.mark.filterwarnings("ignore:'ofp_vla.training.in_parts' found in sys.modules")
def test_module_runs_lerobots_trainer_with_the_option_taken_out(monkeypatch, capsys):
    monkeypatch.setattr(lerobot_train, "update_policy", lerobot_train.update_policy)  # is put back
    monkeypatch.setattr(sys, "argv", ["in_parts", "--in_parts=2", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(accumulation.__name__, run_name="__main__")
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "--batch_size" in told
    assert "in_parts" not in told
    assert lerobot_train.update_policy.__qualname__.startswith("update_in_parts")
