"""Kills downloads at random points, and checks that the next call succeeds after each.

    python tools/kill_downloads.py --kills 50

A server on the loopback sends a small checkpoint slowly. Each download runs in a process of its
own, which is killed (SIGKILL) after a random time. After a kill, no file with the final name may
exist. After every fifth kill, the file is downloaded completely, checked, and deleted.
"""

import io
import multiprocessing
import os
import random
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Annotated

import torch
import typer

from videoattn.models.table import make_network
from videoattn.weights import PUBLIC, to_public
from videoattn.weights.download import cached_file, fetch

NAME = "pytorchvideo/c2d_r50"
PARTS = 50


def kill_downloads(
    kills: Annotated[int, typer.Option(min=1, help="Number of killed downloads.")] = 50,
    seconds: Annotated[float, typer.Option(help="Time that the server takes to send.")] = 1.0,
    seed: int = 0,
) -> None:
    """Kill downloads at random points; every next call must succeed."""
    data, draw = _checkpoint(), random.Random(seed)
    found = {"killed before the request": 0, "killed during it": 0, "complete before": 0}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"VIDEOATTN_HOME": folder, "TORCH_HOME": folder, "no_proxy": "127.0.0.1"}
        server = _Server(data, seconds)
        Thread(target=server.serve_forever, daemon=True).start()
        os.environ["VIDEOATTN_MIRROR"] = f"http://127.0.0.1:{server.server_port}"
        file = cached_file(PUBLIC[NAME])
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["videoattn.weights.download"])
        for _ in range(kills):
            before = server.num_requests
            process = context.Process(target=fetch, args=(NAME,))
            process.start()
            time.sleep(draw.uniform(0, seconds * 1.6))
            process.kill()
            process.join()
            if file.exists():
                assert file.read_bytes() == data, "a partial file has the name of the whole"
                found["complete before"] += 1
            else:
                has_asked = server.num_requests > before
                found["killed during it" if has_asked else "killed before the request"] += 1
            server.seconds = 0.0
            assert fetch(NAME).read_bytes() == data
            server.seconds = seconds
            names = {path.name for path in file.parent.iterdir()}
            assert names == {file.name, f"{file.name}.sha256", f".{file.name}.lock"}, names
            file.unlink()
        print(f"{kills} kills: {found}; the call after each succeeded")


def _checkpoint() -> bytes:
    """Returns the bytes of a checkpoint whose tensors are each one number, expanded."""
    with torch.device("meta"):
        row = PUBLIC[NAME]
        shapes = to_public(NAME, make_network(row.network, row.options, num_classes=400))
    file = io.BytesIO()
    values = {key: torch.tensor(0.5).expand(value.shape) for key, value in shapes.items()}
    torch.save({"model_state": values}, file)
    return file.getvalue()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, data: bytes, seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.seconds, self.num_requests = data, seconds, 0

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints no traceback: a killed client closes its connection."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.num_requests += 1
        data = self.server.data
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        step = len(data) // PARTS + 1
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            time.sleep(self.server.seconds / PARTS)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    typer.run(kill_downloads)
