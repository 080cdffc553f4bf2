"""Log: the tail of any topic, a search by key, and the whole story of one request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from nicegui import ui

from millstream import errors
from millstream.console import text
from millstream.console.page import Page, Visit
from millstream.console.parts import Cell, badge, card, empty, heading, notice, soft, table
from millstream.console.views import Found, LogViews, Record, Topic

logger = logging.getLogger(__name__)
WORDS = {
    "log.title": ("Log", "日志"),
    "log.search": ("Id of a request, a user, an item, an alert", "请求、用户、物品或告警的 ID"),
    "log.find": ("Find", "查找"),
    "log.trace": ("Story of a request", "请求全程"),
    "log.topics": ("Topics", "主题"),
    "log.tail": ("Newest in {topic}", "{topic} 的最新记录"),
    "log.reading": ("The end of this topic is being looked for.", "正在定位该主题的末尾。"),
    "log.records": ("{records} records", "{records} 条记录"),
    "log.pause": ("Hold", "暂停刷新"),
    "log.resume": ("Go on", "继续刷新"),
    "log.found": ("{found} records of {key}", "{key} 的 {found} 条记录"),
    "log.more": ("There are more: these are the first {found}.", "还有更多：这里是前 {found} 条。"),
    "log.nothing": (
        "No record has the key {key}: {looked} were passed.",
        "没有键为 {key} 的记录：共检查 {looked} 条。",
    ),
    "log.looking": ("Looking through the log …", "正在查找日志……"),
    "log.story": ("Request {request}", "请求 {request}"),
    "log.asked": ("Asked", "提问"),
    "log.answered": ("Answered", "应答"),
    "log.candidates": ("Candidates", "候选"),
    "log.outcomes": ("What people did", "用户反馈"),
    "log.examples": ("What was learnt of it", "学到的样本"),
    "log.pushes": ("Pushes", "推送"),
    "log.item": ("Item", "物品"),
    "log.place": ("Place", "位置"),
    "log.score": ("Score", "分数"),
    "log.sources": ("Found by", "召回路径"),
    "log.reasons": ("Reasons", "理由"),
    "log.kind": ("Kind", "类型"),
    "log.value": ("Value", "值"),
    "log.after": ("After", "延迟"),
    "log.end": ("Ended as", "去向"),
    "log.label": ("Label", "标签"),
    "log.weight": ("Weight", "权重"),
    "log.learnt": ("Learnt by", "由谁学习"),
    "log.arrival": ("Arrived", "到达"),
    "log.staleness": ("Staleness", "生效用时"),
    "log.seen": ("First answer with it", "首个包含它的应答"),
    "log.notes": ("Notes", "备注"),
    "log.task": ("Task", "任务"),
}
CANDIDATES = 30


def page(views: LogViews) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        key, topic = visit.query.get("id", ""), visit.query.get("topic", "")
        _search(visit, key)
        if key and visit.query.get("trace"):
            await _beside(visit, partial(views.story, key), partial(_story, visit))
            return
        if key:
            await _beside(visit, partial(views.find, key, (topic,) if topic else ()), partial(_found, visit, key))
            return
        topics = views.topics()
        names = [one.name for one in topics]
        chosen = topic if topic in names else "served" if "served" in names or not names else names[0]
        with ui.element("div").classes("log-grid"):
            aside = ui.element("div").classes("card topics")
            main = ui.element("div").classes("log-main")

            def listed(found: list[Topic]) -> None:
                aside.clear()
                with aside:
                    _topics(visit, found, chosen)

            await visit.live(views.topics, listed)
            with main, card():
                await _tail(visit, views, chosen)

    return Page(path="/log", name="log", icon="receipt_long", letter="k", build=build, words=WORDS)


def _search(visit: Visit, key: str) -> None:
    """A form of its own, that works without a script: it asks for this page with `id` and, for the story, `trace`."""
    with ui.element("form").props('method="get" action="/log" role="search"').classes("search row"):
        field = ui.element("input").classes("field").props('type="search" name="id" required autocomplete="off"')
        field.props["aria-label"] = field.props["placeholder"] = visit.say("log.search")
        field.props["value"] = key
        field.props["maxlength"] = 1000
        if visit.query.get("find"):
            field.props("autofocus")
        for name, props, kind in (("find", "", "main"), ("trace", 'name="trace" value="1"', "")):
            with ui.element("button").classes(f"button {kind}").props(f'type="submit" {props}'):
                ui.label(visit.say(f"log.{name}"))


async def _beside(visit: Visit, read: Any, show: Any) -> None:
    """Show what a look through the log gives, when it is there; the page does not wait for it."""
    box = ui.element("div")
    with box:
        soft(visit.say("log.looking"))

    async def look() -> None:
        try:
            visit.who()
            found = await asyncio.to_thread(read)
        except errors.Error as error:
            said = str(error)
        except Exception:
            logger.exception("a search of the console failed")
            said = visit.say("failed")
        else:
            box.clear()
            with box:
                show(found)
            return
        box.clear()
        with box:
            visit.alert(said)

    ui.timer(0.01, look, once=True)


def _topics(visit: Visit, topics: list[Topic], chosen: str) -> None:
    heading(visit.say("log.topics"))
    for one in topics:
        link = ui.element("a").classes("topic here" if one.name == chosen else "topic")
        link.props["href"] = f"/log?topic={one.name}"
        with link:
            ui.label(one.name).classes("topic-name")
            ui.label(f"{text.number(one.records)} · {text.number(one.rate)}/s").classes("soft small-text")


async def _tail(visit: Visit, views: LogViews, topic: str) -> None:
    held = {"held": False}
    with ui.element("div").classes("between"):
        heading(visit.say("log.tail", topic=topic))
        press = visit.button("log.pause", lambda: hold(), "pause", "quiet")
    box = ui.element("div").classes("records").props('role="log" aria-live="off"')
    last: list[list[Record]] = [[]]

    def hold() -> None:
        held["held"] = not held["held"]
        press.clear()
        with press:
            ui.icon("play_arrow" if held["held"] else "pause").props('aria-hidden="true"')
            ui.label(visit.say("log.resume" if held["held"] else "log.pause"))

    def read() -> tuple[bool, list[Record]]:
        if not held["held"]:
            last[0] = views.tail(topic)
        return all(one.ready for one in views.topics() if one.name == topic), last[0]

    def show(now: tuple[bool, list[Record]]) -> None:
        ready, records = now
        box.clear()
        with box:
            if not records:
                empty(visit.say("nothing" if ready else "log.reading"))
            for record in records:
                _record(visit, record)

    await visit.live(read, show)


def _record(visit: Visit, record: Record, topic: bool = False) -> None:
    """A record in a line, and behind it all of it."""
    with ui.element("details").classes("record"):
        with ui.element("summary"):
            ui.label(text.moment(record.arrival) if topic else text.clock(record.arrival)).classes("record-at")
            if topic:
                badge(record.topic, "accent")
            if record.key:
                link = ui.element("a").classes("record-key")
                link.props["href"] = address(record)
                with link:
                    ui.label(record.key[:60])
            ui.label(record.said).classes("record-said")
        soft(f"{record.topic} {record.partition}:{record.offset} · {record.kind} · {text.moment(record.arrival)} UTC")
        with ui.element("pre").props('tabindex="0"'):
            ui.label(record.whole)


def address(record: Record) -> str:
    """Where the page shows more of a record's key: a story where that is a request's."""
    story = "&trace=1" if record.topic in ("served", "outcomes", "examples", "shadow") else ""
    return f"/log?id={quote(record.key, safe='')}{story}"


def _found(visit: Visit, key: str, found: Found) -> None:
    with card():
        if not found.records:
            empty(visit.say("log.nothing", key=key, looked=f"{found.looked:,}"))
            return
        heading(visit.say("log.found", key=key, found=len(found.records)))
        if found.more:
            soft(visit.say("log.more", found=len(found.records)))
        for record in found.records:
            _record(visit, record, topic=True)


def _story(visit: Visit, story: Mapping[str, Any]) -> None:
    """What `app/story.py` tells, on one page."""
    asked, answered = story["asked"], story["answered"]
    with card(visit.say("log.story", request=story["request"])):
        ui.label(story["said"]).classes("story-said")
        with ui.element("dl").classes("facts"):
            _fact(
                visit.say("log.asked"), _line(asked, ("user", "placement", "rules", "event_time", "context", "history"))
            )
            _fact(
                visit.say("log.answered"), _line(answered, ("model", "version", "arm", "policy", "missed", "instead"))
            )
        for note in story["notes"]:
            notice(note, "warn")
    if story["candidates"]:
        with card(visit.say("log.candidates")):
            heads = [visit.say(f"log.{name}") for name in ("place", "item", "score", "sources", "reasons")]
            rows = [_candidate(one) for one in story["candidates"][:CANDIDATES]]
            table(heads, rows, numeric=(0, 2))
    with card(visit.say("log.outcomes")):
        heads = [visit.say(f"log.{name}") for name in ("kind", "item", "value", "after", "end")]
        _rows(visit, heads, [
            [one["kind"], one["item"], f"{one['value']:g}", text.seconds(one["after_s"]),
             " ".join(filter(None, (one["end"], one.get("cause", ""))))]
            for one in story["outcomes"]
        ])  # fmt: skip
    with card(visit.say("log.examples")):
        heads = [visit.say(f"log.{name}") for name in ("item", "task", "label", "weight", "score", "learnt")]
        versions = [one["version"] for one in story["pushes"]]
        _rows(visit, heads, [
            [one["item"], one["task"], f"{one['label']:g}", f"{one['weight']:.3g}", f"{one['score']:.3f}",
             ", ".join(versions[at] for at in one.get("pushes", ()) if at < len(versions)) or one.get("why_not", "")]
            for one in story["examples"]
        ])  # fmt: skip
    with card(visit.say("log.pushes")):
        heads = [visit.say("version"), *(visit.say(f"log.{name}") for name in ("arrival", "staleness", "seen"))]
        _rows(visit, heads, [
            [one["version"], text.moment(one["at"]), text.seconds(one["staleness_s"]), _seen(one.get("seen"))]
            for one in story["pushes"]
        ])  # fmt: skip


def _rows(visit: Visit, heads: list[str], rows: list[list[Cell]]) -> None:
    if rows:
        table(heads, rows)
    else:
        empty(visit.say("nothing"))


def _candidate(one: Mapping[str, Any]) -> list[Cell]:
    score, place = one.get("score"), one.get("place", one.get("position"))
    sources = one.get("sources", one.get("paths", []))
    return [
        "" if place is None else str(place),
        str(one["item"]),
        "–" if score is None else f"{score:.4f}",
        ", ".join(map(str, sources)),
        ", ".join(map(str, one.get("reasons", ()))),
    ]


def _seen(seen: Mapping[str, Any] | None) -> str:
    return "–" if seen is None else f"{seen['request']} · {seen['version']} · {text.clock(seen['at'])}"


def _fact(name: str, said: str) -> None:
    with ui.element("dt"):
        ui.label(name)
    with ui.element("dd"):
        ui.label(said or "–")


def _line(values: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """`name value` of those that say something; of a list the last ten."""
    return " · ".join(f"{name} {_shown(name, value)}" for name in names if (value := values.get(name)))


def _shown(name: str, value: Any) -> str:
    if name == "event_time":
        return text.moment(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} = {one}" for key, one in value.items())
    if isinstance(value, list):
        return ("… " if len(value) > 10 else "") + ", ".join(map(str, value[-10:]))
    return str(value)
