"""Review: what is worth a person's look. One case at a time, said with a key; then a dataset of what was said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nicegui import ui
from nicegui.events import KeyEventArguments

from millstream import errors
from millstream.console import text
from millstream.console.page import Page, Visit, name_of
from millstream.console.parts import badge, card, empty, heading, notice, soft, table
from millstream.console.studies import Case, ReviewsNow, ReviewViews
from millstream.guard import auth

WORDS = {
    "review.title": ("Review", "审阅"),
    "review.intro": (
        "What the log says is worth a look. Your word trains the next version.",
        "日志认为值得一看的内容。你的判断将用来训练下一个版本。",
    ),
    "review.all": ("all", "全部"),
    "review.fill": ("Choose from the log", "从日志中挑选"),
    "review.filled": ("{count} rows joined the queue.", "{count} 行加入了队列。"),
    "review.filling": ("Reading the log …", "正在读取日志……"),
    "review.none": (
        "Nothing waits. Choose from the log, or come back later.",
        "没有等待审阅的内容。可以从日志中挑选，或稍后再来。",
    ),
    "review.question": ("Did this suit them?", "这适合此人吗？"),
    "review.positive": ("Yes", "是"),
    "review.negative": ("No", "否"),
    "review.skip": ("Skip", "跳过"),
    "review.for": ("for {user}", "给 {user}"),
    "review.somebody": ("somebody", "某人"),
    "review.served": ("as served by {model} {version}", "{model} {version} 应答的分数"),
    "review.calibrated": ("calibrated", "校准后"),
    "review.said": ("{count} said since the console started", "控制台启动以来已判断 {count} 个"),
    "review.next": ("Next in the queue", "队列中的下一个"),
    "review.datasets": ("Datasets", "数据集"),
    "review.export": ("Export", "导出"),
    "review.name": ("Name of the dataset", "数据集名称"),
    "review.export_title": ("Export dataset {name}", "导出数据集 {name}"),
    "review.export_body": (
        "What was labelled becomes its next version, with the lineage of every row. It is not changed again.",
        "已标注的内容将成为它的下一个版本，带有每一行的来历，此后不再改变。",
    ),
    "review.no_datasets": ("None yet: label some, then export.", "还没有：先标注一些，再导出。"),
    "review.rows": ("Rows", "行数"),
    "review.kinds": ("Kinds", "种类"),
    "review.labellers": ("Labelled by", "标注人"),
    "review.keys": ("yes, no, skip · b back", "是、否、跳过 · b 返回"),
    "review.r.sample": ("sample", "抽样"),
    "review.r.correction": ("correction", "用户纠正"),
    "review.r.disagreement": ("disagreement", "意见不一"),
    "review.r.slice": ("drifting slice", "漂移切片"),
    "review.r.cluster": ("undecided cluster", "未决簇"),
    "review.r.uncertain": ("uncertain", "不确定"),
    "review.k.human": ("labelled", "人工"),
    "review.k.gold": ("gold", "金标"),
    "review.k.pseudo": ("by a teacher", "教师"),
}
REASONS = ("sample", "correction", "disagreement", "slice", "cluster", "uncertain")
ANSWERS = (("positive", "1", "check", "yes"), ("negative", "2", "close", "no"), ("skip", "3", "redo", ""))
NEXT = 8
BACK_MAX = 50


def page(views: ReviewViews) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        await _Desk(visit, views).begin()

    return Page(path="/review", name="review", icon="rate_review", letter="v", build=build, words=WORDS)


class _Desk:
    """One person who reviews. What they said here leaves the queue at once; `b` brings the last one back."""

    def __init__(self, visit: Visit, views: ReviewViews) -> None:
        self._visit, self._views = visit, views
        self._reason, self._now = "", ReviewsNow(model="", waiting={}, cases=[], labelled={}, datasets=[])
        self._said: dict[str, Case] = {}  # ids that were answered here
        self._again: Case | None = None
        self._busy = False

    async def begin(self) -> None:
        """Draw the page, and follow the queue."""
        visit = self._visit
        soft(visit.say("review.intro"))
        with ui.element("div").classes("row page-actions"):
            self._filters = ui.element("div").classes("row").props('role="group"')
            visit.button("review.fill", self._fill, icon="playlist_add")
        self._wrong = ui.element("div")
        with ui.element("div").classes("shop"):
            with ui.element("section").classes("card desk"):
                self._case = ui.element("div").props('aria-live="polite"')
                with ui.element("div").classes("row answers") as self._answers:
                    for label, key, icon, kind in ANSWERS:
                        self._answer(label, key, icon, kind)
            self._next = ui.element("section").classes("card story")
        with card(visit.say("review.datasets")):
            with ui.element("div").classes("row"):
                name = ui.input(visit.say("review.name"), value="reviewed").props("outlined dense maxlength=64")
                visit.button("review.export", lambda: self._export(str(name.value or "").strip()), icon="archive")
            self._datasets = ui.element("div").classes("spaced")
        ui.keyboard(self._pressed, repeating=False, ignore=["input", "select", "textarea"])
        await visit.live(lambda: self._views.reviews(self._reason), self._show, every_s=2.0)

    def _answer(self, label: str, key: str, icon: str, kind: str) -> None:
        with ui.element("button").classes(f"answer {kind}").props('type="button"') as button:
            ui.icon(icon).props('aria-hidden="true"')
            ui.label(self._visit.say(f"review.{label}"))
            with ui.element("kbd"):
                ui.label(key)
        button.on("click", lambda: self._say(label))

    def _show(self, now: ReviewsNow) -> None:
        self._now = now
        self._draw_filters()
        self._draw_case()
        self._datasets.clear()
        with self._datasets:
            self._draw_datasets()

    @property
    def _open(self) -> list[Case]:
        """What is before this person: what they brought back, then what waits."""
        waiting = [one for one in self._now.cases if one.id not in self._said]
        return [self._again, *waiting] if self._again is not None else waiting

    async def _say(self, label: str) -> None:
        if self._busy or not (there := self._open):
            return
        self._busy, case = True, there[0]
        try:
            principal = self._visit.who()
            auth.check(principal, self._now.model, "control")
            await asyncio.to_thread(self._views.label, case.id, label, name_of(principal))
        except errors.Error as error:
            self._refuse(str(error))
            return
        finally:
            self._busy = False
        self._again = None
        self._said.pop(case.id, None)
        self._said[case.id] = case
        while len(self._said) > BACK_MAX and next(iter(self._said)) not in {one.id for one in self._now.cases}:
            self._said.pop(next(iter(self._said)))
        self._wrong.clear()
        self._draw_case()

    def _back(self) -> None:
        if self._said:
            self._again = self._said.pop(next(reversed(self._said)))
            self._draw_case()

    async def _pressed(self, event: KeyEventArguments) -> None:
        if not event.action.keydown or event.modifiers.ctrl or event.modifiers.alt or event.modifiers.meta:
            return
        for label, key, _, _ in ANSWERS:
            if event.key == key:
                await self._say(label)
        if event.key == "b":
            self._back()

    async def _fill(self) -> None:
        visit = self._visit
        self._wrong.clear()
        try:
            auth.check(visit.who(), self._now.model, "control")
            with self._wrong:
                notice(visit.say("review.filling"), "", "hourglass_empty")
            count = await asyncio.to_thread(self._views.fill)
        except errors.Error as error:
            self._refuse(str(error))
            return
        self._wrong.clear()
        with self._wrong:
            notice(visit.say("review.filled", count=text.number(count)), "good", "playlist_add_check")

    def _export(self, name: str) -> None:
        visit = self._visit
        visit.ask(
            visit.say("review.export_title", name=name), visit.say("review.export_body"), self._now.model,
            lambda who, why: self._views.export(name),
        )  # fmt: skip

    def _refuse(self, said: str) -> None:
        self._wrong.clear()
        with self._wrong:
            self._visit.alert(said)

    def _pick(self, reason: str) -> None:
        self._reason = reason
        self._draw_filters()

    def _draw_filters(self) -> None:
        self._filters.clear()
        total = sum(self._now.waiting.values())
        with self._filters:
            for reason, count in (("", total), *self._now.waiting.items()):
                here = reason == self._reason
                with ui.element("button").classes("button chip here" if here else "button chip") as button:
                    button.props(f'type="button" aria-pressed="{"true" if here else "false"}"')
                    ui.label(self._named(reason) if reason else self._visit.say("review.all"))
                    ui.label(text.number(count)).classes("soft")
                button.on("click", lambda _, reason=reason: self._pick(reason))

    def _named(self, reason: str) -> str:
        return self._visit.say(f"review.r.{reason}") if reason in REASONS else reason

    def _draw_case(self) -> None:
        there = self._open
        self._answers.set_visibility(bool(there))
        self._case.clear()
        with self._case:
            if there:
                self._draw_one(there[0])
            else:
                empty(self._visit.say("review.none"))
        self._next.clear()
        with self._next:
            self._draw_next(there[1 : 1 + NEXT])

    def _draw_one(self, case: Case) -> None:
        visit = self._visit
        with ui.element("div").classes("row"):
            for at, reason in enumerate(case.reasons):
                badge(self._named(reason), "accent" if not at else "")
            soft(text.moment(case.event_time))
        with ui.element("div").classes("case-title"):
            ui.label(case.title)
        soft(visit.say("review.for", user=case.user or visit.say("review.somebody")))
        notice(case.why)
        with ui.element("div").classes("scores"):
            served = visit.say("review.served", model=case.model, version=case.version)
            for name, value in ((served, case.score), (visit.say("review.calibrated"), case.calibrated),
                                *case.others.items()):  # fmt: skip
                with ui.element("div").classes("score-line"):
                    ui.label(name).classes("soft small-text")
                    with ui.element("span").classes("meter-track").props('aria-hidden="true"'):
                        width = max(0.0, min(1.0, value)) * 100
                        ui.element("span").classes("meter-fill").style(f"width: {width:.1f}%")
                    ui.label(f"{value:.3f}")
        if case.about:
            with ui.element("dl").classes("about"):
                for attribute, said in case.about:
                    with ui.element("dt"):
                        ui.label(attribute).classes("mono")
                    with ui.element("dd"):
                        ui.label(said)
        ui.label(visit.say("review.question")).classes("question")

    def _draw_next(self, cases: list[Case]) -> None:
        visit = self._visit
        heading(visit.say("review.next"))
        if not cases:
            soft(visit.say("nothing"))
        for case in cases:
            with ui.element("div").classes("rated"):
                ui.label(case.title).classes("title")
                soft(case.why)
        with ui.element("div").classes("row soft small-text keys"):
            for _, key, _, _ in ANSWERS:
                with ui.element("kbd"):
                    ui.label(key)
            ui.label(visit.say("review.keys"))
        soft(visit.say("review.said", count=text.number(sum(self._now.labelled.values()))))

    def _draw_datasets(self) -> None:
        visit = self._visit
        if not self._now.datasets:
            soft(visit.say("review.no_datasets"))
            return
        rows: list[list[str | Callable[[], object]]] = [
            [
                f"{one.name} {one.version}", one.created.replace("T", " ")[:16], text.number(one.rows),
                ", ".join(f"{visit.say(f'review.k.{kind}')} {count}" for kind, count in one.kinds.items()),
                ", ".join(f"{who} {count}" for who, count in one.labellers.items()), _mono(one.digest[:12]),
            ]
            for one in self._now.datasets
        ]  # fmt: skip
        heads = ["review.datasets", "when", "review.rows", "review.kinds", "review.labellers"]
        table([*(visit.say(head) for head in heads), "SHA-256"], rows, numeric=[2])


def _mono(said: str) -> Callable[[], object]:
    return lambda: ui.label(said).classes("mono")
