"""Prints, of LeRobot's training step and of OFP's, the cost without numbers and that of a real one."""

import json
from functools import partial
from pathlib import Path

import torch

from ofp_vla.bench import counts, subjects
from ofp_vla.bench.random_weights import random_config
from ofp_vla.bench.settings import BenchSettings
from ofp_vla.counting import count

# As it attends on a GPU, which is what is counted.
subjects.random_config = partial(random_config, attention="sdpa")
SETTINGS = BenchSettings("", "tiny", ("training",), (2,), "float32", torch.device("cpu"), 9.0, Path("unused"))


def main() -> None:
    for stock in (True, False):
        counter = counts.Counter("tiny", "float32")
        counted = counter.stock_step(2) if stock else counter.step("ofp", 2)
        policy = subjects.trainee(SETTINGS, "ofp", "off" if stock else "on").policy
        batch = subjects.batch_of(policy, 2)
        forward = subjects.stock_forward(policy) if stock else policy.forward
        real = count(lambda forward=forward, batch=batch: forward(batch)[0].backward(), policy.parameters())
        print(json.dumps([counted.describe(), real.describe()]))


if __name__ == "__main__":
    main()
