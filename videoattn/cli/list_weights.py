"""`videoattn list weights`: every public model, its published accuracy, and its file."""

from videoattn.recipe.console import console as out
from videoattn.weights.public import PUBLIC
from videoattn.weights.row import PublicModel


def list_weights() -> None:
    """Prints the public models. No network is built, and nothing is downloaded."""
    for name, row in PUBLIC.items():
        details = (row.network, frames(row), attention(row), accuracy(row), row.licence)
        out.print(name, markup=False)
        out.print(f"  {', '.join(detail for detail in details if detail)}", markup=False)
        # Addresses are long. Each has its own line so that it can be copied.
        out.print(f"  file: {row.url or 'not published'}", markup=False)
        if row.source:
            out.print(f"  accuracy: {row.source}", markup=False)
    out.print(
        "\nThese pages report the accuracies, on the validation set of Kinetics-400 unless another "
        "dataset is named. Download a file, then run: videoattn convert FILE --as NAME OUT",
        markup=False,
    )


def frames(row: PublicModel) -> str:
    """Returns how a clip's frames are sampled, such as "8 x 8" or "8 segments"."""
    clip = row.preprocessing
    if clip.sampling == "dense":
        return f"{clip.num_frames} x {clip.frame_stride}"
    return f"{clip.num_frames} segments" if clip.num_frames > 1 else "an image"


def attention(row: PublicModel) -> str:
    """Returns the attention blocks, such as "5 non-local (gaussian)", or ""."""
    if row.non_local is None:
        return ""
    form = str(row.non_local.get("form", "embedded_gaussian")).replace("_", " ")
    return f"{len(row.after)} non-local ({form})"


def accuracy(row: PublicModel) -> str:
    """Returns the published accuracy with its views, or "" if none was published."""
    if row.top1 is None:
        return ""
    dataset = "" if row.dataset == "Kinetics-400" else f"{row.dataset}, "
    return f"{row.top1:g} % ({dataset}{row.preprocessing.views})"
