"""A small installation with real traffic and its consoles, with and without keys; and what a browser must not do."""

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time

from millstream.app.installation import Installation
from millstream.client import Client
from millstream.errors import Error
from millstream.guard.auth import new_key
from millstream.models import traffic
from millstream.models.manifest import Manifest
from millstream.models.policy import Canary, Guard
from service import Served, free_port

HOSTILE = "<img src=x onerror=window.hacked=1>"
TOML = """
http_port = {port}
grpc_port = {grpc}
{keys}
[learn]
model = "ranker"
[join.tasks.like]
window_s = 1.0
[ftrl]
bits = 12
[features]
user = [{{ name = "id" }}]
item = [{{ name = "id" }}, {{ name = "category" }}]
[recommend]
model = "ranker"
[recommend.placements.home]
n = 5
[recommend.placements.home.arms.calm]
share = 0.5
rerank = [{{ step = "window", by = "category", most = 1, window = 2 }}]
[recommend.placements.home.arms.plain]
share = 0.5
[console]
on = true
port = 0
[watch]
every_s = 1.0
[watch.rules.busy-day]
quantity = "requests"
above = 0.0
over_s = 10
severity = "ticket"
by = ["model"]
action = "freeze"
dry_run = false
says = "somebody asks"
"""


class Running:
    """The installation while it runs. `port`: of its service; `url`: of the console without keys, `keyed` of the one
    with them; `keys`: key by what it may; `folder`: where it lies."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.keys, snippets = {}, []
        for name, verbs in (("viewer", ("*:view",)), ("operator", ("*:*",)), ("shop", ("ranker:infer",))):
            self.keys[name], snippet = new_key(name, verbs)
            snippets.append(snippet)
        (folder / "keys.toml").write_text("\n".join(snippets))
        grpc = free_port()
        (folder / "millstream.toml").write_text(TOML.format(port=self.port, grpc=grpc, keys=""))
        (folder / "keyed.toml").write_text(TOML.format(port=self.port, grpc=grpc, keys='keys = "keys.toml"'))
        self._stack, self._ending = contextlib.ExitStack(), threading.Event()
        self.url = self.keyed = ""

    def start(self):
        self._models()
        file = self.folder / "millstream.toml"
        up = self._stack.enter_context(Served(file, self.folder / "up.txt", verb=("up", "-c", str(file))))
        self.client = self._stack.enter_context(Client(f"http://127.0.0.1:{self.port}", connections=2))
        self._items()
        people = threading.Thread(target=self._people, daemon=True)
        people.start()
        self.url = f"http://localhost:{up.said(SAID)}"
        self.keyed = self._stack.enter_context(console(self.folder / "keyed.toml", self.folder / "keyed.txt"))
        return self

    def stop(self):
        self._ending.set()
        self._stack.close()

    def _models(self):
        with Installation.open(self.folder / "millstream.toml") as at:
            for number in range(3):
                lineage = {"made_by": "test", **({"parent": str(number)} if number else {})}
                manifest = Manifest(format="ftrl", file="m.ftrl", features=at.definition.hash, lineage=lineage)
                at.repository.put("ranker", manifest, {"m.ftrl": at.learner().dump()})
            at.repository.change_policy("ranker", traffic.promote("2"), "test", HOSTILE)
            canary = Canary("3", 0.3, Guard(requests_min=100_000, requests=1_000_000))

            def tried(policy):
                return traffic.replace(policy, canary=canary, shadow=("1",))

            at.repository.change_policy("ranker", tried, "test", "try it out")

    def _items(self):
        titles = [HOSTILE, *(f"Film {number}" for number in range(1, 24))]
        self.client.items([
            {"id": f"i{number}", "title": title, "category": f"c{number % 3}", "tags": [f"t{number % 4}"]}
            for number, title in enumerate(titles)
        ])  # fmt: skip
        self.client.users([{"id": f"u{number}", "age": 20 + number} for number in range(20)])

    def _people(self):
        """Some lists a second, looked at and sometimes liked."""
        number = 0
        while not self._ending.wait(0.15):
            number += 1
            with contextlib.suppress(Error, OSError):
                page = self.client.recommend(f"u{number % 20}", placement="home")
                for place, slot in enumerate(page.items):
                    self.client.outcome(page.id, slot.item, "impression")
                    if (number + place) % 5 == 0:
                        self.client.outcome(page.id, slot.item, "like", text=HOSTILE)


@contextlib.contextmanager
def console(file, said):
    """A console as an operator starts it; its address."""
    command = [sys.executable, "-m", "millstream", "console", "-c", str(file), "--port", "0"]
    with said.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield f"http://localhost:{_port(process, said)}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, said.read_text()


SAID = r"the console is at \w+://[^:]+:(\d+)"


def _port(process, said):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := re.search(SAID, said.read_text()):
            return found[1]
        assert process.poll() is None, said.read_text()
        time.sleep(0.05)
    raise AssertionError(said.read_text())


class Tab:
    """A page in the browser. At the end of its test nothing may have failed in it, but what `expected` matches."""

    def __init__(self, page):
        self.page, self.wrong, self.expected = page, [], None
        page.on("console", lambda said: self._said(said.type, said.text))
        page.on("pageerror", lambda error: self._said("error", str(error)))
        page.on("request", lambda asked: self._asked(asked.url))

    def _said(self, kind, text):
        if kind == "error":
            self.wrong.append(text)

    def _asked(self, url):
        if not re.match(r"(https?|wss?)://(localhost|127\.0\.0\.1)[:/]|data:|about:|blob:", url):
            self.wrong.append(f"it asks another machine: {url}")

    def check(self):
        left = [one for one in self.wrong if not (self.expected and re.search(self.expected, one))]
        assert not left, left
        assert self.page.evaluate("window.hacked") is None, "text was run as a script"


def until(true, seconds=60.0):
    """Wait until this is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)
