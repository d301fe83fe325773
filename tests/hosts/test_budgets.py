"""What a chunk and a training step of each host may cost, counted: no more than tests/budgets.json says.

What is compiled of a training step is counted in `tests/training/test_compiled_training.py`.

`pytest tests/hosts/test_budgets.py --write-budgets` writes what they cost now: a number that rises is a
decision.
"""

import json
from pathlib import Path

import pytest
import torch

from ofp_vla.core import field
from ofp_vla.core.objectives import OFPConfig
from ofp_vla.counting import count
from ofp_vla.policies.sampling import Sampling
from tests.support.tiny import tiny_batch, tiny_policy, train_head

FILE = Path(__file__).parents[1] / "budgets.json"
CHUNKS = {
    "chunk, one step": Sampling("interval", 1, False),
    "chunk, eight draws": Sampling("interval", 1, False, 8),
    "chunk, ten steps": Sampling("interval", 10, False),
}
WORK = (*CHUNKS, "training step")


def costs(host, work):
    """FLOPs, operator calls, bytes of weights, waits and passes of one piece of work at the tiny size."""
    policy = tiny_policy(host=host, total_steps=10, ofp=OFPConfig(endpoint_steps=4))
    train_head(policy)
    batch = tiny_batch(1)
    if work == "training step":
        policy.train()
        policy(batch)[0].backward()  # makes the roles
        run = lambda: policy(batch)[0].backward()  # noqa: E731
    else:
        run = lambda: policy.draw(batch, sampling=CHUNKS[work])  # noqa: E731
        run()  # makes copies and constants
    torch.manual_seed(0)
    policy.host.passes.clear()
    with torch.no_grad():
        pack = policy.host.pack()
    weights = [*policy.parameters(), *(pack.tensors() if pack is not None else ())]
    return count(run, weights).describe() | dict(policy.host.passes)


def refuse_more(host, work, found, budget):
    over = {
        name: f"{number:,} instead of {budget.get(name, 0):,} (+{number - budget.get(name, 0):,})"
        for name, number in found.items()
        if number > budget.get(name, 0)
    }
    assert not over, f"{host}, {work}: {over}; if this is meant, change tests/{FILE.name}"


@pytest.mark.parametrize("work", WORK)
def test_work_stays_within_its_budget(host, work, monkeypatch, request):
    monkeypatch.setattr(field, "_ordered", lambda t, r: True)  # asked on a CPU only
    known, found = json.loads(FILE.read_text()), costs(host, work)
    if request.config.getoption("--write-budgets"):
        known[host][work] = found
        FILE.write_text(json.dumps(known, indent=2) + "\n")
    refuse_more(host, work, found, known[host][work])


def test_what_is_over_its_budget_is_told_with_the_difference_and_the_file():
    with pytest.raises(AssertionError, match=r"calls.*7 instead of 5 \(\+2\).*change tests/budgets\.json"):
        refuse_more("pi05", "chunk, one step", {"calls": 7, "waits": 0}, {"calls": 5, "waits": 1})
