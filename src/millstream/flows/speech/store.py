"""Sessions on disk, so that any process may go on with one whose process, or whose connection, is gone.

    FOLDER/ID.session    where the session stood when its last final text was told; replaced whole
    FOLDER/ID.lock       held by the process that has it, and gone with that process
    FOLDER/ID.wanted     somebody else wants it: who has it and hears nothing gives it up

Rules of the room:
- What is told and must not be lost is in the file before it is told.
- Who holds the lock, and nobody else, writes the file.
- A file that cannot be read is no session: who asks for it is told so, and it goes with its time.
- The files hold text, without what is personal, and voices: they are readable by their owner alone. A session that may
  still be gone on with has a moment of sound there as well, as who decodes what comes next must have heard it: some
  milliseconds, of Opus seconds. Once it has ended there is none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from millstream import errors
from millstream.flows.speech.settings import Profile
from millstream.spoken import Start
from millstream.store.blob import lock, write_atomic

log = logging.getLogger(__name__)

FORMAT: Final = 1
_TOKEN = re.compile(r"([0-9a-f]{16})\.([\w-]{16,64})", re.ASCII)


class Line(msgspec.Struct, array_like=True):
    """A final segment, as one must know it to change it: its last revision, its seconds, and the id of the speaker that
    it is shown with, "" while that is nobody's; `overlap`: two speak at once in it."""

    rev: int
    start: float
    end: float
    who: str = ""
    overlap: bool = False


class Place(msgspec.Struct, kw_only=True):
    """Where in the audio a session goes on: `cutter` has decided up to its own sample; `intake`, `level` and `hearing`
    (of the speech detector) stand at a sample before anything that is still needed; `segments` were begun."""

    audio_ms: int = 0
    samples: int = 0
    intake: dict[str, Any] = {}
    level: dict[str, Any] = {}
    hearing: dict[str, Any] = {}
    cutter: dict[str, Any] = {}
    segments: int = 0


class State(msgspec.Struct, kw_only=True):
    """A session between two final texts. `seq`: up to which numbers may have been given; `ring`, `lost`: see outbox;
    `voice`: what told the voices in `speakers`, "" where nothing did; `resumed`: how often it was gone on with;
    `ended`: all is told."""

    format: int = FORMAT
    session: str
    secret: str
    owner: str = ""
    start: Start
    profile: Profile
    model: str
    version: str = ""
    language: str = ""
    seq: int = 1
    lost: int = 0
    ring: list[tuple[int, bytes]] = []
    lines: dict[str, Line] = {}
    place: Place = msgspec.field(default_factory=Place)
    speakers: dict[str, Any] = {}
    voice: str = ""
    gate: dict[str, Any] = {}
    resumed: int = 0
    ended: bool = False


def named() -> tuple[str, str]:
    """An id and a secret of a new session; `id.secret` is its token."""
    return secrets.token_hex(8), secrets.token_urlsafe(18)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(State).decode


class Held:
    """One session's file, which this process has. `write` from one thread at a time."""

    def __init__(self, folder: Path, ident: str, fd: int) -> None:
        self._path, self._lock, self._wanted = _paths(folder, ident)
        self._fd = fd

    def write(self, state: State, now: float, durable: bool = True) -> None:
        """Replace it: a crash leaves the old one or this. `durable`: it survives power loss as well. Full: the old one
        stays. `now` is what `Store.sweep` counts from."""
        data = _encode(state)
        if durable:
            write_atomic(self._path, data, 0o600)
        else:
            aside = self._path.with_suffix(".aside")
            with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
            aside.replace(self._path)
        os.utime(self._path, (now, now))

    @property
    def wanted(self) -> bool:
        """Whether somebody else asks for it."""
        return self._wanted.exists()

    def release(self, now: float | None = None) -> None:
        """Let others go on with it. `now`: what `Store.sweep` counts from, where somebody had it until then."""
        if self._fd >= 0:
            if now is not None:
                with contextlib.suppress(OSError):
                    os.utime(self._path, (now, now))
            os.close(self._fd)
            self._fd = -1

    def drop(self) -> None:
        """It is over: nobody goes on with it. Nothing happens where it was released."""
        if self._fd < 0:
            return
        for path in (self._path, self._wanted, self._lock):
            path.unlink(missing_ok=True)
        self.release()


class Store:
    """The sessions of all processes that share a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def create(self) -> tuple[Held, str, str]:
        """A new session: its file (not written yet), its id and its secret; `id.secret` is its token."""
        ident, secret = named()
        return Held(self._folder, ident, lock(_paths(self._folder, ident)[1], wait=False)), ident, secret

    def look(self, token: str, owner: str) -> State:
        """Where the session of a token was written last, whoever has it. NotFound: there is none, its time is over, or
        it is another owner's."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise _gone()
        try:
            state = _read(_paths(self._folder, match[1])[0])
        except FileNotFoundError:
            raise _gone() from None
        if not secrets.compare_digest(state.secret, match[2]) or state.owner != owner:
            raise _gone()
        return state

    def take(self, token: str, owner: str) -> tuple[Held, State]:
        """The session of a token, and where it stood. NotFound: as `look`. Busy: another connection still has it,
        which is asked to give it up."""
        ident = self.look(token, owner).session
        path, at, wanted = _paths(self._folder, ident)
        try:
            held = Held(self._folder, ident, lock(at, wait=False))
        except BlockingIOError:
            wanted.touch()
            raise errors.Busy("another connection still has this session; it is asked to give it up", 0.5) from None
        try:
            state = _read(path)  # as it is now: whoever had it may have gone on meanwhile
        except FileNotFoundError:
            held.drop()
            raise _gone() from None
        except BaseException:
            held.release()
            raise
        wanted.unlink(missing_ok=True)
        return held, state

    def sweep(self, before: float) -> int:
        """Delete the sessions that nobody has and that were written last before that time; how many."""
        count = 0
        for path in (found for kind in ("*.session", "*.lock") for found in self._folder.glob(kind)):
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                kept, at, _ = _paths(self._folder, path.stem)
                if path.stat().st_mtime < before and (path == kept or not kept.exists()):
                    Held(self._folder, path.stem, lock(at, wait=False)).drop()
                    count += path == kept
        for path in (found for kind in (".*.part", "*.aside", "*.wanted") for found in self._folder.glob(kind)):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    path.unlink()
        return count


def forget(folder: Path, who: Callable[[str], bool]) -> int:
    """Take away the sessions that `who` says yes to, by their ids, and that nobody has; how many."""
    count = 0
    for path in folder.glob("*.session") if folder.is_dir() else ():
        if who(path.stem):
            with contextlib.suppress(BlockingIOError):
                Held(folder, path.stem, lock(_paths(folder, path.stem)[1], wait=False)).drop()
                count += 1
    return count


def _gone() -> errors.NotFound:
    return errors.NotFound(
        "no session of yours has this resume_token: it has ended, or its time is over; begin a new one"
    )


def _read(path: Path) -> State:
    try:
        state = _decode(path.read_bytes())
    except msgspec.MsgspecError as error:
        log.error("%s: the session in it is lost: %s", path, error)
        raise errors.NotFound("this session cannot be gone on with: its file is damaged; begin a new one") from error
    if state.format > FORMAT:
        raise errors.Later(path, state.format, FORMAT)
    return state


def _paths(folder: Path, ident: str) -> tuple[Path, Path, Path]:
    return folder / f"{ident}.session", folder / f"{ident}.lock", folder / f"{ident}.wanted"
