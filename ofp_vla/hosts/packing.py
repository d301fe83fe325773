"""Hosts that act by packed copies of their weights where they can, and by LeRobot's modules where not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ofp_vla.hosts.fast.fast_path import FastPath, Pack, Times
from ofp_vla.hosts.fast.packed import ExpertPack
from ofp_vla.hosts.host import FlowHost
from ofp_vla.hosts.observation import Prefix
from ofp_vla.hosts.roles import STUDENT


class PackingHost(FlowHost):
    """The part of a host that says what is packed, and when a pass reads it.

    Attributes:
        fast_path: its passes over packed weights.
        fast: those of this host.
    """

    fast_path: ClassVar[type[FastPath]] = FastPath

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fast: Any = self.fast_path(self)

    # ---- what the fast path asks

    @abstractmethod
    def products(self) -> dict[str, Any]:
        """Linear modules around the expert, which packs hold, by name; one is `action_out_proj`."""

    @abstractmethod
    def timed(self) -> list[nn.Module]:
        """Modules that make what the expert reads of an interval; norms apart."""

    @abstractmethod
    def times(self, pack: ExpertPack, condition: Tensor) -> Times:
        """What the expert makes of conditions (n, W)."""

    @abstractmethod
    def fast_tokens(self, z: Tensor, times: Times, state: Tensor | None) -> Tensor:
        """Tokens (N, S, W) of chunks (N, H, D); a state token stands first.

        Args:
            z: chunks of B observations, N a multiple of B.
            times: one interval for all, or one for each chunk.
            state: (B, D) of the observations, for hosts whose expert reads it.
        """

    @abstractmethod
    def _language_type(self) -> torch.dtype:
        """Type of the language model's weights."""

    @abstractmethod
    def _expert(self, prefix: Prefix, z: Tensor, condition: Any, null: Tensor | None) -> Tensor:
        """`expert` by LeRobot's modules."""

    def vision_type(self) -> torch.dtype | None:
        """Type of SigLIP's products on the fast path; None for that of its weights."""
        return self._language_type() if self.levers.vision else None

    # ---- what others ask of a host

    def pack(self, role: str = STUDENT) -> Pack | None:
        """See `FlowHost.pack`; `fast.reason` says why there is none."""
        with self.roles.use(role):
            return self.fast.pack()

    def packs_are_true(self) -> bool:
        """See `FlowHost.packs_are_true`."""
        return self.fast.fresh()

    def forget_packs(self) -> None:
        """See `FlowHost.forget_packs`."""
        self.fast.forget()

    def verify_packs(self) -> None:
        """See `FlowHost.verify_packs`."""
        self.fast.verify()

    def prepared(self, intervals: Sequence[tuple[float, float]]) -> Sequence[Any]:
        """See `FlowHost.prepared`; constants of the pack where there is one."""
        pack = self.fast.expert_pack()
        if pack is None:
            return super().prepared(intervals)

        def make(intervals: Sequence[tuple[float, float]]) -> list[Times]:
            return self.times(pack, self.conditions(intervals)).split()

        return pack.known_times(intervals, make) if self.levers.constants else make(intervals)

    def rows_of(self, levels: Sequence[Any], index: Tensor) -> Any:
        """See `FlowHost.rows_of`."""
        if isinstance(levels[0], Times):
            return Times.rows(levels, index)
        return super().rows_of(levels, index)

    def expert(self, prefix: Prefix, z: Tensor, condition: Any, null: Tensor | None) -> Tensor:
        """See `FlowHost.expert`; by the modules where a derivative is carried forward, as by any gradient."""
        self.passes["expert"] += 1
        if isinstance(condition, Tensor) and forward_ad.unpack_dual(z).tangent is None:
            pack = self.fast.expert_pack()
            condition = condition if pack is None else self.times(pack, condition)
        if isinstance(condition, Times):
            return self.fast.expert(prefix, z, condition, null)
        return self._expert(prefix, z, condition, null)
