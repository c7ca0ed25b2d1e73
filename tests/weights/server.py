"""A web server on the loopback that takes the place of the projects' servers."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers a path by `answers`, else by `default`, and counts the requests of each path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Answer] = {}
        self.default: Answer = status(404)
        self.requests: Counter[str] = Counter()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def num_requests(self) -> int:
        return self.requests.total()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that end early are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests[self.path] += 1
        self.server.answers.get(self.path, self.server.default)(self)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def status(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


def body(data: bytes, *, claimed: int | None = None, seconds: float = 0.0) -> Answer:
    """Sends `data`, in 20 parts over `seconds`; the header claims `claimed` bytes."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) if claimed is None else claimed))
        handler.end_headers()
        step = max(1, len(data) // 20)
        for start in range(0, len(data), step):
            handler.wfile.write(data[start : start + step])
            time.sleep(seconds / 20)

    return answer
