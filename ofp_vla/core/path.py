"""The straight path z_t = (1 - t) eps + t a from noise (t = 0) to data (t = 1) and the moves along it."""

from __future__ import annotations

from torch import Tensor


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """Views (B,) as (B, 1, ..., 1) so that it broadcasts against `like` (B, ...)."""
    return value.reshape(-1, *([1] * (like.ndim - 1)))


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 - t) eps + t a for noise and data (B, H, D) and t (B,)."""
    t = per_sample(t, noise)
    return (1 - t) * noise + t * data


def conditional_velocity(noise: Tensor, data: Tensor) -> Tensor:
    """Velocity a - eps of the straight line between one noise and one chunk; (B, H, D)."""
    return data - noise


def jump(z: Tensor, u: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """z_r = z_t + (r - t) u for a mean velocity u over [t, r]; z, u (B, H, D), t, r (B,)."""
    return z + per_sample(r - t, z) * u


def joined_velocity(first: Tensor, second: Tensor, t: Tensor, m: Tensor, r: Tensor) -> Tensor:
    """Mean velocity over [t, r] of the mean velocities over [t, m] and over [m, r].

    ((m - t) first + (r - m) second) / (r - t): equal to (z_r - z_t) / (r - t), but without the difference
    of two nearly equal positions. Shapes (B, H, D) and (B,); needs t < r.
    """
    first_share = (m - t) / (r - t)
    second_share = (r - m) / (r - t)
    return per_sample(first_share, first) * first + per_sample(second_share, second) * second
