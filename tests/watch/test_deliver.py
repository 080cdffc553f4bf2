"""Alerts reach real servers: webhooks that hang, fail and come back, mail over TLS, and Debian's Alertmanager."""

from __future__ import annotations

import contextlib
import email
import email.policy
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

from millstream.clock import SystemClock
from millstream.config import parse
from millstream.errors import Misconfigured
from millstream.meter import Meter
from millstream.types import Alert
from millstream.watch.alarms.deliver import Deliveries
from millstream.watch.alarms.targets import Alertmanager, Email, Webhook, subject
from millstream.watch.settings import WatchSettings
from service import free_port


def alert(rule: str = "failing", state: str = "firing", at: float = 1_700_000_060.0, **more: Any) -> Alert:
    told: dict[str, Any] = {
        "severity": "page", "labels": {"model": "ranker", "version": "3"}, "value": 0.31, "limit": 0.05,
        "since": 1_700_000_000.0, "said": "requests fail", "runbook": "docs/runbooks.md#failing",
    }  # fmt: skip
    return Alert(id=f"{rule}-1", rule=rule, state=state, at=at, **told | more)


class Hook(ThreadingHTTPServer):
    """Keeps what it is sent; answers with `statuses` in turn, then 200, after `headers`."""

    daemon_threads = True

    def __init__(self, *statuses: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Desk)
        self.statuses, self.more = list(statuses), headers or {}
        self.got: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.tries = 0
        self.answers = threading.Event()
        self.answers.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook?a=1"

    @property
    def alerts(self) -> list[str]:
        return [f"{one['rule']} {one['state']}" for body in self.got for one in body["alerts"]]


class _Desk(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tries += 1
        self.server.times.append(time.monotonic())
        assert self.server.answers.wait(20)
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.send_response(status)
        for name, value in self.server.more.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
        if status == 200:
            self.server.headers.append({**self.headers} | {"path": self.path})
            self.server.got.append(orjson.loads(body))

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def running(hook: Hook) -> Iterator[Hook]:
    thread = threading.Thread(target=hook.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hook
    finally:
        hook.shutdown()
        thread.join()
        hook.server_close()


@contextlib.contextmanager
def deliveries(meter: Meter | None = None, **targets: Any) -> Iterator[Deliveries]:
    made = Deliveries(targets, meter or Meter(), SystemClock())
    try:
        yield made
    finally:
        made.close(0.2)


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
    return found


def count(meter: Meter, target: str, name: str = "undelivered") -> float:
    return sum(meter.values(f"millstream_alerts_{name}_total", {"target": target}))


def test_one_moment_is_one_message_with_all_that_the_log_has() -> None:
    meter = Meter()
    with running(Hook()) as hook, deliveries(meter, chat=Webhook(url=hook.url, headers={"X-Key": "k"})) as out:
        out.put([alert(), alert("slow", severity="note", did="rolled back", value=float("inf"))])
        until(lambda: hook.got)
        until(lambda: count(meter, "chat", "delivered") == 2)
    (body,) = hook.got
    assert hook.headers[0]["X-Key"] == "k" and hook.headers[0]["path"] == "/hook?a=1"
    assert hook.headers[0]["Content-Type"] == "application/json"
    first, second = body["alerts"]
    assert first == {
        "id": "failing-1", "rule": "failing", "severity": "page", "state": "firing", "value": 0.31, "limit": 0.05,
        "labels": {"model": "ranker", "version": "3"}, "since": 1_700_000_000.0, "at": 1_700_000_060.0,
        "said": "requests fail", "runbook": "docs/runbooks.md#failing", "did": "",
    }  # fmt: skip
    assert second["value"] is None and second["did"] == "rolled back"
    assert "FIRING [page] failing: model ranker, version 3" in body["text"]
    assert "since 2023-11-14 22:13:20 UTC" in body["text"] and "done: rolled back" in body["text"]
    assert count(meter, "chat") == 0


def test_severities_say_what_goes_where() -> None:
    with running(Hook()) as pages, running(Hook()) as all_:
        targets = {"pages": Webhook(url=pages.url, severities=("page",)), "all": Webhook(url=all_.url)}
        with deliveries(**targets) as out:
            out.put([alert("a", severity="note"), alert("b", severity="ticket")])
            out.put([alert("c")])
            until(lambda: "c firing" in all_.alerts and pages.got)
    assert pages.alerts == ["c firing"] and all_.alerts == ["a firing", "b firing", "c firing"]


@contextlib.contextmanager
def hanging() -> Iterator[dict[str, str]]:
    """URLs of two that hang: one takes connections and never answers, one sends a byte now and then for ever."""
    end = threading.Event()

    def drip(server: socket.socket) -> None:
        server.settimeout(0.1)
        while not end.is_set():
            with contextlib.suppress(OSError):
                sock, _ = server.accept()
                with sock:
                    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000:
                        if end.wait(0.05):
                            break
                        sock.sendall(bytes([byte]))

    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as dripping:
        dripper = threading.Thread(target=drip, args=(dripping,))
        dripper.start()
        try:
            servers = {"silent": silent, "dripping": dripping}
            yield {name: f"http://127.0.0.1:{one.getsockname()[1]}/" for name, one in servers.items()}
        finally:
            end.set()
            dripper.join()


def test_a_webhook_that_hangs_delays_neither_the_caller_nor_others() -> None:
    meter = Meter()
    with hanging() as urls, running(Hook()) as hook:
        targets = {name: Webhook(url=url, timeout_s=60) for name, url in urls.items()}
        with deliveries(meter, **targets, chat=Webhook(url=hook.url)) as out:
            began = time.monotonic()
            for number in range(3):
                out.put([alert(str(number))])
            until(lambda: len(hook.alerts) == 3)
            assert time.monotonic() - began < 30  # of the 60 that each of the others may take


def test_a_webhook_that_hangs_is_cut_off() -> None:
    meter = Meter()
    with hanging() as urls:
        targets = {name: Webhook(url=url, timeout_s=0.5, keep_s=0.1) for name, url in urls.items()}
        with deliveries(meter, **targets) as out:
            out.put([alert()])
            until(lambda: count(meter, "silent") == 1 and count(meter, "dripping") == 1)


def test_what_fails_is_tried_again_with_what_came_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter()
    caplog.set_level(logging.WARNING)
    with running(Hook(500, 503, 429)) as hook, deliveries(meter, chat=Webhook(url=hook.url, again_s=0.2)) as out:
        out.put([alert("a")])
        until(lambda: hook.tries)
        out.put([alert("b")])
        out.put([alert("a", "resolved")])
        until(lambda: hook.got)
        until(lambda: count(meter, "chat", "delivered") == 3)
        gaps = [b - a for a, b in zip(hook.times, hook.times[1:], strict=False)]
        assert hook.tries == 4 and gaps[1] > 0.3 and gaps[2] > 0.7  # each waits twice as long
        out.put([alert("c")])
        until(lambda: len(hook.got) == 2)
    assert hook.alerts == ["a firing", "b firing", "a resolved", "c firing"] and len(hook.got[0]["alerts"]) == 3
    assert count(meter, "chat") == 0
    said = [record.message for record in caplog.records if "chat" in record.message]
    assert len(said) == 2 and "answered 500" in said[0] and "again" in said[1]


def test_what_came_while_a_try_was_under_way_stays_behind_it() -> None:
    with running(Hook(503)) as hook, deliveries(chat=Webhook(url=hook.url, again_s=0.05)) as out:
        hook.answers.clear()
        out.put([alert("a"), alert("b")])
        until(lambda: hook.tries == 1)
        out.put([alert("c")])
        hook.answers.set()
        until(lambda: hook.got)
    assert hook.alerts == ["a firing", "b firing", "c firing"]


def test_retry_after_is_honoured() -> None:
    hook = Hook(429, headers={"Retry-After": "1"})
    with running(hook), deliveries(chat=Webhook(url=hook.url, again_s=0.01)) as out:
        out.put([alert()])
        until(lambda: hook.got)
    assert hook.times[1] - hook.times[0] > 0.95


@pytest.mark.parametrize(("status", "headers"), [(401, {}), (404, {}), (302, {"Location": "http://127.0.0.1:9/"})])
def test_what_would_be_refused_again_is_counted_and_said_once(
    status: int, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    meter = Meter()
    hook = Hook(status, status, headers=headers)
    with running(hook), deliveries(meter, chat=Webhook(url=hook.url, again_s=0.01)) as out:
        out.put([alert("a"), alert("b")])
        until(lambda: count(meter, "chat") == 2)
        out.put([alert("c")])
        until(lambda: count(meter, "chat") == 3)
        out.put([alert("d")])
        until(lambda: hook.got)
    assert hook.tries == 3 and hook.alerts == ["d firing"]
    said = [record.message for record in caplog.records if "do not get to chat" in record.message]
    assert len(said) == 1 and f"answered {status}" in said[0]


def test_what_waits_is_bounded_and_the_newest_stay() -> None:
    meter = Meter()
    with running(Hook(503)) as hook, deliveries(meter, chat=Webhook(url=hook.url, waiting_max=3, again_s=2.0)) as out:
        for number in range(10):
            out.put([alert(str(number))])
            if not number:
                until(lambda: hook.tries)
        until(lambda: hook.got)
    assert hook.alerts == ["7 firing", "8 firing", "9 firing"] and count(meter, "chat") == 7


def test_the_end_sends_what_waits_and_counts_what_it_cannot() -> None:
    meter = Meter()
    with running(Hook(503)) as hook, socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = Webhook(url=f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout_s=30)
        out = Deliveries({"chat": Webhook(url=hook.url, again_s=60), "silent": hanging}, meter, SystemClock())
        out.put([alert("a"), alert("b")])
        until(lambda: hook.tries == 1)
        began = time.monotonic()
        out.close(5.0)
        assert time.monotonic() - began < 20  # of the 30 that one of them may take
    assert hook.alerts == ["a firing", "b firing"]
    assert count(meter, "chat") == 0 and count(meter, "silent") == 2


def test_nothing_personal_leaves_and_no_text_breaks_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bad = "call +31 6 1234 5678\r\nBcc: all@evil.example\n\x1b[31m \ud800"
    with running(Hook()) as hook, deliveries(chat=Webhook(url=hook.url)) as out:
        out.put([alert(said=bad, did="told bob@example.com", labels={"tenant": "bob@example.com", "x\n": "<b>\x00"})])
        until(lambda: hook.got)
    told = str(hook.got) + caplog.text
    assert "evil.example" not in told and "1234 5678" not in told and "bob@example" not in told
    (one,) = hook.got[0]["alerts"]
    assert one["said"] == "call [PHONE] Bcc: [EMAIL] [31m ?" and one["labels"]["tenant"].startswith("[EMAIL#")
    (line,) = [record.getMessage() for record in caplog.records if "failing" in record.getMessage()]
    assert "\n" not in line and "\x1b" not in line


# -- e-mail -----------------------------------------------------------------------------------------------------------


class Box:
    """A mailbox of aiosmtpd's; `replies`: what it says of the next recipients, or of the next mails after DATA."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.to: list[list[str]] = []
        self.rcpt: dict[str, str] = {}
        self.data: list[str] = []
        self.logins: list[tuple[str, str]] = []
        self.encrypted: list[bool] = []

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if address in self.rcpt:
            return self.rcpt[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:  # noqa: N802
        if self.data:
            return self.data.pop(0)
        self.mails.append(email.message_from_bytes(envelope.content, policy=email.policy.default))  # type: ignore[arg-type]
        self.to.append(envelope.rcpt_tos)
        self.encrypted.append(session.ssl is not None)
        return "250 OK"

    def login(self, server: SMTP, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.logins.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=data.password == b"secret", handled=True)


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A server's side of TLS for `localhost`; what is tried here trusts who signed it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@contextlib.contextmanager
def mailing(box: Box, **options: Any) -> Iterator[int]:
    port = free_port()
    controller = Controller(box, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


def mail(port: int, **more: Any) -> Email:
    told = {"host": "localhost", "sender": "watch@example.com", "to": ("ops@example.com",), "again_s": 0.1}
    return Email(port=port, **told | more)  # type: ignore[arg-type]


def test_mail_says_one_moment_in_one_message(trusted: ssl.SSLContext) -> None:
    box, meter = Box(), Meter()
    options = {"tls_context": trusted, "require_starttls": True, "authenticator": box.login, "auth_required": True}
    with mailing(box, **options) as port, deliveries(meter, ops=mail(port, user="u", password="secret")) as out:
        out.put([alert("slow", severity="note", said="langsam über alles"), alert()])
        until(lambda: count(meter, "ops", "delivered") == 2)
    (message,) = box.mails
    assert box.logins == [("u", "secret")] and box.encrypted == [True] and box.to == [["ops@example.com"]]
    assert message["Subject"] == "[page] failing ranker 3 and 1 more"
    assert message["To"] == "ops@example.com" and message["Auto-Submitted"] == "auto-generated"
    body = message.get_content()
    assert "langsam über alles" in body and "FIRING [page] failing: model ranker, version 3" in body
    assert "what to do: docs/runbooks.md#failing" in body


def test_mail_by_tls_from_the_first_byte_and_never_to_who_cannot_show_a_certificate(
    trusted: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, meter = Box(), Meter()
    with mailing(box, ssl_context=trusted) as port:
        with deliveries(meter, ops=mail(port, security="tls")) as out:
            out.put([alert()])
            until(lambda: box.mails)
        monkeypatch.delenv("SSL_CERT_FILE")
        with deliveries(meter, strict=mail(port, security="tls", keep_s=0.0)) as out:
            out.put([alert()])
            until(lambda: count(meter, "strict") == 1)
    assert len(box.mails) == 1


def test_mail_without_starttls_where_it_is_wanted_is_not_sent_in_the_clear() -> None:
    box, meter = Box(), Meter()
    with mailing(box) as port, deliveries(meter, ops=mail(port)) as out:
        out.put([alert()])
        until(lambda: count(meter, "ops") == 1)
    assert not box.mails


def test_mail_goes_again_after_a_4yz_and_not_after_a_5yz(caplog: pytest.LogCaptureFixture) -> None:
    box, meter = Box(), Meter()
    box.data = ["451 greylisted", "554 no thanks"]
    with mailing(box) as port, deliveries(meter, ops=mail(port, security="none")) as out:
        out.put([alert("a")])
        until(lambda: count(meter, "ops") == 1)
        out.put([alert("b")])
        until(lambda: box.mails)
    assert box.data == [] and [one["Subject"] for one in box.mails] == ["[page] b ranker 3"]
    assert not any("554 no thanks" in record.message for record in caplog.records)  # that it fails was said before
    assert any("451 greylisted" in record.message for record in caplog.records)


def test_mail_goes_to_those_who_may_have_it(caplog: pytest.LogCaptureFixture) -> None:
    box, meter = Box(), Meter()
    box.rcpt = {"gone@example.com": "550 no such user"}
    with mailing(box) as port:
        both = ("ops@example.com", "gone@example.com")
        with deliveries(meter, ops=mail(port, security="none", to=both)) as out:
            out.put([alert()])
            until(lambda: box.mails)
        with deliveries(meter, gone=mail(port, security="none", to=("gone@example.com",))) as out:
            out.put([alert()])
            until(lambda: count(meter, "gone") == 1)
    assert box.to == [["ops@example.com"]] and "1 of 2 recipients were refused: 550" in caplog.text


def test_a_subject_is_one_line_and_no_header() -> None:
    labels = {"model": "x\r\nBcc: all@evil.example", "version": "ü" * 300}
    line = subject([alert(labels=labels)])
    assert "\n" not in line and "\r" not in line and len(line) <= 150
    message = mail(25).message([alert(labels=labels, said="a\r\n.\r\nb")], 1_700_000_000.0)
    parsed = email.message_from_bytes(message.as_bytes(), policy=email.policy.default)
    assert parsed["Bcc"] is None and parsed["Subject"] == line
    assert subject([alert(state="resolved"), alert("b", "resolved")]) == "[resolved] failing ranker 3 and 1 more"


@pytest.mark.parametrize(
    "wrong",
    [
        'kind = "webhook"\nurl = "ftp://x"',
        'kind = "webhook"\nurl = "https://user:hunter2@x.example/"',
        'kind = "webhook"\nurl = "http://x.example/a b"',
        'kind = "webhook"\nurl = "http://x.example:99999999/"',
        'kind = "webhook"\nurl = "http://x.example/"\nheaders = { "X-A" = "hunter2\\r\\nHost: y" }',
        'kind = "webhook"\nurl = "http://x.example/"\nheaders = { "Content-Length" = "3" }',
        'kind = "alertmanager"',
        'kind = "pager"\nurl = "http://x.example/"',
        'kind = "email"\nhost = "x"\nsender = "a@b.example\\nBcc: c@d.example"\nto = ["a@b.example"]',
        'kind = "email"\nhost = "x"\nsender = "a@b.example"\nto = []',
        'kind = "email"\nhost = "x"\nsender = "a@b.example"\nto = ["nobody"]',
        'kind = "email"\nhost = "x.example"\nsender = "a@b.example"\nto = ["a@b.example"]\nuser = "u"\n'
        'password = "hunter2"\nsecurity = "none"',
    ],
)
def test_a_target_that_cannot_be_used_is_refused_without_its_secrets(wrong: str) -> None:
    with pytest.raises(Misconfigured) as told:
        parse(f"[deliver.chat]\n{wrong}", WatchSettings, "x.toml")
    assert "hunter2" not in str(told.value) and "deliver" in str(told.value)


def test_secrets_come_from_the_environment_and_stay_out_of_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_TOKEN", "hunter2")
    text = '[deliver.chat]\nkind = "webhook"\nurl = "https://x.example/${CHAT_TOKEN}"'
    settings = parse(text, WatchSettings, "x.toml")
    chat = settings.deliver["chat"]
    assert isinstance(chat, Webhook) and chat.url.endswith("/hunter2") and "hunter2" not in repr(settings)


# -- Alertmanager -----------------------------------------------------------------------------------------------------


def test_what_fires_is_sent_to_an_alertmanager_again_and_ends_by_itself() -> None:
    """By what is on the wire; Debian's own is below."""
    with running(Hook()) as hook:
        hook.got = got = _Wire()  # type: ignore[assignment]
        target = Alertmanager(url=hook.url.partition("/hook")[0] + "/am/", resend_s=1.0, link="http://here/")
        with deliveries(am=target) as out:
            out.resume([alert("before")])
            labels = {"model": "ranker", "a-b": "1", "9": "2", "severity": "none"}
            out.put([alert(labels=labels)])
            until(lambda: len(got) >= 2)
            out.put([alert(state="resolved", at=1_700_000_090.0, labels=labels)])
            until(lambda: any(len(body) == 1 for body in got[2:]))
    assert hook.headers[0]["path"] == "/am/api/v2/alerts"
    one = next(one for one in got[1] if one["labels"]["alertname"] == "failing")
    assert one["labels"] == {"alertname": "failing", "severity": "page", "model": "ranker", "a_b": "1", "_9": "2"}
    assert one["startsAt"] == "2023-11-14T22:13:20.000Z" and one["generatorURL"] == "http://here/"
    assert one["annotations"]["summary"] == "requests fail" and one["annotations"]["value"] == "0.31"
    assert {o["labels"]["alertname"] for o in got[1]} == {"before", "failing"}
    over = next(o for body in got for o in body if o["endsAt"] == "2023-11-14T22:14:50.000Z")
    assert over["labels"]["alertname"] == "failing"
    assert [o["labels"]["alertname"] for o in got[-1]] == ["before"]  # and no more of the other


class _Wire(list[Any]):
    pass


def alertmanager() -> str:
    return shutil.which("prometheus-alertmanager") or shutil.which("alertmanager") or ""


@pytest.mark.slow
def test_debians_alertmanager_takes_alerts_and_their_end(tmp_path: Path) -> None:
    program = alertmanager()
    assert program, "install Debian's prometheus-alertmanager"
    (tmp_path / "am.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    port = free_port()
    command = [
        program, f"--config.file={tmp_path / 'am.yml'}", f"--storage.path={tmp_path}", "--cluster.listen-address=",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (tmp_path / "out").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url, now = f"http://127.0.0.1:{port}", time.time()

        def active() -> dict[str, dict[str, Any]]:
            found = orjson.loads(urllib.request.urlopen(f"{url}/api/v2/alerts").read())
            return {one["labels"]["alertname"]: one for one in found}

        meter = Meter()
        with deliveries(meter, am=Alertmanager(url=url, again_s=0.2, resend_s=1.0)) as out:
            out.put(
                [alert(since=now - 60, at=now), alert("odd", since=now, at=now, labels={"a-b": "ü\n"}, said="\x00")]
            )
            until(lambda: count(meter, "am", "delivered") == 2)  # it may have come up later: then it was tried again
            found = active()
            assert found["failing"]["labels"]["version"] == "3" and found["failing"]["annotations"]["value"] == "0.31"
            assert found["failing"]["annotations"]["runbook"] == "docs/runbooks.md#failing"
            assert found["odd"]["labels"]["a_b"] == "ü"
            first = found["failing"]["endsAt"]
            until(lambda: active()["failing"]["endsAt"] > first)
            out.put([alert(state="resolved", since=now - 60, at=time.time())])
            until(lambda: set(active()) == {"odd"})
        until(lambda: not active())  # who watches has ended: what is not said again is over
    finally:
        process.terminate()
        process.wait(20)
