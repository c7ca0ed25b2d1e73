"""Completes commands, recipes, runs and public names in a shell, without importing torch.

`videoattn --install-completion` makes the shell call `videoattn` with _VIDEOATTN_COMPLETE set.
Without a suggestion, the shell completes file names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from videoattn.recipe.packaged import installed_names
from videoattn.weights.public import PUBLIC

SUBCOMMANDS = {
    "list": ("attention", "weights"),
    "prepare": ("verify", "index", "reencode", "shards"),
}
_OF_A_RECIPE = ("train", "browse", "compare")
_OF_A_RUN = ("test", "predict", "visualize", "export")
_WEIGHTS = ("checkpoint-last.pt", "model.safetensors")


def suggestions(command: str, words: Sequence[str]) -> list[str]:
    """Returns the words that may follow the words after a command."""
    if words and words[-1] == "--as":
        return list(PUBLIC)
    if words:
        return []
    if command in _OF_A_RECIPE:
        return installed_names("recipe")
    if command in _OF_A_RUN:
        return [*run_folders(), *PUBLIC]
    return list(PUBLIC) if command == "convert" else list(SUBCOMMANDS.get(command, ()))


def run_folders() -> list[str]:
    """Returns the runs in runs/ and in the folders there."""
    folders = (folder for pattern in ("*", "*/*") for folder in Path("runs").glob(pattern))
    return sorted(
        str(folder) for folder in folders if any((folder / name).is_file() for name in _WEIGHTS)
    )


def complete(commands: Mapping[str, tuple[str, str]]) -> None:
    """Answers the shell, and ends the process."""
    app = typer.Typer(rich_markup_mode=None)
    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    for name, (_, text) in commands.items():
        app.command(name, help=text, context_settings=anything)(_stub(partial(suggestions, name)))
    app(prog_name="videoattn")


def _stub(suggest: Callable[[Sequence[str]], Iterable[str]]) -> Callable[..., None]:
    """Returns a stub of a command, without the imports of the command."""

    def autocompletion(ctx: typer.Context, incomplete: str) -> list[str]:
        words = [word for word in ctx.params.get("words") or () if word != incomplete]
        return [word for word in suggest(words) if word.startswith(incomplete)]

    def command(
        words: Annotated[list[str] | None, typer.Argument(autocompletion=autocompletion)] = None,
    ) -> None:
        """Is never called."""

    return command
