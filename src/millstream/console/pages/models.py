"""Models: versions, where each comes from, what it costs, and the moves promote and roll back."""

from __future__ import annotations

import math
from functools import partial

from nicegui import ui

from millstream.console import chart, text
from millstream.console.page import Page, Visit
from millstream.console.parts import badge, card, empty, heading, notice, soft, table
from millstream.console.views import Actions, ModelRow, ModelsViews, VersionRow

WORDS = {
    "models.title": ("Models", "模型"),
    "models.policy": ("policy {number}", "策略 {number}"),
    "models.learning.run": ("learning", "学习中"),
    "models.learning.paused": ("learning paused by {who}: {why}", "学习已被 {who} 暂停：{why}"),
    "models.pinned": ("pinned to {version} by {who}", "已被 {who} 固定在 {version}"),
    "models.roll_back": ("Roll back to {version}", "回滚到 {version}"),
    "models.pause": ("Pause learning", "暂停学习"),
    "models.resume": ("Resume learning", "恢复学习"),
    "models.promote": ("Promote", "上线"),
    "models.promote_title": ("Make {model} {version} live?", "将 {model} {version} 上线？"),
    "models.promote_body": (
        "Everybody gets version {version} instead of {live}. A canary, a split and a pin end.",
        "所有流量从 {live} 切换到 {version}，金丝雀、分流和固定都会结束。",
    ),
    "models.roll_back_title": ("Roll {model} back to {version}?", "将 {model} 回滚到 {version}？"),
    "models.roll_back_body": (
        "Everybody gets version {version} instead of {live}, and it is pinned: nothing is pushed until somebody "
        "promotes.",
        "所有流量从 {live} 切回 {version} 并固定，在有人重新上线之前不会推送新权重。",
    ),
    "models.pause_title": ("Pause the learning of {model}?", "暂停 {model} 的学习？"),
    "models.pause_body": (
        "Served weights stay as they are. Examples go on to be logged.",
        "线上权重保持不变，样本继续记录。",
    ),
    "models.resume_title": ("Let {model} learn again?", "恢复 {model} 的学习？"),
    "models.resume_body": (
        "It goes on from the first example that it has not learnt.",
        "将从尚未学习的第一个样本继续。",
    ),
    "models.from": ("Comes from", "来源"),
    "models.put": ("Put", "入库时间"),
    "models.size": ("Size", "大小"),
    "models.throughput": ("Requests/s", "请求/秒"),
    "models.p50": ("p50", "p50"),
    "models.p99": ("p99", "p99"),
    "models.compute": ("1000 rows take", "每千行用时"),
    "models.memory": ("Memory", "内存"),
    "models.cost": ("A million answers", "每百万应答成本"),
    "models.more": ("and {more} older versions", "另有 {more} 个更早的版本"),
    "models.triangle": ("Latency, throughput, resources", "延迟、吞吐与资源"),
    "models.triangle_said": (
        "Of the versions that answered in the last minute, each beside the best on its axis: further out is better.",
        "最近一分钟有应答的版本，每轴与最优者相比，越靠外越好。",
    ),
    "models.axis.latency": ("fast", "快"),
    "models.axis.throughput": ("busy", "吞吐"),
    "models.axis.resources": ("lean", "省"),
    "models.lineage": ("Lineage", "谱系"),
    "models.none": ("No model yet: `millstream models add` puts one.", "还没有模型：用 `millstream models add` 添加。"),
}
_ROLES = {"live": "good", "canary": "warn", "split": "accent", "shadow": ""}
LINEAGE = 12
"""Versions of the drawn lineage."""


def page(views: ModelsViews, actions: Actions) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        box = ui.element("div")
        drawn: dict[str, tuple[ModelRow, ui.element]] = {}

        def show(models: list[ModelRow]) -> None:
            if drawn.keys() != {model.model for model in models} or not models:
                box.clear()
                drawn.clear()
                if not models:
                    with box:
                        empty(visit.say("models.none"))
            for model in models:
                if model.model not in drawn:
                    with box:
                        place = ui.element("div")
                elif drawn[model.model][0] == model:
                    continue
                else:
                    place = drawn[model.model][1]
                    place.clear()
                drawn[model.model] = model, place
                with place:
                    _model(visit, actions, model)

        await visit.live(views.models, show, every_s=2.0)

    return Page(path="/models", name="models", icon="layers", letter="m", build=build, words=WORDS)


def _model(visit: Visit, actions: Actions, model: ModelRow) -> None:
    with card(classes="model"):
        with ui.element("div").classes("between"):
            with ui.element("div").classes("row"):
                heading(model.model)
                badge(f"{visit.say('live')} {model.live}", "good")
                soft(visit.say("models.policy", number=model.policy))
                if model.learning == "run":
                    badge(visit.say("models.learning.run"), "accent")
            with ui.element("div").classes("row"):
                _moves(visit, actions, model)
        if model.problem:
            notice(model.problem, "bad", "error_outline")
            return
        if model.learning == "paused":
            notice(
                visit.say("models.learning.paused", who=model.paused_by, why=model.paused_why), "warn", "pause_circle"
            )
        if model.pin:
            notice(visit.say("models.pinned", version=model.pin, who=model.pinned_by), "warn", "push_pin")
        _versions(visit, actions, model)
        with ui.element("div").classes("cards wide below"):
            with ui.element("div"):
                heading(visit.say("models.triangle"))
                _triangle(visit, model)
            with ui.element("div"):
                heading(visit.say("models.lineage"))
                chart.draw(_lineage(model), visit.say("models.lineage"))


def _moves(visit: Visit, actions: Actions, model: ModelRow) -> None:
    if model.previous:
        to = model.previous
        visit.button(
            "models.roll_back", partial(
                visit.ask, visit.say("models.roll_back_title", model=model.model, version=to),
                visit.say("models.roll_back_body", version=to, live=model.live), model.model,
                partial(actions.roll_back, model.model, to, model.policy), True,
            ), "undo", "danger", version=to,
        )  # fmt: skip
    if model.learning:
        verb = "pause" if model.learning == "run" else "resume"
        visit.button(
            f"models.{verb}", partial(
                visit.ask, visit.say(f"models.{verb}_title", model=model.model), visit.say(f"models.{verb}_body"),
                model.model,
                partial(actions.learning, model.model, "paused" if verb == "pause" else "run", model.policy),
            ), "pause" if verb == "pause" else "play_arrow",
        )  # fmt: skip


def _versions(visit: Visit, actions: Actions, model: ModelRow) -> None:
    heads = ["version", "", "models.from", "models.put", "models.throughput", "models.p50", "models.p99",
             "models.compute", "models.memory", "models.size", ""]  # fmt: skip
    costs = any(one.cost for one in model.versions)
    if costs:
        heads.insert(8, "models.cost")
    rows = [_row(visit, actions, model, one, costs) for one in model.versions]
    table([visit.say(head) if head else "" for head in heads], rows, numeric=range(4, len(heads) - 1))
    if model.more:
        soft(visit.say("models.more", more=model.more))


def _row(visit: Visit, actions: Actions, model: ModelRow, one: VersionRow, costs: bool) -> list[object]:
    said = one.lineage.get("made_by", "") or one.format
    if one.parent:
        said += f" ← {one.parent}"
    row: list[object] = [
        one.version,
        (lambda: badge(visit.say(one.role), _ROLES.get(one.role, ""))) if one.role else "",
        said,
        text.moment(one.put)[:16],
        text.number(one.requests) if one.requests else "–",
        text.seconds(one.p50_s),
        text.seconds(one.p99_s),
        text.seconds(one.compute_s),
        text.size(one.memory_bytes) if one.memory_bytes else "–",
        text.size(one.size_bytes),
    ]
    if costs:
        row.insert(8, text.number(one.cost) if one.cost else "–")
    if one.version == model.live:
        return [*row, ""]
    ask = partial(
        visit.ask, visit.say("models.promote_title", model=model.model, version=one.version),
        visit.say("models.promote_body", version=one.version, live=model.live), model.model,
        partial(actions.promote, model.model, one.version, model.policy),
    )  # fmt: skip
    return [*row, lambda: visit.button("models.promote", ask, kind="quiet small")]


def _triangle(visit: Visit, model: ModelRow) -> None:
    """Each version that answered as a triangle: its shares of the best latency, throughput and resources."""
    seen = [one for one in model.versions if math.isfinite(one.p99_s) and one.requests > 0][:4]
    if not seen:
        empty(visit.say("nothing"))
        return
    fast, busy = min(one.p99_s for one in seen), max(one.requests for one in seen)
    costs = [one.compute_s for one in seen if math.isfinite(one.compute_s)]
    lean = min(costs) if costs else math.nan
    shapes = [
        (one.version, (fast / one.p99_s if one.p99_s else 1.0, one.requests / busy,
                       lean / one.compute_s if math.isfinite(one.compute_s) and one.compute_s else 0.0))
        for one in seen
    ]  # fmt: skip
    axes = [
        f"{visit.say('models.axis.latency')} · {text.seconds(fast)}",
        f"{visit.say('models.axis.throughput')} · {text.number(busy)}/s",
        f"{visit.say('models.axis.resources')} · {text.seconds(lean)}",
    ]
    chart.draw(chart.radar(axes, shapes), visit.say("models.triangle"))
    chart.legend([chart.Line(version, ()) for version, _ in shapes])
    soft(visit.say("models.triangle_said"))


def _lineage(model: ModelRow) -> str:
    """Versions as dots in a row, oldest left, each joined with the one that it was made from."""
    versions = model.versions[:LINEAGE][::-1]
    places = {one.version: 36 + at * (488 / max(1, len(versions) - 1)) for at, one in enumerate(versions)}
    parts = []
    for one in versions:
        parent = one.parent.partition("@")[0].rpartition("/")[2]
        if parent in places and parent != one.version:
            a, b = places[parent], places[one.version]
            high = 92 - min(64.0, abs(b - a) * 0.42)
            parts.append(f'<path class="arc" d="M{a:.1f} 100Q{(a + b) / 2:.1f} {high:.1f} {b:.1f} 100"/>')
    for one in versions:
        said = ", ".join(f"{name} {value}" for name, value in one.lineage.items())
        x, live = places[one.version], " current" if one.version == model.live else " named" if one.role else ""
        parts.append(
            f'<circle class="dot{live}" cx="{x:.1f}" cy="100" r="{7 if live else 5}">'
            f"<title>{chart.escaped(f'{one.version}: {said}')}</title></circle>"
            f'<text x="{x:.1f}" y="126" text-anchor="middle">{chart.escaped(one.version)}</text>'
        )
    box = 'class="chart lineage" viewBox="0 0 560 140" xmlns="http://www.w3.org/2000/svg" aria-hidden="true"'
    return f"<svg {box}>{''.join(parts)}</svg>"
