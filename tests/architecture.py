"""Rules about the source code that a machine can check. Each returns the violations it finds."""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

FILE, FUNCTION, ARGUMENTS = 300, 50, 10

# Who may import whom. A package may always import itself.
_BASE = {"types", "errors", "files", "layers", "_version"}
LAYERS: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "files": set(),
    "_version": set(),
    "_compat": set(),
    "layers": {"types"},
    "attention": _BASE,
    "models": _BASE | {"attention"},
    "weights": _BASE | {"attention", "models"},
    "data": _BASE - {"layers"},
    "engine": _BASE - {"layers"},
    "explain": _BASE
    | {"attention.maps", "attention.record", "attention.capture", "attention.archive", "models"},
    "recipe": _BASE | {"attention", "models", "weights", "data", "engine"},
    "cli": _BASE | {"attention", "models", "weights", "data", "engine", "explain", "recipe"},
    "__main__": {"cli"},
    "__init__": {"_compat", "_version", "attention", "recipe", "weights"},
}

# Inside a package: a module may import the modules in the rows above its own, and its row.
FLOORS: dict[str, list[set[str]]] = {
    "attention": [
        {"functional", "maps", "common"},
        {"capture", "insert", "archive"},
        {"record", "adapters", "blocks", "attach"},
        {"systems"},
    ],
    "data": [
        {"strings", "transforms", "sampling", "pictures"},
        {"decode", "workers"},
        {"lists", "prepare", "classes"},
        {"dataset", "shards", "synthetic", "tasks"},
        {"loader"},
    ],
}

# Keys, flags and commands belong to recipe and cli.
_OUTSIDE = {"recipe", "cli", "__init__", "__main__", "_compat"}
_FLAGS_AND_COMMANDS = (
    r"(?<![\w-])--[a-z][\w-]+|\bvideoattn (?:train|test|predict|visualize|browse|convert|export|"
    r"demo|compare|prepare|list)\b"
)

# The old dialect; each with what to write instead.
DIALECT = {
    r"\btold\b|\btells\b": "show, report, state",
    r"\banew\b": "again, from scratch",
    r"\blent\b": "in use",
    r"\bso many\b": "this many, a number",
    r"(?<!there )\b(is|are) no [a-z]": "is not a",
    r"\bbehind\b": "after",
    r"\bsays so\b": "reports this",
    r"\bstands?\b(?!-| for| in for)": "is",
    r"\bto the same bits\b": "bit for bit",
    r"\bwhat it is (told|given)\b": "its arguments",
    r"\b(thereof|whereof|whatsoever)\b": "",
    r"\bgoes on\b|\bgo on\b": "continues",
}
# Legitimate uses: (file, words).
ALLOWED = {("data/synthetic.py", "behind")}  # in space


def imports(source: str, module: str) -> Iterator[str]:
    """Yields the modules of the package that a module imports, relative imports included.

    Args:
        module: Its dotted name, such as "videoattn.data.lists".
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = module.split(".")[: -node.level]
                base = ".".join([*parent, *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "videoattn" and "." in name)


def wrong_imports(source: str, path: PurePosixPath) -> list[str]:
    """Returns imports that go against LAYERS or FLOORS. `path` is relative to the package."""
    module = ".".join(["videoattn", *path.with_suffix("").parts])
    own = path.parts[0].removesuffix(".py")
    found = []
    for name in imports(source, module):
        parts = name.split(".")[1:]
        if parts[0] == own:
            if not _is_lower(path, parts, own):
                found.append(name)
        elif not any(
            parts[: len(allowed.split("."))] == allowed.split(".") for allowed in LAYERS[own]
        ):
            found.append(name)
    return found


def _is_lower(path: PurePosixPath, parts: list[str], own: str) -> bool:
    floors = FLOORS.get(own, [])
    level = {name: number for number, row in enumerate(floors) for name in row}
    if len(path.parts) < 2 or len(parts) < 2:
        return True
    here, there = path.parts[1].removesuffix(".py"), parts[1]
    return level.get(there, 0) <= level.get(here, len(floors))


def too_large(source: str) -> list[str]:
    """Returns the functions, argument lists and dataclasses above the ceilings."""
    found = []
    if (lines := len(source.splitlines())) > FILE:
        found.append(f"file of {lines} lines")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if (lines := node.end_lineno - node.lineno + 1) > FUNCTION:
                found.append(f"{node.name}: {lines} lines")
            arguments = [
                a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            ]
            if (count := len([a for a in arguments if a not in ("self", "cls")])) > ARGUMENTS:
                found.append(f"{node.name}: {count} arguments")
        if isinstance(node, ast.ClassDef) and _is_record(node):
            count = sum(isinstance(item, ast.AnnAssign) for item in node.body)
            found += [f"{node.name}: {count} fields"] * (count > ARGUMENTS)
    return found


def _is_record(node: ast.ClassDef) -> bool:
    words = {ast.unparse(item) for item in [*node.decorator_list, *node.bases]}
    return any("dataclass" in word or "NamedTuple" in word for word in words)


def bad_habits(source: str) -> list[str]:
    """Returns prints, evaluated text, broad excepts, and relative imports."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] * (node.func.id in ("print", "eval", "exec"))
        if isinstance(node, ast.ExceptHandler) and not _raises_again(node):
            caught = ast.unparse(node.type) if node.type else "everything"
            found += [f"except {caught}"] * (caught in ("everything", "Exception", "BaseException"))
        if isinstance(node, ast.Global):
            found.append(f"global {', '.join(node.names)}")
    return found


def _raises_again(node: ast.ExceptHandler) -> bool:
    return any(isinstance(item, ast.Raise) for item in ast.walk(node))


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yields the line and text of every comment and string."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
            yield token.start[0], token.string


def foreign_words(source: str, path: PurePosixPath, keys: Iterable[str]) -> list[str]:
    """Returns recipe keys, flags and commands that a package below recipe mentions.

    Args:
        keys: All keys of a recipe with their section, such as "train.lr".
    """
    names = "|".join(re.escape(key) for key in sorted(keys, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w.])(?:{names})(?![\w(])|{_FLAGS_AND_COMMANDS}")
    if path.parts[0].removesuffix(".py") in _OUTSIDE:
        return []
    return [
        f"line {line}: {found[0].strip()}"
        for line, text in texts(source)
        for found in pattern.finditer(text)
    ]


def dialect(lines: Iterable[tuple[int, str]], path: str) -> list[str]:
    """Returns phrases of the old dialect in texts."""
    return [
        f"line {line}: {found[0]!r}; write {instead}"
        for line, text in lines
        for pattern, instead in DIALECT.items()
        for found in re.finditer(pattern, text, re.IGNORECASE)
        if (path, found[0].lower()) not in ALLOWED
    ]
