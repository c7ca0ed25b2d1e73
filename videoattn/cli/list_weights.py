"""`videoattn list weights`: every public model, what was published of it, and where its file is."""

from videoattn.recipe.run import out
from videoattn.weights.public import PUBLIC
from videoattn.weights.row import PublicModel

_HEAD = ("name", "network", "frames x stride", "attention", "top-1 (views)", "licence", "file")


def list_weights(*, markdown: bool = False) -> None:
    """From the table alone: no network is built, nothing is fetched."""
    if markdown:
        lines = [_line(_HEAD), _line(("---",) * len(_HEAD))]
        lines += [_line(_cells(name, row)) for name, row in PUBLIC.items()]
        out.print("\n".join(lines), markup=False)
        return
    for name, row in PUBLIC.items():
        about = (row.network, _frames(row), _attention(row), _accuracy(row), row.license)
        # Addresses are long: a line each, to be copied.
        out.print(name, markup=False)
        out.print(f"  {', '.join(part for part in about if part)}", markup=False)
        out.print(f"  file: {row.url or 'not published'}", markup=False)
        if row.accuracy:
            out.print(f"  accuracy: {row.accuracy.source}", markup=False)
    out.print(
        "\nAccuracies are what those pages say, on the validation set of Kinetics-400 where no "
        "other is named. Fetch a file, then: videoattn convert FILE --as NAME OUT",
        markup=False,
    )


def _cells(name: str, row: PublicModel) -> tuple[str, ...]:
    accuracy, source = _accuracy(row), row.accuracy.source if row.accuracy else ""
    linked = f"[{accuracy}]({source})" if source.startswith("http") else accuracy
    file = f"[{row.url.rpartition('.')[2]}]({row.url})" if row.url else ""
    return f"`{name}`", row.network, _frames(row), _attention(row), linked, row.license, file


def _frames(row: PublicModel) -> str:
    fed = row.preprocessing
    if fed.sampling == "dense":
        return f"{fed.num_frames} x {fed.frame_stride}"
    return f"{fed.num_frames} segments" if fed.num_frames > 1 else "an image"


def _attention(row: PublicModel) -> str:
    if row.non_local is None:
        return ""
    form = str(row.non_local.get("form", "embedded_gaussian")).replace("_", " ")
    return f"{len(row.after)} non-local ({form})"


def _accuracy(row: PublicModel) -> str:
    if row.accuracy is None:
        return ""
    dataset = "" if row.dataset == "Kinetics-400" else f"{row.dataset}, "
    return f"{row.accuracy.top1:g} % ({dataset}{row.preprocessing.views})"


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
