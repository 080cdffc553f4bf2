"""The join as a streaming job for Flink SQL (2.3): the same settings, the same examples.

How the rules of stream/join.py are said there:
- The log's order is the order in which one task of Flink reads a topic of one partition; whatever parts the outcomes
  later, by request and then by item, keeps it.
- The watermark of an outcome is data: `_before`, the latest event time of all outcomes before it. Whether a positive is
  in time is decided by it and by nothing that depends on when Flink does what, so a repeated run makes the same rows.
- Flink's own watermark, which is the same maximum, says only *when* a negative is told: its window's end waits in an
  event time temporal join beside what decided the item, and everything before that end has been read by then.
- What is decided is joined with `served` last: only there is it known whether an item was a candidate.

What it cannot say, and is refused: `delayed = "defer"`. What it does otherwise is in docs/learning.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from millstream.errors import Misconfigured
from millstream.stream.event import Event
from millstream.stream.log import Record
from millstream.stream.tasks import P_MAX, JoinSettings, Rule, rules
from millstream.types import Outcome, Served

Options = Mapping[str, Mapping[str, str]]
FAR_S = 2e11  # event times count as no later where Flink needs a timestamp: its years have four digits
_OUTCOME = {
    "request": "STRING", "item": "STRING", "kind": "STRING", "value": "DOUBLE", "event_time": "DOUBLE", "id": "STRING",
    "arrival": "DOUBLE",
}  # fmt: skip
_SERVED = {"request": "STRING", "candidates": "ARRAY<STRING>", "scores": "ARRAY<DOUBLE>", "event_time": "DOUBLE"}
_EXAMPLE = {
    "request": "STRING", "item": "STRING", "task": "STRING", "label": "DOUBLE", "event_time": "DOUBLE",
    "weight": "DOUBLE", "form": "STRING",
}  # fmt: skip
_LATE = {"outcome": "STRING", "request": "STRING", "item": "STRING", "event_time": "DOUBLE"}
_EARLY = "NOT _shows AND _times_shown = 0"  # feedback before its impression
_LATER = "NOT _shows AND _times_shown > 0"
_FIRST = "_shows AND _times_shown = 1"
_SO_FAR = "WINDOW _so_far AS (PARTITION BY `request`, `item` ORDER BY _read)"


def script(settings: JoinSettings, kafka: str = "") -> str:
    """The whole script for Flink's SQL client. `kafka`: the brokers, host:port; empty: to be filled in."""
    said = "-- The join of this installation for Flink SQL 2.3. Topics: one partition; values: JSON rows, as\n"
    said += "-- `millstream log export` prints them. See docs/learning.md.\n\n"
    sets = "".join(f"SET {_text(name)} = {_text(value)};\n" for name, value in configuration(settings).items())
    options = {name: connector(name, kafka or "FILL IN") for name in tables(settings)}
    return said + sets + "\n" + "".join(f"{one};\n\n" for one in statements(settings, options)).rstrip("\n") + "\n"


def configuration(settings: JoinSettings) -> dict[str, str]:
    """What the job needs Flink to be set to. Checkpoints need a folder: their default keeps 5 MB."""
    seconds = int(2 * (settings.keep_s + settings.window_s)) + 60
    return {
        "parallelism.default": "1",  # a second task that reads a topic of one partition would hold time back for ever
        "table.exec.state.ttl": f"{seconds} s",  # by the clock, and longer than a request is remembered
        "execution.checkpointing.interval": "5 s",
        "execution.checkpointing.dir": "FILL IN",
    }


def tables(settings: JoinSettings) -> list[str]:
    """The names of all tables: what is read, then what is written."""
    ends = [_ends(seconds) for seconds in _windows(settings)]
    return ["served", "outcomes", *ends, "examples", "late"]


def connector(table: str, kafka: str) -> dict[str, str]:
    """WITH of a table on Kafka: exactly once, as those see it who read what is committed alone."""
    written = table in ("examples", "late")
    of = table if written or table == "served" else "outcomes"
    said = {"connector": "kafka", "topic": f"{of}-json"}  # beside those that a log on Kafka has, which are MessagePack
    said |= {"properties.bootstrap.servers": kafka, "format": "json"}
    if written:
        said |= {"sink.delivery-guarantee": "exactly-once", "sink.transactional-id-prefix": f"millstream-{table}"}
        return said | {"properties.transaction.timeout.ms": "900000"}
    return said | {"scan.startup.mode": "earliest-offset", "properties.isolation.level": "read_committed"}


def statements(settings: JoinSettings, options: Options) -> list[str]:
    """The statements, in order, without semicolons. `options`: WITH of every table of `tables`; those of one window,
    `outcomes_...`, read what `outcomes` reads. Written are `examples` (one row an example) and `late` (feedback that
    came when its tasks had their examples, each key once; none of tasks with late = 'drop').

    Misconfigured: a task that Flink cannot say, a table without options."""
    asked = _asked(settings)
    if missing := set(tables(settings)) - set(options):
        raise Misconfigured(f"flink: no options for {sorted(missing)}; every table needs its connector")
    made = [_served_table(options["served"]), _answers(), _outcomes_table(settings, "outcomes", 0.0, options)]
    made += [_timed("outcomes"), *_items(settings, asked)]
    for seconds in _windows(settings):
        made += [_outcomes_table(settings, _ends(seconds), seconds, options), _timed(_ends(seconds))]
        made.append(_impressions(_ends(seconds)))
    made += _told(asked)
    made += [_created("examples", _EXAMPLE, options), _created("late", _LATE, options)]
    inserts = f"INSERT INTO `examples`\n{_examples(settings, asked)};\nINSERT INTO `late`\n{_late(settings, asked)};\n"
    return [*made, f"EXECUTE STATEMENT SET\nBEGIN\n{inserts}END"]


def row(record: Record, event: Event) -> dict[str, Any] | None:
    """A recorded `served` or `outcomes` event as the row that the job reads; None of any other."""
    if isinstance(event, Outcome):
        return {name: getattr(event, name) for name in _OUTCOME if name != "arrival"} | {"arrival": record.arrival}
    if not isinstance(event, Served):
        return None
    scores = [None if score != score else score for score in np.frombuffer(event.scores, "<f4").tolist()]
    said = {"request": event.request, "model": event.model, "version": event.version, "candidates": event.candidates}
    return said | {"scores": scores, "event_time": event.event_time, "arrival": record.arrival}


# --- words -----------------------------------------------------------------------------------------------------------


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _string(value: str) -> str:
    return f"CAST({_text(value)} AS STRING)"  # a text alone has a length, which a union keeps


def _number(value: float) -> str:
    said = repr(float(value))
    return said if "e" in said else said + "e0"


def _view(name: str, query: str) -> str:
    return f"CREATE TEMPORARY VIEW `{name}` AS\n{query}"


class _Asked(msgspec.Struct, frozen=True):
    """A task. `at`: what its columns' names end with; `kinds`: its own, and the value from which each is a positive."""

    at: int
    rule: Rule
    kinds: dict[str, float]
    late: str

    @property
    def waits(self) -> bool:
        """Whether its negatives are told when the window ends."""
        return self.rule.delayed == "wait"

    @property
    def in_time(self) -> str:
        """Whether an outcome of an item that was shown came before the window's end was reached."""
        return f"(_before < _shown_at + {_number(self.rule.window_s)} OR _before = _shown_before)"

    @property
    def positive(self) -> str:
        """Whether an outcome is a positive."""
        cases = [f"`kind` = {_text(kind)} AND `value` >= {_number(least)}" for kind, least in self.kinds.items()]
        return f"({' OR '.join(cases)})"

    @property
    def kept(self) -> str:
        """Whether a negative is among those kept, as `Rule.keeps` has it."""
        if self.rule.share >= 1.0:
            return "TRUE"
        name = f"`request` || '/' || `item` || {_text('/' + self.rule.name)}"
        return f"SUBSTRING(SHA2({name}, 256) FROM 1 FOR 8) < '{int(self.rule.share * 4294967296.0):08x}'"


def _asked(settings: JoinSettings) -> list[_Asked]:
    for name, task in settings.tasks.items():
        if task.delayed == "defer":
            raise Misconfigured(
                f"join.tasks.{name}: delayed = 'defer' weighs by the share of late positives so far, in the order in "
                "which labels become final, which Flink SQL cannot keep; use 'wait', 'fnw' or 'fnc', or leave the task "
                "to Millstream's own join"
            )
    return [
        _Asked(at, rule, settings.kinds(rule.name), settings.tasks[rule.name].late)
        for at, rule in enumerate(rules(settings))
    ]


def _windows(settings: JoinSettings) -> list[float]:
    """The windows at whose end negatives are told."""
    return sorted({rule.window_s for rule in rules(settings) if rule.delayed == "wait"})


def _ends(seconds: float) -> str:
    return f"outcomes_{seconds:.15g}s".replace(".", "_").replace("+", "")


def _with(options: Mapping[str, str]) -> str:
    return "WITH (\n" + ",\n".join(f"  {_text(name)} = {_text(value)}" for name, value in options.items()) + "\n)"


def _created(name: str, columns: Mapping[str, str], options: Options, more: tuple[str, ...] = ()) -> str:
    lines = [*(f"`{column}` {kind}" for column, kind in columns.items()), *more]
    listed = ",\n".join(f"  {line}" for line in lines)
    return f"CREATE TEMPORARY TABLE `{name}` (\n{listed}\n) {_with(options[name])}"


# --- what is read ----------------------------------------------------------------------------------------------------


def _served_table(options: Mapping[str, str]) -> str:
    return _created("served", _SERVED, {"served": options}, ("_read AS PROCTIME()",))


def _answers() -> str:
    """The first answer of each request, with the latest time of all up to it: requests are forgotten in order."""
    latest = "MAX(`event_time`) OVER (ORDER BY _read ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS _newest"
    nth = "ROW_NUMBER() OVER (PARTITION BY `request` ORDER BY _read) AS _nth"
    return _view(
        "_answers",
        "SELECT `request`, `candidates`, `scores`, _newest\n"
        f"FROM (SELECT *, {nth} FROM (\n"
        f"  SELECT *, {latest}\n  FROM `served` WHERE CARDINALITY(`candidates`) > 0\n"
        ") AS _all) AS _all\nWHERE _nth = 1",
    )


def _outcomes_table(settings: JoinSettings, name: str, window_s: float, options: Options) -> str:
    """Topic `outcomes` whose rows Flink takes for as late as their windows' end, or, where nothing waits, for past.

    An impression that comes after its own window ends with the next move of time: it waits for one beyond its arrival,
    which no watermark before it can have reached."""
    latest = f"LEAST(`event_time`, `arrival` + {_number(settings.ahead_s)})"
    past = name == "outcomes"
    after = f"GREATEST(`event_time` + {_number(window_s)}, `arrival` + {_number(settings.ahead_s)})"
    millis = "0" if past else f"CAST(CEIL(GREATEST(0e0, LEAST({after}, {_number(FAR_S)})) * 1e3) AS BIGINT) + 1"
    mark = f"CAST(FLOOR(GREATEST(0e0, LEAST({latest}, {_number(FAR_S)})) * 1e3) AS BIGINT)"
    more = (
        "_read AS PROCTIME()",
        f"_latest AS {latest}",
        f"_ends AS TO_TIMESTAMP_LTZ({millis}, 3)",
        f"WATERMARK FOR _ends AS TO_TIMESTAMP_LTZ({mark}, 3)",
    )
    return _created(name, _OUTCOME, options, more)


def _timed(name: str) -> str:
    """Outcomes with the join's watermark before each of them."""
    latest = "MAX(_latest) OVER (ORDER BY _read ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS _after"
    before = "COALESCE(LAG(_after) OVER (ORDER BY _read), -1e300) AS _before"
    return _view(f"_timed_{name}", f"SELECT *, {before}\nFROM (SELECT *, {latest} FROM `{name}`) AS _all")


def _impressions(name: str) -> str:
    """The first impression of each item, at its window's end."""
    nth = "ROW_NUMBER() OVER (PARTITION BY `request`, `item` ORDER BY _read) AS _nth"
    columns = "`request`, `item`, `event_time`, _before, _ends"
    return _view(
        f"_shown_{name}",
        f"SELECT {columns}\nFROM (SELECT *, {nth} FROM `_timed_{name}` WHERE `kind` = 'impression') AS _all\n"
        "WHERE _nth = 1",
    )


# --- what becomes of an item -----------------------------------------------------------------------------------------


def _items(settings: JoinSettings, asked: list[_Asked]) -> list[str]:
    """Outcomes, no key twice, beside what came of their item before: each view adds to the one before it."""
    return [_fresh(settings, asked), *_shown(settings, asked), *_judged(asked)]


def _fresh(settings: JoinSettings, asked: list[_Asked]) -> str:
    """Outcomes of known kinds whose key none of their request had before."""
    kinds = dict.fromkeys(["impression", *(kind for one in asked for kind in one.kinds), *settings.feedback])
    known = ", ".join(map(_text, kinds))
    key = "CASE WHEN `id` <> '' THEN `id` ELSE `request` || '/' || `item` || '/' || `kind` END AS _key"
    rows = f"SELECT *, {key}, `kind` = 'impression' AS _shows FROM `_timed_outcomes` WHERE `kind` IN ({known})"
    first = "ARRAY_POSITION(ARRAY_AGG(_key) OVER _so_far, _key) = COUNT(*) OVER _so_far AS _first"
    by_request = "WINDOW _so_far AS (PARTITION BY `request` ORDER BY _read)"
    positives = ", ".join(f"{one.positive} AS _positive{one.at}" for one in asked)
    inner = f"SELECT *, {first}\n  FROM (\n    {rows}\n  ) AS _all\n  {by_request}"
    return _view("_fresh", f"SELECT *, {positives}\nFROM (\n  {inner}\n) AS _all\nWHERE _first")


def _over(name: str, source: str, made: list[str]) -> str:
    """A view that adds to each row what its item's rows up to it say."""
    columns = ",\n".join(f"  {one}" for one in ["*", *made])
    return _view(name, f"SELECT\n{columns}\nFROM {source}\n{_SO_FAR}")


def _shown(settings: JoinSettings, asked: list[_Asked]) -> list[str]:
    """When the item was first shown, and which tasks have a positive that was held for it.

    Feedback before an impression is held for the longest window from the first of it; if that has ended, what comes
    next begins another. A third is not told apart."""
    held_s = _number(settings.window_s)

    def first(what: str, column: str, name: str) -> str:
        return f"FIRST_VALUE(CASE WHEN {what} THEN {column} END) OVER _so_far AS {name}"

    def both(what: str, name: str) -> list[str]:
        return [first(what, "`event_time`", f"{name}_at"), first(what, "_before", f"{name}_before")]

    def gone(name: str) -> str:
        return f"COALESCE(_before >= {name}_at + {held_s} AND _before > {name}_before, FALSE)"

    held = [
        f"MAX(CASE WHEN {_EARLY} AND _positive{one.at} AND {what} THEN 1 END) OVER _so_far AS _held{one.at}_{times}"
        for one in asked
        for times, what in ((1, "NOT _gone_1"), (2, "_gone_1 AND NOT _gone_2"))
    ]
    times_shown = "COUNT(CASE WHEN _shows THEN 1 END) OVER _so_far AS _times_shown"
    seen = [*both("_shows", "_shown"), *both("NOT _shows", "_early_1"), times_shown]
    return [
        _over("_seen", "`_fresh`", seen),
        _over("_held_1", f"(SELECT *, {gone('_early_1')} AS _gone_1 FROM `_seen`) AS _all",
              both(f"{_EARLY} AND _gone_1", "_early_2")),
        _over("_held_2", f"(SELECT *, {gone('_early_2')} AS _gone_2 FROM `_held_1`) AS _all", held),
    ]  # fmt: skip


def _judged(asked: list[_Asked]) -> list[str]:
    """What an outcome is to each task. `_decides`: the label, within the window; `_corrects`: it takes a negative back;
    `_takes`: it is among what an example is made of."""
    told, counts, said = [], [], []
    for one in asked:
        at = one.at
        held = f"COALESCE(CASE WHEN NOT _gone_1 THEN _held{at}_1 WHEN NOT _gone_2 THEN _held{at}_2 END, 0) = 1"
        told.append(f"{one.in_time} AS _open{at}")
        told.append(f"({_FIRST} AND {held} OR {_LATER} AND _positive{at} AND {one.in_time}) AS _tells{at}")
        missed = f"{_LATER} AND _positive{at} AND NOT _open{at}"
        for what, name in ((f"_tells{at}", f"_told{at}"), (missed, f"_missed{at}")):
            counts.append(f"COUNT(CASE WHEN {what} THEN 1 END) OVER _so_far AS {name}")
        decides = f"_tells{at} AND _told{at} = 1"
        taken = f"_told{at} = 0 OR {decides}" if one.waits else decides
        corrects = f"{missed} AND _missed{at} = 1 AND _told{at} = 0" if one.late == "correct" else "FALSE"
        said += [
            f"({decides}) AS _decides{at}",
            f"({corrects}) AS _corrects{at}",
            f"(_open{at} AND ({taken})) AS _takes{at}",
        ]
    judged = ",\n".join(f"  {one}" for one in ["*", *said])
    return [
        _over("_counted", f"(SELECT *, {', '.join(told)} FROM `_held_2`) AS _all", counts),
        _view("_judged", f"SELECT\n{judged}\nFROM `_counted`"),
    ]


# --- what is told ----------------------------------------------------------------------------------------------------


def _told(asked: list[_Asked]) -> list[str]:
    """All examples, of whatever request. `_end`: of the window that had to end for it."""
    parts = []

    def tell(one: _Asked, label: int, form: str, event_time: str, where: str) -> None:
        said = (
            f"`request`, `item`, {_string(one.rule.name)} AS `task`, {label}e0 AS `label`, {event_time} AS `event_time`"
        )
        parts.append(
            f"SELECT {said}, {_string(form)} AS `form`, _before, -1e300 AS _end\nFROM `_judged`\nWHERE {where}"
        )

    for one in asked:
        decided = f"_decides{one.at}"
        if one.waits:
            tell(one, 1, "", "_shown_at", decided)
            if one.late == "correct":
                tell(one, 1, "late", "`event_time`", f"_corrects{one.at}")
        else:
            tell(one, 0, "fake", "`event_time`", f"{_FIRST} AND {one.kept}")
            tell(one, 1, "late", "`event_time`", decided)
    waiting = [one for one in asked if one.waits]
    if waiting:
        parts.append(_negatives())
    return [*(_waiting(waiting) if waiting else []), _view("_told", "\nUNION ALL\n".join(parts))]


def _waiting(waiting: list[_Asked]) -> list[str]:
    """Views of items whose negatives wait for their windows' ends, and of what decides these."""
    ends = "\nUNION ALL\n".join(
        f"SELECT `request`, `item`, {_string(one.rule.name)} AS `task`, `event_time`, _before, "
        f"`event_time` + {_number(one.rule.window_s)} AS _end, _ends\n"
        f"FROM `_shown_{_ends(one.rule.window_s)}`\nWHERE {one.kept}"
        for one in waiting
    )
    decided = "\n  UNION ALL\n".join(
        f"  SELECT `request`, `item`, {_string(one.rule.name)} AS `task`, _read, _ends\n"
        f"  FROM `_judged` WHERE _decides{one.at}"
        for one in waiting
    )
    # There is one of each as it is: said so that Flink knows a key
    nth = "ROW_NUMBER() OVER (PARTITION BY `request`, `item`, `task` ORDER BY _read) AS _nth"
    once = f"SELECT *, {nth} FROM (\n{decided}\n  ) AS _all\n"
    once = f"SELECT `request`, `item`, `task`, _ends\nFROM (\n  {once}) AS _all\nWHERE _nth = 1"
    return [_view("_ending", ends), _view("_once", once)]


def _negatives() -> str:
    """Items whose windows ended before anything decided their tasks."""
    said = ", ".join(f"`_ending`.{one}" for one in ("`request`", "`item`", "`task`"))
    columns = (
        f"{said}, 0e0 AS `label`, `_ending`.`event_time`, {_string('')} AS `form`, `_ending`._before, `_ending`._end"
    )
    same = " AND ".join(f"`_ending`.`{name}` = `_once`.`{name}`" for name in ("request", "item", "task"))
    return (
        f"SELECT {columns}\nFROM `_ending`\nLEFT JOIN `_once` FOR SYSTEM_TIME AS OF `_ending`._ends ON {same}\n"
        "WHERE `_once`.`request` IS NULL"
    )


def _known(settings: JoinSettings, rows: str) -> str:
    """Rows beside the answer that they are of, if that is remembered and has the item."""
    return (
        f"FROM `{rows}` AS _row\nJOIN `_answers` AS _answer ON _row.`request` = _answer.`request`\n"
        f"WHERE ARRAY_POSITION(_answer.`candidates`, _row.`item`) > 0\n"
        f"AND _newest > _before - {_number(settings.keep_s)}"
    )


def _examples(settings: JoinSettings, asked: list[_Asked]) -> str:
    score = "_answer.`scores`[ARRAY_POSITION(_answer.`candidates`, _row.`item`)]"
    p = f"LEAST(1e0, GREATEST(0e0, {score})) AS _p"
    weights = "\n".join(
        f"    WHEN `task` = {_text(one.rule.name)} AND `label` = {label}e0 THEN {_weight(one, label)}"
        for one in asked
        for label in (0, 1)
    )
    columns = "_row.`request`, _row.`item`, `task`, `label`, _row.`event_time`, `form`"
    rows = f"SELECT {columns}, {p}\n  {_known(settings, '_told')} AND _newest >= _end - {_number(settings.keep_s)}"
    return (
        f"SELECT `request`, `item`, `task`, `label`, `event_time`,\n  CASE\n{weights}\n  END AS `weight`, `form`\n"
        f"FROM (\n  {rows}\n) AS _all"
    )


def _weight(one: _Asked, label: int) -> str:
    """As stream/tasks.py has it, in the same order of additions and divisions."""
    rule = one.rule
    if not label:
        weight = _number(1.0 / rule.share if rule.by_weight else 1.0)
        return f"COALESCE({weight} * (1e0 - _p) * (1e0 + _p), {weight})" if rule.delayed == "fnw" else weight
    if rule.delayed == "fnw":
        return "COALESCE(1e0 + _p, 1e0)"
    if one.late != "correct":
        return "1e0"
    p = f"LEAST(_p, {_number(P_MAX)})"
    more = f"1e0 + {p} / (1e0 - {p}) / {_number(rule.share)}"
    return f"CASE WHEN `form` = 'late' AND {one.kept} THEN COALESCE({more}, 1e0) ELSE 1e0 END"


def _late(settings: JoinSettings, asked: list[_Asked]) -> str:
    """Feedback that came when all its tasks had their examples, and changed none."""
    tasks: dict[str, list[int]] = {}
    for one in asked:
        for kind in one.kinds:
            tasks.setdefault(kind, []).append(one.at)
    for kind in settings.feedback:
        tasks.setdefault(kind, [one.at for one in asked])
    counted = {one.at for one in asked if one.late != "drop"}
    cases = []
    for of in sorted({tuple(of) for of in tasks.values() if counted.intersection(of)}):
        kinds = ", ".join(_text(kind) for kind, its in tasks.items() if tuple(its) == of)
        useful = " OR ".join(f"_takes{at} OR _corrects{at}" for at in of)
        cases.append(f"{_LATER} AND `kind` IN ({kinds}) AND NOT ({useful})")
    columns = "_row._key, _row.`request`, _row.`item`, _row.`event_time`"
    which = "\n  OR ".join(cases) or "FALSE"
    return f"SELECT {columns}\n{_known(settings, '_judged')}\nAND ({which})"
