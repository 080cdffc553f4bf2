"""Events <-> the bytes of the log: MessagePack of tagged structs, and the one gate that free text passes on its way in.

Rules of the room:
- `encode` is the only maker of `Redacted`, and the log takes nothing else: what a person wrote or is known by cannot
  reach a file past this gate.
- A field of type `types.Text`, the reason and the text of a policy change and an entity's attributes are redacted; an
  id of a person (`Served.user`, `PolicyChange.who`) that is itself an address or a number becomes its pseudonym.
- So does whatever names something in a fact (`Fact.names`, `user`) or was read (`FeaturesRead.keys`): a label such as
  [CARD] would make one of all who have such a number, and a pseudonym tells them apart.
- Ids of requests, items and models are written as they are; so is column `item` of facts, which meets outcomes by it.
- Events without such fields pay one dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast, get_args, get_type_hints

import msgspec

from millstream import errors
from millstream.guard.pii import Redacted, pseudonym, redact
from millstream.types import (
    Alert,
    Delta,
    Entity,
    Example,
    Fact,
    FeaturesRead,
    Forget,
    Forgot,
    Forgotten,
    Merge,
    Outcome,
    PolicyChange,
    Readings,
    Review,
    ReviewLabel,
    Roll,
    Served,
    SetAside,
    Shadow,
    Text,
)

Event = (
    Outcome | Served | Shadow | Example | SetAside | Delta | PolicyChange | Entity | Fact | FeaturesRead
    | Forgotten | Roll | Forget | Forgot | Merge | Readings | Alert | Review | ReviewLabel
)  # fmt: skip

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Event).decode


def encode(event: Event) -> Redacted:
    """The event as the log keeps it, without what identifies a person. BadInput: no Unicode, a number over 64 bits."""
    gates = _GATES.get(type(event))
    if gates is None:
        raise TypeError(f"the log takes {', '.join(t.__name__ for t in _GATES)}; got {type(event).__name__}")
    if type(event) is Fact:
        event = _fact(event)
    elif gates:
        changed = {}
        for field, gate in gates:
            given = getattr(event, field)
            if given and (kept := gate(given)) is not given:
                changed[field] = kept
        if changed:
            event = msgspec.structs.replace(event, **changed)
    try:
        return Redacted(_encode(event))
    except UnicodeEncodeError as error:
        raise errors.BadInput(
            f"{type(event).__name__}: {error.object[error.start : error.end]!r} is half of a character; send UTF-8"
        ) from None
    except OverflowError:
        raise errors.BadInput(
            f"{type(event).__name__}: a whole number has more than 64 bits; send it as text"
        ) from None


def encode_all(events: Sequence[tuple[str, Event]]) -> list[tuple[bytes, Redacted]]:
    """Keys and events as the log keeps them; errors as of `encode`."""
    try:
        return [(k.encode(), _encode_plain(e) if type(e) in _PLAIN else encode(e)) for k, e in events]
    except (UnicodeEncodeError, OverflowError):
        return [(key.encode(), encode(event)) for key, event in events]


def decode(value: bytes) -> Event:
    """The event in `value`. Corrupt: not MessagePack, a tag unknown to this version, a field of a wrong type."""
    try:
        event: Event = _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise errors.Corrupt(
            f"event of {len(value)} bytes: {error}; it begins {value[:24]!r}; damaged, or written by a newer version"
        ) from None
    return event


def decode_all(values: Sequence[bytes]) -> list[Event]:
    """The event in each of `values`; errors as of `decode`."""
    try:
        return [*map(_decode, values)]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return [decode(value) for value in values]


def _attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: _attribute(value) for name, value in attributes.items()}


def _fact(event: Fact) -> Fact:
    """A fact as it is kept. It has this gate of its own: which of its columns are names stands beside its values."""
    names = event.names
    values = {
        name: value if name == "item" or type(value) is not str
        else pseudonym(value) if name == "user" or name in names
        else redact(value)
        for name, value in event.values.items()
    }  # fmt: skip
    return Fact(event_time=event.event_time, values=values)


def _keys(keys: dict[str, list[str]]) -> dict[str, list[str]]:
    """Entities that were read: named as where they were written."""
    return {kind: names if kind == "item" else [pseudonym(name) for name in names] for kind, names in keys.items()}


def _attribute(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    return [redact(one) if isinstance(one, str) else one for one in value] if isinstance(value, list) else value


def _gates(event: type[msgspec.Struct]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    hints = get_type_hints(event, include_extras=True)
    texts = tuple((name, redact) for name, hint in hints.items() if hint == Text)
    return texts + _DECLARED.get(event, ())


_DECLARED: dict[type, tuple[tuple[str, Callable[[Any], Any]], ...]] = {
    Served: (("user", pseudonym), ("context", _attributes)),
    Merge: (("visitor", pseudonym), ("user", pseudonym)),
    PolicyChange: (("who", pseudonym), ("why", redact), ("text", redact)),
    Entity: (("attributes", _attributes),),
    FeaturesRead: (("keys", _keys),),
    Alert: (("said", redact), ("did", redact)),
    Review: (("user", pseudonym), ("shown", _attributes)),
    ReviewLabel: (("who", pseudonym),),
}
_GATES = {event: _gates(event) for event in get_args(Event)}
_PLAIN = frozenset(event for event, gates in _GATES.items() if not gates and event is not Fact)
_encode_plain = cast(Callable[[Event], Redacted], _encode)
