"""`videoattn tasks`: writes diagnostic tasks, whose clips show where a network has to look."""

import os
from pathlib import Path
from typing import Annotated

import typer

from videoattn.data.tasks.clips import TASKS
from videoattn.data.tasks.files import write_task
from videoattn.engine.progress import Display
from videoattn.errors import one_of
from videoattn.files import require_empty
from videoattn.recipe.console import show

app = typer.Typer(
    help="Write diagnostic tasks, with the ground truth of where to look.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

OPTIONS = {"match": "identities", "match_unmarked": "identities", "track": "dots"}
"""Task -> the option that makes it harder."""


@app.callback()
def main() -> None:
    """Keeps `write` a subcommand."""


@app.command()
def write(
    name: Annotated[str, typer.Argument(help=f"The task: {', '.join(TASKS)}.")],
    folder: Annotated[Path, typer.Argument(help="A new folder for the clips and their truth.")],
    identities: Annotated[
        int | None, typer.Option(help="match: the number of different glyphs, 4 to 48; 8 if unset.")
    ] = None,
    dots: Annotated[
        int | None, typer.Option(help="track: the number of dots, 2, 4 or 8; 4 if unset.")
    ] = None,
    train: Annotated[int, typer.Option(help="Number of training clips.")] = 2000,
    test: Annotated[int, typer.Option(help="Number of test clips.")] = 500,
    seed: Annotated[int, typer.Option(help="Another seed draws other clips.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads.")] = os.cpu_count() or 1,
) -> None:
    """Write the clips of a task, and masks of what a network has to find.

    FOLDER/train and FOLDER/test have a folder of H.264 clips per class; FOLDER/train.npz and
    FOLDER/test.npz have the masks of the evidence and of the distractors, and the pixel to ask
    from. The recipes configs/task_NAME.yaml read such a folder (data.root=FOLDER).
    """
    one_of("NAME", name, TASKS)
    given = {"identities": identities, "dots": dots}
    options = {key: value for key, value in given.items() if value is not None}
    for option in options:
        if OPTIONS.get(name) != option:
            users = " and ".join(task for task, used in OPTIONS.items() if used == option)
            raise ValueError(f"--{option} is an option of {users}; {name} does not have it")
    require_empty(folder)
    total, done = train + test, 0
    with Display() as display:

        def count(path: Path) -> None:
            nonlocal done
            done += 1
            display.update(f"writing clips: {done:,} of {total:,}", done=done, total=total)

        write_task(
            name,
            folder,
            num_train=train,
            num_test=test,
            seed=seed,
            num_threads=workers,
            on_clip=count,
            **options,
        )
    show(
        f"{folder}: {train:,} training clips and {test:,} test clips of {len(TASKS[name])} classes"
    )
