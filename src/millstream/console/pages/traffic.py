"""Traffic: who gets which version of a model, what the canary's guard says, and how a shadow would have answered."""

from __future__ import annotations

import asyncio
import math
from functools import partial

from nicegui import ui

from millstream.console import chart, text
from millstream.console.page import Page, Visit
from millstream.console.parts import badge, card, cards, empty, figure, heading, notice, soft, table
from millstream.console.views import Actions, ShadowRow, Share, TrafficNow, TrafficViews
from millstream.errors import BadInput, Error

WORDS = {
    "traffic.title": ("Traffic", "流量"),
    "traffic.shares": ("Who gets which version", "版本流量分配"),
    "traffic.due": ("due", "应得"),
    "traffic.got": ("got", "实得"),
    "traffic.sticky": ("an arm is chosen by {by}", "按{by}选择分组"),
    "traffic.by.user": ("user", "用户"),
    "traffic.by.request": ("request", "请求"),
    "traffic.change": ("Change", "调整"),
    "traffic.version": ("Version", "版本"),
    "traffic.share": ("Share, %", "比例 %"),
    "traffic.canary_start": ("Start a canary", "启动金丝雀"),
    "traffic.canary_stop": ("Stop the canary", "停止金丝雀"),
    "traffic.split_start": ("Split with live", "与线上分流"),
    "traffic.split_stop": ("End the split", "结束分流"),
    "traffic.shadow_start": ("Shadow", "影子"),
    "traffic.shadow_stop": ("End the shadows", "结束影子"),
    "traffic.canary_title": (
        "Give {version} of {model} {share} % as a canary?",
        "将 {model} 的 {version} 作为金丝雀，分配 {share}%？",
    ),
    "traffic.canary_body": (
        "A guard watches errors, latency and scores. It takes the canary back when it is worse than live, and "
        "promotes it when it is not.",
        "守卫会监视错误率、延迟和分数：变差则撤回，表现良好则自动上线。",
    ),
    "traffic.canary_stop_title": ("Stop the canary of {model}?", "停止 {model} 的金丝雀？"),
    "traffic.canary_stop_body": ("Live answers its share from now on.", "其流量将由线上版本应答。"),
    "traffic.split_title": (
        "Give {version} of {model} {share} % by a split?",
        "通过分流给 {model} 的 {version} 分配 {share}%？",
    ),
    "traffic.split_body": (
        "Live keeps the rest. Nobody watches a split: use Experiments.",
        "其余流量仍由线上版本承担。分流无守卫，请在实验页查看。",
    ),
    "traffic.split_stop_title": ("End the split of {model}?", "结束 {model} 的分流？"),
    "traffic.split_stop_body": ("Live gets its traffic.", "流量回到线上版本。"),
    "traffic.shadow_title": ("Have {version} of {model} compute copies?", "让 {model} 的 {version} 计算影子副本？"),
    "traffic.shadow_body": (
        "Nobody sees its answers. It costs computing time.",
        "其答案不会展示给任何人，但会占用算力。",
    ),
    "traffic.shadow_stop_title": ("End the shadows of {model}?", "结束 {model} 的影子？"),
    "traffic.shadow_stop_body": ("No more copies are computed.", "不再计算副本。"),
    "traffic.choose": ("Choose a version first.", "请先选择版本。"),
    "traffic.guard": ("What the guard says", "守卫结论"),
    "traffic.guard_of": (
        "of canary {version}, {requests} requests beside {beside} of live",
        "金丝雀 {version}：{requests} 个请求，线上 {beside} 个",
    ),
    "traffic.shadow_of": ("Shadow {version} beside live {live}", "影子 {version} 与线上 {live} 对比"),
    "traffic.differing": ("Differing", "不一致"),
    "traffic.of_compared": ("of {compared} compared", "共对比 {compared} 次"),
    "traffic.lost": ("Lost copies", "丢失副本"),
    "traffic.of_copies": ("of {copies}", "共 {copies}"),
    "traffic.rank": ("Rank correlation", "排序相关"),
    "traffic.rank_more": ("Spearman, within {requests} requests", "Spearman，{requests} 个请求内"),
    "traffic.apart": ("Scores apart", "分数差距"),
    "traffic.apart_more": ("mean size of shadow minus live", "影子减线上的平均绝对值"),
    "traffic.scatter": ("Scores of the same candidates: live across, shadow up", "同一候选的分数：横轴线上，纵轴影子"),
    "traffic.bins": ("Shadow minus live", "影子减线上"),
    "traffic.no_pairs": ("The log has no request yet that both answered.", "日志中还没有两者都应答过的请求。"),
    "traffic.history": ("What was changed", "变更记录"),
    "traffic.to": ("Came to", "结果"),
    "traffic.none": ("No model yet.", "还没有模型。"),
}
_COLOURS = {"live": "one", "canary": "two", "split": "three"}


def page(views: TrafficViews, actions: Actions) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        names = await asyncio.to_thread(views.names)
        if not names:
            empty(visit.say("traffic.none"))
            return
        model = visit.query.get("model", "")
        model = model if model in names else names[0]
        with ui.element("div").classes("row tabs"):
            for name in names if len(names) > 1 else ():
                link = ui.element("a").classes("button here" if name == model else "button")
                link.props["href"] = f"/traffic?model={name}"
                with link:
                    ui.label(name)
        try:
            first = await asyncio.to_thread(views.traffic, model)
        except Error as error:  # its policy cannot be used: the other models have pages all the same
            visit.alert(str(error))
            return
        seen: list[TrafficNow] = []
        top = ui.element("div")
        with card(visit.say("traffic.change")):
            _controls(visit, actions, first, seen)
        below = ui.element("div")

        def show(now: TrafficNow) -> None:
            seen[:] = [now]
            top.clear()
            with top:
                _shares(visit, now)
            below.clear()
            with below:
                for shadow in now.shadows:
                    _shadow(visit, now, shadow)
                _history(visit, now)

        await visit.live(partial(views.traffic, model), show, every_s=2.0)

    return Page(path="/traffic", name="traffic", icon="alt_route", letter="t", build=build, words=WORDS)


def _shares(visit: Visit, now: TrafficNow) -> None:
    with card(visit.say("traffic.shares")):
        if now.problem:
            notice(now.problem, "bad", "error_outline")
        for kind in ("due", "got"):
            values = [(one, getattr(one, kind)) for one in now.shares]
            if all(math.isfinite(value) for _, value in values):
                _bar(visit.say(f"traffic.{kind}"), values)
        with ui.element("div").classes("row"):
            for one in now.shares:
                with ui.element("span").classes(f"key {_COLOURS.get(one.role, 'five')}"):
                    ui.element("span").classes("swatch")
                    ui.label(f"{one.version} {visit.say(one.role) if one.role else ''} {text.share(one.due)}")
            soft(visit.say("traffic.sticky", by=visit.say(f"traffic.by.{now.sticky_by}")))
        if now.guard:
            with ui.element("div").classes("guard"):
                heading(visit.say("traffic.guard"))
                ui.label(now.guard.said)
                word = now.guard
                soft(
                    visit.say(
                        "traffic.guard_of",
                        version=word.canary,
                        requests=f"{word.requests:,}",
                        beside=f"{word.beside:,}",
                    )
                )


def _bar(name: str, values: list[tuple[Share, float]]) -> None:
    with ui.element("div").classes("share-row"):
        ui.label(name).classes("soft small-text")
        with ui.element("div").classes("share-bar"):
            for one, value in values:
                if value > 0:
                    part = ui.element("div").classes(_COLOURS.get(one.role, "five")).style(f"width: {value * 100:.2f}%")
                    part.props["title"] = f"{one.version}: {text.share(value)}"


def _controls(visit: Visit, actions: Actions, first: TrafficNow, seen: list[TrafficNow]) -> None:
    """What moves traffic; outside of what is drawn anew, so that nothing that is typed goes."""
    model = first.model
    others = [version for version in first.versions if version != first.live]
    with ui.element("div").classes("row controls"):
        version = ui.select(others, label=visit.say("traffic.version"), with_input=False).props("outlined dense")
        share = ui.number(visit.say("traffic.share"), value=5, min=0.1, max=99, step=1).props("outlined dense")

        def asking(verb: str) -> None:
            if not version.value:
                visit.refuse(visit.say("traffic.choose"))
                return
            chosen, part = str(version.value), float(share.value or 0)
            values = {"version": chosen, "share": f"{part:g}"}
            title = visit.say(f"traffic.{verb}_title", model=model, **values)
            body = visit.say(f"traffic.{verb}_body")

            def do(who: str, why: str) -> str:
                now = seen[0] if seen else first
                if not 0 < part < 100:
                    raise BadInput(f"a share is more than 0 % and less than 100 %, got {part:g}")
                if verb == "canary":
                    return actions.canary(model, chosen, part / 100, now.policy, who, why)
                if verb == "split":
                    rest = {now.live: 1 - part / 100, chosen: part / 100}
                    return actions.split(model, rest, now.policy, who, why)
                return actions.shadow(model, (chosen,), now.policy, who, why)

            visit.ask(title, body, model, do)

        def ending(verb: str) -> None:
            def do(who: str, why: str) -> str:
                now = seen[0] if seen else first
                if verb == "canary":
                    return actions.canary(model, now.live, 0.0, now.policy, who, why)
                if verb == "split":
                    return actions.split(model, {}, now.policy, who, why)
                return actions.shadow(model, (), now.policy, who, why)

            title, body = visit.say(f"traffic.{verb}_stop_title", model=model), visit.say(f"traffic.{verb}_stop_body")
            visit.ask(title, body, model, do, verb == "canary")

        for verb, icon in (("canary", "science"), ("split", "call_split"), ("shadow", "content_copy")):
            visit.button(f"traffic.{verb}_start", partial(asking, verb), icon, "main" if verb == "canary" else "")
    with ui.element("div").classes("row controls"):
        visit.button("traffic.canary_stop", partial(ending, "canary"), "block", "danger")
        visit.button("traffic.split_stop", partial(ending, "split"), kind="quiet")
        visit.button("traffic.shadow_stop", partial(ending, "shadow"), kind="quiet")


def _shadow(visit: Visit, now: TrafficNow, one: ShadowRow) -> None:
    with card(visit.say("traffic.shadow_of", version=one.version, live=now.live)):
        with cards("small figures"):
            share = one.differing / one.compared if one.compared else math.nan
            compared = visit.say("traffic.of_compared", compared=f"{one.compared:,}")
            figure(visit.say("traffic.differing"), text.share(share), compared)
            lost = text.number(one.lost)
            figure(visit.say("traffic.lost"), lost, visit.say("traffic.of_copies", copies=f"{one.copies:,}"))
            rank = "–" if math.isnan(one.rank) else f"{one.rank:.3f}"
            figure(visit.say("traffic.rank"), rank, visit.say("traffic.rank_more", requests=one.requests))
            apart = "–" if math.isnan(one.apart) else text.number(one.apart)
            figure(visit.say("traffic.apart"), apart, visit.say("traffic.apart_more"))
        if not one.pairs:
            soft(visit.say("traffic.no_pairs"))
            return
        with cards("wide plots"):
            with ui.element("div"):
                soft(visit.say("traffic.scatter"))
                dots = chart.Line(one.version, one.pairs, dots=True)
                ends = [edge for pair in one.pairs for edge in pair]
                drawn = chart.lines(
                    [dots], x=text.number, diagonal=True, square=(min(ends), max(ends)), height=300, width=460
                )
                chart.draw(drawn, visit.say("traffic.scatter"))
            with ui.element("div"):
                soft(visit.say("traffic.bins"))
                middles = [(a + b) / 2 for a, b in zip(one.edges, one.edges[1:], strict=False)]
                names = [text.number(middle) for middle in middles]
                chart.draw(chart.bars(names, one.bins, height=300, width=460, colour="two"), visit.say("traffic.bins"))


def _history(visit: Visit, now: TrafficNow) -> None:
    with card(visit.say("traffic.history")):
        if not now.history:
            empty(visit.say("nothing"))
            return
        heads = ["", visit.say("when"), visit.say("who"), visit.say("reason"), visit.say("traffic.to")]
        rows = [
            [partial(badge, str(one.number)), one.when.replace("T", " ").rstrip("Z"), one.who, one.why, one.what]
            for one in now.history
        ]
        table(heads, rows)
