"""`ofp-vla bench`: what acting and training cost on this machine, as table, page and numbers."""

import json
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Size(StrEnum):
    """Sizes of π0.5 with random weights."""

    tiny = "tiny"
    small = "small"
    full = "full"


class Type(StrEnum):
    """Types of a policy's weights."""

    bfloat16 = "bfloat16"
    float32 = "float32"


def bench(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint or a run, or a Hub name.")] = "",
    random_init: Annotated[
        bool,
        typer.Option("--random-init", help="Random weights of π0.5 instead of a checkpoint: needs no files."),
    ] = False,
    size: Annotated[
        Size, typer.Option(help="Of the random weights; full is the published size.")
    ] = Size.full,
    parts: Annotated[
        str, typer.Option(metavar="A,B", help="Which of acting, stages, training, counts.")
    ] = "acting,stages,training,counts",
    batches: Annotated[str, typer.Option(metavar="A,B", help="Observations or samples a pass.")] = "1,8,32",
    dtype: Annotated[
        Type | None, typer.Option(help="Type of the weights; a checkpoint's own, bfloat16 of random ones.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps; cuda where there is one.")] = "",
    seconds: Annotated[
        float, typer.Option(min=1, help="For all of it; what does not fit is listed as skipped.")
    ] = 300.0,
    output: Annotated[
        Path,
        typer.Option(help="Folder of bench.json and bench.html; rows that it holds are not measured again."),
    ] = Path("outputs/bench"),
    compile_mode: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="Also LeRobot's own sampler compiled in this mode, such as max-autotune, its default, or "
            "default; last, since it takes minutes.",
        ),
    ] = "",
    only: Annotated[
        str, typer.Option(metavar="A,B", help="Only rows whose name has one of these words.")
    ] = "",
    show: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Print the table of a bench.json as Markdown, and measure nothing."
        ),
    ] = None,
) -> None:
    """Measure acting, its stages and training on this machine, beside LeRobot's own and beside the floor.

    Times are synchronised, warm and, where rows are compared, interleaved.
    """
    from ofp_vla.bench.command import run_bench, show_bench
    from ofp_vla.bench.rows import BenchError

    if show is not None:
        typer.echo(show_bench(show), nl=False)
        return
    if bool(checkpoint) == random_init:
        raise BenchError("give a checkpoint, or --random-init for random weights; one of the two")
    summary = run_bench(
        checkpoint=checkpoint,
        size=size.value,
        parts=_words(parts),
        batches=_numbers(batches),
        dtype=dtype and dtype.value,
        device=device,
        seconds=seconds,
        output=output,
        compile_mode=compile_mode,
        only=_words(only),
        command=shlex.join(["ofp-vla", *sys.argv[1:]]),
    )
    typer.echo(json.dumps(summary, ensure_ascii=False))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    """1,8,32 as numbers.

    Raises:
        ValueError: something else.
    """
    words = _words(text)
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"--batches {text!r}: expected numbers such as 1,8,32")
    return tuple(dict.fromkeys(int(word) for word in words))
