"""The command `ofp-vla`: a demo, demonstrations, evaluation and a check of the installation.

Every command imports what it needs when it runs, so that `ofp-vla --help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ofp_vla._version import __version__
from ofp_vla.checkpoints.assets import PACKAGED_BASE, PACKAGED_BASES, tiny_base
from ofp_vla.cli import data as cli_data
from ofp_vla.cli import hub as cli_hub
from ofp_vla.cli import recipes as cli_recipes
from ofp_vla.cli.bench import bench
from ofp_vla.cli.open_loop import compare_open_loop
from ofp_vla.cli.options import Choose, Doubt, DoubtSteps, Draws, Engine, SamplerOption, Steps, WarmOrCold
from ofp_vla.cli.serve import serve
from ofp_vla.cli.study import study
from ofp_vla.errors import OFPError
from ofp_vla.lerobot_seams.quiet import quiet_lerobot
from ofp_vla.lerobot_seams.version import broken_import, check_lerobot
from robotwin_eval.cli.options import Split, task_names
from robotwin_eval.cli.program import PLAIN, Program


class _Program(Program):
    """`ofp-vla`: its errors are one line, and a broken LeRobot is a user's error too."""

    user_errors = (OFPError, *Program.user_errors)
    interrupted = "the same command continues, if it can"

    def message(self, error: Exception) -> str:
        """What to tell the user about an error, on one line; "" for a defect."""
        text = super().message(error)
        if not text and isinstance(error, ImportError):
            text = broken_import(error)
        return " ".join((text or "").split())


app = typer.Typer(
    **PLAIN,
    cls=_Program,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="One-step action generation for flow-matching VLA policies in LeRobot.",
)


# These report what is installed, or need no LeRobot.
_WITHOUT_LEROBOT = ("doctor", "version")


@app.callback()
def _common(
    ctx: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="OFP_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Options that stand before the command's name."""
    quiet_lerobot()
    if ctx.invoked_subcommand not in _WITHOUT_LEROBOT:
        check_lerobot()


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for data, checkpoints, videos and the report.")] = Path(
        "outputs/demo"
    ),
    every_task: Annotated[
        bool, typer.Option("--all", help="Use every built-in task instead of two.")
    ] = False,
    episodes: Annotated[int | None, typer.Option(min=1, help="Evaluation episodes per task.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of training and of the sampling noise.")] = 0,
) -> None:
    """Fine-tune the tiny base to act in one step and compare both on simulated bimanual tasks (CPU)."""
    from ofp_vla.demo.pipeline import run_demo

    run_demo(output=output, every_task=every_task, episodes=episodes, steps=steps, seed=seed)


@app.command()
def demos(
    tasks: Annotated[list[str], typer.Argument(help="Task names.")],
    output: Annotated[Path, typer.Option(help="Folder of the new LeRobot dataset; must not exist.")],
    repo_id: Annotated[str, typer.Option(help="Name of the dataset, as owner/name.")],
    episodes: Annotated[int, typer.Option(min=1, help="Successful episodes to keep of each task.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first episode.")] = 0,
    image_size: Annotated[int, typer.Option(min=16, help="Height and width of the images.")] = 64,
    cameras: Annotated[str, typer.Option(help="Camera names, separated by commas.")] = "cam_high",
    statistics_from: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the checkpoint to fine-tune, so that it goes on normalising as it did; "
            f"{PACKAGED_BASE} is the one that ships with the package."
        ),
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="Store videos instead of single images.")] = False,
    processes: Annotated[
        int, typer.Option(min=0, help="Simulators beside the process that writes the dataset; 0 for none.")
    ] = 1,
) -> None:
    """Write scripted demonstrations of the built-in tasks as a LeRobot dataset."""
    from ofp_vla.embedded.dataset import write_demonstrations

    if str(statistics_from) in PACKAGED_BASES:
        statistics_from = tiny_base(str(statistics_from))
    write_demonstrations(
        tasks,
        episodes,
        output,
        repo_id,
        seed,
        image_size,
        cameras=[name.strip() for name in cameras.split(",") if name.strip()],
        statistics_from=statistics_from,
        video=video,
        processes=processes,
    )


@app.command("eval")
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder of a checkpoint or a training run, or a Hub name.")
    ],
    tasks: Annotated[str, typer.Option(help='Task names, separated by commas, or "all".')],
    output: Annotated[Path, typer.Option(help="Folder for results, report and videos.")] = Path(
        "outputs/eval"
    ),
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each task.")] = 100,
    steps: Steps = None,
    sampler: SamplerOption = None,
    warm: WarmOrCold = None,
    draws: Draws = None,
    choose: Choose = None,
    doubt_steps: DoubtSteps = None,
    doubt: Doubt = None,
    engine: Engine = None,
    execute: Annotated[
        int | None,
        typer.Option(min=1, help="Actions to carry out of a chunk until it replans; as the checkpoint says."),
    ] = None,
    delay: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Control steps that each chunk comes late, while the robot goes on with the one before; the "
            "world waits if not given.",
        ),
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Sentences of the training (seen, also official) or new ones.")
    ] = Split.official,
    seed: Annotated[int, typer.Option(help="Seed of the sampling noise.")] = 0,
) -> None:
    """Evaluate a checkpoint in the built-in simulators: success with intervals, speed, coverage of modes."""
    names = task_names(tasks)
    from ofp_vla.embedded.evaluate import evaluate_checkpoint

    evaluate_checkpoint(
        checkpoint,
        tasks=names,
        episodes=episodes,
        steps=steps,
        sampler=sampler and sampler.value,
        warm=warm,
        draws=draws,
        choose=choose and choose.value,
        doubt_steps=doubt_steps,
        doubt=doubt,
        execute=execute,
        delay=delay,
        engine=engine,
        output=output,
        split=split.value,
        run_seed=seed,
    )


app.command()(serve)
app.command()(study)
app.command("compare-open-loop")(compare_open_loop)
app.command()(bench)


@app.command()
def doctor() -> None:
    """Check the installation; every problem comes with its remedy."""
    from ofp_vla.cli.doctor import diagnose, show

    console = Console()
    with console.status("looking at the installation (LeRobot takes a while to import) ..."):
        checks = diagnose()
    if not show(checks, console):
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


app.add_typer(cli_data.app, name="data")
app.add_typer(cli_recipes.app, name="recipes")
app.command(context_settings={"ignore_unknown_options": True})(cli_recipes.train)
cli_hub.register(app)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
