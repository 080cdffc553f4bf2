"""Keys open verbs of models: who presents which key, and what may that principal do.

    # keys.toml
    [[key]]
    name = "shop"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    verbs = ["ranker:infer", "*:recommend", "*:outcomes"]

Rules of the room:
- The file holds digests, never keys. A key is 256 random bits, so a plain SHA-256 cannot be searched.
- A key is looked up by its digest in a table: how long that takes tells of the digest, which nobody can steer.
- A pattern is "model:verb"; either side may be "*", and nothing else is special.
- Without a file everybody is `anonymous`: data verbs from anywhere, every verb from this machine. Behind a proxy on
  this machine every caller looks local, so an installation behind one needs a keys file.
- A changed file is read again within a second. A broken one keeps the last good keys, and `fault` and the log say so.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import tomllib
from pathlib import Path

import msgspec

from millstream import errors
from millstream.clock import Clock, SystemClock
from millstream.types import Principal

DATA_VERBS = ("describe", "infer", "recommend", "outcomes")
LOOK_S = 1.0
KEY_CHARS_MAX = 512

ANYBODY_HERE = Principal("anonymous")
ANYBODY = Principal("anonymous", tuple(f"*:{verb}" for verb in DATA_VERBS))

log = logging.getLogger(__name__)


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    sha256: str
    verbs: tuple[str, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: tuple[_Key, ...] = ()


class Keys:
    """The keys of an installation. `fault` says why the file as it is now is not in force; empty when it is."""

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self.fault = ""
        self._path, self._clock = path, clock
        self._known: dict[bytes, Principal] = {}
        self._stamp: object = None
        self._looked = clock.monotonic()
        if path is not None:
            self._stamp = _stamp(path)
            self._known = _read(path)

    @classmethod
    def load(cls, path: Path | None, clock: Clock | None = None) -> Keys:
        """Keys from `path`, watched from now on; None: no keys at all. Misconfigured: missing or broken file."""
        return cls(path, clock or SystemClock())

    def principal(self, key: str | None, loopback: bool) -> Principal:
        """Who presents `key` (None: nobody), from this machine or not. Unauthenticated: no key, or an unknown one."""
        if self._path is None:
            return ANYBODY_HERE if loopback else ANYBODY
        self._look(self._path)
        if key is None:
            raise errors.Unauthenticated("this service wants a key: send the header 'Authorization: Bearer KEY'")
        found = None
        if len(key) <= KEY_CHARS_MAX:
            found = self._known.get(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest())
        if found is None:
            raise errors.Unauthenticated("this key is not known here: check it, or ask for a new one")
        return found

    def _look(self, path: Path) -> None:
        """Read the file again if it changed since; at most one look a second."""
        now = self._clock.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        stamp = _stamp(path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known, self.fault = _read(path), ""
            log.info("%s: read again, %d keys", path, len(self._known))
        except errors.Misconfigured as error:
            self.fault = str(error)
            log.error("%s; the %d keys read before stay in force", error, len(self._known))


def allowed(principal: Principal, model: str, verb: str) -> bool:
    """Whether one of the principal's patterns covers `verb` of `model`."""
    for pattern in principal.verbs:
        on_model, _, may = pattern.partition(":")
        if may in ("*", verb) and on_model in ("*", model):
            return True
    return False


def check(principal: Principal, model: str, verb: str) -> None:
    """Forbidden unless `allowed`."""
    if not allowed(principal, model, verb):
        has = ", ".join(principal.verbs) or "nothing"
        advice = "control verbs need a keys file or a call from this machine" if principal is ANYBODY else "ask for it"
        raise errors.Forbidden(f"{principal.name} may not {verb} {model or 'this service'}; it may {has}: {advice}")


def new_key(name: str, verbs: tuple[str, ...] = ("*:*",)) -> tuple[str, str]:
    """(key, snippet for the keys file). The key is shown once: the file cannot give it back."""
    key = "ms_" + secrets.token_urlsafe(32)
    listed = ", ".join(_quoted(verb) for verb in verbs)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key, f'[[key]]\nname = {_quoted(name)}\nsha256 = "{digest}"\nverbs = [{listed}]\n'


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a part of TOML's."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> dict[bytes, Principal]:
    try:
        file = msgspec.convert(tomllib.loads(path.read_text()), _File)
    except OSError as error:
        raise errors.Misconfigured(f"{path}: {error.strerror}; name an existing keys file, or none") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise errors.Misconfigured(f"{path}: {error}; each [[key]] has name, sha256 and verbs") from None
    known: dict[bytes, Principal] = {}
    for key in file.key:
        if not re.fullmatch("[0-9a-f]{64}", key.sha256):
            raise errors.Misconfigured(
                f"{path}: key {key.name!r}: sha256 wants 64 hex digits, got {len(key.sha256)} chars"
            )
        for pattern in key.verbs:
            if not re.fullmatch("[^:]+:[^:]+", pattern):
                raise errors.Misconfigured(f'{path}: key {key.name!r}: verbs wants "model:verb", got {pattern!r}')
        digest = bytes.fromhex(key.sha256)
        if digest in known:
            raise errors.Misconfigured(f"{path}: {key.name!r} and {known[digest].name!r} are the same key: remove one")
        known[digest] = Principal(key.name, key.verbs)
    return known
