"""Recommend: be a user. Ask for a list, rate what stands on it, and see the next list change within seconds, each item
with its path through the stages.

The list is asked for over HTTP with the visitor's own key, as anybody's; who looks at it is nobody in the reports but
the person they name.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import msgspec
from nicegui import ui
from nicegui.events import KeyEventArguments

from millstream import errors
from millstream.console import text
from millstream.console.page import Page, Visit
from millstream.console.parts import badge, empty, heading, notice, soft
from millstream.console.studies import Asker, Film, ListViews, Places, Shelf

WORDS = {
    "recommend.title": ("Recommend", "推荐"),
    "recommend.intro": (
        "Be a user: rate what you see, and watch the next list change.",
        "当一回用户：给看到的内容打分，看下一张列表怎样变化。",
    ),
    "recommend.none": (
        "This installation makes no lists: its millstream.toml has no [recommend.placements.NAME].",
        "此系统不生成列表：millstream.toml 中没有 [recommend.placements.NAME]。",
    ),
    "recommend.new": ("New visitor", "新来访者"),
    "recommend.again": ("Ask again", "再次请求"),
    "recommend.person": ("Or a user by name", "或按名字选择用户"),
    "recommend.become": ("Be them", "成为此人"),
    "recommend.placement": ("Placement", "位置"),
    "recommend.list_of": ("The list of {who}", "{who} 的列表"),
    "recommend.answered": (
        "{model} {version} · rules {arm} · answered in {seconds}",
        "{model} {version} · 规则 {arm} · 应答用时 {seconds}",
    ),
    "recommend.like": ("Like", "喜欢"),
    "recommend.like_item": ("Like {title}", "喜欢 {title}"),
    "recommend.dislike_item": ("Not for me: {title}", "不喜欢 {title}"),
    "recommend.why": ("why?", "为什么？"),
    "recommend.recalled": ("Recalled by", "由谁召回"),
    "recommend.recall_score": ("score of recall {value}", "召回分数 {value}"),
    "recommend.nobody": ("the caller named it", "由调用者指定"),
    "recommend.ranked": ("Ranked", "排序"),
    "recommend.ranked_more": ("number {place} of this list, score {score}", "本列表第 {place}，分数 {score}"),
    "recommend.ordered": ("Put in order", "重排"),
    "recommend.ordered_more": ("place {place} by rules {arm}", "按规则 {arm} 排在第 {place} 位"),
    "recommend.new_here": ("new", "新"),
    "recommend.up": ("up {places}", "上升 {places}"),
    "recommend.down": ("down {places}", "下降 {places}"),
    "recommend.changes": ("What your ratings did", "你的打分带来了什么"),
    "recommend.changes_none": (
        "Press Like, or a number on the keyboard, and the list goes by it within a second or so.",
        "点“喜欢”或按键盘上的数字，大约一秒之内列表就会随之改变。",
    ),
    "recommend.liked": ("You liked {title}", "你喜欢了 {title}"),
    "recommend.disliked": ("Not for you: {title}", "你不喜欢 {title}"),
    "recommend.other": ("{kind}: {title}", "{kind}：{title}"),
    "recommend.waiting": ("told; waiting for the next list …", "已上报；等待下一张列表……"),
    "recommend.changed": (
        "{seconds} later {count} of {all} were others, by version {version}.",
        "{seconds} 后 {all} 个中有 {count} 个换了，版本 {version}。",
    ),
    "recommend.unchanged": ("The list stayed as it was for {seconds}.", "{seconds} 内列表没有变化。"),
    "recommend.missed": ("Without {stages}: too late, or failed.", "缺少 {stages}：太迟或失败。"),
    "recommend.keys": (
        "like by position · n new visitor · r ask again",
        "按位置喜欢 · n 新来访者 · r 再次请求",
    ),
    "recommend.empty": ("The list is empty.", "列表是空的。"),
    "recommend.visitor": ("visitor", "来访者"),
}
CHANGED_S_MAX = 8.0
LOOK_S = 0.15
SETTLED_S = 2.0
CHANGES = 8
VISITOR = "visitor:"
"""What the log puts before the name of somebody without an account."""


class Rated(msgspec.Struct, kw_only=True):
    """What a rating did. `seconds`: until another list came, None while that is awaited; `came`, `went`: titles."""

    item: str
    title: str
    kind: str
    value: float
    seconds: float | None = None
    count: int = 0
    all: int = 0
    version: str = ""
    came: list[tuple[str, list[str]]] = []
    went: list[str] = []


def page(views: ListViews) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        try:
            places = await asyncio.to_thread(views.places)
        except errors.Error as error:
            visit.alert(str(error))
            return
        if not places.placements:
            notice(visit.say("recommend.none"))
            return
        await _Sitting(visit, views, places).begin()

    return Page(path="/recommend", name="recommend", icon="thumb_up_off_alt", letter="r", build=build, words=WORDS)


class _Sitting:
    """One person at the page: who they are, the list before them, and what their ratings did."""

    def __init__(self, visit: Visit, views: ListViews, places: Places) -> None:
        self._visit, self._views, self._places = visit, views, places
        self._who = Asker(visitor=_somebody(), placement=places.placements[0], key=visit.key())
        self._shelf: Shelf | None = None
        self._before: dict[str, int] = {}  # item -> place, of the list that was shown before
        self._open: set[str] = set()
        self._rated: list[Rated] = []
        self._busy = asyncio.Lock()

    async def begin(self) -> None:
        """Draw the page and ask for the first list."""
        visit = self._visit
        soft(visit.say("recommend.intro"))
        with ui.element("div").classes("row page-actions"):
            visit.button("recommend.new", self._new, icon="person_add", kind="main")
            visit.button("recommend.again", self._again, icon="refresh")
            person = ui.input(visit.say("recommend.person"), autocomplete=self._places.people)
            person.props("outlined dense").on("keydown.enter", lambda: self._become(str(person.value or "")))
            visit.button("recommend.become", lambda: self._become(str(person.value or "")), icon="person_search")
            if len(self._places.placements) > 1:
                said, there = visit.say("recommend.placement"), self._places.placements
                place = ui.select(there, value=self._who.placement, label=said).props("outlined dense")
                place.on_value_change(lambda event: self._move(str(event.value)))
        self._wrong = ui.element("div")
        with ui.element("div").classes("shop"):
            self._list = ui.element("section").classes("card shelf")
            self._story = ui.element("section").classes("card story first").props('aria-live="polite"')
        ui.keyboard(self._pressed, repeating=False, ignore=["input", "select", "textarea"])
        self._draw_story()
        await self._look()

    async def _new(self) -> None:
        await self._be(Asker(visitor=_somebody(), placement=self._who.placement))

    async def _again(self) -> None:
        await self._look()

    async def _become(self, name: str) -> None:
        if name := name.strip():
            visitor = name.removeprefix(VISITOR) if name.startswith(VISITOR) else ""
            await self._be(Asker(user="" if visitor else name, visitor=visitor, placement=self._who.placement))

    async def _move(self, placement: str) -> None:
        await self._be(msgspec.structs.replace(self._who, placement=placement))

    async def _be(self, who: Asker) -> None:
        self._who = who
        self._shelf, self._before, self._rated = None, {}, []
        self._open.clear()
        self._draw_story()
        await self._look()

    async def _look(self) -> None:
        """Ask for the list, and draw it."""
        found = await self._try(lambda who: self._views.ask(who))
        if isinstance(found, Shelf):
            self._take(found)

    async def _try(self, do: Any) -> Any:
        """Do something in a thread with the visitor's key as it is now; what is refused is said above the list."""
        self._wrong.clear()
        try:
            self._visit.who()
            self._who = msgspec.structs.replace(self._who, key=self._visit.key())
            return await asyncio.to_thread(do, self._who)
        except errors.Error as error:
            with self._wrong:
                self._visit.alert(str(error))
            return None

    def _take(self, shelf: Shelf) -> None:
        self._before = {film.item: film.place for film in self._shelf.films} if self._shelf else {}
        self._shelf = shelf
        self._draw_list()

    async def _rate(self, film: Film, kind: str, value: float, thumb: bool = False) -> None:
        """Tell what the person did, and look at the list until it is another. `thumb`: by a button, whose successor at
        this place is focused then."""
        if self._busy.locked() or (shelf := self._shelf) is None:
            return
        async with self._busy:
            rated = Rated(item=film.item, title=film.title, kind=kind, value=value)
            if not await self._try(lambda who: self._told(who, shelf, film.item, kind, value)):
                return
            self._rated.insert(0, rated)
            del self._rated[CHANGES:]
            self._draw_story()
            loop = asyncio.get_running_loop()
            began, who = loop.time(), self._who
            while loop.time() - began < CHANGED_S_MAX and self._who == who:
                found = await self._try(lambda who: self._views.ask(who))
                if not isinstance(found, Shelf):
                    return
                if self._came_of(rated, shelf, found, loop.time() - began):
                    break
                await asyncio.sleep(LOOK_S)
            if self._who == who:
                rated.seconds = loop.time() - began if rated.seconds is None else rated.seconds
                self._take(found)
                self._draw_story()
                with self._list:
                    self._visit.call("focus", f'[data-thumb="{film.place} {kind} {value:g}"]' if thumb else "")

    def _told(self, who: Asker, shelf: Shelf, item: str, kind: str, value: float) -> bool:
        self._views.rate(who, shelf, item, kind, value)
        return True

    def _came_of(self, rated: Rated, before: Shelf, after: Shelf, seconds: float) -> bool:
        """Whether the list goes by what was said; then what changed is noted. The lists of others move all the time, so
        a yes is known by the item's own going, where lists leave out what somebody liked; elsewhere by time alone."""
        there, here = {film.item for film in before.films}, {film.item for film in after.films}
        came = [film for film in after.films if film.item not in there]
        if rated.value:
            gone = rated.item not in here
            goes_by_it = len(came) > 1 or seconds >= SETTLED_S if gone else bool(came) and seconds >= 2 * SETTLED_S
        else:
            goes_by_it = bool(came)
        if goes_by_it:
            rated.seconds, rated.count, rated.all, rated.version = seconds, len(came), len(after.films), after.version
            rated.came = [(film.title, film.found) for film in came]
            rated.went = [film.title for film in before.films if film.item not in here | {rated.item}]
        return goes_by_it

    async def _pressed(self, event: KeyEventArguments) -> None:
        if not event.action.keydown or event.modifiers.ctrl or event.modifiers.alt or event.modifiers.meta:
            return
        if event.key == "n":
            await self._new()
        elif event.key == "r":
            await self._again()
        elif (number := event.key.number) is not None and self._shelf is not None:
            at = (number - 1) % 10
            if at < len(self._shelf.films):
                kind, value = next(iter(self._places.kinds.items()))
                await self._rate(self._shelf.films[at], kind, value)

    def _draw_list(self) -> None:
        visit, shelf = self._visit, self._shelf
        self._list.clear()
        if shelf is None:
            return
        with self._list:
            name = self._who.user or f"{visit.say('recommend.visitor')} {self._who.visitor}"
            heading(visit.say("recommend.list_of", who=name))
            soft(
                visit.say(
                    "recommend.answered", model=shelf.model or "–", version=shelf.version or "–", arm=shelf.arm or "–",
                    seconds=text.seconds(shelf.seconds),
                )
            ).classes("answered")  # fmt: skip
            if shelf.missed:
                notice(visit.say("recommend.missed", stages=", ".join(shelf.missed)), "warn", "timer_off")
            if not shelf.films:
                empty(visit.say("recommend.empty"))
            top = max((abs(film.score) for film in shelf.films), default=1.0) or 1.0
            with ui.element("ol").classes("films"):
                for film in shelf.films:
                    self._draw_film(shelf, film, top)
            with ui.element("div").classes("row soft small-text keys"):
                for key in ("1", "…", "0"):
                    with ui.element("kbd"):
                        ui.label(key)
                ui.label(visit.say("recommend.keys"))

    def _draw_film(self, shelf: Shelf, film: Film, top: float) -> None:
        visit = self._visit
        came = bool(self._before) and film.item not in self._before
        with ui.element("li").classes("film came" if came else "film"):
            ui.label(str(film.place)).classes("place")
            with ui.element("div").classes("film-words"):
                with ui.element("div").classes("row film-title"):
                    ui.label(film.title).classes("title")
                    self._draw_move(film, came)
                if film.about:
                    soft(film.about)
            with ui.element("div").classes("score").props(f'title="{film.score:.4f}"'):
                with ui.element("span").classes("meter-track").props('aria-hidden="true"'):
                    ui.element("span").classes("meter-fill").style(f"width: {abs(film.score) / top * 100:.1f}%")
                ui.label(f"{film.score:.3f}").classes("small-text")
            with ui.element("div").classes("row thumbs"):
                for kind, value in self._places.kinds.items():
                    self._draw_thumb(film, kind, value)
                kind = next(iter(self._places.kinds))
                self._draw_thumb(film, kind, 0.0)
            with ui.element("details").classes("why-here") as why:
                if film.item in self._open:
                    why.props("open")
                with ui.element("summary").on("click", lambda: self._opened(film.item)):
                    for path in film.found:
                        badge(path, "accent")
                    for reason in film.reasons:
                        if reason != "score":
                            badge(reason, "warn")
                    ui.label(visit.say("recommend.why"))
                self._draw_why(shelf, film)

    def _draw_thumb(self, film: Film, kind: str, value: float) -> None:
        """A button that says what somebody did with an item."""
        liked = value > 0
        said = self._visit.say(f"recommend.{'like' if liked else 'dislike'}_item", title=film.title)
        said = said if kind == "like" or not liked else f"{kind}: {film.title}"
        with ui.element("button").classes("thumb yes" if liked else "thumb no") as button:
            button.props('type="button"').props["aria-label"] = said
            button.props["title"] = said
            ui.icon("thumb_up" if liked else "thumb_down").props('aria-hidden="true"')
        button.props["data-thumb"] = f"{film.place} {kind} {value:g}"
        button.on("click", lambda: self._rate(film, kind, value, thumb=True))

    def _opened(self, item: str) -> None:
        """Remember what is open: the list is drawn anew when it changes."""
        self._open ^= {item}

    def _draw_move(self, film: Film, came: bool) -> None:
        visit, before = self._visit, self._before.get(film.item)
        if came:
            badge(visit.say("recommend.new_here"), "good")
        elif before is not None and before != film.place:
            up = before > film.place
            with badge(f"{'↑' if up else '↓'}{abs(before - film.place)}") as moved:
                said = visit.say("recommend.up" if up else "recommend.down", places=abs(before - film.place))
                moved.props["aria-label"] = said

    def _draw_why(self, shelf: Shelf, film: Film) -> None:
        """The path through the stages: recall, rank, rules."""
        visit = self._visit
        found = ", ".join(film.found) or visit.say("recommend.nobody")
        outputs = "".join(f" · {name} {value:.3f}" for name, value in film.outputs.items())
        score = f"{film.score:.4f}"
        stages = (
            ("recalled", found, visit.say("recommend.recall_score", value=f"{film.found_score:.4g}")),
            (
                "ranked", f"{shelf.model or '–'} {shelf.version}",
                visit.say("recommend.ranked_more", place=film.ranked, score=score) + outputs,
            ),
            (
                "ordered", ", ".join(film.reasons) or "–",
                visit.say("recommend.ordered_more", place=film.place, arm=shelf.arm or "–"),
            ),
        )  # fmt: skip
        with ui.element("ol").classes("stages"):
            for name, what, more in stages:
                with ui.element("li"):
                    ui.label(visit.say(f"recommend.{name}")).classes("stage")
                    ui.label(what).classes("what")
                    soft(more)

    def _draw_story(self) -> None:
        visit = self._visit
        self._story.clear()
        with self._story:
            heading(visit.say("recommend.changes"))
            if not self._rated:
                soft(visit.say("recommend.changes_none"))
            for rated in self._rated:
                self._draw_rated(rated)

    def _draw_rated(self, rated: Rated) -> None:
        visit = self._visit
        name = "disliked" if not rated.value else "liked" if rated.kind == "like" else "other"
        with ui.element("div").classes("rated"):
            ui.label(visit.say(f"recommend.{name}", title=rated.title, kind=rated.kind)).classes("title")
            if rated.seconds is None:
                soft(visit.say("recommend.waiting"))
                return
            seconds = text.seconds(rated.seconds)
            if not rated.count:
                soft(visit.say("recommend.unchanged", seconds=seconds))
                return
            soft(
                visit.say(
                    "recommend.changed", seconds=seconds, count=rated.count, all=rated.all, version=rated.version
                )
            )  # fmt: skip
            for title, found in rated.came:
                with ui.element("div").classes("row line-in"):
                    ui.label("+").classes("sign plus").props('aria-hidden="true"')
                    with ui.element("div"):
                        ui.label(title)
                        soft(", ".join(found))
            for title in rated.went:
                with ui.element("div").classes("row line-out"):
                    ui.label("−").classes("sign minus").props('aria-hidden="true"')
                    ui.label(title)


def _somebody() -> str:
    """A name for a visitor who was never here."""
    return f"guest-{secrets.token_hex(3)}"
