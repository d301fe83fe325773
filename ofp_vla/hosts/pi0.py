"""π0 as an interval field: time is mixed into the action tokens, the state is a token before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch
from torch import Tensor, nn

from ofp_vla.hosts.architectures.paligemma_arch import SIZES, PaliGemmaSize, SizedPaliGemmaWithExpert
from ofp_vla.hosts.attention import packed_mask
from ofp_vla.hosts.fast.fast_path import Times
from ofp_vla.hosts.fast.fused_layers import multiply
from ofp_vla.hosts.host import Prefix
from ofp_vla.hosts.interval import MixedTimeHost
from ofp_vla.hosts.paligemma import PaliGemmaHost


class SizedPI0(PI0Pytorch):
    """LeRobot's π0 core at a chosen size; parameter names and forward passes are the stock ones."""

    def __init__(self, config: Any, size: PaliGemmaSize, rtc_processor: object | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.rtc_processor = rtc_processor
        # π0's version of this class differs from π0.5's in comments only.
        self.paligemma_with_expert = SizedPaliGemmaWithExpert(config, size, adaptive=False)
        width = size.expert_width
        self.action_in_proj = nn.Linear(config.max_action_dim, width)
        self.action_out_proj = nn.Linear(width, config.max_action_dim)
        self.state_proj = nn.Linear(config.max_state_dim, width)
        self.action_time_mlp_in = nn.Linear(2 * width, width)
        self.action_time_mlp_out = nn.Linear(width, width)
        self.gradient_checkpointing_enabled = False


class Pi0Host(MixedTimeHost, PaliGemmaHost):
    """LeRobot's `PI0Pytorch`; time = sincos(s) + φ(s - s') enters the MLP that makes the action tokens.

    The state token sees the prefix and itself, so it is the same for every query: a pass holds only one,
    before all packed chunks. The null condition hides it together with the prefix.
    """

    title = "π0"
    stock_names: ClassVar[Mapping[str, str]] = {r"^model\.time_mlp_(in|out)\.": r"model.action_time_mlp_\1."}
    lora_targets = (
        r"(.*\.gemma_expert\.model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        r"|model\.(state_proj|action_time_mlp_in|action_time_mlp_out|action_in_proj|action_out_proj))"
    )
    fixed_settings = (*PaliGemmaHost.fixed_settings, "max_state_dim")

    @staticmethod
    def build(config: Any, rtc_processor: object | None = None) -> nn.Module:
        """LeRobot's `PI0Pytorch`, or the same classes at a smaller size."""
        if config.arch == "full":
            return PI0Pytorch(config, rtc_processor=rtc_processor)
        return SizedPI0(config, SIZES[config.arch], rtc_processor)

    def products(self) -> dict[str, Any]:
        """See `PackingHost.products`."""
        return {"state_proj": self.model.state_proj} | super().products()

    def fast_tokens(self, z: Tensor, times: Times, state: Tensor | None) -> Tensor:
        """See `PackingHost.fast_tokens`; every chunk has the state token of its observation before it."""
        tokens = super().fast_tokens(z, times, state)
        product = times.pack.products["state_proj"]
        first = multiply(self._required(state).to(product.weight.dtype), product)[:, None]
        return torch.cat([first.repeat_interleave(len(z) // len(first), dim=0), tokens], dim=1)

    def _expert(self, prefix: Prefix, z: Tensor, condition: Tensor, null: Tensor | None) -> Tensor:
        """See `FlowHost.expert`; the sequence is the state token and then Q chunks of H tokens."""
        batch, queries, horizon, _ = z.shape
        actions = self._action_tokens(z.flatten(0, 1), condition)
        state = self._state_token(prefix.state)
        hidden = torch.cat([state, actions.view(batch, queries * horizon, -1).to(state.dtype)], dim=1)
        steps = torch.arange(1, horizon + 1, device=z.device).repeat(queries)
        positions = prefix.length[:, None] + torch.cat([steps.new_zeros(1), steps])[None, :]
        hidden = self._run_expert(prefix, hidden, positions, _mask_with_state(prefix, null, queries, horizon))
        return self._velocity(hidden[:, 1:]).view(batch, queries, horizon, -1)


def _mask_with_state(prefix: Prefix, null: Tensor | None, queries: int, horizon: int) -> Tensor:
    """(B, 1, 1 + Q*H, P + 1 + Q*H) bool: null queries see neither the state token nor the prefix."""
    real = torch.cat([prefix.mask, torch.ones_like(prefix.mask[:, :1])], dim=1)
    actions = packed_mask(real, null, queries, horizon)
    # The state token is part of the condition: it sees what a query that is not null sees of it.
    state = torch.zeros_like(actions[:, :, :1])
    state[..., : real.shape[1]] = real[:, None, None]
    return torch.cat([state, actions], dim=2)
