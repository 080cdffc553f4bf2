"""Who gets which version: the content of `policy.toml`, one small file a model.

Rules of the room:
- Promote, A/B, canary, shadow, pause and roll back are all one replacement of this file.
- A canary's `guard` says how much worse than live it may be; watch/canary/guard.py takes it back, or promotes it.
- `canary` takes its share first; what is left goes by the weights of `split` when there are any, else to `live`.
- A policy is checked whole before anybody acts on it, and a message names file, field, what was got and what to do.
- Versions are numbers in the file (a person writes `live = 12`) and text everywhere else.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import tomli_w

from millstream import errors


class Guard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much worse than live a canary may be before it is taken back, and when it becomes live by itself.

    `errors`: added to live's share of failed requests; `p99`: times live's; `drift`: largest distance between the
    distributions of scores (Kolmogorov-Smirnov, 0 to 1). 0 for `p99` or `drift`: not watched. Nothing is decided before
    the canary has answered `requests_min`; one that is not worse after `requests` is promoted, if `promote`.
    """

    errors: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.005
    p99: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 1.5
    drift: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    requests_min: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 200
    requests: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 10_000
    promote: bool = True

    def __post_init__(self) -> None:
        if 0 < self.p99 < 1:
            raise ValueError(f"guard wants `p99` from 1, as a multiple of live's (or 0: not watched), got {self.p99}")
        if self.requests < self.requests_min:
            raise ValueError(
                f"guard wants `requests` of {self.requests_min} or more, as nothing is decided before `requests_min`, "
                f"got {self.requests}"
            )


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`share` of the traffic, in (0, 1], that `version` answers; `guard`: what ends that without a person."""

    version: str
    share: Annotated[float, msgspec.Meta(gt=0, le=1)]
    guard: Guard | None = None


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The traffic of one model.

    `version` counts the policy's own changes (0: no file yet). `sticky_by`: what decides a caller's arm, the request's
    key (a user, else its id) or always its id. `pin`: while set, `live` cannot be moved away from it. `learning`:
    whether the learner may push. `paused_by`, `paused_why`, `pinned_by`, `pinned_why`: who paused learning and who set
    the pin, for as long as that lasts. `who`, `why`, `when` (RFC 3339, UTC): of the last change, whatever it was.
    """

    version: int = 0
    live: str
    canary: Canary | None = None
    split: dict[str, Annotated[float, msgspec.Meta(gt=0, le=1e9)]] = {}
    shadow: tuple[str, ...] = ()
    sticky_by: Literal["user", "request"] = "user"
    learning: Literal["run", "paused"] = "run"
    pin: str = ""
    paused_by: str = ""
    paused_why: str = ""
    pinned_by: str = ""
    pinned_why: str = ""
    who: str = ""
    why: str = ""
    when: str = ""

    def named(self) -> dict[str, str]:
        """Every version that this policy needs -> the role it needs it in; the most important role wins."""
        named = dict.fromkeys(self.shadow, "shadow") | dict.fromkeys(self.split, "split")
        if self.canary:
            named[self.canary.version] = "canary"
        return named | {self.live: "live"}

    @property
    def gate_paused(self) -> bool:
        """Whether the gate paused learning. Releases before `paused_by` said so in their last change."""
        said = self.paused_by == LEARNER or (not self.paused_by and self._gate_said)
        return self.learning == "paused" and said

    @property
    def gate_pinned(self) -> bool:
        """Whether the gate set the pin, which ends with the pause."""
        return bool(self.pin) and (self.pinned_by == LEARNER or (not self.pinned_by and self._gate_said))

    @property
    def _gate_said(self) -> bool:
        return self.who == LEARNER and self.why.startswith("gate: ")


def signed(before: Policy, after: Policy, who: str, why: str) -> Policy:
    """`after`, which replaces `before`, with who paused and who pinned: they stay as long as what they did, whatever
    else is changed meanwhile. A change that pauses or pins anew leaves these fields empty."""
    replace = msgspec.structs.replace
    if after.learning == "run":
        after = replace(after, paused_by="", paused_why="")
    elif not after.paused_by and (before.learning == "run" or before.paused_by):
        after = replace(after, paused_by=who, paused_why=why)
    if not after.pin:
        return replace(after, pinned_by="", pinned_why="")
    if not after.pinned_by and (before.pin != after.pin or before.pinned_by):
        return replace(after, pinned_by=who, pinned_why=why)
    return after


LEARNER = "millstream learn"
"""Who changes a policy where nobody did: learning, and its gate."""
GUARDED_SHARE_MAX = 0.5
"""Most that a canary with a guard gets: live must answer as much, for the two to be compared."""
SCHEMA = 1
"""What a field `schema` may say, in the file and in a line of the history; it is left out while it is 1."""


def read_line(line: bytes, where: str) -> Policy | None:
    """The policy in a line of the history; None for one that a crash tore."""
    try:
        if (said := msgspec.json.decode(line, type=_AnyLine).schema) > SCHEMA:
            raise errors.Later(where, said, SCHEMA)
        return msgspec.json.decode(line, type=Policy)
    except msgspec.MsgspecError:
        return None


class _AnyLine(msgspec.Struct):
    schema: int = SCHEMA


def read(path: Path, versions: Collection[str]) -> Policy:
    """The policy in `path`, which may name only `versions`. Anything else: Misconfigured."""
    return parse(path.read_text(encoding="utf-8", errors="replace"), str(path), versions)


def parse(text: str, where: str, versions: Collection[str]) -> Policy:
    """The policy that `text` holds; `where` is what the message of a Misconfigured calls it."""
    try:
        table = tomllib.loads(text)
        if isinstance(said := table.get("schema"), int) and said > SCHEMA:
            raise errors.Later(where, said, SCHEMA)
        table.pop("schema", None)
        policy = msgspec.convert(_as_text(table), Policy)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise errors.Misconfigured(f"{where}: {_line(text, str(error))}; correct it: {_EXAMPLE}") from error
    check(policy, where, versions)
    return policy


def valid(policy: Policy, where: str, versions: Collection[str]) -> None:
    """Misconfigured, where a policy that was made holds what none may; `where` is what the message calls it."""
    try:
        msgspec.convert(msgspec.to_builtins(policy), Policy)
    except msgspec.ValidationError as error:
        raise errors.Misconfigured(f"{where}: {str(error).replace('`$.', '`')}") from None
    check(policy, where, versions)


def check(policy: Policy, where: str, versions: Collection[str]) -> None:
    """What the types cannot say: every version exists, a pin holds, and a canary can be judged. Else Misconfigured."""
    for version, role in policy.named().items():
        if version not in versions:
            there = ", ".join(sorted(versions, key=lambda v: (len(v), v))) or "none"
            raise errors.Misconfigured(
                f"{where}: {role} names version {version}, which does not exist (there are: {there}); "
                "put that version first, or name one that exists"
            )
    if policy.pin and policy.pin != policy.live:
        raise errors.Misconfigured(
            f"{where}: live is {policy.live} but the model is pinned to {policy.pin}; clear the pin first"
        )
    if policy.canary and (why := _untried(policy, policy.canary)):
        raise errors.Misconfigured(f"{where}: {why}")


def _untried(policy: Policy, canary: Canary) -> str:
    """Why this canary tries nothing out, or its guard has nothing to compare it with; empty when neither is so."""
    if canary.version == policy.live:
        return f"canary names version {canary.version}, which is live already; name another, or leave canary out"
    if canary.guard and canary.share > GUARDED_SHARE_MAX:
        return (
            f"canary has a guard and a share of {canary.share:g}; a guard compares with what live answers beside it: "
            f"give at most {GUARDED_SHARE_MAX}, or no guard"
        )
    if canary.guard and policy.split and policy.live not in policy.split:
        return (
            f"canary has a guard, and split gives live ({policy.live}) nothing to compare it with; give live a weight "
            "in split, or the canary no guard"
        )
    return ""


def render(policy: Policy) -> str:
    """The text of `policy.toml`; `parse` gives the same policy back."""
    table = msgspec.to_builtins(policy)
    for field in ("live", "pin"):
        if field in table:
            table[field] = _number(table[field])
    if policy.canary:
        table["canary"]["version"] = _number(policy.canary.version)
    if policy.shadow:
        table["shadow"] = [_number(version) for version in policy.shadow]
    return tomli_w.dumps(table)


_EXAMPLE = (
    "live = 12, canary = {version = 13, share = 0.05, guard = {errors = 0.01}}, split = {12 = 1, 13 = 1}, shadow = [14]"
)


def _as_text(table: dict[str, object]) -> dict[str, object]:
    """Version numbers as text, so that 12 and "12" mean the same."""
    out: dict[str, object] = {}
    for key, value in table.items():
        if key in ("live", "pin"):
            out[key] = _text(value)
        elif key == "shadow" and isinstance(value, list):
            out[key] = [_text(version) for version in value]
        elif key == "canary" and isinstance(value, dict):
            out[key] = {name: _text(item) if name == "version" else item for name, item in value.items()}
        else:
            out[key] = value
    return out


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _number(version: str) -> int | str:
    return int(version) if version.isdecimal() else version


def _line(text: str, message: str) -> str:
    """The message with the line of the field it speaks of, where that can be told."""
    field = re.search(r"field `(\w+)`|`\$\.(\w+)", message)
    name = next((group for group in field.groups() if group), "") if field else ""
    for number, line in enumerate(text.splitlines(), 1):
        if name and re.match(rf"\s*\[?{name}\b", line):
            return f"line {number}, {line.strip()!r}: {message}"
    return message
