"""Versioned datasets: labelled rows with all that they came from, below `datasets/NAME/VERSION/`.

    dataset.toml        what it is: digest, counts, who labelled, which part of the log, by which rules, its parent
    examples.jsonl      a row a line, as `Row`

Rules of the room:
- A version is written aside, synced and renamed; it is never written again. The same rows as the version before are
  that version: nothing new is put.
- The one thing that changes a version is that a person is forgotten: their rows go, the digest is that of the rest, and
  `forgotten` counts what went. The rows are written under another name before dataset.toml names it, so that whoever is
  killed leaves the old version or the new one, and the next call finishes.
- Rows hold no free text: names of users as the log has them, ids, tokens and numbers.
- Gold rows measure; nobody trains on them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import tomli_w
from numpy.typing import NDArray

from millstream.errors import BadInput, Corrupt, Later, NotFound
from millstream.store.blob import fsync_path, full, locked, write_atomic

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FILE: Final = "dataset.toml"
SCHEMA: Final = 1
Kind = Literal["human", "gold", "pseudo"]


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One labelled row. `kind`: "human", labelled by `who` at `at` (unix seconds); "gold": the same, set apart to
    measure by; "pseudo": labelled by `teacher` "MODEL VERSION" with a `confidence`. `tokens`: its feature row;
    `weight`: the examples of the log that it counts as; `reason`: why it was looked at; `score`, `model`, `version`: as
    served; `partition`, `offset`: of the served event."""

    id: str
    kind: Kind
    label: float
    weight: float
    tokens: list[int]
    request: str
    item: str
    user: str
    event_time: float
    model: str
    version: str
    score: float
    reason: str = ""
    who: str = ""
    at: float = 0.0
    teacher: str = ""
    confidence: float = 0.0
    partition: int = 0
    offset: int = 0


class Dataset(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A version of a dataset. `file`: its rows, with their `digest`; `definition`: hash of the features that made them;
    `parent`: the version before, "" for none; `counts`: rows by what ("kind", "label", "reason", "version" that
    answered) and name; `labellers`: rows that each person labelled; `offsets`: of the log, by topic and partition:
    first and last, or how far topic `reviews` was read; `rules`: [curate] as it was; `teacher`: which, and how good it
    was; `forgotten`: rows of people who were forgotten since."""

    name: str
    version: str
    created: str
    definition: str
    model: str
    width: int
    rows: int
    digest: str
    file: str
    parent: str = ""
    counts: dict[str, dict[str, int]] = {}
    labellers: dict[str, int] = {}
    offsets: dict[str, dict[str, list[int]]] = {}
    rules: dict[str, Any] = {}
    teacher: dict[str, Any] = {}
    forgotten: int = 0
    schema: int = SCHEMA


class Curated(msgspec.Struct, frozen=True):
    """What training takes of a dataset, columns of n: `tokens` uint32 [n, width], `labels` and `weights` float32;
    `human`, `pseudo`, `gold` bool: of which kind."""

    tokens: NDArray[np.uint32]
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]
    human: NDArray[np.bool_]
    pseudo: NDArray[np.bool_]
    gold: NDArray[np.bool_]


def versions(root: Path, name: str) -> list[str]:
    """The versions of a dataset, in order; none of one that does not exist."""
    folder = root / _named(name)
    found = [int(one.name) for one in folder.iterdir() if one.name.isdigit()] if folder.is_dir() else []
    return [str(number) for number in sorted(found)]


def names(root: Path) -> list[str]:
    """The datasets that there are."""
    found = (one.name for one in root.iterdir() if one.is_dir() and NAME.fullmatch(one.name)) if root.is_dir() else ()
    return sorted(name for name in found if versions(root, name))


def find(root: Path, spec: str) -> Dataset:
    """The version that "NAME@VERSION" names, or the latest of "NAME". BadInput; NotFound; Corrupt; Later."""
    name, _, version = spec.partition("@")
    there = versions(root, name)
    if not there:
        raise NotFound(f"no dataset {name!r} in {root}; there are: {', '.join(names(root)) or 'none'}")
    if version and version not in there:
        raise NotFound(f"dataset {name} has no version {version!r}; there are: {', '.join(there)}")
    return read(root / name / (version or there[-1]))


def read(folder: Path) -> Dataset:
    """What a version says of itself. Corrupt; Later."""
    try:
        found = tomllib.loads((folder / FILE).read_text())
        if (said := found.get("schema", SCHEMA)) != SCHEMA and isinstance(said, int) and said > SCHEMA:
            raise Later(folder / FILE, said, SCHEMA)
        return msgspec.convert(found, Dataset)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise Corrupt(f"{folder / FILE}: {error}; export the dataset again") from None


def rows(root: Path, of: Dataset) -> list[Row]:
    """The rows of a version, checked against its digest. Corrupt: they are others, or gone."""
    path = root / of.name / of.version / of.file
    try:
        data = path.read_bytes()
        if (got := _digest(data)) != of.digest:
            raise Corrupt(f"{path}: expected {of.digest}, got {got}; export the dataset again")
        return msgspec.json.decode(b"[" + b",".join(data.splitlines()) + b"]", type=list[Row])
    except (OSError, msgspec.MsgspecError) as error:
        raise Corrupt(f"{path}: {error}; export the dataset again") from None


def columns(of: Dataset, found: Sequence[Row]) -> Curated:
    """Rows as training takes them."""
    tokens = np.array([row.tokens for row in found], np.uint32).reshape(len(found), of.width)
    labels, weights = (np.array([getattr(row, name) for row in found], np.float32) for name in ("label", "weight"))
    human, pseudo, gold = (
        np.array([row.kind == kind for row in found], np.bool_) for kind in ("human", "pseudo", "gold")
    )
    return Curated(tokens, labels, weights, human, pseudo, gold)


def put(root: Path, made: Dataset, found: Sequence[Row]) -> Dataset:
    """Put rows as the next version of `made.name`; number, digest, counts and parent are filled in. The same rows as
    the version before: that one. BadInput: a name that is none; Full."""
    folder = root / _named(made.name)
    data = b"".join(msgspec.json.encode(row) + b"\n" for row in found)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        there = versions(root, made.name)
        if there and (last := read(folder / there[-1])).digest == _digest(data) and last.definition == made.definition:
            return last
        number = str(max([*map(int, there), _highest(folder)]) + 1)
        whole = msgspec.structs.replace(
            made, version=number, parent=there[-1] if there else "", rows=len(found), digest=_digest(data),
            file="examples.jsonl", counts=_counts(found),
            labellers=dict(sorted(Counter(row.who for row in found if row.who).items())),
        )  # fmt: skip
        aside = folder / ".put"
        shutil.rmtree(aside, ignore_errors=True)  # whoever left it there died: the lock is ours
        try:
            aside.mkdir()
            write_atomic(aside / whole.file, data)
            write_atomic(aside / FILE, _rendered(whole))
            write_atomic(folder / "number", number.encode())
            aside.rename(folder / number)
            fsync_path(folder)
        except OSError as error:
            raise full(error, aside) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return read(folder / number)


def forget(root: Path, mine: Callable[[str], bool]) -> tuple[int, list[str]]:
    """Take the rows of people out of all versions, by their names in the log; how many went, and which versions could
    not be read. Done again after it was killed anywhere, it ends the same. Full."""
    gone, unread = 0, []
    for name in names(root):
        with locked(root / name):
            shutil.rmtree(root / name / ".put", ignore_errors=True)
            for version in versions(root, name):
                try:
                    gone += _forget(root, root / name / version, mine)
                except (Corrupt, Later) as error:
                    unread.append(str(error))
    return gone, unread


def _forget(root: Path, folder: Path, mine: Callable[[str], bool]) -> int:
    of = read(folder)
    before = rows(root, of)
    kept = [row for row in before if not mine(row.user)]
    count = len(before) - len(kept)
    if count:
        data = b"".join(msgspec.json.encode(row) + b"\n" for row in kept)
        file = f"examples-{of.forgotten + count}.jsonl"
        write_atomic(folder / file, data)
        labellers = dict(sorted(Counter(row.who for row in kept if row.who).items()))
        left = msgspec.structs.replace(
            of, rows=len(kept), digest=_digest(data), file=file, counts=_counts(kept), labellers=labellers,
            forgotten=of.forgotten + count,
        )  # fmt: skip
        write_atomic(folder / FILE, _rendered(left))
        of = left
    for other in folder.iterdir():  # what one that was killed left
        if other.name not in (of.file, FILE):
            os.unlink(other)
    return count


def _counts(found: Iterable[Row]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = {name: Counter() for name in ("kind", "label", "reason", "version")}
    for row in found:
        counted["kind"][row.kind] += 1
        counted["label"]["positive" if row.label > 0.5 else "negative"] += 1
        counted["reason"][row.reason or "(teacher)"] += 1
        counted["version"][f"{row.model} {row.version.partition('@')[0]}"] += 1
    return {name: dict(sorted(one.items())) for name, one in counted.items()}


def _named(name: str) -> str:
    if not NAME.fullmatch(name):
        raise BadInput(
            f"dataset {name!r}: a name has 1 to 64 of a-z, 0-9, _ and -, and begins with one of the first two"
        )
    return name


def _highest(folder: Path) -> int:
    """The highest number that was ever given."""
    try:
        return int((folder / "number").read_text())
    except (OSError, ValueError):
        return 0


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _rendered(of: Dataset) -> bytes:
    return tomli_w.dumps(msgspec.to_builtins(of)).encode()
