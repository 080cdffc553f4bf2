"""From readings to alerts: rules looked at one moment after the other. Pure but for its memory; replayed, it says the
same.

Rules of the room:
- A rule holds of a group of labels while its value is beyond the limit. It fires once it held for `for_s`, and is
  resolved once it has not held for as long, or its data are gone.
- Counts of a group are added up, then divided. Of levels the one that is furthest beyond counts.
- Against peers each server stands beside what the others, with its own mix of models and versions, would have had:
  expected = sum over what it served of (its number x the median rate of the others). So a server with other traffic is
  not sick by that. Two others are needed, and LEAST events.
- Against the past: the same window a day before, with as much data; what stands alone by look, so that a role that was
  away for a part of either does not see traffic come or go.
- A multiple that chance explains is 1. Chance, of counts: how events that fell to both sides would have parted, if both
  had the same rate (Mantel and Haenszel, J. Natl Cancer Inst. 22, 1959), SURE standard deviations of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, cast
from zlib import crc32

import numpy as np
from msgspec.structs import replace

from millstream.types import Alert
from millstream.watch.alarms.rule import Rule
from millstream.watch.history import Floats, History
from millstream.watch.quantities import QUANTITIES
from millstream.watch.reading import Key

DAY_S = 86400.0
PEERS = 2
MOST = 1000.0  # times its peers: as much more as nothing
LEAST = 20.0  # requests of a server, of which a share of 20 % can be told from that of its peers
SURE = 4.0
Group = tuple[tuple[str, str], ...]


class Value(NamedTuple):
    """What a rule looks at, of one group: `value` is compared with the limit; `events` it rests on."""

    group: Group
    value: float
    events: float


class _State:
    """One rule and one group: since when it holds, or holds no more; the alert while it fires."""

    __slots__ = ("alert", "holds_since", "rests_since", "value")

    def __init__(self) -> None:
        self.holds_since = self.rests_since = 0.0
        self.alert: Alert | None = None
        self.value = 0.0


class Alarms:
    """All rules over one history."""

    def __init__(self, rules: Mapping[str, Rule], history: History) -> None:
        self.rules, self._history = rules, history
        self._states: dict[tuple[str, Group], _State] = {}

    def resume(self, alerts: Sequence[Alert]) -> None:
        """Take over alerts that were firing when an earlier process ended. Those of rules that are no more are resolved
        at the next look."""
        for alert in alerts:
            state = self._states.setdefault((alert.rule, tuple(sorted(alert.labels.items()))), _State())
            state.alert, state.holds_since, state.value = alert, alert.since, alert.value

    @property
    def firing(self) -> list[Alert]:
        """Those that fire now."""
        return [state.alert for state in self._states.values() if state.alert is not None]

    def look(self, at: float) -> list[Alert]:
        """What began to fire, and what is resolved, by what was read until `at`."""
        said: list[Alert] = []
        seen: set[tuple[str, Group]] = set()
        for name, rule in self.rules.items():
            for one in values(rule, self._history):
                if rule.passes(one.value):
                    seen.add((name, one.group))
                    if (alert := self._holds(name, rule, one, at)) is not None:
                        said.append(alert)
        for where, state in list(self._states.items()):
            if where not in seen and (alert := self._rests(where, state, at)) is not None:
                said.append(alert)
        return said

    def _holds(self, name: str, rule: Rule, one: Value, at: float) -> Alert | None:
        state = self._states.setdefault((name, one.group), _State())
        if not state.holds_since:
            state.holds_since = at
        state.rests_since, state.value = 0.0, one.value
        if state.alert is not None or at - state.holds_since < rule.for_s:
            return None
        labels = dict(one.group)
        told = ",".join(f"{k}={v}" for k, v in one.group)
        state.alert = Alert(
            id=f"{name}-{crc32(told.encode()):08x}-{int(state.holds_since)}",
            rule=name,
            severity=rule.severity,
            state="firing",
            labels=labels,
            value=one.value,
            limit=rule.limit,
            since=state.holds_since,
            at=at,
            said=sentence(rule, one),
            runbook=rule.runbook,
        )
        return state.alert

    def _rests(self, where: tuple[str, Group], state: _State, at: float) -> Alert | None:
        name, _ = where
        rule = self.rules.get(name)
        state.holds_since = 0.0
        if state.alert is None:
            del self._states[where]
            return None
        state.rests_since = state.rests_since or at
        if rule is not None and at - state.rests_since < rule.for_s:
            return None
        alert, state.alert = state.alert, None
        del self._states[where]
        why = "there is no such rule any more" if rule is None else "no more"
        return Alert(
            id=alert.id, rule=name, severity=alert.severity, state="resolved", labels=alert.labels, value=state.value,
            limit=alert.limit, since=alert.since, at=at, said=f"{alert.said}: {why}", runbook=alert.runbook,
            did=alert.did,
        )  # fmt: skip


def spoken(rule: Rule) -> str:
    """What the rule says, for a person."""
    where = ", ".join(f"{k} {v}" for k, v in rule.where.items())
    for_ = f" for {_span(rule.for_s)}" if rule.for_s else ""
    by = f" by {', '.join(rule.by)}" if rule.by else ""
    least = f", of {rule.least:g} at least" if rule.least else ""
    do = f"; {rule.action}{' (said only)' if rule.dry_run else ''}" if rule.action else ""
    return (
        f"{_what(rule)} over {_span(rule.over_s)}{by}{f' of {where}' if where else ''} {_side(rule)}{for_}{least}{do}"
    )


def _what(rule: Rule) -> str:
    return f"{rule.quantity} / {rule.of}" if rule.of else rule.quantity


def _side(rule: Rule) -> str:
    beside = {"": "", "peers": " times its peers", "past": " times that of a day before"}[rule.against]
    return f"{'above' if rule.above is not None else 'below'} {rule.limit:.4g}{beside}"


def sentence(rule: Rule, one: Value) -> str:
    """What holds, for a person."""
    of = ", ".join(f"{k} {v}" for k, v in one.group)
    said = f"{_what(rule)} over {_span(rule.over_s)} is {one.value:.4g}, {_side(rule)}"
    said += f", of {one.events:,.0f} {rule.of or rule.quantity}" if rule.least and one.events else ""
    return (f"{of}: " if of else "") + (f"{rule.says}: " if rule.says else "") + said


def _span(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def values(rule: Rule, history: History) -> list[Value]:
    """The rule's value of every group that has data enough; of its shorter window, where that is within the limit."""
    if not rule.also_s:
        return _values(rule, history)
    shorter = replace(rule, over_s=rule.also_s, also_s=0.0, least=0.0)
    short = {one.group: one for one in _values(shorter, history)}
    return [
        one if not rule.passes(one.value) or rule.passes(short[one.group].value) else short[one.group]
        for one in _values(rule, history)
        if one.group in short
    ]


def _values(rule: Rule, history: History) -> list[Value]:
    if rule.against == "peers":
        return _beside_peers(rule, history)
    return _beside_past(rule, history) if rule.against == "past" else _grouped(rule, history, 0.0)


def _beside_past(rule: Rule, history: History) -> list[Value]:
    """Each group as a multiple of itself a day before."""
    if QUANTITIES[rule.quantity].kind == "count" and not rule.of:
        return _beside_past_alone(rule, history)
    before = {one.group: one for one in _grouped(rule, history, DAY_S)}
    found = []
    for one in _grouped(rule, history, 0.0):
        then = before.get(one.group)
        if then is None or (then.value <= 0.0 and (one.value <= 0.0 or not rule.of)):
            continue
        times = min(one.value / then.value, MOST) if then.value > 0.0 else MOST
        if rule.of and _counted(rule):
            counts = [(one.value * one.events, one.events, then.value * then.events, then.events)]
            times = times if _sure(counts) else 1.0
        found.append(Value(one.group, times if one.value >= rule.matters else 1.0, one.events))
    return found


def _beside_past_alone(rule: Rule, history: History) -> list[Value]:
    """Counts that stand alone, by look. One that is below the past may be nothing."""
    keys = _keys(rule, rule.quantity, history)
    seen: list[dict[Group, tuple[float, float]]] = []
    for ago in (0.0, DAY_S):
        sums: dict[Group, tuple[float, float]] = {}
        for key, count, looks in zip(keys, *history.window(keys, rule.over_s, ago), strict=True):
            group = _group(rule.by, key)
            summed, most = sums.get(group, (0.0, 0.0))
            sums[group] = summed + float(count), max(most, float(looks))
        seen.append(sums)
    found = []
    for group, (count, looks) in seen[0].items():
        before, looked = seen[1][group]
        if looks > 0 and looked > 0 and before > 0.0 and max(before, count) >= rule.least:
            sure = not _counted(rule) or _sure([(count, looks, before, looked)])
            found.append(Value(group, count / looks / (before / looked) if sure else 1.0, count))
    return found


def _counted(rule: Rule) -> bool:
    """Whether the quantity counts events, which chance parts; not seconds, say."""
    return not QUANTITIES[rule.quantity].unit


def _sure(strata: Sequence[tuple[float, float, float, float]]) -> bool:
    """Whether chance does not explain that a side differs; of each stratum its count and number, and the others'."""
    more = varies = 0.0
    for count, number, counts, numbers in strata:
        share, both = number / (number + numbers), count + counts
        more += count - both * share
        varies += both * share * (1.0 - share)
    return abs(more) - 0.5 > SURE * math.sqrt(varies)


def _grouped(rule: Rule, history: History, ago: float) -> list[Value]:
    keys = _keys(rule, rule.quantity, history)
    if QUANTITIES[rule.quantity].kind == "level":
        return _levels(rule, keys, history.levels(keys, rule.over_s, ago))
    counts = _sums(rule.by, keys, history.counts(keys, rule.over_s, ago))
    if not rule.of:
        return [Value(group, value, value) for group, value in counts.items() if value >= rule.least]
    under = _keys(rule, rule.of, history)
    events = _sums(rule.by, under, history.counts(under, rule.over_s, ago))
    return [
        Value(group, counts.get(group, 0.0) / count, count)
        for group, count in events.items()
        if count > 0 and count >= rule.least
    ]


def _levels(rule: Rule, keys: Sequence[Key], levels: Floats) -> list[Value]:
    """Of each group the level that is furthest beyond."""
    worst: dict[Group, float] = {}
    further = max if rule.above is not None else min
    for key, level in zip(keys, levels.tolist(), strict=True):
        if level == level:
            group = _group(rule.by, key)
            worst[group] = further(worst.get(group, level), level)
    return [Value(group, value, 0.0) for group, value in worst.items()]


def _beside_peers(rule: Rule, history: History) -> list[Value]:
    """Each server as a multiple of what its peers would have had in its place."""
    others = tuple(name for name in rule.by if name != "server")
    if QUANTITIES[rule.quantity].kind == "level":
        return _levels_beside_peers(others, _grouped(rule, history, 0.0), rule.matters)
    keys, under = _keys(rule, rule.quantity, history), _keys(rule, rule.of or rule.quantity, history)
    strata = tuple(sorted({name for key in under for name, _ in key.labels} - {"server"}))
    counts = _sums((*strata, "server"), keys, history.counts(keys, rule.over_s))
    if rule.of:
        events = _sums((*strata, "server"), under, history.counts(under, rule.over_s))
    else:
        events = dict.fromkeys(counts, 1.0)
    rates: dict[Group, dict[str, float]] = {}
    for group, count in events.items():
        if count > 0:
            stratum, server = _without(group)
            rates.setdefault(stratum, {})[server] = counts.get(group, 0.0) / count
    seen: dict[Group, tuple[list[float], list[tuple[float, float, float, float]]]] = {}
    for stratum, by_server in rates.items():
        numbers = {server: events[_within(stratum, server)] for server in by_server}
        for server, rate in by_server.items():
            peers = [name for name in by_server if name != server]
            if len(peers) >= PEERS:
                number = numbers[server]
                group = tuple((k, v) for k, v in _within(stratum, server) if k in rule.by)
                sums, parts = seen.setdefault(group, ([0.0, 0.0, 0.0], []))
                sums[0] += rate * number
                sums[1] += float(np.median([by_server[name] for name in peers])) * number
                sums[2] += number if rule.of else rate
                theirs = [(by_server[name] * numbers[name], numbers[name]) for name in peers]
                parts.append((rate * number, number, sum(one for one, _ in theirs), sum(one for _, one in theirs)))
    found = []
    for group, ((observed, expected, number), parts) in seen.items():
        if number >= max(rule.least, LEAST if rule.of else 0.0):
            times = min(observed / expected, MOST) if expected > 0 else MOST if observed > 0 else 1.0
            matters = observed >= rule.matters * (number if rule.of else 1.0)
            found.append(Value(group, times if matters and (not _counted(rule) or _sure(parts)) else 1.0, number))
    return found


def _levels_beside_peers(others: tuple[str, ...], levels: Sequence[Value], matters: float) -> list[Value]:
    alike: dict[Group, list[Value]] = {}
    for one in levels:
        alike.setdefault(tuple((k, v) for k, v in one.group if k in others), []).append(one)
    found = []
    for group in alike.values():
        for one in group:
            peers = [other.value for other in group if other is not one]
            if len(peers) >= PEERS and (median := float(np.median(peers))) > 0:
                found.append(Value(one.group, one.value / median if one.value >= matters else 1.0, one.events))
    return found


def _keys(rule: Rule, quantity: str, history: History) -> tuple[Key, ...]:
    place = quantity, tuple(rule.where.items())
    memo = cast("dict[object, tuple[Key, ...]]", history.memo)
    if (found := memo.get(place)) is None:
        keys = history.keys(quantity)
        found = memo[place] = tuple(key for key in keys if all(key.get(name) == one for name, one in place[1]))
    return found


def _sums(by: Sequence[str], keys: Sequence[Key], counts: Floats) -> dict[Group, float]:
    sums: dict[Group, float] = {}
    for key, count in zip(keys, counts.tolist(), strict=True):
        group = _group(by, key)
        sums[group] = sums.get(group, 0.0) + count
    return sums


def _group(by: Sequence[str], key: Key) -> Group:
    return _grouped_by(tuple(by), key.labels)


@lru_cache(1 << 14)
def _grouped_by(by: tuple[str, ...], labels: Group) -> Group:
    return tuple((name, value) for name, value in labels if name in by)


def _without(group: Group) -> tuple[Group, str]:
    """The group without its server, and that."""
    return tuple(pair for pair in group if pair[0] != "server"), next(v for k, v in group if k == "server")


def _within(stratum: Group, server: str) -> Group:
    return tuple(sorted((*stratum, ("server", server))))
