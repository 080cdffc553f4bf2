"""Experiments: which arm is better, by how much, and how sure is that, at whatever moment somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nicegui import ui

from millstream.console import chart, text
from millstream.console.page import Page, Visit
from millstream.console.parts import badge, card, cards, empty, figure, heading, notice, soft, table
from millstream.console.studies import Between, Trial, TrialsNow, TrialViews

WORDS = {
    "experiments.title": ("Experiments", "实验"),
    "experiments.none": (
        "Nothing is split: give a placement several arms of rules, or split a model's traffic. "
        "[experiments.NAME] in millstream.toml asks a question of its own.",
        "目前没有分流：给位置设置多组规则，或对模型分流。在 millstream.toml 中用 [experiments.NAME] 提出问题。",
    ),
    "experiments.look": ("Look now", "立即查看"),
    "experiments.looking": ("Reading the log for {name} …", "正在为 {name} 读取日志……"),
    "experiments.waiting": ("Not looked at yet.", "尚未查看。"),
    "experiments.looked": (
        "Looked at {when}, in {took}: lists from {since} to {until}. Look as often as you like: the intervals hold at "
        "every look together.",
        "查看于 {when}，用时 {took}：{since} 至 {until} 的列表。可以随时反复查看：区间对所有查看同时有效。",
    ),
    "experiments.srm_fine": ("people split as configured", "人群按配置分流"),
    "experiments.srm_bad": ("people are not split as configured", "人群未按配置分流"),
    "experiments.lift": ("{arm} against {control}", "{arm} 对比 {control}"),
    "experiments.people": ("People", "人数"),
    "experiments.wanted": ("about {count} to see {least}", "约需 {count} 人才能看出 {least}"),
    "experiments.noise": ("Noise taken out", "已消除的噪声"),
    "experiments.noise_more": ("by the past of {share} of the people", "依据 {share} 人群的过往"),
    "experiments.arms": ("Arms", "各组"),
    "experiments.arm": ("Arm", "组"),
    "experiments.control": ("control", "对照"),
    "experiments.planned": ("Planned", "计划"),
    "experiments.got": ("Got", "实际"),
    "experiments.lists": ("Lists", "列表"),
    "experiments.lifts": ("Lift and its interval", "提升及其区间"),
    "experiments.rails": ("Guardrails", "护栏"),
    "experiments.allowed": ("may be worse by {share}", "最多可变差 {share}"),
    "experiments.over": ("The interval over time", "区间随时间"),
    "experiments.over_none": ("Drawn from the second look on.", "从第二次查看起绘制。"),
    "experiments.shadows": ("Shadows of the model", "模型的影子"),
    "experiments.requests": ("Requests", "请求"),
    "experiments.alike": ("Scores alike", "分数相关"),
    "experiments.order_alike": ("Order alike", "次序相关"),
    "experiments.apart": ("Apart by", "平均相差"),
    "experiments.first": ("Another item first", "首位不同"),
    "experiments.s.better": ("better", "更好"),
    "experiments.s.worse": ("worse", "更差"),
    "experiments.s.alike": ("alike", "无实质差别"),
    "experiments.s.open": ("not decided", "未定"),
    "experiments.s.early": ("too early", "为时尚早"),
    "experiments.s.kept": ("kept", "守住"),
    "experiments.s.broken": ("broken", "突破"),
}
KIND = {"better": "good", "worse": "bad", "kept": "good", "broken": "bad", "alike": "accent"}
STATES = ("better", "worse", "alike", "open", "early", "kept", "broken")


def page(views: TrialViews) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        with ui.element("div").classes("row page-actions"):
            visit.button("experiments.look", lambda: visit.look(views.look), icon="visibility", kind="main")
            running = ui.label("").classes("soft small-text").props('role="status"')
        box = ui.element("div")

        def show(now: TrialsNow) -> None:
            running.set_text(visit.say("experiments.looking", name=now.running) if now.running else "")
            box.clear()
            with box:
                if not now.trials:
                    notice(visit.say("experiments.none"))
                for trial in now.trials:
                    _trial(visit, trial)

        await visit.live(views.trials, show, every_s=2.0)

    return Page(path="/experiments", name="experiments", icon="science", letter="e", build=build, words=WORDS)


def _trial(visit: Visit, trial: Trial) -> None:
    with ui.element("div").classes("row set-title"):
        heading(trial.name)
        if trial.state == "done":
            good = visit.say("experiments.srm_fine") if trial.fine else visit.say("experiments.srm_bad")
            badge(good, "good" if trial.fine else "bad")
    if trial.state == "waiting":
        notice(visit.say("experiments.waiting"), "", "hourglass_empty")
        return
    if trial.state == "failed":
        notice(trial.verdict, "warn", "info_outline")
        return
    kind, icon = _mood(trial)
    notice(trial.verdict, kind, icon)
    with cards("small"):
        _figures(visit, trial)
    with cards("wide"):
        with card(visit.say("experiments.lifts")):
            _intervals(visit, trial.lifts)
            if trial.rails:
                heading(visit.say("experiments.rails"))
                _intervals(visit, trial.rails)
        with card(visit.say("experiments.over")):
            _over(visit, trial)
    with card(visit.say("experiments.arms")):
        _arms(visit, trial)
        said = {"since": text.moment(trial.since), "until": text.moment(trial.until)}
        soft(visit.say("experiments.looked", when=text.clock(trial.looked), took=text.seconds(trial.took), **said))
    if trial.shadows:
        with card(visit.say("experiments.shadows")):
            _shadows(visit, trial)


def _mood(trial: Trial) -> tuple[str, str]:
    states = {one.state for one in trial.lifts}
    if not trial.fine or any(one.state == "broken" for one in trial.rails):
        return "bad", "error_outline"
    if "better" in states:
        return "good", "trending_up"
    return ("warn", "trending_down") if "worse" in states else ("", "balance")


def _figures(visit: Visit, trial: Trial) -> None:
    people = sum(arm.people for arm in trial.arms)
    with card():
        wanted = max((one.wanted or 0 for one in trial.lifts), default=0)
        more = visit.say("experiments.wanted", count=text.number(wanted), least=text.share(trial.least))
        figure(visit.say("experiments.people"), text.number(people), more if wanted else "")
    for one in trial.lifts:
        with card():
            said = "–" if one.lift is None else _signed(one.lift)
            figure(visit.say("experiments.lift", arm=one.arm, control=one.control), said, _reach(one))
    with card():
        less = max((one.less for one in trial.lifts), default=0.0)
        past = visit.say("experiments.noise_more", share=text.share(trial.past))
        figure(visit.say("experiments.noise"), text.share(less), past)


def _intervals(visit: Visit, several: Sequence[Between]) -> None:
    """A line each: the interval on an axis that all of them share, 0 in its middle."""
    edges = [abs(edge) for one in several for edge in (one.low, one.high, one.allowed) if edge is not None]
    far = min(max(edges, default=0.1) * 1.08, 2.0) or 0.1
    if not several:
        empty(visit.say("nothing"))
    for one in several:
        with ui.element("div").classes("between-line"):
            with ui.element("div").classes("between"):
                ui.label(one.what if one.allowed is not None else f"{one.arm} : {one.control}").classes("title")
                state = visit.say(f"experiments.s.{one.state}") if one.state in STATES else one.state
                badge(state, KIND.get(one.state, ""))
            with ui.element("div").classes("interval").props('aria-hidden="true"'):
                ui.element("span").classes("zero")
                if one.allowed is not None:
                    ui.element("span").classes("allowed").style(f"left: {_at(-one.allowed, far):.2f}%")
                if one.low is not None and one.high is not None and one.lift is not None:
                    left, right = _at(one.low, far), _at(one.high, far)
                    span = ui.element("span").classes(f"span {KIND.get(one.state, '')}")
                    span.style(f"left: {left:.2f}%; width: {max(0.6, right - left):.2f}%")
                    ui.element("span").classes("point").style(f"left: {_at(one.lift, far):.2f}%")
            with ui.element("div").classes("between soft small-text"):
                ui.label(_reach(one))
                if one.allowed is not None:
                    ui.label(visit.say("experiments.allowed", share=text.share(one.allowed)))


def _reach(one: Between) -> str:
    return "–" if one.low is None or one.high is None else f"{_signed(one.low)} … {_signed(one.high)}"


def _at(value: float, far: float) -> float:
    """Where a share stands on the axis, percent from its left end."""
    return min(100.0, max(0.0, 50.0 + 50.0 * value / far))


def _over(visit: Visit, trial: Trial) -> None:
    arms = list(dict.fromkeys(one.arm for one in trial.seen))
    lines = []
    for arm in arms:
        mine = [one for one in trial.seen if one.arm == arm]
        lines.append(
            chart.Line(arm, [(one.at, one.lift) for one in mine], band=[(one.low, one.high) for one in mine])
        )  # fmt: skip
    if not lines or max(len(line.points) for line in lines) < 2:
        empty(visit.say("experiments.over_none"))
        return
    chart.draw(chart.lines(lines, height=210, y=_signed, marks=[0.0]), visit.say("experiments.over"))
    chart.legend(lines)


def _arms(visit: Visit, trial: Trial) -> None:
    people = sum(arm.people for arm in trial.arms) or 1
    rows: list[list[str | Callable[[], object]]] = [
        [
            _arm(visit, arm.name, arm.name == trial.control), text.share(arm.share), text.share(arm.people / people),
            text.number(arm.people), text.number(arm.lists), "–" if arm.value is None else f"{arm.value:.4g}",
        ]
        for arm in trial.arms
    ]  # fmt: skip
    heads = [visit.say(f"experiments.{name}") for name in ("arm", "planned", "got", "people", "lists")]
    table([*heads, trial.metric], rows, numeric=[1, 2, 3, 4, 5])


def _arm(visit: Visit, name: str, control: bool) -> Callable[[], object]:
    def draw() -> None:
        with ui.element("div").classes("row"):
            ui.label(name)
            if control:
                badge(visit.say("experiments.control"))

    return draw


def _shadows(visit: Visit, trial: Trial) -> None:
    heads = [visit.say(f"experiments.{name}") for name in ("requests", "alike", "order_alike", "apart", "first")]
    rows = [
        [
            one.version, text.number(one.requests), _or_none(one.correlation), _or_none(one.rank_correlation),
            _or_none(one.apart), "–" if one.other_first is None else text.share(one.other_first),
        ]
        for one in trial.shadows
    ]  # fmt: skip
    table([visit.say("version"), *heads], rows, numeric=[1, 2, 3, 4, 5])


def _or_none(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(share: float) -> str:
    return f"{share * 100:+.3g} %"
