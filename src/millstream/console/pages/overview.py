"""Overview: is it well? One sentence, and the loop as a living picture."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import Any

from nicegui import ui

from millstream.console import chart, text
from millstream.console.page import Page, Visit
from millstream.console.parts import badge, card, empty, figure, heading, soft, table
from millstream.console.views import Loop, OverviewViews, Stream, Well
from millstream.types import Alert

WORDS = {
    "overview.title": ("Overview", "概览"),
    "overview.well": ("All is well: none of {rules} rules holds.", "一切正常：{rules} 条规则均未触发。"),
    "overview.firing": (
        "Not well: {alerts} firing, of which {pages} should wake somebody.",
        "有问题：{alerts} 条告警正在触发，其中 {pages} 条需要立即处理。",
    ),
    "overview.silent": ("Nothing answers: no process of the role serve runs.", "无人应答：没有正在运行的 serve 进程。"),
    "overview.unwatched": (
        "Nobody watches: the last look was {ago} ago. Does the role watch run?",
        "无人值守：上次检查在 {ago} 前。watch 角色在运行吗？",
    ),
    "overview.never": (
        "Nobody has watched yet: `millstream up` runs the role watch.",
        "尚未开始监控：`millstream up` 会运行 watch 角色。",
    ),
    "overview.loop": ("The loop, now", "闭环实况"),
    "overview.requests": ("requests", "请求"),
    "overview.rate": ("Requests", "请求"),
    "overview.live": ("Live", "线上"),
    "overview.people": ("People", "用户"),
    "overview.service": ("Serve", "服务"),
    "overview.log": ("Log", "日志"),
    "overview.join": ("Join", "拼接"),
    "overview.learner": ("Learn", "学习"),
    "overview.answers": ("answers", "应答"),
    "overview.outcomes": ("outcomes", "反馈"),
    "overview.examples": ("examples", "样本"),
    "overview.pushes": ("weights", "权重"),
    "overview.served": ("served", "应答记录"),
    "overview.events": ("events", "事件"),
    "overview.people_more": ("requests in all", "累计请求"),
    "overview.serve_more": ("live now", "当前线上"),
    "overview.log_more": ("events a second", "每秒事件"),
    "overview.join_more": ("examples in all", "累计样本"),
    "overview.learn_more": ("from outcome to answer", "反馈到生效"),
    "overview.every_s": ("a second", "每秒"),
    "overview.latency": ("Answer, 99 of 100 within", "99% 应答用时"),
    "overview.median": ("half within {p50}", "中位数 {p50}"),
    "overview.stale": ("From an outcome to an answer with it", "反馈到生效用时"),
    "overview.stale_more": ("half within, last minute", "中位数，最近一分钟"),
    "overview.failed": ("Failed", "失败"),
    "overview.of_all": ("of requests, last ten seconds", "占请求的比例，最近十秒"),
    "overview.aside": ("Set aside", "搁置"),
    "overview.aside_more": ("outcomes that teach nothing, a second", "每秒无法学习的反馈"),
    "overview.models": ("Models", "模型"),
    "overview.processes": ("Processes", "进程"),
    "overview.no_models": (
        "No model yet: `millstream models add` puts one.",
        "还没有模型：用 `millstream models add` 添加。",
    ),
    "overview.fires": ("What fires", "正在触发"),
    "overview.learning.run": ("learning", "学习中"),
    "overview.learning.paused": ("paused", "已暂停"),
    "overview.picture": (
        "A picture of the loop: people's requests are answered, logged, joined with outcomes, learnt from, and the "
        "weights pushed back",
        "闭环示意图：请求被应答并记录，与反馈拼接，用于学习，再推回服务",
    ),
}


def page(views: OverviewViews) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        sentence = ui.element("div").props('id="well" role="status"')

        def well(found: Well) -> None:
            sentence.clear()
            with sentence:
                _sentence(visit, found)

        await visit.live(views.well, well)
        with card(visit.say("overview.loop"), "loop-card"):
            chart.draw(_picture(visit, _moving(await asyncio.to_thread(views.loop))[0]), visit.say("overview.picture"))
        numbers = ui.element("div").classes("cards small")
        below = ui.element("div").classes("cards wide")

        def show(loop: Loop) -> None:
            visit.call("picture", *_moving(loop))
            numbers.clear()
            with numbers:
                _figures(visit, loop)
            below.clear()
            with below:
                _models(visit, loop)
                if loop.firing:
                    _firing(visit, loop.firing)

        await visit.live(views.loop, show)

    return Page(path="/", name="overview", icon="water_drop", letter="o", build=build, words=WORDS)


def _sentence(visit: Visit, found: Well) -> None:
    kind, icon = {"well": ("good", "check_circle"), "firing": ("bad", "error"), "silent": ("bad", "error")}.get(
        found.state, ("warn", "visibility_off")
    )
    state = "never" if found.state == "unwatched" and not found.ago_s else found.state
    with ui.element("div").classes(f"notice well {kind}"):
        ui.icon(icon).props('aria-hidden="true"')
        said = visit.say(
            f"overview.{state}",
            rules=found.rules,
            alerts=found.alerts,
            pages=found.pages,
            ago=text.seconds(found.ago_s),
        )
        ui.label(said)


def _figures(visit: Visit, loop: Loop) -> None:
    requests, failed, aside = loop.streams["requests"], loop.streams["failures"], loop.streams["aside"]
    with card():
        figure(visit.say("overview.rate"), text.number(requests.rate), visit.say("overview.every_s"))
        _spark(requests, visit.say("overview.requests"))
    with card():
        figure(
            visit.say("overview.latency"), text.seconds(loop.answer_p99_s),
            visit.say("overview.median", p50=text.seconds(loop.answer_p50_s)),
        )  # fmt: skip
    with card():
        figure(visit.say("overview.stale"), text.seconds(loop.staleness_s), visit.say("overview.stale_more"))
    with card():
        share = failed.rate / requests.rate if requests.rate else math.nan
        figure(visit.say("overview.failed"), text.share(share), visit.say("overview.of_all"))
    with card():
        figure(visit.say("overview.aside"), text.number(aside.rate), visit.say("overview.aside_more"))


def _spark(stream: Stream, label: str) -> None:
    if len(stream.past) > 1:
        chart.draw(chart.spark(stream.past, 160, 30), label)


def _models(visit: Visit, loop: Loop) -> None:
    with card(visit.say("overview.models")):
        if not loop.models:
            empty(visit.say("overview.no_models"))
        else:
            heads = [visit.say("model"), visit.say("overview.live"), visit.say("overview.rate"), ""]
            rows = []
            for one in loop.models:
                state = visit.say(f"overview.learning.{one.learning}") if one.learning else ""
                kind = "warn" if one.learning == "paused" else "good"
                rows.append(
                    [
                        one.model,
                        one.live,
                        text.number(one.answers),
                        (lambda s=state, k=kind: badge(s, k)) if state else "",
                    ]
                )
            table(heads, rows, numeric=(2,))
        heading(visit.say("overview.processes"))
        with ui.element("div").classes("row"):
            for name in loop.processes:
                badge(name, "accent")
            if not loop.processes:
                soft(visit.say("none"))


def _firing(visit: Visit, firing: list[Alert]) -> None:
    with card(visit.say("overview.fires")):
        for alert in firing[:10]:
            with ui.element("a").props('href="/alerts"').classes("alert-line"):
                badge(alert.severity, "bad" if alert.severity == "page" else "warn")
                ui.label(alert.said)


def _moving(loop: Loop) -> tuple[dict[str, str], dict[str, float]]:
    """(texts of the picture, rates of its streams)."""
    of, streams = {"requests": "requests", "answers": "requests"}, loop.streams
    of |= {name: name for name in ("outcomes", "examples", "pushes")}
    rates = {name: streams[stream].rate for name, stream in of.items()}
    rates["logged"] = streams["requests"].rate + streams["outcomes"].rate
    texts = {name: f"{text.number(rate)}/s" for name, rate in rates.items()}
    texts |= {f"{name}_total": text.number(streams[name].total) for name in ("requests", "examples")}
    texts["logged"] = f"{text.number(rates['logged'])}/s"
    live = next((model for model in loop.models if model.learning), loop.models[0] if loop.models else None)
    texts["version"] = f"{live.model} {live.live}"[:22] if live else "–"
    texts["stale"] = text.seconds(loop.staleness_s)
    return texts, rates


def _picture(visit: Visit, texts: dict[str, str]) -> str:
    """The loop, drawn twice: wide, and tall for a phone. Later texts, and speeds, are put in by static/console.js."""
    nodes = {
        "people": ("overview.people", "requests_total"),
        "serve": ("overview.service", "version"),
        "log": ("overview.log", "logged"),
        "join": ("overview.join", "examples_total"),
        "learn": ("overview.learner", "stale"),
    }
    wide = {
        "nodes": {"people": (20, 50), "serve": (395, 50), "log": (770, 50), "join": (770, 200), "learn": (395, 200)},
        "streams": [
            ("requests", "overview.requests", "M170 74H391", 281, 65, "middle"),
            ("answers", "overview.answers", "M395 100H174", 281, 117, "middle"),
            ("answers", "overview.served", "M545 86H766", 656, 77, "middle"),
            ("outcomes", "overview.outcomes", "M95 50V28Q95 16 107 16H833Q845 16 845 28V46", 470, 10, "middle"),
            ("logged", "overview.events", "M845 122V196", 834, 164, "end"),
            ("examples", "overview.examples", "M770 236H549", 658, 227, "middle"),
            ("pushes", "overview.pushes", "M470 200V126", 482, 164, "start"),
        ],
    }
    tall = {
        "nodes": {"people": (105, 24), "serve": (105, 166), "log": (105, 308), "join": (105, 450), "learn": (105, 592)},
        "streams": [
            ("requests", "overview.requests", "M150 96V162", 142, 132, "end"),
            ("answers", "overview.answers", "M210 166V100", 218, 132, "start"),
            ("answers", "overview.served", "M180 238V304", 172, 276, "end"),
            ("outcomes", "overview.outcomes", "M255 48H318Q330 48 330 60V332Q330 344 318 344H259", 322, 276, "end"),
            ("logged", "overview.events", "M180 380V446", 188, 418, "start"),
            ("examples", "overview.examples", "M180 522V588", 188, 560, "start"),
            ("pushes", "overview.pushes", "M105 628H42Q30 628 30 616V214Q30 202 42 202H101", 38, 418, "start"),
        ],
    }
    drawn = partial(_drawn, visit, nodes, {name: chart.escaped(said) for name, said in texts.items()})
    return drawn("wide", "0 -8 940 288", wide) + drawn("tall", "0 0 360 680", tall)


def _drawn(visit: Visit, nodes: dict[str, tuple[str, str]], texts: dict[str, str], kind: str, box: str, at: Any) -> str:
    """One of the two drawings: streams first, nodes over their ends."""
    parts = []
    for name, said, path, x, y, anchor in at["streams"]:
        parts.append(
            f'<path class="bed" d="{path}" marker-end="url(#tip-{kind})"/>'
            f'<path class="flow" data-stream="{name}" d="{path}"/>'
            f'<text class="flow-name" x="{x}" y="{y}" text-anchor="{anchor}">{chart.escaped(visit.say(said))} '
            f'<tspan class="flow-value" data-text="{name}">{texts[name]}</tspan></text>'
        )
    for name, (x, y) in at["nodes"].items():
        title, value = nodes[name]
        more = chart.escaped(visit.say(f"overview.{name}_more"))
        parts.append(
            f'<g class="node {name}"><rect x="{x}" y="{y}" width="150" height="72" rx="12"/>'
            f'<text class="node-name" x="{x + 75}" y="{y + 22}">{chart.escaped(visit.say(title))}</text>'
            f'<text class="node-value" x="{x + 75}" y="{y + 43}" data-text="{value}">{texts[value]}</text>'
            f'<text class="node-more" x="{x + 75}" y="{y + 60}">{more}</text></g>'
        )
    tip = (
        f'<defs><marker id="tip-{kind}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="10" markerHeight="10" '
        'markerUnits="userSpaceOnUse" orient="auto"><path class="tip" d="M0 0L8 4L0 8Z"/></marker></defs>'
    )
    svg = f'<svg class="chart loop {kind}" viewBox="{box}" xmlns="http://www.w3.org/2000/svg" aria-hidden="true">'
    return f"{svg}{tip}{''.join(parts)}</svg>"
