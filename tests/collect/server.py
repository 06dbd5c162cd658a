"""A web server on loopback that serves given files with given faults, in a thread of the test's process."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = Callable[["Handler"], bool]  # answers instead of the file; False lets the file be served


class Server:
    """`files` by path; `faults` by path, one for each request in turn, then none."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: defaultdict[str, list[Fault]] = defaultdict(list)
        self.seen: Counter[str] = Counter()
        self.headers: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
        self.validators = True
        self.mutex = threading.Lock()
        self.released = threading.Event()  # set at the end, so that a stalled answer ends, too
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.ours = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def add(self, path: str, data: bytes, *faults: Fault) -> str:
        self.files[path] = data
        self.faults[path] += faults
        return self.url + path

    def run(self) -> None:
        self._http.serve_forever(poll_interval=0.01)

    def stop(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def ours(self) -> Server:
        return self.server.ours  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        ours, path = self.ours, urlsplit(self.path).path
        with ours.mutex:
            ours.seen[path] += 1
            ours.headers[path].append(dict(self.headers))
            faults = ours.faults.get(path) or ours.faults.get(self.path)
            fault = faults.pop(0) if faults else None
        data = ours.files.get(self.path, ours.files.get(path))
        if fault is not None and fault(self):
            return
        if data is None:
            status(404)(self)
            return
        self.serve(data)

    def serve(self, data: bytes, cut: int | None = None) -> None:
        """The file or the range that was asked for; of its body only the first `cut` bytes."""
        start, tag = 0, f'"{hash(data)}"'
        asked = self.headers.get("Range")
        if asked and self.headers.get("If-Range") == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.ours.validators:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def status(code: int, **headers: str) -> Fault:
    def answer(handler: Handler) -> bool:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return True

    return answer


def truncated(count: int) -> Fault:
    """The header promises all, `count` bytes come, the connection closes."""

    def answer(handler: Handler) -> bool:
        handler.serve(handler.ours.files[urlsplit(handler.path).path], cut=count)
        return True

    return answer


def stalled(handler: Handler) -> bool:
    """Some bytes, then nothing for as long as anyone waits."""
    handler.serve(handler.ours.files[urlsplit(handler.path).path], cut=10)
    handler.ours.released.wait(20)
    return True


def dropped(handler: Handler) -> bool:
    """The connection closes without an answer."""
    handler.close_connection = True
    return True


def other(data: bytes) -> Fault:
    """Wrong bytes, well formed."""

    def answer(handler: Handler) -> bool:
        handler.serve(data)
        return True

    return answer


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
