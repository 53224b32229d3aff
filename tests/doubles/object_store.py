"""A real S3 server on loopback, and a proxy before it that does to requests what networks do.

    with S3Server() as server, FaultyProxy(server.url) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        proxy.break_next("PUT", "lose")

Started as a program, this file is the server: it prints its port and serves until it is killed.
"""

import http.client
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_ENVIRONMENT_FILE": os.devnull,
}
HOP_HEADERS = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}


class S3Server:
    """moto as a process of its own. `url` is its address; it is empty at the start."""

    def __enter__(self):
        self._process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE)
        ready, _, _ = select.select([self._process.stdout], [], [], 120)
        assert ready, "the S3 server did not start"
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def make_bucket(self, name: str) -> None:
        host = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status == 200
        connection.close()


@dataclass
class _Fault:
    method: str
    kind: str
    times: int
    path: str
    seconds: float


@dataclass
class FaultyProxy:
    """Passes requests on to `upstream`, except those that a test has asked it to break.

    Attributes:
        upstream: Address of the server.
        seen: Method and path of every request, in order of arrival.
        without: Headers (lower case) that the server is never shown.
    """

    upstream: str
    seen: list[tuple[str, str]] = field(default_factory=list)
    without: set[str] = field(default_factory=set)

    def __post_init__(self):
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()

    def break_next(
        self, method: str, kind: str, times: int = 1, path: str = "", seconds: float = 0.0
    ) -> None:
        """Break the next `times` requests of a method whose path contains `path`.

        Args:
            method: `PUT`, `GET`, ... or `*`.
            kind: `lose` (pass on, drop the answer), `cut` (pass on, drop half the answer's body),
                `stop` (take half the request's body, drop the connection), `slow` (pass on, answer
                after `seconds`), or a status: answer so without passing it on.
            times: How many.
            path: Part of the path.
            seconds: For `slow`.
        """
        with self._lock:
            self._faults.append(_Fault(method, kind, times, path, seconds))

    def heal(self) -> None:
        """Forget all that was asked for and seen."""
        with self._lock:
            self._faults.clear()
            self.seen.clear()
            self.without.clear()

    def num_seen(self, method: str, path: str = "") -> int:
        return sum(m == method and path in p for m, p in self.seen)

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def fault(self, method: str, path: str) -> _Fault | None:
        with self._lock:
            self.seen.append((method, path))
            for fault in self._faults:
                if fault.times and fault.method in (method, "*") and fault.path in path:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultyProxy

    def log_message(self, *_):
        pass

    def handle(self):
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def do_GET(self):
        fault = self.proxy.fault(self.command, self.path)
        kind = fault.kind if fault else ""
        body = self._body(half=kind == "stop")
        if kind == "stop":
            return self._drop()
        if kind.isdecimal():
            return self._answer(int(kind), {"Content-Type": "application/xml"}, _error(kind))
        status, headers, data = self._pass_on(body)
        if kind == "lose":
            return self._drop()
        if kind == "slow":
            time.sleep(fault.seconds)
        return self._answer(status, headers, data, cut=kind == "cut")

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _body(self, half: bool) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(length // 2 if half else length)

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _pass_on(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream.partition("://")[2], timeout=60)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in HOP_HEADERS | self.proxy.without
        }
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), data

    def _answer(
        self, status: int, headers: Mapping[str, str], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        length = next((v for k, v in headers.items() if k.lower() == "content-length"), len(data))
        for name, value in headers.items():
            if name.lower() not in HOP_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length if self.command == "HEAD" else len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._drop()

    def _drop(self) -> None:
        """Reset the connection, as a machine does that goes away."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _error(status: str) -> bytes:
    codes = {"503": "SlowDown", "501": "NotImplemented", "400": "AuthorizationHeaderMalformed"}
    code = codes.get(status, "Other")
    return f"<Error><Code>{code}</Code><Message>asked for by a test</Message></Error>".encode()


def serve() -> None:
    """Serve S3 on a port of the system's choice, one request at a time.

    moto looks whether a key is taken and takes it in two steps; only one after the other are
    conditional writes as atomic as a real store's.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_):
            pass

    application = DomainDispatcherApplication(create_backend_app)
    turn = threading.Lock()

    def one_by_one(environ, start_response):
        with turn:
            return list(application(environ, start_response))

    server = make_server("127.0.0.1", 0, one_by_one, threaded=True, request_handler=Quiet)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    serve()
