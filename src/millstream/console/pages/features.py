"""Features: are they fresh, whole and where they were, and is what was served what training would see?"""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui

from millstream.console import text
from millstream.console.page import Page, Visit
from millstream.console.parts import badge, card, cards, empty, figure, notice, soft, table
from millstream.console.studies import FeaturesNow, FeaturesViews, SetNow, Skew, Spread

WORDS = {
    "features.title": ("Features", "特征"),
    "features.none": (
        "No feature set is kept here, or role `learn` has not started: [feature_store] definitions names the file.",
        "这里没有维护特征集，或角色 `learn` 还未启动：在 [feature_store] definitions 中指定文件。",
    ),
    "features.fresh": ("fresh", "新鲜"),
    "features.stale": ("stale", "过期"),
    "features.unread": ("not read yet", "尚未读取"),
    "features.age": ("Age of the rows", "行的新旧"),
    "features.age_more": ("stale from {value}", "超过 {value} 即过期"),
    "features.events": ("Events taken in", "已吸收事件"),
    "features.rows": ("{count} rows written", "写入 {count} 行"),
    "features.reads": ("Reads", "读取"),
    "features.read_time": ("{p50} typical, 99 %: {p99}", "通常 {p50}，99 %：{p99}"),
    "features.checked": ("Rows read again", "复核的行"),
    "features.wrong": ("{count} were wrong", "{count} 行有误"),
    "features.unknown": ("Names without a row", "没有行的名字"),
    "features.odd": ("{count} values of an odd type", "{count} 个类型异常的值"),
    "features.without": ("{count} rankings had to do without this set: {cause}", "{count} 次排序缺少该特征集：{cause}"),
    "features.absent": ("no rows", "没有行"),
    "features.old": ("stale rows", "行已过期"),
    "features.failed": ("the read failed", "读取失败"),
    "features.column": ("Column", "列"),
    "features.missing": ("Missing", "缺失"),
    "features.low": ("10 % lie below", "10 % 分位"),
    "features.middle": ("Half", "中位"),
    "features.high": ("90 %", "90 % 分位"),
    "features.drift": ("Drift (PSI)", "漂移（PSI）"),
    "features.dead": ("dead", "失效"),
    "features.skew": ("Served against training", "服务与训练是否一致"),
    "features.skew_help": (
        "Recomputes from the log, as of their time, the values that serving read: `millstream features verify`.",
        "从日志按当时重新计算服务读到的值：`millstream features verify`。",
    ),
    "features.compare": ("Compare now", "立即比较"),
    "features.never": ("Not compared since the console started.", "控制台启动后尚未比较。"),
    "features.running": ("Comparing: the whole log is read.", "正在比较：需要读完整个日志。"),
    "features.failed_run": ("The comparison failed: {said}", "比较失败：{said}"),
    "features.sound": (
        "Every value of {reads} logged reads is explained ({when}, {took}).",
        "{reads} 次记录的读取中，每个值都得到了解释（{when}，用时 {took}）。",
    ),
    "features.unsound": (
        "Some values of {reads} logged reads are not explained: training would see others ({when}, {took}).",
        "{reads} 次记录的读取中有些值无法解释：训练会看到别的值（{when}，用时 {took}）。",
    ),
    "features.nothing_read": (
        "No reads were logged yet: feature_store.log_share says how many of them are.",
        "还没有记录读取：feature_store.log_share 决定记录的比例。",
    ),
    "features.set": ("Set", "特征集"),
    "features.equal": ("equal", "相等"),
    "features.late": ("explained by time", "由时间差解释"),
    "features.ttl": ("expired", "已过期"),
    "features.version": ("other definition", "其他定义"),
    "features.retention": ("log too short", "日志不够长"),
    "features.code": ("not explained", "无法解释"),
}
CAUSES = ("equal", "late", "ttl", "version", "retention", "code")
DRIFTS = 0.1, 0.25
"""From where a distance is worth a look, and from where it is large: the usual bounds of a PSI."""
MISSING = 0.5
COLUMNS = 200


def page(views: FeaturesViews) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        sets = ui.element("div")
        with card(visit.say("features.skew")):
            with ui.element("div").classes("between"):
                soft(visit.say("features.skew_help"))
                visit.button("features.compare", lambda: visit.look(views.compare), icon="balance", kind="main")
            skew = ui.element("div").classes("spaced")

        def show(now: FeaturesNow) -> None:
            sets.clear()
            with sets:
                if not now.sets:
                    notice(visit.say("features.none"))
                for one in now.sets:
                    _set(visit, one)
            skew.clear()
            with skew:
                _skew(visit, now.skew)

        await visit.live(views.features, show, every_s=2.0)

    return Page(path="/features", name="features", icon="data_object", letter="f", build=build, words=WORDS)


def _set(visit: Visit, one: SetNow) -> None:
    with ui.element("div").classes("row set-title"):
        with ui.element("h2"):
            ui.label(one.name)
        if one.age is None:
            badge(visit.say("features.unread"))
        elif one.age > one.stale_after:
            badge(visit.say("features.stale"), "bad")
        else:
            badge(visit.say("features.fresh"), "good")
    for cause, times in one.without.items():
        if times:
            said = visit.say(f"features.{'old' if cause == 'stale' else cause}") if cause in _CAUSES else cause
            notice(visit.say("features.without", count=text.number(times), cause=said), "warn", "warning_amber")
    with cards("small"):
        for name, value, more in (
            ("age", _seconds(one.age), visit.say("features.age_more", value=text.seconds(one.stale_after))),
            ("events", text.number(one.events), visit.say("features.rows", count=text.number(one.rows))),
            (
                "reads", text.number(one.reads),
                visit.say("features.read_time", p50=_seconds(one.read_p50), p99=_seconds(one.read_p99)),
            ),
            ("checked", text.number(one.checked), visit.say("features.wrong", count=text.number(one.wrong))),
            ("unknown", text.number(one.unknown), visit.say("features.odd", count=text.number(one.odd))),
        ):  # fmt: skip
            with card():
                figure(visit.say(f"features.{name}"), value, more)
    with card():
        if not one.columns:
            empty(visit.say("nothing"))
            return
        heads = [visit.say(f"features.{name}") for name in ("column", "missing", "low", "middle", "high", "drift")]
        rows = [
            [_mono(column.name), _missing(column), *_lies(column), _drift(visit, column)]
            for column in one.columns[:COLUMNS]
        ]
        table(heads, rows, numeric=[2, 3, 4])


_CAUSES = ("absent", "stale", "failed")


def _mono(name: str) -> Callable[[], object]:
    return lambda: ui.label(name).classes("mono")


def _missing(column: Spread) -> Callable[[], object]:
    def draw() -> None:
        if column.missing is None:
            ui.label("–")
            return
        with ui.element("div").classes("meter"):
            with ui.element("span").classes("meter-track").props('aria-hidden="true"'):
                width = max(0.0, min(1.0, column.missing)) * 100
                kind = "bad" if column.missing >= MISSING else ""
                ui.element("span").classes(f"meter-fill {kind}").style(f"width: {width:.1f}%")
            ui.label(text.share(column.missing))

    return draw


def _lies(column: Spread) -> list[str]:
    return ["–" if one is None else text.number(one) for one in (column.low, column.middle, column.high)]


def _drift(visit: Visit, column: Spread) -> Callable[[], object]:
    def draw() -> None:
        if column.dead:
            badge(visit.say("features.dead"), "bad")
        elif column.drift is None:
            ui.label("–")
        else:
            kind = "bad" if column.drift >= DRIFTS[1] else "warn" if column.drift >= DRIFTS[0] else "good"
            badge(f"{column.drift:.3f}", kind)

    return draw


def _skew(visit: Visit, skew: Skew) -> None:
    if skew.state in ("never", "running"):
        notice(
            visit.say(f"features.{skew.state}"), "", "hourglass_empty" if skew.state == "running" else "info_outline"
        )
        return
    if skew.state == "failed":
        notice(visit.say("features.failed_run", said=skew.said), "bad", "error_outline")
        return
    if not skew.reads:
        notice(visit.say("features.nothing_read"))
        return
    said = {"reads": text.number(skew.reads), "when": text.clock(skew.at), "took": text.seconds(skew.took)}
    if skew.sound:
        notice(visit.say("features.sound", **said), "good", "verified")
    else:
        notice(visit.say("features.unsound", **said), "bad", "error_outline")
    heads = [visit.say("features.set"), *(visit.say(f"features.{cause}") for cause in CAUSES)]
    rows = [[name, *(text.number(found.get(cause, 0)) for cause in CAUSES)] for name, found in skew.values.items()]
    table(heads, rows, numeric=range(1, len(heads)))
    for one in skew.odd:
        ui.label(one).classes("mono")


def _seconds(value: float | None) -> str:
    return "–" if value is None else text.seconds(value) if value else "0 s"
