"""Alerts: what fires, what did, what was done by it and how that is taken back, the rules, and who is told."""

from __future__ import annotations

from functools import partial

from nicegui import ui

from millstream.console import text
from millstream.console.page import Page, Visit
from millstream.console.parts import badge, card, empty, soft, table
from millstream.console.views import Actions, AlertRow, AlertsNow, AlertsViews

WORDS = {
    "alerts.title": ("Alerts", "告警"),
    "alerts.firing": ("Firing now", "正在触发"),
    "alerts.past": ("Over", "已恢复"),
    "alerts.rules": ("Rules", "规则"),
    "alerts.targets": ("Who is told", "通知对象"),
    "alerts.quiet": ("Nothing fires.", "没有触发的告警。"),
    "alerts.no_past": ("Nothing has fired yet.", "还没有触发过告警。"),
    "alerts.unwatched": (
        "Nobody watches now, so nothing new can fire: see Overview.",
        "当前无人值守，不会有新的告警：见概览。",
    ),
    "alerts.since": ("since {at}", "自 {at}"),
    "alerts.until": ("until {at}", "至 {at}"),
    "alerts.value": ("read {value}, limit {limit}", "读数 {value}，界限 {limit}"),
    "alerts.did": ("What was done", "已采取的动作"),
    "alerts.undo": ("Undo", "撤销"),
    "alerts.undo_title": ("Take back what {rule} did?", "撤销 {rule} 的动作？"),
    "alerts.undo_body": ("The policy becomes what it was before: {did}", "策略恢复到之前的状态：{did}"),
    "alerts.runbook": ("What to do", "处理手册"),
    "alerts.rule": ("Rule", "规则"),
    "alerts.severity": ("Severity", "级别"),
    "alerts.condition": ("Holds when", "条件"),
    "alerts.says": ("Means", "含义"),
    "alerts.action": ("Does", "动作"),
    "alerts.dry": ("{action} (only said)", "{action}（仅提示）"),
    "alerts.holds": ("fires", "触发中"),
    "alerts.target": ("Target", "目标"),
    "alerts.kind": ("Kind", "类型"),
    "alerts.delivered": ("Delivered", "已送达"),
    "alerts.lost": ("Lost", "未送达"),
    "alerts.severity.page": ("page", "紧急"),
    "alerts.severity.ticket": ("ticket", "工单"),
    "alerts.severity.note": ("note", "提示"),
}
_KINDS = {"page": "bad", "ticket": "warn", "note": ""}


def page(views: AlertsViews, actions: Actions) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        box = ui.element("div")

        def show(now: AlertsNow) -> None:
            box.clear()
            with box:
                _all(visit, actions, now)

        await visit.live(views.alerts, show, every_s=2.0)

    return Page(path="/alerts", name="alerts", icon="notifications", letter="a", build=build, words=WORDS)


def _all(visit: Visit, actions: Actions, now: AlertsNow) -> None:
    if now.well.state in ("unwatched", "silent"):
        with ui.element("div").classes("notice warn"):
            ui.icon("visibility_off").props('aria-hidden="true"')
            ui.label(visit.say("alerts.unwatched"))
    with card(visit.say("alerts.firing")):
        if not now.firing:
            empty(visit.say("alerts.quiet"))
        for row in now.firing:
            _alert(visit, actions, row)
    with card(visit.say("alerts.past")):
        if not now.past:
            empty(visit.say("alerts.no_past"))
        for row in now.past:
            _alert(visit, actions, row)
    with card(visit.say("alerts.rules")):
        heads = [visit.say(f"alerts.{name}") for name in ("rule", "severity", "condition", "says", "action")]
        rows = []
        for rule in now.rules:
            does = visit.say("alerts.dry", action=rule.action) if rule.action and rule.dry_run else rule.action
            rows.append(
                [
                    partial(_name, visit, rule.name, rule.holds),
                    partial(badge, visit.say(f"alerts.severity.{rule.severity}"), _KINDS[rule.severity]),
                    partial(_mono, rule.condition), rule.says, does,
                ]
            )  # fmt: skip
        table(heads, rows)
    with card(visit.say("alerts.targets")):
        heads = [visit.say(f"alerts.{name}") for name in ("target", "kind", "delivered", "lost")]
        told = [
            [one.name, one.kind, "–" if one.kind == "log" else f"{one.delivered:,}", f"{one.lost:,}"]
            for one in now.targets
        ]
        table(heads, told, numeric=(2, 3))


def _alert(visit: Visit, actions: Actions, row: AlertRow) -> None:
    alert = row.alert
    with ui.element("article").classes("alert" if row.ended else f"alert {_KINDS.get(alert.severity, '')}"):
        with ui.element("div").classes("row"):
            severity = f"alerts.severity.{alert.severity}"
            badge(visit.say(severity) if alert.severity in _KINDS else alert.severity, _KINDS.get(alert.severity, ""))
            ui.label(alert.rule).classes("alert-rule")
            for name, value in alert.labels.items():
                badge(f"{name} {value}")
        ui.label(alert.said).classes("alert-said")
        when = visit.say("alerts.since", at=text.moment(alert.since))
        if row.ended:
            when += " " + visit.say("alerts.until", at=text.moment(row.ended))
        soft(f"{when} · {visit.say('alerts.value', value=text.number(alert.value), limit=text.number(alert.limit))}")
        if alert.runbook:
            soft(f"{visit.say('alerts.runbook')}: {alert.runbook}")
        if alert.did:
            with ui.element("div").classes("row did"):
                ui.label(f"{visit.say('alerts.did')}: {alert.did}")
                if row.undoable:
                    ask = partial(
                        visit.ask, visit.say("alerts.undo_title", rule=alert.rule),
                        visit.say("alerts.undo_body", did=alert.did), alert.labels.get("model", "*"),
                        partial(actions.undo, alert.id),
                    )  # fmt: skip
                    visit.button("alerts.undo", ask, "undo")


def _name(visit: Visit, name: str, holds: bool) -> None:
    with ui.element("div").classes("row"):
        ui.label(name)
        if holds:
            badge(visit.say("alerts.holds"), "bad")


def _mono(said: str) -> None:
    ui.label(said).classes("mono")
