"""What a page is, and what it is given: a visit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from nicegui import ui
from starlette.routing import BaseRoute
from starlette.types import Scope

from millstream import errors
from millstream.guard import auth
from millstream.types import Principal

T = TypeVar("T")
logger = logging.getLogger(__name__)
WHY_MAX = 500
"""Characters of a reason."""


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the console. `path`: its address, "/models"; `name`: of its title in `words` ("NAME.title"); `icon`: of
    Material Icons; `letter`: g and this letter open it; `build` draws it; `words`: its texts, English and Chinese;
    `routes`: of its own beside it, given what says the key of who asks."""

    path: str
    name: str
    icon: str
    letter: str
    build: Callable[[Visit], Awaitable[None]]
    words: Mapping[str, tuple[str, str]] = {}
    routes: Callable[[Callable[[Scope], str]], Sequence[BaseRoute]] | None = None


class Visit:
    """One page in one browser: its language, who looks, and what keeps it alive. `query`: of its address;
    `key`: what they entered, for calls of the service in their name."""

    def __init__(
        self, language: str, texts: Mapping[str, tuple[str, str]], who: Callable[[], Principal],
        query: Mapping[str, str], key: Callable[[], str] = str,
    ) -> None:  # fmt: skip
        self.language, self.who, self.query, self.key = language, who, query, key
        self._texts, self._at = texts, int(language == "zh")
        self._dialogs = ui.element("div")

    def say(self, key: str, /, **values: object) -> str:
        """The text of this name in the visitor's language, `{name}` replaced. KeyError: there is none."""
        found = self._texts[key][self._at]
        return found.format(**values) if values else found

    async def live(self, read: Callable[[], T], show: Callable[[T], None], every_s: float = 1.0) -> None:
        """Show what `read` gives, now and whenever it changed since. `read` runs in a thread and may raise errors of
        the house, which are shown in its place; `show` runs with the page as its context."""
        place = ui.element("div").classes("live")
        with place:
            shown: list[object] = []  # one: what is drawn

        async def look() -> None:
            try:
                self.who()
                found: object = await asyncio.to_thread(read)
            except errors.Unauthenticated:
                ui.navigate.reload()
                return
            except errors.Error as error:
                found = _Failed(str(error))
            except Exception:
                logger.exception("a page of the console failed")
                found = _Failed(self.say("failed"))
            if shown and shown[0] == found:
                return
            failed = bool(shown) and isinstance(shown[0], _Failed)
            shown[:] = [found]
            if isinstance(found, _Failed):
                place.clear()
                with place:
                    self.alert(found.said)
                return
            if failed:
                place.clear()  # what was wrong is over
            with place:
                show(found)  # type: ignore[arg-type]

        await look()
        ui.timer(every_s, look, immediate=False)

    def alert(self, text: str) -> None:
        """A box that says what is wrong."""
        with ui.element("div").classes("notice bad").props('role="alert"'):
            ui.icon("error_outline")
            ui.label(text)

    def button(
        self, key: str, press: Callable[[], Any], icon: str = "", kind: str = "", **values: object
    ) -> ui.element:
        """A button with the text of this name. `kind`: "main", "danger", "quiet" or ""."""
        made = ui.element("button").classes(f"button {kind}").props('type="button"')
        with made:
            if icon:
                ui.icon(icon).props('aria-hidden="true"')
            ui.label(self.say(key, **values))
        made.on("click", press)
        return made

    def look(self, do: Callable[[], None]) -> None:
        """Do what moves nothing, for who may look; who may not any more is told so."""
        try:
            self.who()
        except errors.Error as error:
            self.refuse(str(error))
            return
        do()

    def ask(self, title: str, body: str, model: str, do: Callable[[str, str], str], danger: bool = False) -> None:
        """Have somebody who may `control` the model confirm an action with a reason, then do it: `do(who, why)` runs in
        a thread and says what came of it. Who may not is told so. Errors of the house are shown."""
        try:
            auth.check(self.who(), model, "control")
        except errors.Error as error:
            self.refuse(str(error))
            return
        # In a place of its own: what was pressed may be drawn anew while somebody writes.
        with self._dialogs, ui.dialog().props("persistent") as dialog, ui.element("div").classes("dialog"):
            ui.label(title).classes("dialog-title")
            ui.label(body).classes("dialog-body")
            why = ui.input(self.say("why")).props(f"outlined dense autofocus maxlength={WHY_MAX}").classes("why")
            wrong = ui.label("").classes("wrong").props('role="alert"')
            with ui.element("div").classes("row-end"):
                self.button("cancel", dialog.close, kind="quiet")

                async def confirm() -> None:
                    if not (reason := (why.value or "").strip()[:WHY_MAX]):
                        wrong.set_text(self.say("why_needed"))
                        return
                    try:
                        principal = self.who()
                        auth.check(principal, model, "control")
                        said = await asyncio.to_thread(do, name_of(principal), reason)
                    except errors.Error as error:
                        wrong.set_text(str(error))
                        return
                    except Exception:
                        logger.exception("an action of the console failed")
                        wrong.set_text(self.say("failed"))
                        return
                    dialog.close()
                    self.tell(said)

                self.button("confirm", confirm, kind="danger" if danger else "main")
            why.on("keydown.enter", confirm)
        dialog.on("hide", dialog.delete)
        dialog.open()

    def tell(self, text: str) -> None:
        """Say what came of something, for some seconds."""
        ui.run_javascript(f"millstream.tell({_quoted(text)}, 'good')")

    def refuse(self, text: str) -> None:
        """Say what was refused, until it is read."""
        ui.run_javascript(f"millstream.tell({_quoted(text)}, 'bad')")

    def call(self, name: str, *values: object) -> None:
        """Call a function of static/console.js with these values."""
        ui.run_javascript(f"millstream.{name}({', '.join(_quoted(value) for value in values)})")


class _Failed(msgspec.Struct, frozen=True):
    said: str


def name_of(principal: Principal) -> str:
    """Who is written into a policy: the name of the key; where there are none, this console."""
    return "console" if principal is auth.ANYBODY_HERE else principal.name


def _quoted(value: object) -> str:
    """A value as an expression of JavaScript."""
    return msgspec.json.encode(value).decode()
