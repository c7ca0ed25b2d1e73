"""Runs Python code under strace, which also sees what C libraries such as FFmpeg do.

`violations` lists the processes, the sockets, and the files that were written or removed outside of
a folder. The code prints nothing; it calls `mark(text)` to name what follows.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MARK = "/observed-mark/"
_CALLS = (
    "%process,%network,openat,open,openat2,creat,unlink,unlinkat,rename,renameat,renameat2,"
    "mkdir,mkdirat,rmdir,symlink,symlinkat,link,linkat,truncate,chmod,fchmodat,chown,fchownat"
)
_LINE = re.compile(r"^(?:\d+ +)?(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+|\?)")
_PLACES = re.compile(r'(?:(?:\w+)<([^>]*)>, )?"((?:[^"\\]|\\.)*)"')
_HEADER = f"""
import os
def mark(text):
    try:
        os.unlink({MARK!r} + text)
    except OSError:
        pass
"""


def observe(code: str, folder: Path, *arguments: object) -> list[tuple[str, str]]:
    """Runs code in a new process in a folder; returns pairs of a mark and a system call.

    Only calls after the first mark are listed, because imports run programs and read files.

    Raises:
        subprocess.CalledProcessError: If the code fails.
    """
    log = folder / "strace.log"
    words = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-s",
        "300",
        "-e",
        f"trace={_CALLS}",
        "-o",
        str(log),
    ]
    words += [sys.executable, "-c", _HEADER + code, *map(str, arguments)]
    # torch creates this folder when it is imported.
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    subprocess.run(
        words, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=300
    )
    found, mark = [], ""
    for line in _whole_lines(log.read_text(errors="replace")):
        if line.startswith("unlink(") and MARK in line:
            mark = line.partition(MARK)[2].partition('"')[0]
        elif mark:
            found.append((mark, line))
    assert mark, "the code has no mark"
    return found


def violations(calls: list[tuple[str, str]], allowed: Path) -> list[str]:
    """Returns the calls that start a program, use a network, or change a file outside of `allowed`.

    Processes and local sockets of loaders are not listed, nor the shared memory between them.
    """
    return [f"{mark}: {line}" for mark, line in calls if _is_violation(line, str(allowed))]


def _is_violation(line: str, allowed: str) -> bool:
    parsed = _LINE.match(line)
    if parsed is None:
        return False
    call, arguments = parsed["call"], parsed["arguments"]
    if call.startswith("exec"):
        return True
    if call == "socket":
        return not arguments.startswith(("AF_UNIX", "AF_LOCAL"))
    if call in ("connect", "bind", "sendto", "sendmsg"):
        return "sa_family=AF_" in arguments and "sa_family=AF_UNIX" not in arguments
    if call in ("open", "openat", "openat2") and not re.search(r"O_(WRONLY|RDWR|CREAT)", arguments):
        return False
    changes = ("open", "creat", "unlink", "rename", "mkdir", "rmdir", "symlink", "link", "trunc",
               "chmod", "fchmod", "chown", "fchown")  # fmt: skip
    if not call.startswith(changes):
        return False
    harmless = (allowed, "/dev/null", "/dev/shm/", "/dev/tty", "/tmp/pymp-", "/proc/self/")
    places = (os.path.join(allowed, *place) for place in _PLACES.findall(arguments))
    return any(not os.path.normpath(place).startswith(harmless) for place in places)


def _whole_lines(text: str) -> Iterator[str]:
    """Joins calls that strace splits because another thread's call came between."""
    started: dict[str, str] = {}
    for line in text.splitlines():
        pid, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.endswith("<unfinished ...>"):
            started[pid] = rest.removesuffix("<unfinished ...>")
        elif rest.startswith("<... "):
            yield started.pop(pid, "") + rest.partition("resumed>")[2]
        else:
            yield rest
