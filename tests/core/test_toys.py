"""One-dimensional modes learnt from scratch: which objective keeps them apart in one step, and by how much.

The references are shares of samples within .3 of a mode, as the mean over ten seeds and three kernels; a
bound beside one is five standard deviations. What is compared with one another differs by as much or more.
"""

import copy

import pytest
import torch

from ofp_vla.core import ActionChunk, EmaDecay, sample, update_ema
from ofp_vla.core.objectives import OFP, OFPConfig
from tests.core.fields import Mlp

MODES = {"two": (-1.0, 1.0), "three": (-1.5, 0.0, 1.5)}
PLAIN = {"guidance_weight": 0.0, "flow_time_alpha": 1.0, "queries": 1, "warm_share": 0.0}
SETTINGS = {
    "paper": OFPConfig.scratch(**PLAIN, endpoint_weight=0.0, first_leg="data", rho_end=0.02),
    "ema leg": OFPConfig.scratch(**PLAIN, endpoint_weight=0.0, first_leg="ema"),
    "endpoint": OFPConfig.scratch(**PLAIN, consistency_weight=0.0),
    "both": OFPConfig.scratch(**PLAIN),
}


def train(config: OFPConfig, modes: torch.Tensor, steps: int = 1500, batch: int = 256) -> Mlp:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    student = Mlp()
    ema = copy.deepcopy(student).requires_grad_(False)
    objective, decay = OFP(config), EmaDecay(0.999)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for k in range(steps):
        chosen = modes[torch.randint(len(modes), (batch,), generator=generator)]
        actions = chosen + 0.1 * torch.randn(batch, generator=generator)
        losses = objective(
            {"student": student, "ema": ema},
            ActionChunk.full(actions[:, None, None]),
            progress=k / steps,
            generator=generator,
        )
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        schedule.step()
        update_ema(list(student.parameters()), list(ema.parameters()), decay(k))
    return ema


@torch.no_grad()
def share_on_modes(field: Mlp, modes: torch.Tensor, **sampling) -> float:
    noise = torch.randn(8192, 1, 1, generator=torch.Generator().manual_seed(9))
    chunks = sample(field, noise, **sampling)[:, 0]
    return float(((chunks - modes).abs().min(dim=1).values < 0.3).float().mean())


# Shares at one and at four steps, each with its bound. Three modes are for the shipped objective alone: with
# the EMA's leg it was .51 and .88 there, with the endpoint .90 and .82.
TABLE = {
    ("two", "paper"): ((0.39, 0.18), (0.93, 0.04)),
    ("two", "ema leg"): ((0.76, 0.16), (0.96, 0.04)),
    ("two", "endpoint"): ((0.96, 0.04), (0.94, 0.07)),
    ("two", "both"): ((0.96, 0.04), (0.96, 0.04)),
    ("three", "both"): ((0.89, 0.05), (0.86, 0.11)),
}


@pytest.fixture(scope="module")
def trained():
    return {(toy, name): train(SETTINGS[name], torch.tensor(MODES[toy])) for toy, name in TABLE}


@pytest.fixture(scope="module")
def shares(trained):
    return {
        (toy, name, nfe): share_on_modes(field, torch.tensor(MODES[toy]), steps=nfe)
        for (toy, name), field in trained.items()
        for nfe in (1, 2, 4)
    }


@pytest.mark.slow
@pytest.mark.parametrize(("toy", "name"), TABLE)
def test_share_on_modes_is_near_the_reference_at_one_and_four_steps(shares, toy, name):
    for steps, (share, bound) in zip((1, 4), TABLE[toy, name], strict=True):
        assert shares[toy, name, steps] == pytest.approx(share, abs=bound)


@pytest.mark.slow
def test_one_step_order_is_ema_leg_then_endpoint(shares):
    leg, endpoint, both = (shares["two", name, 1] for name in ("ema leg", "endpoint", "both"))
    assert leg < min(endpoint, both) - 0.04


@pytest.mark.slow
def test_data_leg_leaves_more_between_the_modes_in_one_step_than_the_ema_leg(shares):
    assert shares["two", "paper", 1] + 0.1 < shares["two", "ema leg", 1]


@pytest.mark.slow
def test_consistency_beside_the_endpoint_keeps_two_steps_alive(shares):
    """The endpoint alone never learns an interval that starts halfway: two steps then give from .5 to .9."""
    assert 0.83 < shares["two", "both", 2] < shares["two", "both", 4]


@pytest.mark.slow
@pytest.mark.parametrize(("toy", "name"), TABLE)
def test_ten_steps_of_the_diagonal_stay_a_good_flow(trained, toy, name):
    modes = torch.tensor(MODES[toy])
    assert share_on_modes(trained[toy, name], modes, steps=10, diagonal=True) > 0.88


@pytest.mark.slow
def test_naive_euler_step_of_the_two_mode_flow_lands_between_the_modes(trained):
    noise = torch.randn(2048, 1, 1, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        chunks = sample(trained["two", "paper"], noise, steps=1, diagonal=True)
    assert float((chunks.abs() < 0.5).float().mean()) > 0.98
