"""The frame of every page: navigation, language, theme, who is signed in, and the border around it all."""

from __future__ import annotations

import asyncio
import html
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from nicegui import ui
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from millstream import errors
from millstream.console.page import Page, Visit, name_of
from millstream.console.sign import COOKIE, Sign
from millstream.console.words import SHARED

STATIC = Path(__file__).parent / "static"
ENTER_BYTES_MAX = 4096
CONNECTIONS_MAX = 200
RECONNECT_S = 30.0
"""A browser that lost its connection goes on where it was within this time."""
_OPEN = ("/enter", "/static/", "/favicon.ico")
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self' ws: wss:; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with "no-referrer" a form says that its origin is null
}


class Shell:
    """The pages as one application. `title`: whose installation it is. One a process: NiceGUI has one set of pages."""

    def __init__(self, pages: Sequence[Page], sign: Sign, title: str) -> None:
        self._pages, self._sign, self._title = pages, sign, title
        self._texts: dict[str, tuple[str, str]] = dict(SHARED)
        for page in pages:
            self._texts.update(page.words)

    def application(self) -> ASGIApp:
        """What a server of ASGI runs."""
        app = FastAPI(openapi_url=None)
        app.add_api_route("/enter", self._enter, methods=["GET", "POST"], response_model=None)
        app.add_api_route("/leave", self._leave, methods=["POST"], response_model=None)
        app.add_api_route("/static/{name}", _static, methods=["GET"], response_model=None)
        for page in self._pages:
            ui.page(page.path, title=self._title, dark=None, response_timeout=30.0)(self._opened(page))
            if page.routes is not None:
                app.router.routes.extend(page.routes(lambda scope: self._sign.key(_shown(scope)[0])))
        ui.run_with(
            app,
            title=self._title,
            favicon=STATIC / "favicon.svg",
            dark=None,
            tailwind=False,
            reconnect_timeout=RECONNECT_S,
            show_welcome_message=False,
        )
        return Border(app, self._sign)

    def _opened(self, page: Page) -> Callable[[Request], Awaitable[None]]:
        async def opened(request: Request) -> None:
            await self._open(page, request)

        return opened

    async def _open(self, page: Page, request: Request) -> None:
        cookie, peer, host = _shown(request.scope)
        language = _language(request)
        visit = Visit(
            language, self._texts, lambda: self._sign.who(cookie, peer, host), dict(request.query_params),
            lambda: self._sign.key(cookie),
        )  # fmt: skip
        ui.add_head_html(_HEAD.format(language=language, letters=html.escape(self._letters(), quote=True)))
        with ui.element("a").classes("skip").props('href="#content"'):
            ui.label(visit.say("skip"))
        with ui.element("div").classes("shell"):
            self._navigation(page, visit)
            with ui.element("main").props('id="content" tabindex="-1"'):
                with ui.element("h1"):
                    ui.label(visit.say(f"{page.name}.title"))
                await page.build(visit)
        self._help(visit)
        ui.element("div").props('id="told" aria-live="polite"')

    def _letters(self) -> str:
        return " ".join(f"{page.letter}={page.path}" for page in self._pages)

    def _navigation(self, page: Page, visit: Visit) -> None:
        with ui.element("nav").props(f'aria-label="{visit.say("navigation")}"'):
            with ui.element("div").classes("brand"):
                ui.element("span").classes("drop").props('aria-hidden="true"')
                ui.label(self._title).classes("brand-name")
                menu = ui.element("button").classes("menu")
                menu.props('type="button" onclick="millstream.menu()" aria-expanded="false"')
                menu.props["aria-label"] = visit.say("menu")
                with menu:
                    ui.icon("menu").props('aria-hidden="true"')
            with ui.element("div").classes("pages"):
                for one in self._pages:
                    here = one is page
                    link = ui.element("a").props(f'href="{one.path}"' + (' aria-current="page"' if here else ""))
                    with link.classes("page here" if here else "page"):
                        ui.icon(one.icon).props('aria-hidden="true"')
                        ui.label(visit.say(f"{one.name}.title"))
            with ui.element("div").classes("foot"):
                self._foot(visit)

    def _foot(self, visit: Visit) -> None:
        """Language, theme, help, and who it is."""
        other = "en" if visit.language == "zh" else "zh"
        for name, icon, script in (
            ("language", "translate", f"millstream.language('{other}')"),
            ("theme", "contrast", "millstream.theme()"),
            ("help", "keyboard", "millstream.help()"),
        ):
            said = visit.say(name)
            props = f'type="button" onclick="{script}" title="{said}" aria-label="{said}" lang="{other}"'
            with ui.element("button").classes("tool").props(props):
                ui.icon(icon).props('aria-hidden="true"')
                if name == "language":
                    ui.label(said)
        if self._sign.keys is not None:
            with ui.element("form").props('method="post" action="/leave"'):
                ui.label(name_of(visit.who())).classes("who")
                with ui.element("button").classes("tool").props('type="submit"'):
                    ui.icon("logout").props('aria-hidden="true"')
                    ui.label(visit.say("leave"))

    def _help(self, visit: Visit) -> None:
        """The list of shortcuts, that ? opens."""
        with ui.element("dialog").props('id="help"'):
            ui.label(visit.say("help")).classes("dialog-title")
            keys = [(f"g {page.letter}", visit.say(f"{page.name}.title")) for page in self._pages]
            keys += [("/", visit.say("help_search")), ("d", visit.say("help_theme")), ("Esc", visit.say("help_close"))]
            with ui.element("dl"):
                for key, what in keys:
                    with ui.element("dt"), ui.element("kbd"):
                        ui.label(key)
                    with ui.element("dd"):
                        ui.label(what)
            with ui.element("form").props('method="dialog"'), ui.element("button").classes("button"):
                ui.label(visit.say("close"))

    async def _enter(self, request: Request) -> Response:
        """The form for a key, and what it sends."""
        texts = {key: both[int(_language(request) == "zh")] for key, both in SHARED.items()}
        cookie, peer, _ = _shown(request.scope)
        said, status = "", 200
        if request.method == "POST":
            try:
                fields = urllib.parse.parse_qs((await _body(request)).decode("utf-8", "replace"))
                cookie = self._sign.enter(fields.get("key", [""])[0].strip(), peer)
                made = RedirectResponse("/", 303)
                secure = request.url.scheme == "https"
                made.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", secure=secure, path="/")
                return made
            except errors.Error as error:
                said, status = str(error), error.status
        page = _ENTER.format(
            title=html.escape(self._title),
            language=_language(request),
            said=f'<p class="notice bad" role="alert">{html.escape(said)}</p>' if said else "",
            **{name: html.escape(texts[f"enter.{name}"]) for name in ("key", "button", "text")},
        )
        return HTMLResponse(page, status)

    async def _leave(self, request: Request) -> Response:
        self._sign.leave(_shown(request.scope)[0])
        gone = RedirectResponse("/enter", 303)
        gone.delete_cookie(COOKIE, path="/")
        return gone


class Border:
    """Lets in who may look, and nothing that another site has sent."""

    def __init__(self, app: ASGIApp, sign: Sign) -> None:
        self.app, self._sign = app, sign

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection of ASGI."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        refusal = self._refusal(scope)
        if refusal is None:
            return await self.app(scope, receive, _headed(send))
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        return await refusal(scope, receive, _headed(send))

    def _refusal(self, scope: Scope) -> Response | None:
        path, headers = scope["path"], _headers(scope)
        cookie, peer, host = _shown(scope)
        writes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")
        origin = headers.get("origin", "")
        if writes and origin and urllib.parse.urlsplit(origin).netloc != host:
            return HTMLResponse("another site may not do this here", 403)
        if self._sign.keys is not None and (path.startswith(_OPEN) or path.startswith("/_nicegui/")):
            return None
        try:
            self._sign.who(cookie, peer, host)
        except errors.Unauthenticated:
            return RedirectResponse("/enter", 303) if scope["type"] == "http" else HTMLResponse("", 401)
        except errors.Error as error:
            return HTMLResponse(f"<!doctype html><p>{html.escape(str(error))}</p>", error.status)
        return None


def _headed(send: Send) -> Send:
    """`send`, with the headers that every answer has."""

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            more = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return sent


def _headers(scope: Scope) -> Mapping[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _shown(scope: Scope) -> tuple[str, str, str]:
    """(cookie, peer, host) of a connection."""
    headers = _headers(scope)
    cookies = dict(part.strip().partition("=")[::2] for part in headers.get("cookie", "").split(";"))
    client = scope.get("client")
    return cookies.get(COOKIE, ""), client[0] if client else "", headers.get("host", "")


def _language(request: Request) -> str:
    chosen = request.cookies.get("millstream-language", "")
    if chosen in ("en", "zh"):
        return chosen
    return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"


async def _body(request: Request) -> bytes:
    """The body of a form. BadInput: it is longer than any key."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > ENTER_BYTES_MAX:
            raise errors.BadInput(f"the form has over {ENTER_BYTES_MAX} bytes: a key is shorter")
    return body


async def _static(name: str) -> Response:
    path = STATIC / name
    if path.parent != STATIC or not await asyncio.to_thread(path.is_file):
        return HTMLResponse("no such file", 404)
    return FileResponse(path, headers={"cache-control": "no-cache"})


_THEME = (
    "<script>(function(){{var m=document.cookie.match(/millstream-theme=(light|dark)/);var d=document.documentElement;"
    'd.dataset.theme=m?m[1]:(matchMedia("(prefers-color-scheme: dark)").matches?"dark":"light");'
    'd.lang="{language}";}})()'
    "</script>"
    '<link rel="stylesheet" href="/static/colours.css"><link rel="stylesheet" href="/static/console.css">'
    '<link rel="stylesheet" href="/static/pages.css">'
)
_HEAD = _THEME + '<meta name="letters" content="{letters}"><script src="/static/console.js"></script>'
_ENTER = (
    '<!doctype html><html><head><meta charset="utf-8"><title>{title}</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="/static/favicon.svg">'
    + _THEME
    + '</head><body class="enter"><main><h1><span class="drop" aria-hidden="true"></span>{title}</h1>'
    "<p>{text}</p>{said}"
    '<form method="post" action="/enter"><label for="key">{key}</label>'
    '<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>'
    '<button class="button main" type="submit">{button}</button></form></main></body></html>'
)
