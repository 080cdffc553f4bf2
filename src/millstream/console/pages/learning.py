"""Learning: does the system get better from its own traffic, and what has the gate let through?"""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui

from millstream.console import chart, text
from millstream.console.page import Page, Visit
from millstream.console.parts import badge, card, cards, empty, figure, notice, soft, table
from millstream.console.studies import Decision, Judged, LearningNow, LearningViews

WORDS = {
    "learning.title": ("Learning", "学习"),
    "learning.run": (
        "{model} learns from its own traffic: {rate} examples a second go into version {live}.",
        "{model} 正在从自己的流量中学习：每秒 {rate} 个样本进入版本 {live}。",
    ),
    "learning.idle": (
        "{model} has learnt everything there is: no new examples for version {live}.",
        "{model} 已学完现有的全部样本：版本 {live} 没有新的样本。",
    ),
    "learning.paused": ("Learning of {model} is paused by {who}: {why}", "{model} 的学习已由 {who} 暂停：{why}"),
    "learning.pinned": (
        "{model} is pinned to version {live} by {who}: {why}. Learning is off until somebody promotes.",
        "{model} 已由 {who} 钉在版本 {live}：{why}。在有人晋升之前，学习保持关闭。",
    ),
    "learning.off": ("Nothing learns here: no model is named in [learn].", "这里没有学习：[learn] 中没有指定模型。"),
    "learning.none": (
        "{model} has no version yet: `millstream train offline` makes the first.",
        "{model} 还没有版本：用 `millstream train offline` 训练第一个。",
    ),
    "learning.pause": ("Pause learning", "暂停学习"),
    "learning.resume": ("Let it learn on", "恢复学习"),
    "learning.pause_body": (
        "Servers keep the weights they have. Examples wait in the log and are learnt later.",
        "服务保留现有权重。样本留在日志里，之后再学习。",
    ),
    "learning.resume_body": (
        "Learning goes on. What the gate has refused is not learnt again.",
        "学习继续。闸门拒绝过的内容不会再被学习。",
    ),
    "learning.learnt": ("Examples learnt", "已学样本"),
    "learning.behind": ("{count} wait in the log", "日志中还有 {count} 条待学"),
    "learning.pushes": ("Pushes", "推送"),
    "learning.refused": ("{count} refused by the gate", "闸门拒绝 {count} 次"),
    "learning.staleness": ("Outcome to answer", "从结果到应答"),
    "learning.p99": ("99 %: {value}", "99 %：{value}"),
    "learning.gain": ("AUC gained", "AUC 提升"),
    "learning.gain_more": ("{live} live, {frozen} frozen", "在线 {live}，冻结 {frozen}"),
    "learning.ratio": ("Mean score over rate", "平均分数与实际比率之比"),
    "learning.honest": ("1 is honest; ECE {ece}", "1 为如实；ECE {ece}"),
    "learning.auc": ("AUC over time", "AUC 随时间"),
    "learning.auc_help": (
        "Scores judged by labels that came later, before they were learnt. Frozen: a version that never learns.",
        "分数由后来到达、尚未学习的标签评判。冻结：从不学习的版本。",
    ),
    "learning.auc_none": ("Drawn from here on: no labels were judged yet.", "从现在开始绘制：还没有评判过标签。"),
    "learning.calibration": ("Calibration", "校准"),
    "learning.calibration_help": (
        "The last {count} examples in ten groups: what was promised, and what happened, with 95 % intervals.",
        "最近 {count} 个样本分为十组：承诺的概率与实际发生的比率，含 95 % 区间。",
    ),
    "learning.calibration_none": ("Not enough served examples yet.", "服务过的样本还不够多。"),
    "learning.promised": ("perfectly honest", "完全如实"),
    "learning.happened": ("as it happened", "实际情况"),
    "learning.slices": ("By who scored and slice", "按评分者与切片"),
    "learning.who": ("Scores of", "评分者"),
    "learning.slice": ("Slice", "切片"),
    "learning.all": ("all", "全部"),
    "learning.examples": ("Examples", "样本"),
    "learning.logloss": ("Log loss", "对数损失"),
    "learning.served": ("served", "在线应答"),
    "learning.learner": ("learner", "学习器"),
    "learning.previous": ("previous version", "上一版本"),
    "learning.frozen": ("frozen version", "冻结版本"),
    "learning.decisions": ("Decisions", "决定"),
    "learning.what": ("What", "内容"),
    "learning.d.paused": ("paused", "暂停"),
    "learning.d.resumed": ("resumed", "恢复"),
    "learning.d.pinned": ("pinned to {version}", "钉在 {version}"),
    "learning.d.unpinned": ("unpinned", "解除钉住"),
    "learning.d.base": ("new base {version}", "新基座 {version}"),
    "learning.d.live": ("{version} went live", "{version} 上线"),
    "learning.gate": ("gate", "闸门"),
    "learning.pushed": ("Last pushes", "最近的推送"),
    "learning.pushed_help": (
        "Examples in each of the last pushes onto base {base}; the newest is number {last}: {slots} weights, {size}.",
        "最近每次推送到基座 {base} 的样本数；最新一次是第 {last} 次：{slots} 个权重，{size}。",
    ),
    "learning.pushed_none": ("No push yet.", "还没有推送。"),
    "learning.aside": ("Outcomes set aside", "搁置的结果"),
    "learning.aside_none": ("None: every outcome was learnt or waits.", "无：每个结果都已学习或在等待。"),
    "learning.cause": ("Cause", "原因"),
    "learning.count": ("Count", "数量"),
}
SOURCES = ("served", "learner", "previous", "frozen")
COLOUR = {"served": "one", "frozen": "two", "learner": "three", "previous": "four"}
SHOWN = 12
Show = Callable[[Visit, LearningNow], None]


def page(views: LearningViews) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        model, policy = "", 0

        def press(go_on: bool) -> None:
            what = "resume" if go_on else "pause"
            visit.ask(
                visit.say(f"learning.{what}"), visit.say(f"learning.{what}_body"), model,
                lambda who, why: views.let_learn(go_on, policy, who, why), danger=not go_on,
            )  # fmt: skip

        state = ui.element("div")
        with ui.element("div").classes("row page-actions"):
            buttons = [
                visit.button("learning.resume", lambda: press(True), icon="play_arrow", kind="main"),
                visit.button("learning.pause", lambda: press(False), icon="pause", kind="danger"),
            ]
        with cards("small") as figures:
            pass
        with cards("wide") as drawings:
            pass
        with cards("wide") as tables:
            pass
        slices = ui.element("div")
        parts: tuple[tuple[ui.element, Show], ...] = (
            (state, _state), (figures, _figures), (drawings, _drawings), (tables, _tables), (slices, _slices)
        )  # fmt: skip

        def show(now: LearningNow) -> None:
            nonlocal model, policy
            model, policy = now.model, now.policy
            for button, wanted in zip(buttons, ("paused", "run"), strict=True):
                button.set_visibility(now.state == wanted)
            for box, draw in parts:
                box.clear()
                if box is state or now.state:
                    with box:
                        draw(visit, now)

        await visit.live(views.learning, show, every_s=1.0)

    return Page(path="/learning", name="learning", icon="school", letter="l", build=build, words=WORDS)


def _state(visit: Visit, now: LearningNow) -> None:
    said = visit.say(
        f"learning.{('run' if now.a_second else 'idle') if now.state == 'run' else now.state or 'none'}",
        model=now.model, rate=text.number(now.a_second), live=now.live, who=now.who or "?", why=now.why or "?",
    )  # fmt: skip
    kind, icon = {
        "run": ("good", "trending_up"), "paused": ("bad", "pause_circle"), "pinned": ("warn", "push_pin")
    }.get(now.state, ("", "info_outline"))  # fmt: skip
    notice(said, kind, icon)


def _figures(visit: Visit, now: LearningNow) -> None:
    judged = {one.who: one for one in now.judged if not one.part}
    served, frozen = judged.get("served"), judged.get("frozen")
    behind = max(0, now.end - now.offset)
    with card():
        waits = visit.say("learning.behind", count=text.number(behind))
        figure(visit.say("learning.learnt"), text.number(now.learnt), waits)
    with card():
        refused = visit.say("learning.refused", count=text.number(now.refused))
        figure(visit.say("learning.pushes"), text.number(now.pushes), refused)
    with card():
        p99 = visit.say("learning.p99", value=_seconds(now.staleness_p99))
        figure(visit.say("learning.staleness"), _seconds(now.staleness_p50), p99)
    with card():
        gained, more = "–", ""
        if served and frozen and served.auc is not None and frozen.auc is not None:
            gained = f"{served.auc - frozen.auc:+.3f}"
            more = visit.say("learning.gain_more", live=f"{served.auc:.3f}", frozen=f"{frozen.auc:.3f}")
        figure(visit.say("learning.gain"), gained, more)
    with card():
        ratio, ece = (served.ratio, served.ece) if served else (None, None)
        more = visit.say("learning.honest", ece="–" if ece is None else f"{ece:.3f}")
        figure(visit.say("learning.ratio"), "–" if ratio is None else f"{ratio:.2f}", more)


def _drawings(visit: Visit, now: LearningNow) -> None:
    with card(visit.say("learning.auc")):
        whose = [who for who in SOURCES if any(who in point.auc for point in now.points)]
        lines = [
            chart.Line(
                visit.say(f"learning.{who}"),
                [(point.at, point.auc[who]) for point in now.points if who in point.auc],
                colour=COLOUR[who],
            )
            for who in whose
        ]
        if lines:
            chart.draw(chart.lines(lines, height=220, y=lambda auc: f"{auc:.3f}"), visit.say("learning.auc"))
            chart.legend(lines)
        else:
            empty(visit.say("learning.auc_none"))
        soft(visit.say("learning.auc_help"))
    with card(visit.say("learning.calibration")):
        if now.bins:
            lines = [
                chart.Line(visit.say("learning.promised"), [(0.0, 0.0), (1.0, 1.0)], colour="five"),
                chart.Line(
                    visit.say("learning.happened"),
                    [(bin.score, bin.rate) for bin in now.bins],
                    band=[(bin.low, bin.high) for bin in now.bins],
                    colour="one",
                ),
            ]
            drawn = chart.lines(lines, height=220, x=text.share, y=text.share, low=0.0, high=1.0)
            chart.draw(drawn, visit.say("learning.calibration"))
            chart.legend(lines)
            soft(visit.say("learning.calibration_help", count=text.number(now.binned)))
        else:
            empty(visit.say("learning.calibration_none"))


def _tables(visit: Visit, now: LearningNow) -> None:
    with card(visit.say("learning.decisions")):
        heads = [visit.say(key) for key in ("when", "learning.what", "who", "reason")]
        rows = [
            [one.when.replace("T", " ").removesuffix("Z"), _what(visit, one), one.who, one.why]
            for one in now.decisions[:SHOWN]
        ]
        if rows:
            table(heads, rows)
        else:
            empty(visit.say("nothing"))
    with ui.element("div"):
        with card(visit.say("learning.pushed")):
            if now.pushed:
                last, lately = now.pushed[0], now.pushed[::-1]
                drawn = chart.bars([str(one.sequence) for one in lately], [one.examples for one in lately], height=130)
                chart.draw(drawn, visit.say("learning.pushed"))
                soft(
                    visit.say(
                        "learning.pushed_help", base=last.base, last=last.sequence, slots=text.number(last.slots),
                        size=text.size(last.size),
                    )
                )  # fmt: skip
            else:
                empty(visit.say("learning.pushed_none"))
        with card(visit.say("learning.aside")):
            heads = [visit.say("learning.cause"), visit.say("learning.count")]
            rows = [[cause, text.number(count)] for cause, count in now.set_aside.items() if count]
            if rows:
                table(heads, rows, numeric=[1])
            else:
                soft(visit.say("learning.aside_none"))


def _slices(visit: Visit, now: LearningNow) -> None:
    if not now.judged:
        return
    heads = [visit.say(f"learning.{name}") for name in ("slice", "who", "examples")]
    with card(visit.say("learning.slices")):
        rows = [_figures_of(visit, one) for one in now.judged]
        table([*heads, "AUC", visit.say("learning.logloss"), "ECE", "p/y"], rows, numeric=[2, 3, 4, 5, 6])


def _figures_of(visit: Visit, one: Judged) -> list[str]:
    who = visit.say(f"learning.{one.who}") if one.who in SOURCES else one.who
    measures = (_four(value) for value in (one.auc, one.logloss, one.ece, one.ratio))
    return [one.part or visit.say("learning.all"), who, text.number(round(one.examples)), *measures]


def _what(visit: Visit, one: Decision) -> Callable[[], object]:
    def draw() -> None:
        kind = {"paused": "bad", "pinned": "warn", "resumed": "good", "base": "accent"}.get(one.what, "")
        with ui.element("div").classes("row"):
            badge(visit.say(f"learning.d.{one.what}", version=one.version), kind)
            if one.gate:
                badge(visit.say("learning.gate"))

    return draw


def _seconds(value: float | None) -> str:
    return "–" if value is None else text.seconds(value)


def _four(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
