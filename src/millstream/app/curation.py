"""What an installation's log says is worth a person's look, what people said of it, and the datasets made of that.

    fill ─► topic `reviews` ─► queue ─► label ─► export ─► datasets/NAME/VERSION ─► `train offline --dataset`

Rules of the room:
- Everything works while roles run and while they do not: nothing here talks to them.
- Choosing rows and exporting them hold the lock of `millstream forget` and of a backup: nothing of somebody comes back
  that is being taken out. A label names nobody, and needs no lock.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream.app import reviews
from millstream.app.installation import Installation
from millstream.errors import BadInput, Conflict, NotFound
from millstream.guard.pii import pseudonym
from millstream.learn.curate import dataset as stored
from millstream.learn.curate import reasons
from millstream.learn.curate.dataset import Dataset, Row
from millstream.learn.curate.near import BANDS, DEEP, Kept, bands
from millstream.learn.curate.queue import LABELS, TOPIC, Queue, ReviewItem, choose, shown
from millstream.learn.curate.reasons import GOLD, REASONS, SPEECH, Moved
from millstream.learn.curate.scan import Scan, scan
from millstream.learn.curate.teacher import Measured, measure, sure
from millstream.learn.validation import Slice, slices
from millstream.meter import Meter
from millstream.models import online
from millstream.store.blob import locked
from millstream.stream import LenientReader, encode
from millstream.types import Entity, Review, ReviewLabel

LIMIT_MAX: Final = 10_000
TOGETHER: Final = 200  # reviews of one frame
TEXT_MAX: Final = 300
VALUES_MAX: Final = 12
WHO_MAX: Final = 256
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
Say = Callable[[str], None]
Teach = Callable[[NDArray[np.uint32]], NDArray[np.float32]]


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """What joined the queue: of `rows` that were looked at `added`, by reason; `waiting` now; slices that `moved`;
    `slope`, `intercept`: by which scores were calibrated."""

    rows: int
    added: dict[str, int]
    waiting: int
    moved: list[Moved]
    slope: float
    intercept: float


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """A label that is on disk; `before`: what was said of it until now, "" for nothing. `waiting`: rows that wait."""

    id: str
    label: str
    who: str
    before: str
    waiting: int


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a dataset; `new`: whether it was put just now, or nothing had changed since. `teacher`: how good it
    was by class of label, and why its labels were refused. `other_features`: labelled rows of another definition of
    features, which are left out."""

    dataset: Dataset
    new: bool
    teacher: dict[str, Measured] = {}
    other_features: int = 0


def folder_of(at: Installation) -> Path:
    """Where datasets lie."""
    return at.folder / "datasets"


def fill(at: Installation, say: Say = lambda line: None) -> Filled:
    """Choose rows of the log that are worth a look, and put them into the queue. Misconfigured: no [features];
    Conflict: `forget` or a backup is under way."""
    definition, settings = at.definition, at.settings.curate
    with _alone(at):
        rows, found = _scan(at), _slices(at)
        say(f"{len(rows)} scored rows, calibrated by slope {rows.slope:.2f} and intercept {rows.intercept:.2f}")
        queue, now = Queue(at.log, settings).poll(), at.clock.now()
        chosen = choose(rows, queue, settings, found, definition.hash, now)
        if chosen:
            told = _attributes(at, {one.item for one in chosen}, {one.user for one in chosen})
            whole = [msgspec.structs.replace(one, shown=told(one)) for one in chosen]
            with reviews.writer(at) as writer:
                for first in range(0, len(whole), TOGETHER):
                    part = whole[first : first + TOGETHER]
                    writer.append_frame([(one.id.encode(), encode(one)) for one in part], sync=True)
        waiting = len(queue.poll().waiting(now))
    added = Counter(one.reasons[0] for one in chosen)
    return Filled(
        rows=len(rows), added={name: added[name] for name in REASONS if added[name]}, waiting=waiting,
        moved=reasons.moves(rows, settings, found), slope=rows.slope, intercept=rows.intercept,
    )  # fmt: skip


def queue(at: Installation, limit: int = 100, reason: str = "") -> list[ReviewItem]:
    """What waits for a person: at most `limit`, the most worthy of each reason in turn, or of one reason. BadInput."""
    if reason and reason not in (*REASONS, *SPEECH):
        raise BadInput(f"reason {reason!r}: there are {', '.join((*REASONS, *SPEECH))}")
    if not 1 <= limit <= LIMIT_MAX:
        raise BadInput(f"limit {limit}: 1 to {LIMIT_MAX}")
    return shown(Queue(at.log, at.settings.curate).poll().waiting(at.clock.now()), limit, reason)


def waiting(at: Installation) -> dict[str, int]:
    """How many wait, by the reason that they are counted for."""
    found = Counter(one.reasons[0] for one in Queue(at.log, at.settings.curate).poll().waiting(at.clock.now()))
    return {name: found[name] for name in (*REASONS, *SPEECH) if found[name]}


def label(at: Installation, id: str, label: str, who: str) -> Labelled:
    """Say of a row of the queue that it is "positive", "negative", or "skip"; said again, the later counts. It is on
    disk when this returns. BadInput; NotFound: there is no such row; Busy: others write."""
    if label not in LABELS:
        raise BadInput(f"label {label!r}: say {', '.join(LABELS)}")
    if not who or len(who) > WHO_MAX or _CONTROL.search(who):
        raise BadInput(f"who is {who[:40]!r}: say who labels, in 1 to {WHO_MAX} plain characters")
    found = Queue(at.log, at.settings.curate).poll()
    if id not in found.reviews:
        raise NotFound(
            f"no row {id[:40]!r} was ever in the queue, or it was forgotten; `millstream curate list` names what waits"
        )
    before = found.labels[id].label if id in found.labels else ""
    with reviews.writer(at) as writer:
        event = ReviewLabel(id=id, label=label, who=who, at=at.clock.now())
        writer.append_durable_wait(id.encode(), encode(event))
    left = len(found.poll().waiting(at.clock.now()))
    return Labelled(id=id, label=label, who=pseudonym(who), before=before, waiting=left)


def datasets(at: Installation) -> list[Dataset]:
    """Every version of every dataset, the newest of each name first. Corrupt: one that cannot be read."""
    root = folder_of(at)
    return [
        stored.read(root / name / version)
        for name in stored.names(root)
        for version in reversed(stored.versions(root, name))
    ]


def export(at: Installation, name: str, teacher: str = "", say: Say = lambda line: None) -> Exported:
    """Put what people labelled as the next version of a dataset, with labels of a `teacher` ("VERSION" of the model,
    or "MODEL@VERSION") beside them where it is good enough. BadInput: nothing was labelled, no such name or teacher;
    Conflict: `forget` or a backup is under way; Full."""
    settings, definition = at.settings.curate, at.definition
    with _alone(at):
        found = Queue(at.log, settings).poll()
        labelled = found.labelled()
        ours = [(one, said) for one, said in labelled if one.definition == definition.hash]
        if not ours:
            other = f" of these [features]; {len(labelled)} of others" if labelled else ""
            raise BadInput(f"nothing was labelled{other}: `millstream curate list` shows what waits")
        rows = [_row(one, said, settings.weight) for one, said in ours]
        offsets = {TOPIC: {str(p): [0, end] for p, end in found.offsets.items()}}
        told: dict[str, Any] = {}
        measured: dict[str, Measured] = {}
        if teacher:
            pool = _scan(at)
            offsets["served"] = {str(p): [*span] for p, span in pool.offsets.items()}
            model, version = _named(at, teacher)
            measured, more = _taught(at, model, version, pool, found, ours)
            say(f"{model} {version} adds {len(more)} labels")
            rows += more
            told = {"model": model, "version": version, **msgspec.to_builtins(measured)}
        there = stored.versions(folder_of(at), name)
        made = Dataset(
            name=name, version="", created=datetime.fromtimestamp(at.clock.now(), UTC).isoformat(timespec="seconds"),
            definition=definition.hash, model=at.model, width=definition.width, rows=0, digest="", file="",
            offsets=offsets, rules=msgspec.to_builtins(settings), teacher=told,
        )  # fmt: skip
        put = stored.put(folder_of(at), made, sorted(rows, key=lambda row: row.id))
    return Exported(
        dataset=put, new=put.version not in there, teacher=measured, other_features=len(labelled) - len(ours)
    )


def _scan(at: Installation) -> Scan:
    settings, definition = at.settings.curate, at.definition
    models = tuple({at.model, at.ranker, at.also} - {""})
    return scan(at.log, models, definition.hash, definition.width, settings.corrections, settings.rows_max)


def _slices(at: Installation) -> list[Slice]:
    """The slices that learning is judged by."""
    asked = at.settings.learn.validate
    return slices(asked, at.definition) if asked.slices else []


@contextmanager
def _alone(at: Installation) -> Iterator[None]:
    """Beside no `forget` and no backup, and no other choosing."""
    state = at.folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    other = Conflict(
        f"a backup or `forget` of {at.folder}, or another `millstream curate`, is under way; wait for its end"
    )
    with locked(state / "backup.lock", other):
        yield


def _attributes(at: Installation, items: set[str], users: set[str]) -> Callable[[Review], dict[str, Any]]:
    """What a person is told of an item and a user: the attributes that features are made of, and a title."""
    columns = {side: {column.name for column in at.definition.side(side)} for side in ("user", "item")}
    catalogue = at.settings.catalogue
    columns["item"] |= {catalogue.title, catalogue.category, catalogue.author, catalogue.tags}
    known: dict[tuple[str, str], dict[str, Any]] = {}
    for side, wanted in (("item", items), ("user", users)):
        reader = LenientReader(at.log.reader(f"{side}s"), Meter())
        for partition in reader.partitions():
            for _, event in reader.events(partition, 0):
                if isinstance(event, Entity) and event.id in wanted:
                    kept = {name: value for name, value in event.attributes.items() if name in columns[side]}
                    known[side, event.id] = {name: _cut(value) for name, value in kept.items()}

    def told(one: Review) -> dict[str, Any]:
        sides = (("item", one.item), ("user", one.user))
        found = {f"{side}.{name}": value for side, id in sides for name, value in known.get((side, id), {}).items()}
        return dict(list(found.items())[:VALUES_MAX])

    return told


def _cut(value: Any) -> Any:
    """As much of a value as a person looks at. What is personal left it before the log, so no cut leaves half of it."""
    if isinstance(value, str):
        return value[:TEXT_MAX]
    return [_cut(one) for one in value[:VALUES_MAX]] if isinstance(value, list) else value


def _row(one: Review, said: ReviewLabel, weight: float) -> Row:
    gold = one.reasons[0] == GOLD
    return Row(
        id=one.id, kind="gold" if gold else "human", label=float(said.label == "positive"),
        weight=1.0 if gold else weight, tokens=np.frombuffer(one.tokens, "<u4").tolist(), request=one.request,
        item=one.item, user=one.user, event_time=one.event_time, model=one.model, version=one.version, score=one.score,
        reason=one.reasons[0], who=said.who, at=said.at, partition=one.partition, offset=one.offset,
    )  # fmt: skip


def _named(at: Installation, teacher: str) -> tuple[str, str]:
    """Model and version of a teacher. BadInput: there is none."""
    model, _, version = teacher.rpartition("@")
    model = model or at.model
    there = at.repository.versions(model) if model in at.repository.models() else []
    if version not in there:
        raise BadInput(
            f"teacher {teacher!r}: say VERSION or MODEL@VERSION; of {model} there are: {', '.join(there) or 'none'}"
        )
    return model, version


def _taught(
    at: Installation, model: str, version: str, pool: Scan, found: Queue, labelled: Iterable[tuple[Review, ReviewLabel]]
) -> tuple[dict[str, Measured], list[Row]]:
    """How good a teacher is, and its labels of rows that nobody looked at, as far as it is good enough."""
    settings, teach, name = at.settings.curate, _teach(at, model, version), f"{model} {version}"
    gold = [(one, said) for one, said in labelled if one.reasons[0] == GOLD]
    if teach is None and name not in pool.others and not any(name in one.others for one, _ in gold):
        raise BadInput(
            f"teacher {model}@{version} takes more than `tokens`, and was no shadow lately: nothing is known of what "
            "it says; make it a shadow first (`millstream traffic shadow`)"
        )
    tokens = np.array([np.frombuffer(one.tokens, "<u4") for one, _ in gold], np.uint32).reshape(
        -1, pool.tokens.shape[1]
    )
    logged = np.array([one.others.get(name, np.nan) for one, _ in gold], np.float64)
    says = logged if teach is None else teach(tokens).astype(np.float64)
    measured = measure(says, np.array([said.label == "positive" for _, said in gold], np.bool_), settings)
    taken = [sign for sign, one in ((1, measured["positive"]), (-1, measured["negative"])) if not one.refused]
    if not taken:
        return measured, []
    said = pool.others.get(name, np.full(len(pool), np.nan, np.float32)) if teach is None else teach(pool.tokens)
    classes = sure(said, settings.confidence)
    kept = Kept(settings.near)
    for review in found.reviews.values():
        if review.definition == at.definition.hash:
            kept.add(np.frombuffer(review.tokens, "<u4"))
    rows: list[Row] = []
    keys = bands(pool.tokens, BANDS, DEEP)
    open_rows = np.flatnonzero(np.isin(classes, taken) & np.isnan(pool.labels)).tolist()
    for row in sorted(open_rows, key=lambda row: reasons.drawn(pool.requests[row], pool.items[row])):
        if len(rows) == settings.pseudo_max:
            break
        if kept.add(pool.tokens[row], keys[row]):
            rows.append(_pseudo(pool, row, float(said[row]), name, settings.pseudo_weight))
    return measured, rows


def _teach(at: Installation, model: str, version: str) -> Teach | None:
    """What a version says of rows, asked in batch; None of one that takes more than rows. BadInput: it was made of
    other features."""
    manifest = at.repository.verify(model, version)
    if manifest.features and manifest.features != at.definition.hash:
        raise BadInput(
            f"teacher {model}@{version} takes rows of features {manifest.features}, these are {at.definition.hash}"
        )
    path = at.repository.folder(model, version) / manifest.file
    if manifest.format in online.KINDS:
        served = online.load_served(path)
        return lambda tokens: np.asarray(served.predict({"tokens": tokens})["probability"], np.float32)
    if manifest.format != "onnx":
        return None
    from millstream.models.runtimes.onnx import Onnx

    network = Onnx(path)
    if {spec.name for spec in network.inputs} != {"tokens"}:
        return None
    output = "probability" if "probability" in {spec.name for spec in network.outputs} else network.outputs[0].name
    return lambda tokens: np.asarray(network.predict({"tokens": tokens})[output], np.float32).reshape(len(tokens))


def _pseudo(pool: Scan, row: int, said: float, teacher: str, weight: float) -> Row:
    partition, offset = pool.place[row]
    return Row(
        id=reasons.identity(pool.requests[row], pool.items[row]), kind="pseudo", label=float(said > 0.5), weight=weight,
        tokens=pool.tokens[row].tolist(), request=pool.requests[row], item=pool.items[row], user=pool.users[row],
        event_time=float(pool.times[row]), model=pool.models[row], version=pool.versions[row],
        score=float(pool.scores[row]), teacher=teacher, confidence=max(said, 1 - said), partition=partition,
        offset=offset,
    )  # fmt: skip
