"""What is asked of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ofp_vla.bench.rows import BenchError

PARTS = ("acting", "stages", "training", "counts")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class BenchSettings:
    """A benchmark's settings.

    Attributes:
        checkpoint: folder or Hub name; "" for random weights.
        size: of the random weights, "tiny", "small" or "full".
        parts: which of `PARTS`.
        batches: observations a pass; training takes those above one, if there are any.
        dtype: the policy's type; None for a checkpoint's own, and bfloat16 of random weights.
        device: where.
        seconds: for all of it; what does not fit is listed as skipped.
        output: folder of page and numbers.
        compile_mode: of LeRobot's compiled sampler; "" leaves it out.
        only: words of the rows' names, of which each row must contain one; none for all rows.
    """

    checkpoint: str
    size: str
    parts: Sequence[str]
    batches: Sequence[int]
    dtype: str | None
    device: torch.device
    seconds: float
    output: Path
    compile_mode: str = ""
    only: Sequence[str] = ()

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise BenchError(
                f"--parts: {', '.join(unknown) or 'none'} given, choose among {', '.join(PARTS)}"
            )
        if not self.batches or min(self.batches) < 1:
            raise BenchError(f"--batches: expected numbers from 1 on, got {list(self.batches)}")

    @property
    def training_batches(self) -> list[int]:
        """Samples of a training step."""
        return [batch for batch in self.batches if batch > 1] or list(self.batches)

    @property
    def weights(self) -> str:
        """What is measured, in words."""
        return f"checkpoint {self.checkpoint}" if self.checkpoint else f"random, π0.5 of size {self.size}"
