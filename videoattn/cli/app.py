"""The `videoattn` command.

`videoattn --help` reads only the table below. The module of a command is imported when the command
is called, because it imports torch.
"""

import hashlib
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from videoattn.errors import did_you_mean

COMMANDS: dict[str, str] = {
    "train": "Train the network of a recipe.",
    "launch": "Run a command in several processes.",
    "test": "Measure the accuracy of a run on its test videos.",
    "predict": "Name the action in each video.",
    "visualize": "Draw where a network looks, across the frames of a video.",
    "faithful": "Score whether maps show what the network uses.",
    "explore": "Write a page that shows where a network looks from a pixel.",
    "browse": "Draw the clips that a recipe feeds to its network.",
    "convert": "Convert a public checkpoint for the other commands.",
    "export": "Write a network for other programs, and check its outputs.",
    "demo": "Generate clips, train on them, and draw the attention.",
    "compare": "Train a recipe with every attention system and with none.",
    "prepare": "Check, index, re-encode or pack the videos of a dataset.",
    "tasks": "Write diagnostic tasks, and compare maps with their truth.",
    "list": "List the attention systems or the public models.",
    "env": "Print versions, hardware and decoders, for a bug report.",
}
"""Command -> its line in `videoattn --help`. Its module in `videoattn.cli` has a function
`command`, or one for each subcommand."""

SUBCOMMANDS = {
    "list": ("attention", "weights"),
    "prepare": ("verify", "index", "reencode", "shards"),
    "tasks": ("write", "truth", "field"),
}
_OF_A_RECIPE = ("train", "browse", "compare")
_OF_A_RUN = ("test", "predict", "visualize", "export")
_WEIGHTS = ("checkpoint-last.pt", "model.safetensors")

_ANYTHING = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_ALIASES = {"--resume=auto": "--resume-if-possible"}

STOPPED = 75
"""The exit status of a command that a signal stopped, and that can be resumed: EX_TEMPFAIL."""

MAX_MESSAGE = 2000
"""Largest number of printed characters of an error, which may quote an untrusted file."""

_LOST = re.compile(r"Connection (closed|reset) by (peer|remote)|remote process (has )?exited")
"""Matches the errors of torch.distributed in processes that remain when another has ended."""


class Commands(TyperGroup):
    """Imports a command's module when the command is called.

    After `videoattn --install-completion`, the shell calls `videoattn` with a variable set. A stub,
    which does not import torch, then takes the place of each command.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        completes = "_VIDEOATTN_COMPLETE" in os.environ
        if cmd_name not in COMMANDS and completes:
            return None
        if cmd_name == "bench":
            line = "run benchmarks in a clone of the repository: python tools/bench/NAME.py"
            typer.echo(line, err=True)
            raise typer.Exit(2)
        if cmd_name not in COMMANDS:
            ctx.fail(f"No such command {cmd_name!r}{did_you_mean(cmd_name, COMMANDS)}.")
        app = typer.Typer(
            help=COMMANDS[cmd_name],
            no_args_is_help=True,  # of a command with subcommands
            add_completion=False,
            rich_markup_mode=None,
        )
        if completes:
            app.command(help=COMMANDS[cmd_name], context_settings=_ANYTHING)(_stub(cmd_name))
            return typer.main.get_command(app)
        module = importlib.import_module(f"videoattn.cli.{cmd_name}")
        settings = _ANYTHING if cmd_name == "launch" else None
        for name in SUBCOMMANDS.get(cmd_name, ("command",)):
            app.command(context_settings=settings)(getattr(module, name))
        return typer.main.get_command(app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def main(words: list[str] | None = None) -> None:
    """Runs the command in `words`, by default the program's arguments.

    An error that the user can fix ends the process with one line. `--resume=auto` is a spelling of
    `--resume-if-possible`.
    """
    app = typer.Typer(
        name="videoattn",
        help="Recognize actions in video, and see where a network looks, across frames.",
        cls=Commands,
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    app.callback()(lambda: None)
    commands = typer.main.get_command(app)  # with --install-completion
    words = sys.argv[1:] if words is None else words
    try:
        words = [_ALIASES.get(word) or _without_tilde(word) for word in words]
        commands.main(words, prog_name="videoattn")
    except SystemExit:
        raise  # before the next line imports torch
    except expected_errors() as error:
        from videoattn.engine.signals import StoppedError

        if isinstance(error, StoppedError):
            _fail(one_line(error), status=STOPPED)
        _fail(f"error: {one_line(error)}")
    except RuntimeError as error:
        if _LOST.search(str(error)):
            _fail("error: another process of this run has ended; its error is the cause", seconds=1)
        from torch import OutOfMemoryError

        if not isinstance(error, OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        hint = "use a smaller batch, or fewer or smaller frames"
        _fail(f"error: {one_line(error)}; {hint}")


def _stub(name: str) -> Callable[..., None]:
    """Returns a function that completes the words after a command. Without a suggestion, the shell
    completes file names."""

    def autocompletion(ctx: typer.Context, incomplete: str) -> list[str]:
        words = [word for word in ctx.params.get("words") or () if word != incomplete]
        return [word for word in _suggestions(name, words) if word.startswith(incomplete)]

    def command(
        words: Annotated[list[str] | None, typer.Argument(autocompletion=autocompletion)] = None,
    ) -> None:
        """Is never called."""

    return command


def _suggestions(command: str, words: Sequence[str]) -> list[str]:
    from videoattn.recipe.packaged import installed_names
    from videoattn.weights.public import PUBLIC

    if words and words[-1] == "--as":
        return list(PUBLIC)
    if words:
        return []
    if command in _OF_A_RECIPE:
        return installed_names("recipe")
    if command in _OF_A_RUN:
        folders = (folder for pattern in ("*", "*/*") for folder in Path("runs").glob(pattern))
        runs = (run for run in folders if any((run / name).is_file() for name in _WEIGHTS))
        return [*sorted(map(str, runs)), *PUBLIC]
    return list(PUBLIC) if command == "convert" else list(SUBCOMMANDS.get(command, ()))


def _without_tilde(word: str) -> str:
    """Replaces "~" in a path or in `--out=~/path`, where the shell does not replace it."""
    option, path = re.findall(r"^(--[\w-]+=|)(.*)", word, re.DOTALL)[0]
    return f"{option}{os.path.expanduser(path)}"


def _fail(line: str, *, seconds: int = 0, status: int = 1) -> NoReturn:
    """Ends the process with an error message.

    Only one of the processes that torchrun started or restarted on a machine prints it. torchrun
    repeats the text of the earliest error file at the end of its own traceback; `seconds` are added
    to the time.
    """
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        error_file = Path(file)  # in RUN/attempt_N/RANK/
        record = {"message": line, "timestamp": int(time.time()) + seconds}
        digest = hashlib.sha256(line.encode()).hexdigest()
        try:
            error_file.write_text(json.dumps(record))
            (error_file.parents[2] / f"printed_{digest}").touch(exist_ok=False)
        except FileExistsError:
            sys.exit(status)
        except OSError:  # such as a full disk
            pass
    if status == 1:
        sys.exit(line)
    typer.echo(line, err=True)
    sys.exit(status)


def expected_errors() -> tuple[type[Exception], ...]:
    """Returns the error types whose messages are for the user, not for a developer."""
    from videoattn.data.decode import DecodeError
    from videoattn.engine.failures import TooManyFailuresError
    from videoattn.engine.signals import StoppedError
    from videoattn.engine.step import NonFiniteError

    ours = DecodeError, NonFiniteError, StoppedError, TooManyFailuresError
    return ValueError, OSError, ImportError, MemoryError, RecursionError, *ours


def one_line(error: Exception) -> str:
    from videoattn.recipe.console import visible

    text = str(error)
    if isinstance(error, MemoryError | RecursionError):
        text = f"an input is damaged or too large ({text or 'out of memory'})"
    elif isinstance(error, OSError) and error.strerror:  # without the number of the error
        name = error.filename
        text = error.strerror
        if name is not None:
            text = f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {text}"
    line = visible(re.sub(r"\s*\n\s*", " ", text))
    if len(line) <= MAX_MESSAGE:
        return line
    return f"{line[: MAX_MESSAGE - 507]} [...] {line[-500:]}"


if __name__ == "__main__":
    main()
