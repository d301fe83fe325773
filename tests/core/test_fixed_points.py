"""Exact fixed points of self-consistency to r = 1 on two modes: the mode averaging a constant rho leaves.

With f(z, t) = z + (1 - t) u(z, t, 1) the term's fixed point is f(z, t) = E f(z_m, m), f(., 1) = identity.
It is solved backwards on a grid of (t, z); without a network, what is left is the objective's own.
"""

import numpy as np
import pytest

SIGMA = 0.1
Z = np.linspace(-4.5, 4.5, 1441)
T = np.linspace(0.0, 1.0, 161)
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
DATA = np.concatenate([-1 + SIGMA * NODES, 1 + SIGMA * NODES])
PRIOR = np.tile(NODE_WEIGHTS / NODE_WEIGHTS.sum() / 2, 2)


def posterior(t: float, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Noise of each data node at z, and the probability of the node given z_t = z; both (Z, A)."""
    noise = (z[:, None] - t * DATA) / (1 - t)
    logits = np.log(PRIOR) - 0.5 * noise**2
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    return noise, weight / weight.sum(axis=1, keepdims=True)


def marginal_velocity(t: float, z: np.ndarray) -> np.ndarray:
    noise, weight = posterior(t, z)
    return (weight * (DATA - noise)).sum(axis=1)


def fixed_point_at_noise(rho: float, first_leg: str, times: int = 12) -> np.ndarray:
    """f(Z, 0) with m spread evenly over [t, t + (1 - t) rho]."""
    level = np.empty((len(T), len(Z)))
    level[-1] = Z
    for k in range(len(T) - 2, -1, -1):
        t = T[k]
        noise, weight = posterior(t, Z)
        velocity = marginal_velocity(t, Z)
        moves = []
        for share in (np.arange(times) + 0.5) / times:
            m = t + (1 - t) * rho * share
            if first_leg == "data":
                moves.append((m, (1 - m) * noise + m * DATA, weight))
            else:
                moves.append((m, (Z + (m - t) * velocity)[:, None], np.ones((len(Z), 1))))
        level[k] = level[k + 1]
        # a short m falls within this very cell of the grid, hence the iteration
        for _ in range(40):
            new = np.mean([(w * between(level, k, m, z)).sum(axis=1) for m, z, w in moves], axis=0)
            change = np.abs(new - level[k]).max()
            level[k] = new
            if change < 1e-5:
                break
    return level[0]


def between(level: np.ndarray, k: int, m: float, z: np.ndarray) -> np.ndarray:
    """Bilinear f(z, m) for a time m in or after cell k."""
    i = min(max(int(np.searchsorted(T, m)) - 1, k), len(T) - 2)
    w = (m - T[i]) / (T[i + 1] - T[i])
    return (1 - w) * np.interp(z, Z, level[i]) + w * np.interp(z, Z, level[i + 1])


def shares(endpoint_of: np.ndarray) -> tuple[float, float]:
    """Shares of one-step samples on a mode (within .3) and between the modes (|x| < .5)."""
    x = np.interp(np.random.default_rng(0).standard_normal(100_000), Z, endpoint_of)
    return float(np.mean(np.abs(np.abs(x) - 1) < 0.3)), float(np.mean(np.abs(x) < 0.5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first_leg", "rho", "on_modes", "between_modes"),
    [
        ("data", 1.0, 0.02, 0.89),
        ("data", 0.25, 0.56, 0.30),
        ("data", 0.05, 0.80, 0.13),
        ("marginal", 1.0, 0.83, 0.01),
        ("marginal", 0.25, 0.99, 0.01),
    ],
)
def test_data_leg_keeps_mode_averaging_that_the_marginal_leg_has_not(first_leg, rho, on_modes, between_modes):
    on, among = shares(fixed_point_at_noise(rho, first_leg))
    assert on == pytest.approx(on_modes, abs=0.03)
    assert among == pytest.approx(between_modes, abs=0.03)


def test_one_euler_step_averages_the_modes_and_many_do_not():
    z = Z.copy()
    for t in np.arange(200) / 200:
        z = z + np.interp(z, Z, marginal_velocity(t, Z)) / 200
    assert shares(Z + marginal_velocity(0.0, Z))[0] < 0.01
    assert shares(z)[0] > 0.99
