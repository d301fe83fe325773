"""A recorder for the CPU, which repeats work by running it again on the same buffers as a graph would."""

from contextlib import nullcontext

import torch
from torch.utils._pytree import tree_leaves

from ofp_vla.hosts.recording import captures


class Fake:
    """Behaves like CUDA graphs where that can be told: fixed inputs and outputs, no Python in a repetition.

    Attributes:
        failures: errors that the next recordings raise, first to last.
        recorded: how many times work was recorded.
        repeated: how many times it was repeated.
        cleared: how often memory was given back.
    """

    def __init__(self, device=None):
        self.failures = []
        self.recorded = self.repeated = self.cleared = 0

    def aside(self):
        return nullcontext()

    def busy(self):
        return False

    def clear(self):
        self.cleared += 1

    def record(self, work):
        if self.failures:
            raise self.failures.pop(0)
        self.recorded += 1
        out = work()
        # Outputs that are inputs or weights would be written over by their own repetition.
        leaves = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]

        def repeat():
            self.repeated += 1
            again = [x for x in tree_leaves(work()) if isinstance(x, torch.Tensor)]
            for old, new in zip(leaves, again, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        return repeat, out


def install(monkeypatch):
    """Makes the CPU record by one fake, which is returned."""
    fake = Fake()
    monkeypatch.setitem(captures.RECORDERS, "cpu", lambda device: fake)
    return fake
