"""Cost of one LoRA training step: OFP, cached-prefix flow matching, and LeRobot's own π0.5 forward.

    python benchmarks/training_cost.py [--arch small] [--rows 2] [--rounds 5]

All three train the same LoRA model on the same batch. Times are medians of interleaved rounds; only their
ratios mean anything on a shared machine. FLOPs are counted, not timed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from common import interleaved, machine, make_batch, make_policy
from lerobot.policies.pi05.modeling_pi05 import PI05Policy
from torch.utils.flop_counter import FlopCounterMode

from ofp_vla.core.objectives import OFP, FlowMatching
from ofp_vla.policies.pi05_ofp.modeling_pi05_ofp import PI05OFPPolicy


def steps(policy: PI05OFPPolicy, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], None]]:
    """The three arms as functions that run forward, backward and clear the gradients."""
    objectives = {"ofp": OFP(policy.config.ofp), "flow_matching": FlowMatching()}

    def run(name: str) -> None:
        if name == "lerobot":
            loss, _ = PI05Policy.forward(policy, batch)
        else:
            policy.objective = objectives[name]
            loss, _ = policy.forward(batch)
        loss.backward()
        policy.zero_grad(set_to_none=True)

    return {name: (lambda name=name: run(name)) for name in (*objectives, "lerobot")}


def main() -> None:
    """Prints a table and, last, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="small", choices=("tiny", "small", "full"))
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    policy = make_policy(options.arch)
    policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": options.rank})
    policy.train()
    arms = steps(policy, make_batch(options.arch, options.rows))
    flops, passes = {}, {}
    for name, run in arms.items():
        policy.host.passes.clear()
        with FlopCounterMode(display=False) as counter:
            run()
        flops[name] = counter.get_total_flops() / options.rows
        passes[name] = dict(policy.host.passes)
    seconds = interleaved(arms, options.rounds)
    print(f"{'step':16s}{'s':>9s}{'GFLOP/sample':>15s}{'vs flow matching':>18s}{'vs LeRobot':>12s}")
    for name in arms:
        print(
            f"{name:16s}{seconds[name]:9.3f}{flops[name] / 1e9:15.2f}"
            f"{seconds[name] / seconds['flow_matching']:18.2f}{seconds[name] / seconds['lerobot']:12.2f}"
        )
    print(
        json.dumps(
            {
                "benchmark": "training_cost",
                "arch": options.arch,
                "rows": options.rows,
                "rounds": options.rounds,
                "seconds": seconds,
                "gflop_per_sample": {k: v / 1e9 for k, v in flops.items()},
                "passes": passes,
                "ofp_over_flow_matching": seconds["ofp"] / seconds["flow_matching"],
                "ofp_over_lerobot": seconds["ofp"] / seconds["lerobot"],
                **machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
