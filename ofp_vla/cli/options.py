"""Options that change how a checkpoint acts; without them it acts as it says."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Sampler(StrEnum):
    """Which sampler turns noise into an action chunk."""

    interval = "interval"
    host = "host"


class Choice(StrEnum):
    """Which of several draws is carried out, see `ofp_vla.core.choosing`."""

    dense = "dense"
    walk = "walk"
    first = "first"


Draws = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Chunks drawn in the same evaluations, of which one is carried out; as the checkpoint says.",
    ),
]
Choose = Annotated[
    Choice | None,
    typer.Option(
        help="Which of the draws: dense, where most of them lie; walk, dense near the first one; first. As "
        "the checkpoint says."
    ),
]
DoubtSteps = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Network evaluations for a chunk whose draws disagree; 0 for no more than others. As the "
        "checkpoint says.",
    ),
]
Doubt = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Spread of the draws, in normalised units, beyond which they disagree; as the checkpoint says.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Network evaluations for a chunk (NFE); as the checkpoint says. Of another --sampler than its "
        "own: 1 for interval, the host's number for host.",
    ),
]
SamplerOption = Annotated[
    Sampler | None,
    typer.Option("--sampler", help="The interval sampler or the host's own; as the checkpoint says."),
]
Engine = Annotated[
    str | None,
    typer.Option(
        metavar="on|off|-LEVER,...",
        help="The fast path (docs/performance.md), or what of it is left out; as the checkpoint says.",
    ),
]
_WARM = "Start a chunk from the one before it in its session, or from noise; as the checkpoint says."
Warm = Annotated[bool | None, typer.Option("--warm/--no-warm", help=_WARM)]
WarmOrCold = Annotated[bool | None, typer.Option("--warm/--no-warm", " /--cold", help=_WARM)]
