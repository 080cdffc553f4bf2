"""The bytes of an HTTP answer.

Rules of the room:
- An answer is one `bytes`, made as if the connection stays open; `closing` marks the last one of a connection.
- A refusal is `{"error": sentence}` with the status that the error's class owns.
"""

from __future__ import annotations

import math
from http import HTTPStatus

import orjson

from millstream import errors

JSON = b"application/json"
BINARY = b"application/octet-stream"
PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
INTERNAL = "internal error, see the log"
SENTENCE_CHARS_MAX = 1000
# Every status that this border gives; also the label values of its counters.
STATUSES = (101, 200, 400, 401, 403, 404, 405, 408, 409, 413, 415, 426, 429, 431, 500, 501, 503, 504, 507)
LINES = {s: f"HTTP/1.1 {s} {HTTPStatus(s).phrase}\r\n".encode() for s in STATUSES}


class BadMethod(errors.BadInput):
    """The route exists, for other methods. `allow`: the value of the Allow header."""

    status = 405

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class TimedOut(errors.BadInput):
    """The client began a request and did not finish it in time."""

    status = 408


class Unsupported(errors.BadInput):
    """A body in an encoding that is not read here."""

    status = 415


class UpgradeRequired(errors.BadInput):
    """Only a WebSocket is spoken at this route, in its one version."""

    status = 426


class Unloadable(errors.Misconfigured):
    """A model that the client asked for, and that cannot be loaded as the repository has it."""

    status = 400


class HeadTooLarge(errors.TooLarge):
    """Request line or headers over the bound."""

    status = 431


def answer(content: bytes, kind: bytes = JSON, status: int = 200, extra: bytes = b"") -> bytes:
    """A whole answer; `extra` is further header lines, each with its line end."""
    head = b"%bContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n" % (LINES[status], kind, len(content), extra)
    return head + content


def refusal(error: BaseException, nested: bool = False) -> tuple[int, bytes]:
    """(status, answer) for what went wrong. What is not of our tree says nothing of the inside. `nested`: the sentence
    is where OpenAI's clients look for it."""
    status, sentence, extra = 500, INTERNAL, b""
    if isinstance(error, errors.Error):
        status = error.status if error.status in LINES else 500
        sentence = str(error)[:SENTENCE_CHARS_MAX]
    if isinstance(error, errors.Busy):
        extra = b"Retry-After: %d\r\n" % max(1, math.ceil(error.retry_after_s))
    elif isinstance(error, BadMethod):
        extra = b"Allow: %b\r\n" % error.allow.encode()
    elif isinstance(error, UpgradeRequired):
        extra = b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    elif isinstance(error, errors.Unauthenticated):
        extra = b"WWW-Authenticate: Bearer\r\n"
    # A client's own broken text may come back in the sentence: it must not break ours.
    text = sentence.encode(errors="replace").decode()
    kind = "invalid_request_error" if status < 500 else "server_error"
    said = {"message": text, "type": kind, "param": None, "code": None} if nested else text
    return status, answer(orjson.dumps({"error": said}), status=status, extra=extra)


def with_header(whole: bytes, line: bytes) -> bytes:
    """The answer with one more header line, right after the status line."""
    return whole.replace(b"\r\n", b"\r\n%b\r\n" % line, 1)


def closing(whole: bytes) -> bytes:
    """The answer, marked as the last of its connection."""
    return with_header(whole, b"Connection: close")


def head_of(whole: bytes) -> bytes:
    """The answer to HEAD: the same headers, no body."""
    return whole[: whole.index(b"\r\n\r\n") + 4]
