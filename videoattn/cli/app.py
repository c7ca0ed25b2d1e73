"""The `videoattn` command. Torch is imported when a command runs, so that --help is quick."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from videoattn.cli.prepare_cli import prepare

app = typer.Typer(
    name="videoattn",
    help="Video action recognition whose subject is attention: train, measure, and see where a "
    "network looks, across frames.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the recipe, as key=value: train.lr=0.02 model.name=tsn_r18"),
]
RunPath = Annotated[
    Path, typer.Argument(help="A run's folder, a shared one, or a checkpoint file in one.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as configs/demo.yaml.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew in a folder that holds a run.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train what a recipe says; writes runs/<name>/.

    On several GPUs or machines: torchrun --nproc-per-node N -m videoattn train RECIPE ...
    """
    from videoattn.cli.train import train as run_train

    run_train(recipe, overrides or (), resume=resume, overwrite=overwrite, device=device)


@app.command("test")
def evaluate(run: RunPath, overrides: Overrides = None, device: Device = "auto") -> None:
    """Clip and video accuracy of a run on its test videos; writes tables to RUN/test/."""
    from videoattn.cli.test import evaluate_run

    evaluate_run(run, overrides or (), device=device)


@app.command()
def predict(
    run: RunPath,
    videos: Annotated[list[Path], typer.Argument(help="Video files.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    device: Device = "auto",
) -> None:
    """Name the action in each video."""
    from videoattn.cli.test import predict as run_predict

    if run_predict(run, videos, top=top, device=device).num_failed:
        raise typer.Exit(1)


@app.command()
def visualize(
    run: RunPath,
    video: Annotated[Path, typer.Argument(help="A video file.")],
    query: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FRAME,X,Y",
            help="Where is this pixel of this frame of the video looking? May be given again. "
            "Without it: the positions that receive the most attention.",
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            help="An attention block by name, or the beginning of some. Without it: all, or of "
            "many the last of each stage. With a CAM: the layer that it looks at, the last stage."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Instead of attention blocks, what the class's score rests on: cam, grad_cam, "
            "hires_cam, saliency, guided_backprop or occlusion."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="With --method: the class; the one named unless given.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Folder for the pictures; RUN/pictures.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Where does the network look, across frames? Contact sheets (PNG) and overlays (MP4)."""
    from videoattn.cli.visualize import visualize as run_visualize
    from videoattn.cli.visualize import visualize_score

    if method is not None:
        if query:
            raise ValueError(f"{method} has no query: leave --query, or --method")
        visualize_score(
            run, video, method=method, layer=layer, target=target, folder=output, device=device
        )
        return
    if target is not None:
        raise ValueError("--target is the class of a --method, such as --method grad_cam")
    run_visualize(run, video, queries=query or (), layer=layer, folder=output, device=device)


@app.command()
def browse(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as configs/demo.yaml.")],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train: augmented, as drawn. test: every view.")] = (
        "train"
    ),
    num: Annotated[int, typer.Option(min=1, help="How many videos.")] = 8,
    output: Annotated[
        Path | None, typer.Option("--out", help="A PNG file; <name>_<split>.png.")
    ] = None,
) -> None:
    """What will the network see? A sheet of clips, with labels, frame numbers and times."""
    from videoattn.cli.browse import browse as run_browse

    run_browse(recipe, overrides or (), split=split, num_videos=num, output=output)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A public checkpoint, as it was published.")],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A new folder; or one file, X.safetensors."),
    ],
    name: Annotated[str, typer.Option("--as", help="A name from `videoattn list weights`.")],
    classes: Annotated[
        Path | None,
        typer.Option(
            help="A file with one class name a line. Without it: Kinetics' or ImageNet's."
        ),
    ] = None,
) -> None:
    """A public checkpoint becomes a folder (model.safetensors, config.json) for every command."""
    from videoattn.cli.convert import convert as run_convert

    run_convert(file, output, name=name, classes=classes)


@app.command()
def export(
    run: RunPath,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A file, or a folder to share.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="safetensors (a folder to share), torch-export (.pt2) or onnx. The latter take "
            "(N, 3, T, H, W) normalized video, N free, and have a .json beside them.",
        ),
    ] = "safetensors",
) -> None:
    """Hand a network on: checked on the spot against the network itself."""
    from videoattn.cli.export import export as run_export

    run_export(run, output, kind=kind)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where clips, runs and pictures go.")] = Path(
        "runs/demo"
    ),
    device: Device = "auto",
) -> None:
    """Write small clips, train on them, compare with still frames, and draw the attention."""
    from videoattn.cli.demo import demo as run_demo

    run_demo(folder, device=device)


@app.command()
def compare(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as configs/demo.yaml.")],
    overrides: Overrides = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="A system, or none; may be repeated. All, if not given."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with seeds 0, 1, ...")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Where runs and the table go.")] = None,
    device: Device = "auto",
) -> None:
    """Train a recipe with every attention system and with none; a table of what each brings."""
    from videoattn.cli.compare import compare as run_compare

    run_compare(
        recipe, overrides or (), systems=system or (), num_seeds=seeds, folder=folder, device=device
    )


app.add_typer(prepare, name="prepare", no_args_is_help=True)

listing = typer.Typer(help="What there is to choose from.")
app.add_typer(listing, name="list", no_args_is_help=True)


@listing.command("attention")
def list_attention() -> None:
    """Every attention system: what its map means, what it adds to an I3D-R50."""
    from videoattn.cli.list_attention import list_attention as run_list

    run_list()


@listing.command("weights")
def list_weights() -> None:
    """Every public model: network, published accuracy and its views, licence, where its file is."""
    from videoattn.cli.list_weights import list_weights as run_list

    run_list()


@app.command(
    hidden=True,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench() -> None:
    """Benchmarks are scripts of the repository."""
    typer.echo("run benchmarks in a clone of the repository: python tools/bench/NAME.py", err=True)
    raise typer.Exit(2)


def main(words: list[str] | None = None) -> None:
    """The console script: errors that a user can mend are one line, without a traceback."""
    try:
        app(words)
    except SystemExit:
        raise  # before the next line imports torch
    except _errors_for_users() as error:
        sys.exit(f"error: {error}")


def _errors_for_users() -> tuple[type[Exception], ...]:
    """What the package raises on purpose: what was got, what is allowed, what to do."""
    from videoattn.data.decode import DecodeError
    from videoattn.engine.failures import TooManyFailuresError
    from videoattn.engine.step import NonFiniteError

    return ValueError, OSError, ImportError, DecodeError, NonFiniteError, TooManyFailuresError


if __name__ == "__main__":
    main()
