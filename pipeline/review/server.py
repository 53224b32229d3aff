"""The page's server: for this machine, for who has the token, and for its own page alone.

Every request is checked before anything is done about it: a loopback address as Host (a name that
somebody's DNS points here is refused), this page as Origin, the token in a cookie. The token comes
in the address that is printed, once, and is exchanged for the cookie.
"""

import hmac
import json
import secrets
import sys
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pipeline.errors import UserError
from pipeline.review.application import Answer, Application, BadRequest, error_answer

HOST = "127.0.0.1"
MAX_BODY_BYTES = 4096
MAX_FIELDS = 30
IDLE_S = 30
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# The page is asked for again by itself: a cookie is not sent where another site led here.
_WELCOME = (
    b'<!doctype html><html lang="en"><meta charset="utf-8"><title>vsp review</title>'
    b'<link rel="icon" href="/assets/icon.svg">'
    b'<meta http-equiv="refresh" content="0; url=/"><p><a href="/">Go on</a></p></html>'
)


class Denied(Exception):
    """A request that is answered with an error and nothing else."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Gate:
    """What a request must show.

    Attributes:
        token: What only the printed address and the cookie hold.
        port: The server's; part of the cookie's name, for cookies do not heed ports.
    """

    token: str
    port: int

    @property
    def cookie(self) -> str:
        """The cookie's name."""
        return f"vsp-review-{self.port}"

    def check_origin(self, method: str, headers: Message) -> None:
        """Refuse what another page asks for, or what another name led here.

        Raises:
            Denied: With the status that says so.
        """
        host = headers.get("Host", "")
        if host not in (f"{HOST}:{self.port}", f"localhost:{self.port}"):
            raise Denied(HTTPStatus.FORBIDDEN, "this page has another address")
        origin = headers.get("Origin")
        if origin != f"http://{host}" and (origin is not None or method == "POST"):
            raise Denied(HTTPStatus.FORBIDDEN, "only its own page may ask this server")

    def check_token(self, headers: Message) -> None:
        """Refuse who has no cookie with the token, or whom another site of this machine embeds.

        Raises:
            Denied: With the status that says so.
        """
        try:
            morsel = SimpleCookie(headers.get("Cookie", "")).get(self.cookie)
        except CookieError:
            morsel = None
        if morsel is None or not self.is_token(morsel.value):
            raise Denied(HTTPStatus.FORBIDDEN, "open the address that `vsp review` printed")
        if headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise Denied(HTTPStatus.FORBIDDEN, "only its own page may ask this server")

    def is_token(self, word: str) -> bool:
        """Whether a word is the token, compared in the same time whatever it is."""
        return hmac.compare_digest(word.encode(), self.token.encode())


class Server(ThreadingMixIn, TCPServer):
    """A review on a port of this machine; `http.server.HTTPServer` would ask DNS for our name."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, application: Application, port: int = 0) -> None:
        """Take the port; 0 for any that is free.

        Raises:
            UserError: If the port is taken.
        """
        self.application = application
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"--port {port}: {reason}; leave it out for a free one") from None
        self.gate = Gate(secrets.token_urlsafe(32), self.server_address[1])

    @property
    def url(self) -> str:
        """The address that opens the page."""
        return f"http://{HOST}:{self.gate.port}/?token={self.gate.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hung up; anything else is a fault of ours, and told."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "vsp", ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        """Answer a page, rows or a picture."""
        self._answer(self._get)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the body."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a verdict."""
        self._answer(self._post)

    def _answer(self, work: Any) -> None:
        """Check, work, reply; whatever goes wrong ends this request alone."""
        try:
            answer = work()
        except Denied as denied:
            self.close_connection = True  # a body may stand there unread
            answer = error_answer(denied.status, str(denied))
        except BadRequest as bad:
            is_address = str(bad) == "nothing here" or str(bad) == "no such row"
            status = HTTPStatus.NOT_FOUND if is_address else HTTPStatus.BAD_REQUEST
            answer = error_answer(status, str(bad))
        self._reply(answer)

    def _get(self) -> Answer:
        gate = self.server.gate
        gate.check_origin(self.command, self.headers)
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            raise Denied(HTTPStatus.BAD_REQUEST, "a GET has no body")
        try:
            address = urlsplit(self.path)
            query = dict(parse_qsl(address.query, max_num_fields=MAX_FIELDS))
        except ValueError:
            raise BadRequest("no address of this page") from None
        if address.path == "/" and "token" in query:
            if not gate.is_token(query["token"]):
                raise Denied(HTTPStatus.FORBIDDEN, "a wrong token; see what `vsp review` printed")
            return Answer(_WELCOME, "text/html; charset=utf-8")
        gate.check_token(self.headers)
        return self.server.application.get(unquote(address.path), query)

    def _post(self) -> Answer:
        gate = self.server.gate
        gate.check_origin(self.command, self.headers)
        gate.check_token(self.headers)
        if self.headers.get_content_type() != "application/json":
            raise Denied(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise Denied(HTTPStatus.LENGTH_REQUIRED, "expected Content-Length")
        if len(length) > 9 or int(length) > MAX_BODY_BYTES:
            raise Denied(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"over {MAX_BODY_BYTES} bytes")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise BadRequest("not JSON") from None
        return self.server.application.post(self.path, body)

    def _reply(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if answer.body is _WELCOME:
            gate = self.server.gate
            self.send_header(
                "Set-Cookie", f"{gate.cookie}={gate.token}; Path=/; HttpOnly; SameSite=Strict"
            )
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD, POST")
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Reply to what is no request of ours; the base class would echo parts of it."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status = HTTPStatus.METHOD_NOT_ALLOWED
        self.close_connection = True
        self._reply(error_answer(status, status.phrase))

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log: an address may hold the token."""
