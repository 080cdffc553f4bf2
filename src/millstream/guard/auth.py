"""Keys open verbs of models: who presents which key, and what may that principal do.

    # keys.toml
    [[key]]
    name = "shop"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    verbs = ["ranker:infer", "*:recommend", "*:outcomes"]
    rate = 100.0  # requests a second, if there is a bound
    burst = 200.0  # at once after a pause; left out: as many as in a second
    tenants = ["acme"]  # whom it speaks for, where there are tenants; left out: all of them

Rules of the room:
- The file holds digests, never keys. A key is 256 random bits, so a plain SHA-256 cannot be searched.
- A key is looked up by its digest in a table: how long that takes tells of the digest, which nobody can steer.
- A pattern is "model:verb"; either side may be "*". Who may `infer` may also `describe`: nothing else is special.
- A key that is bound to tenants opens nothing that is of the whole installation (`WHOLE`), whatever its patterns say.
- A bound on requests is of a name, not of a connection: of several keys with one name they share it. Each of several
  processes gives out its part of it.
- Without a file everybody is `anonymous`: data verbs from anywhere, every verb from this machine. Behind a proxy on
  this machine every caller looks local, so an installation behind one needs a keys file.
- A changed file is read again within a second. A broken one keeps the last good keys, and `fault` and the log say so.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import secrets
import tomllib
from pathlib import Path

import msgspec

from millstream import errors
from millstream.clock import Clock, SystemClock
from millstream.guard.tenants import proper
from millstream.meter import Counter, Meter
from millstream.types import Principal

DATA_VERBS = ("describe", "infer", "recommend", "outcomes", "features", "facts", "upsert", "speech")
WHOLE = ("features", "facts", "control", "view")
"""Verbs of what all tenants share, or that reach everybody's names."""
LOOK_S = 1.0
KEY_CHARS_MAX = 512

ANYBODY_HERE = Principal("anonymous")
ANYBODY = Principal("anonymous", tuple(f"*:{verb}" for verb in DATA_VERBS))

log = logging.getLogger(__name__)

_ENTRY = re.compile(r"^(?=[ \t]*\[\[[ \t]*key[ \t]*\]\])", re.M)


class _Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    sha256: str
    verbs: tuple[str, ...]
    rate: float = 0.0
    burst: float = 0.0
    tenants: tuple[str, ...] = ()


class Entry(msgspec.Struct, frozen=True):
    """A key as the file has it; `digest`: how its SHA-256 begins. `rate` in requests a second, 0: no bound."""

    name: str
    digest: str
    verbs: tuple[str, ...]
    rate: float
    burst: float
    tenants: tuple[str, ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: tuple[_Key, ...] = ()


class Bucket:
    """A bound of `rate` requests a second, `burst` at once: it fills with time, and every request takes one out.
    `said`: the rate as its key has it."""

    __slots__ = ("_left", "_limited", "_said", "_since", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float, limited: Counter, said: str) -> None:
        self.rate, self.burst, self._said = rate, burst, said
        self._left, self._since, self._limited = burst, now, limited

    def take(self, name: str, now: float) -> None:
        """Take one request out, or raise Overloaded with the time when there is one again."""
        left = min(self.burst, self._left + (now - self._since) * self.rate)
        self._since, self._left = now, left
        if left < 1.0:
            self._limited.add()
            raise errors.Overloaded(
                f"key {name!r} may send {self._said}: slow down, or ask for a higher rate",
                (1.0 - left) / self.rate,
            )
        self._left = left - 1.0

    def goes_on(self, before: Bucket, now: float) -> Bucket:
        """With what one of another rate had left: a file that is read again gives nobody a new burst."""
        self._left = min(self.burst, before._left + (now - before._since) * before.rate)
        return self


class Keys:
    """The keys of an installation. `fault` says why the file as it is now is not in force; empty when it is.
    `processes` answer side by side: each gives out its part of a rate."""

    def __init__(self, path: Path | None, clock: Clock, meter: Meter | None = None, processes: int = 1) -> None:
        self.fault = ""
        self._path, self._clock = path, clock
        self._meter, self._processes = meter or Meter(), processes
        self._buckets: dict[str, Bucket] = {}
        self._known: dict[bytes, Principal] = {}
        self._stamp: object = None
        self._looked = clock.monotonic()
        if path is not None:
            self._stamp = _stamp(path)
            self._take(path)

    @classmethod
    def load(
        cls, path: Path | None, clock: Clock | None = None, meter: Meter | None = None, processes: int = 1
    ) -> Keys:
        """Keys from `path`, watched from now on; None: no keys at all. Misconfigured: missing or broken file."""
        return cls(path, clock or SystemClock(), meter, processes)

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

    def several(self, model: str, verb: str) -> bool:
        """Whether keys of more than one name open `verb` of `model`."""
        return len({one.name for one in self._known.values() if allowed(one, model, verb)}) > 1

    def spend(self, principal: Principal) -> None:
        """Count one request of the principal against its rate. Overloaded: it has sent as many as it may."""
        if (bucket := self._buckets.get(principal.name)) is not None:
            bucket.take(principal.name, self._clock.monotonic())

    def _take(self, path: Path) -> None:
        """Take the file as it is now into force. Misconfigured."""
        known, rates = _read(path)
        now = self._clock.monotonic()
        buckets: dict[str, Bucket] = {}
        for name, (rate, burst) in rates.items():
            limited = self._meter.counter(
                "millstream_rate_limited_total", "Requests refused because of the rate of their key", {"key": name}
            )
            share, said = 1 / self._processes, f"{rate:g} requests a second"
            if self._processes > 1:
                said += f", of which this process gives out its 1/{self._processes} (use several connections)"
            bucket = buckets[name] = Bucket(rate * share, max(1.0, burst * share), now, limited, said)
            if name in self._buckets:
                bucket.goes_on(self._buckets[name], now)
        self._known, self._buckets = known, buckets

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
            self._take(path)
            self.fault = ""
            log.info("%s: read again, %d keys", path, len(self._known))
        except errors.Misconfigured as error:
            self.fault = str(error)
            log.error("%s; the %d keys read before stay in force", error, len(self._known))


def allowed(principal: Principal, model: str, verb: str) -> bool:
    """Whether one of the principal's patterns covers `verb` of `model`, and its tenants may have it."""
    if principal.tenants and verb in WHOLE:
        return False
    for pattern in principal.verbs:
        on_model, _, may = pattern.partition(":")
        if on_model in ("*", model) and (may in ("*", verb) or (verb == "describe" and may == "infer")):
            return True
    return False


def check(principal: Principal, model: str, verb: str) -> None:
    """Forbidden unless `allowed`."""
    if not allowed(principal, model, verb):
        has = ", ".join(principal.verbs) or "nothing"
        advice = "control verbs need a keys file or a call from this machine" if principal is ANYBODY else "ask for it"
        if principal.tenants and verb in WHOLE:
            advice = f"{verb} is of the whole installation, and this key of {', '.join(principal.tenants)} alone"
        raise errors.Forbidden(f"{principal.name} may not {verb} {model or 'this service'}; it may {has}: {advice}")


def new_key(
    name: str, verbs: tuple[str, ...] = ("*:*",), rate: float = 0.0, burst: float = 0.0, tenants: tuple[str, ...] = ()
) -> tuple[str, str]:
    """(key, snippet for the keys file). The key is shown once: the file cannot give it back."""
    key = "ms_" + secrets.token_urlsafe(32)
    listed = ", ".join(_quoted(verb) for verb in verbs)
    digest = hashlib.sha256(key.encode()).hexdigest()
    bounds = "".join(f"{of} = {float(value)}\n" for of, value in (("rate", rate), ("burst", burst)) if value)
    whose = f"tenants = [{', '.join(map(_quoted, tenants))}]\n" if tenants else ""
    return key, f'[[key]]\nname = {_quoted(name)}\nsha256 = "{digest}"\nverbs = [{listed}]\n{bounds}{whose}'


def entries(text: str, where: str = "keys.toml") -> list[Entry]:
    """The keys of a file's text, in its order. Misconfigured."""
    return [Entry(one.name, one.sha256[:8], one.verbs, one.rate, one.burst, one.tenants) for one in _keys(text, where)]


def without(text: str, name: str, where: str = "keys.toml") -> str:
    """The text of a keys file less the keys of that name; comments stay. NotFound, Misconfigured."""
    known = entries(text, where)
    if all(one.name != name for one in known):
        raise errors.NotFound(f"{where}: no key {name!r}; there is {', '.join(one.name for one in known) or 'none'}")
    try:
        head, *blocks = _ENTRY.split(text)
        kept = [head]
        for block in blocks:
            its_own = tomllib.loads(block)["key"][0]["name"] == name
            kept.append("".join(re.findall(r"^[ \t]*#.*\n?", block, re.M)) if its_own else block)
        left = "".join(kept)
        if entries(left) != [one for one in known if one.name != name]:
            raise ValueError
    except (ValueError, LookupError, errors.Misconfigured):
        raise errors.Misconfigured(f"{where}: not written as is usual: remove {name!r} by hand") from None
    return left


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are a part of TOML's."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> tuple[dict[bytes, Principal], dict[str, tuple[float, float]]]:
    """(who presents which digest, (rate, burst) by name)."""
    try:
        text = path.read_text()
    except OSError as error:
        raise errors.Misconfigured(f"{path}: {error.strerror}; name an existing keys file, or none") from None
    except UnicodeDecodeError as error:
        raise errors.Misconfigured(f"{path}: {error}; it is a text file") from None
    known: dict[bytes, Principal] = {}
    rates: dict[str, tuple[float, float]] = {}
    for key in _keys(text, str(path)):
        known[bytes.fromhex(key.sha256)] = Principal(key.name, key.verbs, key.tenants)
        if key.rate:
            rates[key.name] = (key.rate, key.burst or max(1.0, key.rate))
    return known, rates


def _keys(text: str, where: str) -> tuple[_Key, ...]:
    """Every key of a file's text, each checked. Misconfigured."""
    try:
        file = msgspec.convert(tomllib.loads(text), _File)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise errors.Misconfigured(f"{where}: {error}; each [[key]] has name, sha256 and verbs") from None
    digests: dict[str, str] = {}
    bounds: dict[str, tuple[float, float]] = {}
    for key in file.key:
        at = f"{where}: key {key.name!r}"
        if not re.fullmatch("[0-9a-f]{64}", key.sha256):
            raise errors.Misconfigured(f"{at}: sha256 wants 64 hex digits, got {len(key.sha256)} chars")
        for pattern in key.verbs:
            if not re.fullmatch("[^:]+:[^:]+", pattern):
                raise errors.Misconfigured(f'{at}: verbs wants "model:verb", got {pattern!r}')
        if not (0 <= key.rate < math.inf and 0 <= key.burst < math.inf) or (key.burst and not key.rate):
            raise errors.Misconfigured(
                f"{at}: rate wants requests a second, 0 for no bound, and burst goes with it; got {key.rate:g} and "
                f"{key.burst:g}"
            )
        if odd := [tenant for tenant in key.tenants if not proper(tenant)]:
            raise errors.Misconfigured(f"{at}: {odd[0]!r} is no tenant's name: small letters, digits, - and _")
        if key.sha256 in digests:
            raise errors.Misconfigured(
                f"{where}: {key.name!r} and {digests[key.sha256]!r} are the same key: remove one"
            )
        if bounds.setdefault(key.name, (key.rate, key.burst)) != (key.rate, key.burst):
            raise errors.Misconfigured(f"{at}: two keys of this name share one rate: give both the same")
        digests[key.sha256] = key.name
    return file.key
