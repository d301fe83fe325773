"""Velocity fields for the tests of the core: closed forms for Gaussian data, small networks for the rest."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ofp_vla.core import Query


def column(value: Tensor) -> Tensor:
    return value[:, None, None]


class GaussianField:
    """Exact mean velocities for data N(mean, std^2) in each entry, noise N(0, 1).

    z_t ~ N(t mean, s_t^2) with s_t^2 = (1 - t)^2 + t^2 std^2, and the flow keeps the standardised position:
    z_r = r mean + (s_r / s_t) (z_t - t mean).
    """

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std
        self.calls: list[list[Query]] = []

    def scale(self, t: Tensor) -> Tensor:
        return ((1 - t) ** 2 + t**2 * self.std**2).sqrt()

    def flow(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return r * self.mean + self.scale(r) / self.scale(t) * (z - t * self.mean)

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        """d/dt of the flow: mean + (s_t' / s_t) (z - t mean), s_t s_t' = t std^2 - (1 - t)."""
        slope = (t * self.std**2 - (1 - t)) / self.scale(t) ** 2
        return self.mean + slope * (z - t * self.mean)

    def __call__(self, queries: Sequence[Query]) -> list[Tensor]:
        self.calls.append(list(queries))
        answers = []
        for q in queries:
            t, r = column(q.t), column(q.r)
            gap = (r - t).clamp(min=1e-6)
            mean_velocity = (self.flow(q.z, t, r) - q.z) / gap
            answers.append(torch.where(r - t < 1e-4, self.velocity(q.z, t), mean_velocity))
        return answers


class Recorded:
    """Calls a function of one query and remembers what it was asked, call by call."""

    def __init__(self, answer: Callable[[Query], Tensor]) -> None:
        self.answer = answer
        self.calls: list[list[Query]] = []

    def __call__(self, queries: Sequence[Query]) -> list[Tensor]:
        self.calls.append(list(queries))
        return [self.answer(q) for q in queries]


class ConditionedLinear(nn.Module):
    """u = W [z, t, r] + b, with a second bias where the condition is dropped; every entry by itself."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, generator=g))
        self.bias = nn.Parameter(torch.randn(1, generator=g))
        self.null_bias = nn.Parameter(torch.randn(1, generator=g))
        self.calls: list[list[Query]] = []

    def forward(self, queries: Sequence[Query]) -> list[Tensor]:
        self.calls.append(list(queries))
        answers = []
        for q in queries:
            null = torch.zeros_like(q.t, dtype=torch.bool) if q.null is None else q.null
            bias = torch.where(column(null), self.null_bias, self.bias)
            w = self.weight
            answers.append(w[0] * q.z + w[1] * column(q.t) + w[2] * column(q.r) + bias)
        return answers


class Mlp(nn.Module):
    """u(z, t, r - t) of one action number by three hidden layers of 128; knows no observation."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (3, 128, 128):
            layers += [nn.Linear(width, 128), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(128, 1))

    def forward(self, queries: Sequence[Query]) -> list[Tensor]:
        rows = torch.cat([torch.stack([q.z[:, 0, 0], q.t, q.r - q.t], dim=-1) for q in queries])
        return [column(u) for u in self.net(rows)[:, 0].chunk(len(queries))]
