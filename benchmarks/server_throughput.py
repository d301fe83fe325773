"""Chunks a second of the policy server on the tiny base, for one client and for several at once.

    python benchmarks/server_throughput.py [--clients 8] [--seconds 4] [--rounds 3]

Each client is a process of its own that asks for the next chunk as soon as it has the last one. Rounds of one
and of several clients alternate, so that other load falls on both alike. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import numpy as np

from robotwin_eval.policy.client import RemotePolicy
from robotwin_eval.policy.protocol import NoiseKey, Observation, Request


def run_client(url: str, row: int, orders: Connection) -> None:
    """Asks for chunks during every interval (start, end) that `orders` names.

    Answers with their number, the median of their seconds and the mean number of chunks a pass.
    """
    rng = np.random.default_rng(row)
    with RemotePolicy(url) as policy:
        images = {name: rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for name in policy.cameras}
        seen = Observation(images, np.zeros(policy.state_dim or 0, np.float32))
        orders.send("ready")
        while (order := orders.recv()) is not None:
            start, end = order
            time.sleep(max(0.0, start - time.time()))
            latencies: list[float] = []
            batches: list[int] = []
            while not batches or time.time() < end:
                key = NoiseKey(0, "benchmark", row, len(batches))
                began = time.perf_counter()
                reply = policy.infer([Request(f"s{row}", seen, "press the green button", key, True, 0)])[0]
                latencies.append(time.perf_counter() - began)
                batches.append(reply.batch)
            orders.send((len(batches), statistics.median(latencies), statistics.fmean(batches)))


def measure(clients: list[Connection], seconds: float) -> dict[str, float]:
    """Chunks a second of all `clients` together, median latency and mean batch."""
    start = time.time() + 0.2
    for client in clients:
        client.send((start, start + seconds))
    counts, latencies, batches = zip(*(client.recv() for client in clients), strict=True)
    elapsed = time.time() - start  # the last answers come a little after the end
    return {
        "chunks_per_second": sum(counts) / elapsed,
        "latency_ms": 1e3 * statistics.median(latencies),
        "batch": statistics.fmean(batches),
    }


def main() -> None:
    """Prints a table and, last, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gather-ms", type=float, default=0.0)
    options = parser.parse_args()
    # Here, because a client's process imports this file too and needs none of it.
    import torch

    from ofp_vla.checkpoints.assets import tiny_base
    from ofp_vla.policies.checkpoint import load_policy
    from ofp_vla.serving.local_policy import LocalPolicy
    from ofp_vla.serving.server import PolicyServer

    policy = LocalPolicy(load_policy(tiny_base()), "tiny base", limits=None, warm=False)
    context = multiprocessing.get_context("spawn")
    found: dict[int, list[dict[str, float]]] = {1: [], options.clients: []}
    with PolicyServer(policy, gather=options.gather_ms / 1e3) as server:
        pipes = [context.Pipe() for _ in range(options.clients)]
        processes = [
            context.Process(target=run_client, args=(server.url, row, theirs), daemon=True)
            for row, (_, theirs) in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        ours = []
        for mine, theirs in pipes:
            theirs.close()  # so that a client that died is an error here
            mine.recv()
            ours.append(mine)
        measure(ours, 1.0)  # everyone connected and warm
        for _ in range(options.rounds):
            for count in found:
                found[count].append(measure(ours[:count], options.seconds))
        for pipe in ours:
            pipe.send(None)
        for process in processes:
            process.join(10)
    medians = {
        count: {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        for count, rounds in found.items()
    }
    ratio = medians[options.clients]["chunks_per_second"] / medians[1]["chunks_per_second"]
    for count, row in medians.items():
        print(
            f"{count:2d} clients {row['chunks_per_second']:8.1f} chunks/s {row['latency_ms']:8.1f} ms a chunk"
            f" {row['batch']:5.1f} chunks a pass"
        )
    print(f"ratio {ratio:.2f}")
    print(
        json.dumps(
            {
                "benchmark": "server_throughput",
                "clients": {str(count): row for count, row in medians.items()},
                "ratio": ratio,
                "gather_ms": options.gather_ms,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            }
        )
    )


if __name__ == "__main__":
    main()
