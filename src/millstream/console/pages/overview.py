"""Overview: is it well? One sentence, and the loop as a living picture."""

from __future__ import annotations

from millstream.console import text
from millstream.console.page import Page, Visit
from millstream.console.parts import cards, card, figure
from millstream.console.views import Loop, OverviewViews

WORDS = {
    "overview.title": ("Overview", "概览"),
    "overview.requests": ("Requests a second", "每秒请求数"),
}


def page(views: OverviewViews) -> Page:
    """The page over these views."""

    async def build(visit: Visit) -> None:
        with cards("small"):
            with card():
                figure_at = visit

                def show(loop: Loop) -> None:
                    figure(visit.say("overview.requests"), text.number(loop.streams["requests"].rate))

                await visit.live(views.loop, show)

    return Page(path="/", name="overview", icon="water_drop", letter="o", build=build, words=WORDS)
