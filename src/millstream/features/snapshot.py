"""The state of a feature set in one file, with where it stands: what a restart, and the run after this one, go on from.

Rules of the room:
- The file is whole or not there. Fields that a reader of this format does not know are left out, and those that an
  older file lacks have a default: FORMAT moves only when the meaning of what is there does.
- `since` and `offsets` together say what is in the state: of each source the events of its files that arrived before
  `since`, and those of the log before `offsets` that arrived at or after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from millstream import errors
from millstream.features.events import Hashes
from millstream.features.state import State
from millstream.store.blob import writing

FORMAT: Final = 1
SNAPSHOT: Final = "state.snapshot"
Offsets = dict[str, dict[int, int]]
_PARTS: Final = ("keys", "floats", "counts", "registers")


class Stand(msgspec.Struct, frozen=True):
    """Where a state stands; times are microseconds. `at`: as of when its rows are; `offsets`: what of each topic it
    holds; `users`: who made the latest requests. Of each source that files were taken of, `since`: its events that
    arrived before are from the files; `begun`: and none that arrived before this. `followed`: the last arrival of a
    source's events that were taken from the log."""

    at: int = 0
    offsets: Offsets = {}
    users: dict[str, str] = {}
    since: dict[str, int] = {}
    begun: dict[str, int] = {}
    followed: dict[str, int] = {}


class _Header(msgspec.Struct, frozen=True):
    """First line of a snapshot. `arrays`: name -> (dtype, shape), which follow in this order."""

    format: int
    label: str
    at: int
    offsets: Offsets
    users: dict[str, str]
    arrays: list[tuple[str, str, list[int]]]
    since: dict[str, int] = {}
    begun: dict[str, int] = {}
    followed: dict[str, int] = {}


class _AnyHeader(msgspec.Struct, frozen=True):
    format: int


def write(path: Path, state: State, stand: Stand) -> None:
    """Keep a state and where it stands. No room: Full, and what was kept before stays."""
    _write(path, state.features.hash, stand, _arrays(state))


def forget(path: Path, kind: str, keys: Hashes, mine: Callable[[str], bool]) -> int:
    """Remove entities of a kind from a snapshot that nobody keeps at the moment, by their keys, and whose requests were
    whose, by their names; how many entities. Nothing there: 0. Errors as `read`, and Full."""
    if not path.exists():
        return 0
    header, arrays = _read(path)
    held = arrays.get(f"{kind}.keys", np.zeros(0, np.uint64))
    kept = ~np.isin(held, keys)
    users = {request: user for request, user in header.users.items() if kind != "user" or not mine(user)}
    if kept.all() and len(users) == len(header.users):
        return 0
    for part in _PARTS if f"{kind}.keys" in arrays else ():
        arrays[f"{kind}.{part}"] = arrays[f"{kind}.{part}"][kept]
    stand = Stand(header.at, header.offsets, users, header.since, header.begun, header.followed)
    _write(path, header.label, stand, arrays)
    return int((~kept).sum())


def _write(path: Path, label: str, stand: Stand, arrays: Mapping[str, NDArray[Any]]) -> None:
    named = [(name, str(array.dtype), list(array.shape)) for name, array in arrays.items()]
    line = msgspec.msgpack.encode(_Header(format=FORMAT, label=label, arrays=named, **msgspec.structs.asdict(stand)))
    with writing(path) as file:
        file.write(len(line).to_bytes(8, "little") + line)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


def read(path: Path, state: State) -> Stand | None:
    """Put what was kept into `state`, which is new; None where nothing was. Torn, or of another definition: Corrupt.
    Written by a later version: Later."""
    if not path.exists():
        return None
    header, arrays = _read(path)
    if header.label != state.features.hash:
        raise errors.Corrupt(f"{path}: of definition {header.label}, not {state.features.hash}; move it away")
    for name, table in state.entities.items():
        table.restore({part: arrays[f"{name}.{part}"] for part in _PARTS})
    for name, copies in state.copies.items():
        copies.restore(arrays[f"{name}/ids"], arrays[f"{name}/seen"])
    return Stand(header.at, header.offsets, header.users, header.since, header.begun, header.followed)


def _arrays(state: State) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    for name, table in state.entities.items():
        found |= {f"{name}.{part}": array for part, array in table.arrays().items()}
    for name, copies in state.copies.items():
        found[f"{name}/ids"], found[f"{name}/seen"] = copies.state()
    return found


def _read(path: Path) -> tuple[_Header, dict[str, NDArray[Any]]]:
    data = np.memmap(path, np.uint8, "r")
    try:
        length = int.from_bytes(data[:8].tobytes(), "little")
        line, at = data[8 : 8 + length].tobytes(), 8 + length
        if (said := msgspec.msgpack.decode(line, type=_AnyHeader).format) > FORMAT:
            raise errors.Later(path, said, FORMAT)
        header = msgspec.msgpack.decode(line, type=_Header)
        arrays = {}
        for name, dtype, shape in header.arrays:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            arrays[name] = np.frombuffer(data[at : at + size].tobytes(), dtype).reshape(shape)
            at += size
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise errors.Corrupt(
            f"{path}: {error}; move it away: the log rebuilds the features from all that retention has left"
        ) from None
    return header, arrays
