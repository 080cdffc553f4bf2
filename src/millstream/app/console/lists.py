"""The console as a visitor of the service: lists by HTTP, as anybody asks for them, with titles from the log's tail.

Rules of the room:
- What is shown is what the service answers to a caller with the visitor's own key; nothing is computed here.
- Titles are of the `TITLES` items that were told of last, people of the last `SERVED` answers: others go by their ids.
- What somebody says of an item is an impression and an outcome of the configured kind, durable when `rate` returns.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from millstream.app.console.tail import Tail
from millstream.app.installation import Installation, Settings
from millstream.client import Client
from millstream.console.studies import Asker, Film, Places, Shelf
from millstream.errors import Busy, Misconfigured
from millstream.stream import decode
from millstream.types import Entity, Listing, Outcome

TITLES = 100_000
SERVED = 300
PEOPLE = 30
CLIENTS_MAX = 16
CLIENT_S = 600.0
"""After so long without a call a client is hung up, and the key that it had is gone."""
REFUSED_MAX = 1000
DURABLE_S_MAX = 10.0
_TITLE = ("title", "name")
_ABOUT = ("genres", "categories", "category", "tags", "brand")


class Visiting:
    """Asks the running service of an installation; may be called from any thread."""

    def __init__(self, at: Installation) -> None:
        self._at = at
        self._lock = threading.Lock()
        self._items, self._served = Tail(at.log, "items", TITLES), Tail(at.log, "served", SERVED)
        self._known: OrderedDict[str, tuple[str, str]] = OrderedDict()  # item -> title, what it is about
        self._people: OrderedDict[str, None] = OrderedDict()
        self._clients: OrderedDict[str, tuple[Client, float]] = OrderedDict()  # key -> client, when it was asked for
        self._refused: OrderedDict[str, str] = OrderedDict()  # id of an outcome -> why

    def places(self) -> Places:
        """What can be asked for, and who came lately."""
        self.poll()
        settings = self._at.settings
        with self._lock:
            people = list(self._people)[::-1]
        return Places(list(settings.recommend.placements), people, _kinds(settings), address(settings))

    def poll(self) -> None:
        """Take in items and people that came; hang up where nobody calls."""
        self._hang_up(self._at.clock.monotonic() - CLIENT_S)
        with self._lock:
            for _, event in self._items.new(decode):
                if isinstance(event, Entity):
                    self._known[event.id] = _described(event)
                    self._known.move_to_end(event.id)
                    if len(self._known) > TITLES:
                        self._known.popitem(last=False)
            for _, user in self._served.new(_user):
                if user:
                    self._people[user] = None
                    self._people.move_to_end(user)
                    if len(self._people) > PEOPLE:
                        self._people.popitem(last=False)

    def ask(self, who: Asker) -> Shelf:
        """A list, explained. Errors of the service, as it gave them."""
        clock = self._at.clock
        began, client = clock.monotonic(), self._client(who.key)
        ident = f"console-{uuid.uuid4().hex}"
        person = {"visitor": who.visitor} if who.visitor else {}
        listing = client.recommend(who.user, id=ident, placement=who.placement, explain=True, **person)  # type: ignore[arg-type]
        seconds = clock.monotonic() - began
        with self._lock:
            return _shelf(listing, self._known, seconds)

    def rate(self, who: Asker, shelf: Shelf, item: str, kind: str, value: float) -> None:
        """Tell of an item that was seen and what was done with it. Busy: it is not durable in time."""
        client, ids = self._client(who.key), [uuid.uuid4().hex, uuid.uuid4().hex]
        client.outcome(shelf.id, item, "impression", id=ids[0])
        client.outcome(shelf.id, item, kind, value, id=ids[1])
        if not client.flush(DURABLE_S_MAX):
            raise Busy(f"the service did not take the outcome within {DURABLE_S_MAX:.0f} s; tell it again")
        why = next((self._refused[one] for one in ids if one in self._refused), "")
        if why:
            raise Busy(f"the service did not take the outcome: {why}")

    def close(self) -> None:
        """Hang up."""
        self._hang_up(math.inf)

    def _hang_up(self, before: float) -> None:
        """Of clients, those that were asked for last before this time."""
        with self._lock:
            gone = [key for key, (_, used) in self._clients.items() if used < before]
            clients = [self._clients.pop(key)[0] for key in gone]
        for client in clients:
            client.close(0.5)

    def _client(self, key: str) -> Client:
        with self._lock:
            found = self._clients.pop(key, None)
            if found is not None:
                client = found[0]
            else:
                settings, folder = self._at.settings, self._at.folder
                ca: str | Path = folder / settings.tls.certificate if settings.tls.certificate else ""
                client = Client(
                    address(settings), key, ca=ca, clock=self._at.clock, retry_s=DURABLE_S_MAX, on_drop=self._drop
                )
            self._clients[key] = client, self._at.clock.monotonic()
            gone = [self._clients.popitem(last=False)[1][0]] if len(self._clients) > CLIENTS_MAX else []
        for other in gone:
            other.close(0.5)
        return client

    def _drop(self, lost: list[Outcome], why: str) -> None:
        for one in lost:
            self._refused[one.id] = why
            while len(self._refused) > REFUSED_MAX:
                self._refused.popitem(last=False)


def address(settings: Settings) -> str:
    """Where the service of an installation answers on this machine. Misconfigured: nobody can know its port."""
    if not settings.http_port:
        raise Misconfigured("http_port is 0, any free port: name one in millstream.toml, so that the console finds it")
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "") else settings.host
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.tls.certificate else 'http'}://{host}:{settings.http_port}"


def _kinds(settings: Settings) -> dict[str, float]:
    """Kinds of feedback that make an item a positive, with the value from which they do."""
    kinds: dict[str, float] = {}
    for name, task in settings.join.tasks.items():
        kinds |= task.kinds or {name: 1.0}
    return kinds


class _Who(msgspec.Struct, tag="served"):
    user: str = ""


_WHO = msgspec.msgpack.Decoder(_Who)


def _user(value: bytes) -> str:
    """Whom an answer was for; "" of anything else that stands there."""
    try:
        return _WHO.decode(value).user
    except msgspec.ValidationError:
        return ""


def _described(item: Entity) -> tuple[str, str]:
    said = item.attributes
    title = next((str(said[name]) for name in _TITLE if said.get(name)), item.id)
    about = [_text(said[name]) for name in ("year", *_ABOUT) if said.get(name)]
    return title, " · ".join(about[:2])


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shelf(listing: Listing, known: Mapping[str, tuple[str, str]], seconds: float) -> Shelf:
    ranked = _ranked([slot.score for slot in listing.items])
    films = []
    for at, slot in enumerate(listing.items):
        why = slot.why or {}
        title, about = known.get(slot.item, (slot.item, ""))
        films.append(
            Film(
                item=slot.item, title=title, about=about, place=at + 1, score=slot.score, ranked=ranked[at],
                found=[str(path) for path in why.get("recall", [])], found_score=float(why.get("recall_score", 0.0)),
                reasons=slot.reasons, outputs={str(k): float(v) for k, v in why.get("outputs", {}).items()},
            )
        )  # fmt: skip
    return Shelf(
        id=listing.id, model=listing.model, version=listing.version, arm=listing.arm, seconds=seconds, films=films,
        missed=listing.missed,
    )  # fmt: skip


def _ranked(scores: Sequence[float]) -> list[int]:
    """The place of each by its score, 1 the highest."""
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    places = [0] * len(scores)
    for place, at in enumerate(order):
        places[at] = place + 1
    return places
