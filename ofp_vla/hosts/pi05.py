"""π0.5 as an interval field: time enters the expert's adaptive norms, the state is text in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding
from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch
from torch import Tensor, nn

from ofp_vla.hosts.architectures.paligemma_arch import SIZES, PaliGemmaSize, SizedPaliGemmaWithExpert
from ofp_vla.hosts.attention import packed_mask
from ofp_vla.hosts.fast.fast_path import Times
from ofp_vla.hosts.fast.fused_layers import multiply
from ofp_vla.hosts.fast.packed import ExpertPack
from ofp_vla.hosts.host import Prefix
from ofp_vla.hosts.modulation import Modulation
from ofp_vla.hosts.paligemma import PaliGemmaHost


class SizedPI05(PI05Pytorch):
    """LeRobot's π0.5 core at a chosen size; parameter names and forward passes are the stock ones."""

    def __init__(self, config: Any, size: PaliGemmaSize, rtc_processor: object | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.rtc_processor = rtc_processor
        self.paligemma_with_expert = SizedPaliGemmaWithExpert(config, size, adaptive=True)
        self.action_in_proj = nn.Linear(config.max_action_dim, size.expert_width)
        self.action_out_proj = nn.Linear(size.expert_width, config.max_action_dim)
        self.time_mlp_in = nn.Linear(size.expert_width, size.expert_width)
        self.time_mlp_out = nn.Linear(size.expert_width, size.expert_width)
        self.gradient_checkpointing_enabled = False


class Pi05Host(PaliGemmaHost):
    """LeRobot's `PI05Pytorch`; cond = time_mlp(sincos(s)) + φ(s - s') reaches every norm of the expert."""

    title = "π0.5"
    reads_state = False
    # LeRobot's rule for π0 weights: the norms have no condition and the state is not text.
    stock_names: ClassVar[Mapping[str, str]] = {
        r"^model\.action_time_mlp_(in|out)\.": r"model.time_mlp_\1.",
        r"^model\.state_proj\..*": "",
        r"^model\.paligemma_with_expert\.gemma_expert\.model"
        r"\.(layers\.\d+\.(input|post_attention)_layernorm|norm)\.weight$": "",
    }
    lora_targets = (
        r"(.*\.gemma_expert\.model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|dense)"
        r"|model\.(time_mlp_in|time_mlp_out|action_in_proj|action_out_proj))"
    )

    @staticmethod
    def build(config: Any, rtc_processor: object | None = None) -> nn.Module:
        """LeRobot's `PI05Pytorch`, or the same classes at a smaller size."""
        if config.arch == "full":
            return PI05Pytorch(config, rtc_processor=rtc_processor)
        return SizedPI05(config, SIZES[config.arch], rtc_processor)

    def condition(self, s: Tensor, length: Tensor) -> Tensor:
        """See `FlowHost.condition`; in the order of LeRobot's `embed_suffix`."""
        model = self.model
        width, config = model.action_in_proj.out_features, model.config
        time = create_sinusoidal_pos_embedding(
            s, width, config.min_period, config.max_period, device=s.device
        ).to(s.dtype)
        hidden = nn.functional.silu(model.time_mlp_in(time))
        condition = nn.functional.silu(model.time_mlp_out(hidden))
        return condition + model.interval_head(length).to(condition.dtype)

    def modulations(self, condition: Tensor) -> Sequence[tuple[Modulation, ...]]:
        """For each row, what the adaptive norms make of it, in the order in which they run."""
        return list(zip(*(Modulation.of(n, condition).split() for n in self._norms()), strict=True))

    def _norms(self) -> list[Any]:
        decoder = self.model.paligemma_with_expert.gemma_expert.model
        norms = [
            n for layer in decoder.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        return [*norms, decoder.norm]

    def rows_of(self, levels: Sequence[Any], index: Tensor) -> Any:
        """See `FlowHost.rows_of`."""
        if isinstance(levels[0], Times):
            return super().rows_of(levels, index)
        return tuple(Modulation.rows(norm, index) for norm in zip(*levels, strict=True))

    def products(self) -> dict[str, Any]:
        """See `PackingHost.products`."""
        return {name: getattr(self.model, name) for name in ("action_in_proj", "action_out_proj")}

    def timed(self) -> list[nn.Module]:
        """See `PackingHost.timed`."""
        return [self.model.time_mlp_in, self.model.time_mlp_out, self.model.interval_head]

    def times(self, pack: ExpertPack, condition: Tensor) -> Times:
        """Scales, shifts and gates of all adaptive norms."""
        joined = torch.stack([norm.dense(condition) for norm in self._norms()])[:, :, None]
        scale, shift, gate = joined.chunk(3, dim=-1)
        return Times(pack, (1 + scale.float(), shift.float(), gate.to(pack.dtype)))

    def fast_tokens(self, z: Tensor, times: Times, state: Tensor | None) -> Tensor:
        """See `PackingHost.fast_tokens`."""
        product = times.pack.products["action_in_proj"]
        return multiply(z.to(product.weight.dtype), product)

    def _expert(
        self, prefix: Prefix, z: Tensor, condition: Tensor | tuple[Modulation, ...], null: Tensor | None
    ) -> Tensor:
        """See `FlowHost.expert`; the adaptive norms see (B*Q, H), since every query has its own time."""
        model = self.model
        batch, queries, horizon, _ = z.shape
        hidden = model.action_in_proj(z.flatten(0, 1).to(model.action_in_proj.weight.dtype))
        steps = torch.arange(horizon, device=z.device).repeat(queries)
        positions = prefix.length[:, None] + steps[None, :]
        mask = None
        if not (self.levers.unmasked and prefix.full and null is None and queries == 1):
            mask = packed_mask(prefix.mask, null, queries, horizon)
        hidden = self._run_expert(prefix, hidden, positions, mask, condition)
        return self._velocity(hidden).view(batch, queries, horizon, -1)
