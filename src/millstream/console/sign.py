"""Who looks at the console, and what may they do there.

Rules of the room:
- Without a keys file the console is of this machine alone: every page and every action, to callers of this machine
  that ask for it by a name of this machine. A page of another site that has its own name point here reaches nothing.
- With one, somebody enters a key once. The browser gets a cookie of 256 random bits that scripts cannot read and other
  sites cannot send; what it stands for is in this process's memory, bounded, and forgotten when it is not used.
- `*:view` opens the pages, `control` its actions, model by model, and the pages too. A tenant's key opens none of it.
- Rights are asked for anew with every reading and action: a revoked key is refused at once.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict

from millstream import errors
from millstream.clock import Clock
from millstream.guard import auth
from millstream.guard.auth import Keys
from millstream.types import Principal

COOKIE = "millstream-console"
SIGNED_MAX = 1000
"""Keys that are remembered as entered; of more the one that was used least lately is forgotten."""
_HERE = ("127.0.0.1", "::1")
_NAMES_HERE = ("localhost", *_HERE)


class Sign:
    """What was entered, and what it opens. `keys`: of the installation, None where there are none."""

    def __init__(self, keys: Keys | None, clock: Clock, idle_s: float) -> None:
        self.keys, self._clock, self._idle_s = keys, clock, idle_s
        self._entered: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # digest of the cookie -> key, last use

    def enter(self, key: str, peer: str) -> str:
        """The cookie for somebody who presents this key. Unauthenticated, Forbidden."""
        self._may_look(self._principal(key, peer))
        cookie = secrets.token_urlsafe(32)
        self._forget_idle()
        self._entered[_digest(cookie)] = key, self._clock.monotonic()
        while len(self._entered) > SIGNED_MAX:
            self._entered.popitem(last=False)
        return cookie

    def leave(self, cookie: str) -> None:
        """Forget what was entered."""
        self._entered.pop(_digest(cookie), None)

    def key(self, cookie: str) -> str:
        """The key that was entered, for calls of the service in its owner's name; "" where there is none."""
        return self._entered.get(_digest(cookie), ("", 0.0))[0]

    def who(self, cookie: str, peer: str, host: str) -> Principal:
        """Who shows this cookie; `host`: the name that the browser asked for. Unauthenticated, Forbidden."""
        if self.keys is None:
            if peer not in _HERE or _name(host) not in _NAMES_HERE:
                raise errors.Forbidden(
                    "without a keys file the console answers this machine only, as localhost: name a keys file in "
                    "millstream.toml (docs/security.md)"
                )
            return auth.ANYBODY_HERE
        self._forget_idle()
        digest = _digest(cookie)
        if (entered := self._entered.get(digest)) is None:
            raise errors.Unauthenticated("enter a key first")
        key, _ = entered
        self._entered[digest] = key, self._clock.monotonic()
        self._entered.move_to_end(digest)
        principal = self._principal(key, peer)
        self._may_look(principal)
        return principal

    def _forget_idle(self) -> None:
        """Forget what nobody used for so long; what was used least lately is first."""
        now = self._clock.monotonic()
        while self._entered and now - next(iter(self._entered.values()))[1] > self._idle_s:
            self._entered.popitem(last=False)

    def _principal(self, key: str, peer: str) -> Principal:
        if self.keys is None:
            raise errors.Unauthenticated("there is no keys file here: no key is asked for")
        return self.keys.principal(key, peer in _HERE)

    def _may_look(self, principal: Principal) -> None:
        if not (auth.allowed(principal, "*", "view") or any(_controls(one) for one in principal.verbs)):
            auth.check(principal, "*", "view")
        if principal.tenants:
            raise errors.Forbidden(
                f"{principal.name} speaks for {', '.join(principal.tenants)} alone: the console is of all"
            )


def _controls(pattern: str) -> bool:
    return pattern.partition(":")[2] in ("*", "control")


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).digest()


def _name(host: str) -> str:
    """The name in a Host header."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
