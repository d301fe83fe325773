"""Interval conditioning of a pretrained flow head by a residual on its time condition.

cond = time_mlp(sincos(s)) + [φ(sincos(s - s')) - φ(sincos(0))], φ = Linear, SiLU, Linear with only the last
layer zero at the start: every interval velocity then equals the pretrained instantaneous velocity, and on the
diagonal s = s' the residual is exactly zero for ever, so that the host's own many-step mode stays available.
Hosts without adaptive norms, π0 and SmolVLA, mix the condition into the action tokens (`MixedTimeHost`).
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding
from torch import Tensor, nn

from ofp_vla.hosts.fast.fast_path import Times
from ofp_vla.hosts.fast.fused_layers import multiply
from ofp_vla.hosts.fast.packed import ExpertPack
from ofp_vla.hosts.packing import PackingHost

# Name of the head inside a policy's core, and the part of a tensor's name by which it is recognised.
HEAD_MODULE = "interval_head"
HEAD = f".{HEAD_MODULE}."


class IntervalHead(nn.Module):
    """φ: (B,) interval length in [0, 1] -> (B, width) residual of the time condition, float32."""

    def __init__(self, width: int, min_period: float, max_period: float) -> None:
        super().__init__()
        self.width = width
        self.min_period = min_period
        self.max_period = max_period
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def _embed(self, length: Tensor) -> Tensor:
        return create_sinusoidal_pos_embedding(
            length, self.width, min_period=self.min_period, max_period=self.max_period, device=length.device
        ).to(torch.float32)

    def forward(self, length: Tensor) -> Tensor:
        """Residual for interval lengths (B,); rows of length 0 are exactly 0, without gradient."""
        both = self._embed(torch.cat([length, length.new_zeros(1)]))
        # In bfloat16 the difference of two nearly equal values would keep few correct digits.
        with torch.autocast(device_type=length.device.type, enabled=False):
            phi = self.output(nn.functional.silu(self.hidden(both.to(self.hidden.weight.dtype))))
        residual = (phi[:-1] - phi[-1:]).to(torch.float32)
        return torch.where(length[:, None] == 0, torch.zeros_like(residual), residual)


class MixedTimeHost(PackingHost):
    """What π0 and SmolVLA share: sincos(s) + φ(s - s') enters the MLP that makes the action tokens."""

    def condition(self, s: Tensor, length: Tensor) -> Tensor:
        """See `FlowHost.condition`."""
        model = self.model
        width, config = model.action_in_proj.out_features, model.config
        time = create_sinusoidal_pos_embedding(
            s, width, config.min_period, config.max_period, device=s.device
        ).to(self._time_type(s))
        return time + model.interval_head(length).to(time.dtype)

    def _time_type(self, s: Tensor) -> torch.dtype:
        """Type of the time embedding beside the action tokens."""
        return s.dtype

    def products(self) -> dict[str, Any]:
        """See `PackingHost.products`."""
        names = "action_in_proj", "action_time_mlp_in", "action_time_mlp_out", "action_out_proj"
        return {name: getattr(self.model, name) for name in names}

    def timed(self) -> list[nn.Module]:
        """See `PackingHost.timed`."""
        return [self.model.interval_head]

    def times(self, pack: ExpertPack, condition: Tensor) -> Times:
        """What the time adds inside the MLP that makes the action tokens."""
        weight, bias, _ = pack.products["action_time_mlp_in"]
        time = nn.functional.linear(condition.to(weight.dtype), weight[:, weight.shape[0] :], bias)
        return Times(pack, (time[None, :, None],))

    def fast_tokens(self, z: Tensor, times: Times, state: Tensor | None) -> Tensor:
        """See `PackingHost.fast_tokens`; no state."""
        products = times.pack.products
        weight = products["action_time_mlp_in"].weight
        action = multiply(z.to(weight.dtype), products["action_in_proj"])
        (time,) = times.tensors
        hidden = nn.functional.linear(action, weight[:, : weight.shape[0]]) + time[0]
        return multiply(nn.functional.silu(hidden), products["action_time_mlp_out"])

    def _action_tokens(self, noisy: Tensor, condition: Tensor) -> Tensor:
        """Tokens (N, H, W) of chunks (N, H, D) under conditions (N, W), or (1, W) for all alike."""
        model = self.model
        action = model.action_in_proj(noisy.to(model.action_in_proj.weight.dtype))
        time = condition[:, None].expand(len(action), *action.shape[1:])
        both = torch.cat([action, time], dim=2)
        return model.action_time_mlp_out(nn.functional.silu(model.action_time_mlp_in(both)))

    def _state_token(self, state: Tensor | None) -> Tensor:
        """The token (B, 1, W) of a state (B, S)."""
        projection = self.model.state_proj
        return projection(self._required(state).to(projection.weight.dtype))[:, None]

    def _required(self, state: Tensor | None) -> Tensor:
        if state is None:
            raise ValueError(f"{self.title} needs the state: the observation was made without one")
        return state
