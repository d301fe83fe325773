"""MeanFlow: its identity holds for exact fields, the derivative is exact, and two modes stay apart."""

import re

import pytest
import torch

from ofp_vla.core import ActionChunk, Query
from ofp_vla.core.objectives import MeanFlow, MeanFlowConfig
from ofp_vla.core.objectives.meanflow import path_slopes, total_derivatives
from tests.core.fields import ConditionedLinear, GaussianField, Mlp, Recorded, column
from tests.core.test_closed_form import Probe, gaussian_chunk, relative_to_standard_error
from tests.core.two_modes import nearby, train_jumps

JUMPS = {"queries": 1, "jump_share": 0.999, "warm_share": 0.0}


def step(student, chunk, **settings):
    config = MeanFlowConfig(**{**JUMPS, "power": 0.0, **settings})
    return MeanFlow(config)(
        {"student": student}, chunk, progress=0.0, generator=torch.Generator().manual_seed(0)
    )


class Answered:
    """A field whose answers with gradient are given numbers, so that their gradient tells the target."""

    def __init__(self, field) -> None:
        self.field, self.probe = field, Probe()

    def __call__(self, queries):
        return self.probe(queries) if torch.is_grad_enabled() else self.field(queries)


def target(field, chunk, **settings):
    student = Answered(field)
    losses = step(student, chunk, **settings)
    return student.probe.queries[0], student.probe.target(
        0, losses.terms["meanflow"].sum() / len(chunk.actions)
    )


@pytest.mark.parametrize("difference", [0.0, 0.1])
@pytest.mark.parametrize("improved", [False, True])
def test_of_dirac_data_the_exact_mean_velocity_is_the_target(improved, difference):
    exact = GaussianField(0.8, 0.0)
    chunk = ActionChunk.full(torch.full((64, 4, 8), 0.8))
    losses = step(exact, chunk, improved=improved, difference=difference)
    # the derivative of this field along its path is 0: its sign is left to the tests below
    assert losses.total.item() < 1e-5


@pytest.mark.parametrize("improved", [False, True])
def test_exact_gaussian_field_is_the_target_in_expectation(improved):
    exact = GaussianField(0.3, 0.5)
    q, wanted = target(exact, gaussian_chunk(0.3, 0.5, 512, 8, 32), improved=improved)
    jumps = q.r > q.t
    residual = (wanted - exact([q])[0])[jumps]
    z, t = q.z[jumps], column(q.t)[jumps]
    for feature in (torch.ones_like(z), z, t * z, z**2):
        assert relative_to_standard_error(residual * feature) < 4
    # with the slope subtracted instead of added it is another field
    gap = column(q.r - q.t)[jumps]
    (slope,) = total_derivatives(exact, [q], [exact.velocity(q.z, column(q.t))])
    assert relative_to_standard_error((residual - 2 * gap * slope[jumps]) * z) > 20


def test_identity_of_the_mean_velocity_holds_pointwise():
    exact = GaussianField(0.3, 0.5)
    q = Query(torch.randn(64, 4, 8), torch.rand(64) * 0.5, 0.6 + torch.rand(64) * 0.4)
    velocity = exact.velocity(q.z, column(q.t))
    (slope,) = total_derivatives(exact, [q], [velocity])
    torch.testing.assert_close(exact([q])[0], velocity + column(q.r - q.t) * slope, atol=1e-5, rtol=1e-4)


def test_derivative_is_that_of_a_linear_field_and_the_limit_of_differences():
    linear = ConditionedLinear(0)
    z, v = torch.randn(2, 5, 3, 2)
    t, r = torch.full((5,), 0.25), torch.full((5,), 0.75)
    (slope,) = total_derivatives(linear, [Query(z, t, r)], [v])
    torch.testing.assert_close(slope, linear.weight[0] * v + linear.weight[1])
    assert not slope.requires_grad
    torch.manual_seed(0)
    net = Mlp().double()
    z, v, t, r = z[:, :1, :1].double(), v[:, :1, :1].double(), t.double(), r.double()
    (slope,) = total_derivatives(net, [Query(z, t, r)], [v])
    h = 1e-5
    ahead, behind = (net([Query(z + s * h * v, t + s * h, r)])[0] for s in (1, -1))
    torch.testing.assert_close(slope, ((ahead - behind) / (2 * h)).detach().float(), atol=1e-4, rtol=1e-4)


def test_slope_over_a_piece_of_the_path_is_exact_for_lines_and_of_first_order_for_curves():
    torch.manual_seed(0)
    linear, net = ConditionedLinear(0), Mlp().double()
    z, v = torch.randn(2, 5, 3, 2).double()
    t, r = torch.full((5,), 0.25).double(), torch.full((5,), 0.75).double()
    line = Query(z.float(), t.float(), r.float())
    (slope,) = path_slopes(linear, [line], [v.float()], [linear([line])[0]], 0.1)
    torch.testing.assert_close(slope, linear.weight[0] * v.float() + linear.weight[1], atol=1e-4, rtol=1e-4)
    z, v = z[..., :1], v[..., :1]
    query = Query(z[:, :1], t, r)
    (exact,) = total_derivatives(net, [query], [v[:, :1]])
    errors = [
        (path_slopes(net, [query], [v[:, :1]], [net([query])[0]], step)[0] - exact).norm().item()
        for step in (0.02, 0.01)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


def test_slope_goes_no_further_than_the_jump_and_ignores_waves_of_time():
    class Waves:
        """Rises by .5 a unit of time, under waves with a period of .004."""

        def __call__(self, queries):
            return [
                0.5 * column(q.t) + 0.01 * torch.sin(q.t * 500 * torch.pi)[:, None, None] + 0 * q.z
                for q in queries
            ]

    asked = []

    def field(queries):
        asked.extend(queries)
        return Waves()(queries)

    t = torch.tensor([0.1, 0.3, 0.6, 0.5])
    r = torch.tensor([0.9, 0.35, 1.0, 0.5])
    query = Query(torch.zeros(4, 2, 3), t, r)
    velocity = torch.zeros(4, 2, 3)
    (slope,) = path_slopes(field, [query], [velocity], Waves()([query]), 0.1)
    torch.testing.assert_close(asked[0].t, torch.tensor([0.2, 0.35, 0.7, 0.5]))
    assert bool((slope[3] == 0).all())
    assert (slope[[0, 2]] - 0.5).abs().max() < 0.2
    (exact,) = total_derivatives(Waves(), [query], [velocity])
    assert (exact - 0.5).abs().max() > 10


def test_field_that_loses_the_derivative_is_refused():
    field = Recorded(lambda q: torch.ones_like(q.z))
    with pytest.raises(ValueError, match="no forward derivative"):
        step(Recorded(lambda q: torch.ones_like(q.z, requires_grad=True)), gaussian_chunk(0.3, 0.5))
    with pytest.raises(ValueError, match="no forward derivative"):
        total_derivatives(
            field, [Query(torch.zeros(1, 1, 1), torch.zeros(1), torch.ones(1))], [torch.zeros(1, 1, 1)]
        )


def test_times_are_two_draws_in_order_and_warm_rows_go_to_the_data():
    student = ConditionedLinear(0)
    step(student, gaussian_chunk(0.3, 0.5, 4000), warm_share=0.25)
    q = student.calls[0][0]
    warm = q.r == 1
    assert warm.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert bool((q.t[warm] == 0.15).all())
    both = torch.cat([q.t[~warm], q.r[~warm]]).logit()
    assert both.mean().item() == pytest.approx(0.4, abs=0.05)
    assert both.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("improved", [False, True])
def test_derivative_is_taken_along_the_data_line_or_the_students_own_velocity(improved):
    linear = ConditionedLinear(0)
    q, wanted = target(linear, gaussian_chunk(0.3, 0.5), improved=improved)
    chunk = gaussian_chunk(0.3, 0.5)
    line = (chunk.actions - q.z) / (1 - column(q.t))
    along = linear([Query(q.z, q.t, q.t)])[0] if improved else line
    slope = linear.weight[0] * along + linear.weight[1]
    jumps = (q.r > q.t) & (q.t < 0.9)
    expected = line + column(q.r - q.t) * slope
    torch.testing.assert_close(wanted[jumps], expected[jumps].detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("power", 1.5), ("floor", 0.0), ("time_std", 0.0), ("difference", 1.0)]
)
def test_config_error_names_field_and_value(name, value):
    with pytest.raises(ValueError, match=rf"MeanFlowConfig\.{name}.*{re.escape(str(value))}"):
        MeanFlowConfig(**{name: value})


@pytest.mark.slow
@pytest.mark.parametrize("improved", [False, True])
def test_two_modes_are_kept_apart_in_one_and_four_steps(improved):
    """From scratch, without a teacher."""
    config = MeanFlowConfig(warm_share=0.0, flow_time_alpha=1.0, improved=improved)
    net = train_jumps(MeanFlow(config), steps=400, batch=128)
    for steps in (1, 4):
        low, high = nearby(net, steps=steps)
        assert low + high > 0.75
        assert min(low, high) > 0.3
