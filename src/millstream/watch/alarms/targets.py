"""Where alerts are delivered beside the log, `[watch.deliver.NAME]`, and how one message gets there.

Rules of the room:
- One try takes `timeout_s` to connect to an address, and `timeout_s` from there to the end of the answer, also where
  the other side sends a byte now and then. Redirects are not followed: a POST would become a GET.
- What could succeed later (no connection, 408, 425, 429, 5xx; SMTP's 4yz) is `Again`, anything else `Refused`.
- A password is sent over TLS or within this machine. Settings hold secrets, so no error repeats what they say, and a
  target is called by its NAME.
- No text ends a line of a header: settings are refused, what alerts say is made one line.
"""

from __future__ import annotations

import http.client
import logging
import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid, parsedate_to_datetime
from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta

import millstream
from millstream.errors import Error, Misconfigured
from millstream.types import Alert
from millstream.watch.alarms.rule import Severity

logger = logging.getLogger(__name__)

RETRY_AFTER_MAX_S: Final = 600.0
ANSWER_MAX: Final = 1 << 16
"""Bytes of an answer that are read; only their beginning is said."""
ENDS_AFTER: Final = 4
"""An alert that is not sent to Alertmanager again for so many `resend_s` is over there, as with Prometheus's own."""
SUBJECT_MAX: Final = 150
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_WORTH_ANOTHER = frozenset((408, 425, 429))
_OURS: Final = frozenset(("host", "content-type", "content-length", "transfer-encoding", "user-agent"))


class Refused(Error):
    """A message that would be refused again."""


class Again(Error):
    """A message that may go later; not before `after_s`, where the other side said so."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """What every place has where alerts are delivered."""

    severities: Annotated[tuple[Severity, ...], Meta(min_length=1, description="which alerts go there")] = (
        "page",
        "ticket",
        "note",
    )
    timeout_s: Annotated[float, Meta(gt=0, le=300, description="of one try, from the connection to the answer")] = 10.0
    again_s: Annotated[
        float, Meta(gt=0, le=600, description="until the second try; each later one waits twice as long, 60 s at most")
    ] = 2.0
    keep_s: Annotated[
        float, Meta(ge=0, description="an alert that could not be delivered for so long is given up and counted")
    ] = 3600.0
    waiting_max: Annotated[
        int, Meta(ge=1, le=100_000, description="alerts that wait; of more the oldest go, and are counted")
    ] = 1000

    def send(self, alerts: Sequence[Alert], now: float) -> None:
        """One message with all of these, at `now` (unix seconds). Blocks; Again, Refused."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{self.__struct_config__.tag}>"  # logs get no secrets


class _Http(Target, frozen=True, kw_only=True):
    url: Annotated[str, Meta(description="http:// or https://; `${NAME}` is taken from the environment")]
    headers: Annotated[
        dict[str, str],
        Meta(description='such as Authorization = "Bearer ${TOKEN}"; secrets only from the environment'),
    ] = {}

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            fits = False
        if not fits or _BREAKS.search(self.url) or not self.url.isascii():
            raise Misconfigured(
                "watch.deliver: `url` is no URL of http or https; write such as https://chat.example/hook (what was "
                "got is not repeated: it may be a secret)"
            )
        if parts.username is not None:
            raise Misconfigured('watch.deliver: `url` holds a user; write headers = { Authorization = "${AUTH}" }')
        for name, value in self.headers.items():
            if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
                raise Misconfigured(f"watch.deliver: `headers`: {name!r} is no name of a header that can be set")
            if _CONTROL.search(value) or not value.isascii():
                raise Misconfigured(f"watch.deliver: `headers.{name}` has characters that no header may have")


class Webhook(_Http, frozen=True, tag="webhook", kw_only=True):
    """A POST of JSON: `text`, a person's message, and `alerts`, each as in topic `alerts` of the log. Anything from 200
    to 299 is delivered. At least once: `id` and `state` of an alert tell a copy."""

    def send(self, alerts: Sequence[Alert], now: float) -> None:
        body = msgspec.json.encode({"text": text(alerts), "at": now, "alerts": [told(alert) for alert in alerts]})
        post(self.url, self.headers, body, self.timeout_s, now)


class Alertmanager(_Http, frozen=True, tag="alertmanager", kw_only=True):
    """Prometheus's Alertmanager at `url`, by its API of version 2. What fires is sent again every `resend_s`."""

    resend_s: Annotated[float, Meta(ge=1, le=3600, description="what fires is sent again so often")] = 60.0
    link: Annotated[str, Meta(description="where a person reads on, such as the console; Alertmanager shows it")] = ""

    def send(self, alerts: Sequence[Alert], now: float) -> None:
        latest = {str(sorted(self._labels(alert).items())): alert for alert in alerts}
        body = msgspec.json.encode([self._one(alert, now) for alert in latest.values()])
        post(self.url.rstrip("/") + "/api/v2/alerts", self.headers, body, self.timeout_s, now)

    def _labels(self, alert: Alert) -> dict[str, str]:
        named = {re.sub(r"\W", "_", name, flags=re.ASCII): value for name, value in alert.labels.items() if value}
        named = {f"_{name}" if name[:1].isdigit() else name: value for name, value in named.items() if name}
        return named | {"alertname": alert.rule, "severity": alert.severity}

    def _one(self, alert: Alert, now: float) -> dict[str, Any]:
        over = alert.state == "resolved"
        ends = max(alert.at, alert.since) if over else max(now, alert.since) + ENDS_AFTER * self.resend_s
        told = {"summary": alert.said, "runbook": alert.runbook, "did": alert.did}
        numbers = {"value": f"{alert.value:.6g}", "limit": f"{alert.limit:.6g}"}
        found = {
            "labels": self._labels(alert),
            "annotations": {name: value for name, value in told.items() if value} | numbers,
            "startsAt": _rfc3339(alert.since),
            "endsAt": _rfc3339(ends),
        }
        return found | ({"generatorURL": self.link} if self.link else {})


class Email(Target, frozen=True, tag="email", kw_only=True):
    """A mail in plain text by SMTP. Messages of one moment are one mail."""

    host: Annotated[str, Meta(min_length=1, description="of the server that takes mail")]
    port: Annotated[int, Meta(ge=1, le=65535, description="it listens at")] = 587
    security: Annotated[
        Literal["starttls", "tls", "none"],
        Meta(
            description="tls: from the first byte, usually port 465; none: no TLS, and no password but on this machine"
        ),
    ] = "starttls"
    user: Annotated[str, Meta(description="to log in as; empty: without logging in")] = ""
    password: Annotated[str, Meta(description="only from the environment: `${NAME}`")] = ""
    sender: Annotated[str, Meta(description="an address")]
    to: Annotated[tuple[str, ...], Meta(min_length=1, max_length=100, description="addresses")]

    def __post_init__(self) -> None:
        for address in (self.sender, *self.to):
            try:
                fits = bool(Address(addr_spec=address).domain) and not _BREAKS.search(address)
            except (ValueError, IndexError, MessageError):
                fits = False
            if not fits:
                raise Misconfigured(
                    f"watch.deliver: {address!r} is no address of e-mail; write such as ops@example.com"
                )
        if _BREAKS.search(self.host):
            raise Misconfigured(f"watch.deliver: `host` {self.host!r} is no name of a host")
        if self.user and self.security == "none" and not _local(self.host):
            raise Misconfigured("watch.deliver: security = 'none' would send the password as it is; use TLS")

    def send(self, alerts: Sequence[Alert], now: float) -> None:
        message = self.message(alerts, now)
        try:
            self._hand_over(message)
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            raise _by_code(min(codes), f"every recipient was refused: {_first(error.recipients)}") from None
        except smtplib.SMTPResponseException as error:
            raise _by_code(error.smtp_code, f"the server said {error.smtp_code} {_said(error.smtp_error)}") from None
        except smtplib.SMTPNotSupportedError as error:
            raise Refused(f"the server at {self.host} cannot do it: {one_line(str(error))}") from None
        except ssl.SSLCertVerificationError as error:
            raise Again(f"the certificate of {self.host} does not hold: {error.verify_message}") from None
        except OSError as error:
            raise Again(f"{self.host}:{self.port}: {one_line(str(error)) or type(error).__name__}") from None

    def message(self, alerts: Sequence[Alert], now: float) -> EmailMessage:
        """The mail that says these."""
        mail = EmailMessage(SMTP)
        mail["Subject"] = subject(alerts)
        mail["From"] = self.sender
        mail["To"] = ", ".join(self.to)
        mail["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
        mail["Message-ID"] = make_msgid(domain=self.sender.rpartition("@")[2])
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday answers it
        mail.set_content(text(alerts))
        return mail

    def _hand_over(self, message: EmailMessage) -> None:
        with _connected(self.host, self.port, self.timeout_s) as plain:
            client = smtplib.SMTP(timeout=self.timeout_s)
            client._host = self.host  # type: ignore[attr-defined]  # by which STARTTLS knows the certificate
            client.sock = plain if self.security != "tls" else _encrypted(plain, self.host)
            try:
                code, said = client.getreply()
                if code != 220:
                    raise smtplib.SMTPConnectError(code, said)
                if self.security == "starttls":
                    client.starttls(context=ssl.create_default_context())
                if self.user:
                    client.login(self.user, self.password)
                refused = client.send_message(message)
                with suppress(OSError):  # it has the mail by now
                    client.quit()
            finally:
                client.close()
        if refused:
            logger.warning("%d of %d recipients were refused: %s", len(refused), len(self.to), _first(refused))


Delivery = Webhook | Alertmanager | Email


def told(alert: Alert) -> dict[str, Any]:
    """An alert as JSON; a number that is none is null."""
    return {name: getattr(alert, name) for name in alert.__struct_fields__}


def subject(alerts: Sequence[Alert]) -> str:
    """All of these in a line: the worst rule that fires, and how many there are."""
    firing = [alert for alert in alerts if alert.state == "firing"]
    worst = min(firing or alerts, key=lambda alert: ("page", "ticket", "note").index(alert.severity))
    word = worst.severity if firing else "resolved"
    more = f" and {len(alerts) - 1} more" if len(alerts) > 1 else ""
    of = " ".join(worst.labels.values())
    return one_line(f"[{word}] {worst.rule} {of}", SUBJECT_MAX) + more


def text(alerts: Sequence[Alert]) -> str:
    """What a person reads."""
    return "\n\n".join("\n".join(_lines(alert)) for alert in alerts) + "\n"


def one_line(text: str, most: int = 300) -> str:
    """`text` without line breaks and control characters, cut at `most`."""
    line = _BREAKS.sub(" ", text.encode("utf-8", "replace").decode()).strip()
    return line if len(line) <= most else line[: most - 1] + "…"


def post(url: str, headers: dict[str, str], body: bytes, timeout_s: float, now: float) -> None:
    """POST JSON; returns when the answer says 200 to 299. Again, Refused."""
    parts = urlsplit(url)
    all_headers = {"Content-Type": "application/json", "User-Agent": f"millstream/{millstream.__version__}"} | headers
    host, secure = parts.hostname or "", parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(host, parts.port, timeout=timeout_s)
    try:
        with _connected(host, connection.port, timeout_s) as plain:
            connection.sock = _encrypted(plain, host) if secure else plain
            connection.request("POST", _path(parts), body, all_headers)
            answer = connection.getresponse()
            said = answer.read(ANSWER_MAX)
    except ssl.SSLCertVerificationError as error:
        raise Again(f"the certificate of {host} does not hold: {error.verify_message}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Again(f"{host}: {one_line(str(error)) or type(error).__name__}") from None
    finally:
        connection.close()
    if answer.status // 100 == 2:
        return
    why = f"{parts.hostname} answered {answer.status}: {_said(said)}"
    if answer.status // 100 == 3:
        raise Refused(f"{parts.hostname} answered {answer.status}, a redirect; say in `url` where it leads")
    if answer.status in _WORTH_ANOTHER or answer.status >= 500:
        raise Again(why, _retry_after(answer.getheader("Retry-After", ""), now))
    raise Refused(why)


def _path(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


@contextmanager
def _connected(host: str, port: int, timeout_s: float) -> Iterator[socket.socket]:
    """A connection that is cut when its time is over: a timeout of the socket counts from the last byte."""
    plain = socket.create_connection((host, port), timeout_s)
    twin, over, cutting = plain.dup(), threading.Event(), threading.Lock()  # TLS takes `plain` for its own

    def cut() -> None:
        with cutting, suppress(OSError):
            over.set()
            twin.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield plain
    except (OSError, http.client.HTTPException, ValueError):
        if over.is_set():
            raise TimeoutError(f"no answer within {timeout_s:g} s") from None
        raise
    finally:
        timer.cancel()
        with cutting:
            twin.close()
        plain.close()


def _encrypted(plain: socket.socket, host: str) -> ssl.SSLSocket:
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


def _retry_after(said: str, now: float) -> float:
    """Seconds, of RFC 9110's 10.2.3: a number or a date; 0 where it is neither."""
    with suppress(ValueError, OverflowError):
        seconds = float(said) if said.strip().isdigit() else parsedate_to_datetime(said).timestamp() - now
        return min(max(0.0, seconds), RETRY_AFTER_MAX_S)
    return 0.0


def _by_code(code: int, why: str) -> Again | Refused:
    return Refused(why) if 500 <= code < 600 else Again(why)


def _first(refused: dict[str, tuple[int, bytes]]) -> str:
    code, said = next(iter(refused.values()))
    return f"{code} {_said(said)}"


def _said(text: bytes | str) -> str:
    """What the other side said, short enough for a log."""
    whole = text if isinstance(text, str) else text[:2000].decode("utf-8", "replace")
    return one_line(whole, 200)


def _lines(alert: Alert) -> Iterator[str]:
    labels = ", ".join(f"{name} {value}" for name, value in alert.labels.items())
    yield f"{alert.state.upper()} [{alert.severity}] {alert.rule}" + (f": {labels}" if labels else "")
    yield alert.said
    yield f"since {_time(alert.since)}" + (f", over at {_time(alert.at)}" if alert.state == "resolved" else "")
    if alert.did:
        yield f"done: {alert.did}"
    if alert.runbook:
        yield f"what to do: {alert.runbook}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _local(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"
