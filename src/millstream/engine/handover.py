"""Open sessions from one process to the next: a file written at the end of one, read at the start of the other.

Rules of the room:
- The file is written aside and renamed, read once and deleted. One that cannot be read is said and left aside.
- A session goes on only on the very version that it began with; any other would misread its state.
- What a session was last answered goes with it, so that a client may retry the step that the end fell into.
- Of recognisers nothing is written: their answers and their state are what people said, numbers and addresses too.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from millstream import errors
from millstream.engine.lane import Lane
from millstream.engine.route import Arm
from millstream.engine.session import Session, Sessions
from millstream.models.speech.tensors import hears
from millstream.types import Array, Output, Turn

log = logging.getLogger(__name__)


FORMAT = 2
"""1 was a bare list of sessions."""


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data: bytes | list[Any]


class _Handed(msgspec.Struct, kw_only=True):
    """One session: where it stood and what its version carried for it."""

    key: tuple[str, str, str]
    version: str
    policy: int
    arm: str
    token: str
    steps: int
    answered_by: str = ""
    answer: dict[str, _Tensor] | None = None
    state: dict[str, _Tensor] = {}


class _HandOver(msgspec.Struct):
    format: int
    sessions: list[_Handed]


class _AnyHandOver(msgspec.Struct):
    format: int


def write(path: Path, sessions: Sessions) -> None:
    """Write every open session but those of recognisers; none: no file. A disk that cannot take it loses the sessions,
    which is said."""
    handed = [_handed(session) for session in sessions if not _hears(session.lane)]
    if ended := len(sessions) - len(handed):
        log.info("%d sessions of recognisers end with this process: what people said is not written", ended)
    if not handed:
        return
    aside = path.with_suffix(".aside")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # it holds tokens
            file.write(msgspec.msgpack.encode(_HandOver(FORMAT, handed)))
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        log.error("%d sessions end with this process: %s: %s", len(handed), path, error.strerror)
        return
    log.info("%d sessions handed over in %s", len(handed), path)


def read(path: Path, sessions: Sessions, lane: Callable[[str, str], Lane], now: float) -> int:
    """Open the sessions of a file again; how many."""
    try:
        found = _handed_over(path)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise errors.Misconfigured(
            f"{path}: {error.strerror}; name a file that sessions may be handed over in"
        ) from None
    except (msgspec.DecodeError, errors.Later) as error:
        log.error("%s: the sessions in it are lost: %s", path, error)
        path.rename(path.with_suffix(".unreadable"))
        return 0
    path.unlink()
    taken = 0
    for handed in found:
        try:
            _take(handed, sessions, lane(handed.key[0], handed.version), now)
            taken += 1
        except (errors.Error, ValueError) as error:
            log.warning("session %s of %s is lost: %s", handed.key[2], handed.key[0], error)
    log.info("%d of %d sessions go on from %s", taken, len(found), path)
    return taken


def _handed_over(path: Path) -> list[_Handed]:
    said = msgspec.msgpack.decode(data := path.read_bytes(), type=_AnyHandOver | list[msgspec.Raw])
    if isinstance(said, list):
        return msgspec.msgpack.decode(data, type=list[_Handed])
    if said.format > FORMAT:
        raise errors.Later(path, said.format, FORMAT)
    return msgspec.msgpack.decode(data, type=_HandOver).sessions


def _handed(session: Session) -> _Handed:
    slots = session.lane.slots
    last = session.last
    return _Handed(
        key=session.key,
        version=session.lane.version,
        policy=session.arm.policy,
        arm=session.arm.name,
        token=session.token,
        steps=session.steps,
        answered_by=last.version if last else "",
        answer=_packed(last.outputs) if last else None,
        state=_packed(slots.save(session.slot)) if slots is not None else {},
    )


def _hears(lane: Lane) -> bool:
    return hears({spec.name for spec in lane.inputs}, lane.names)


def _take(handed: _Handed, sessions: Sessions, lane: Lane, now: float) -> None:
    session = sessions.adopt(handed.key, Arm(lane, handed.arm, handed.policy), handed.token, now)
    try:
        if lane.slots is not None:
            lane.slots.restore(session.slot, _unpacked(handed.state))
    except ValueError:
        sessions.close(session, "its state does not fit")
        raise
    session.steps = handed.steps
    if handed.answer is not None:
        output = Output(_unpacked(handed.answer), lane.model, handed.answered_by, handed.policy, handed.arm)
        output.turn = Turn(id=session.id, step=session.steps, token=session.token)
        session.last = output


def _packed(arrays: dict[str, Array]) -> dict[str, _Tensor]:
    return {
        name: _Tensor(
            array.dtype.str, array.shape, array.ravel().tolist() if array.dtype.hasobject else array.tobytes()
        )
        for name, array in arrays.items()
    }


def _unpacked(tensors: dict[str, _Tensor]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor.data, list):
            arrays[name] = np.array(tensor.data, np.object_).reshape(tensor.shape)
        else:
            arrays[name] = np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape).copy()
    return arrays
