"""What a page does as it lives, without a browser: what was wrong and is over, presses of who may look no more."""

import asyncio
from contextlib import contextmanager

import pytest
from nicegui import Client, core, ui
from nicegui.page import page as nicegui_page

from millstream import errors
from millstream.console.page import Visit
from millstream.console.pages import experiments, features, log, traffic
from millstream.console.studies import FeaturesNow, Skew, TrialsNow
from millstream.console.views import Found, Topic
from millstream.console.words import SHARED
from millstream.guard import auth


class Somebody:
    """Who looks; `gone`: their key was revoked."""

    def __init__(self):
        self.gone = False

    def who(self):
        if self.gone:
            raise errors.Unauthenticated("enter a key first")
        return auth.ANYBODY_HERE


@pytest.fixture
def somebody():
    return Somebody()


@contextmanager
def page_of(somebody, words=SHARED, query=None):
    """(client, visit) of a page that no browser has loaded: its timers stand still."""
    core.loop = asyncio.get_running_loop()
    with Client(nicegui_page("/"), request=None) as client:
        yield client, Visit("en", {**SHARED, **words}, somebody.who, query or {})
        client.delete()


def texts(client):
    return [one.text for one in client.elements.values() if isinstance(one, ui.label)]


async def tick(client):
    """Let the page's timers run once."""
    for one in [one for one in client.elements.values() if isinstance(one, ui.timer)]:
        await one.callback()


def pressed(client, text):
    """What a click on the button with this text does."""
    said = next(one for one in client.elements.values() if isinstance(one, ui.label) and one.text == text)
    (listener,) = said.parent_slot.parent._event_listeners.values()
    return listener.handler


def test_what_was_wrong_goes_when_it_is_over(somebody):
    """A page draws into a box of its own, and what is wrong stands below it."""
    answers = iter([1, errors.NotFound("away for a moment"), 2, 2])

    def read():
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    async def lives():
        with page_of(somebody) as (client, visit):
            box = ui.element("div")

            def show(found):
                box.clear()
                with box:
                    ui.label(f"{found} is shown")

            await visit.live(read, show)
            assert texts(client) == ["1 is shown"]
            await tick(client)
            assert "away for a moment" in texts(client)
            await tick(client)
            assert texts(client) == ["2 is shown"]

    asyncio.run(lives())


class Studied:
    """Views of Features and of Experiments; counts what begins."""

    def __init__(self):
        self.begun = 0

    def features(self):
        return FeaturesNow(sets=[], skew=Skew(state="never"))

    def trials(self):
        return TrialsNow([], "")

    def begin(self):
        self.begun += 1

    compare = look = begin


@pytest.mark.parametrize(("of", "text"), [(features, "features.compare"), (experiments, "experiments.look")])
def test_who_may_look_no_more_begins_nothing(somebody, of, text):
    async def presses():
        views = Studied()
        made = of.page(views)
        with page_of(somebody, made.words) as (client, visit):
            await made.build(visit)
            press = pressed(client, visit.say(text))
            press()
            assert views.begun == 1
            somebody.gone = True
            press()
            assert views.begun == 1

    asyncio.run(presses())


def test_who_may_look_no_more_searches_nothing(somebody):
    class Searched:
        def find(self, key, topics):
            assert not somebody.gone
            return Found([], 7, False)

    async def searches():
        made = log.page(Searched())
        for gone in (False, True):
            somebody.gone = False
            with page_of(somebody, made.words, {"id": "nobody"}) as (client, visit):
                await made.build(visit)
                somebody.gone = gone
                await tick(client)
                assert any("enter a key first" in one for one in texts(client)) is gone

    asyncio.run(searches())


def test_what_nobody_foresaw_is_said_where_it_was_asked_for(somebody):
    def failing(*said):
        raise OSError("no space left")

    class Broken:
        find = staticmethod(failing)

    async def fails():
        with page_of(somebody) as (client, visit):
            visit.ask("Do it?", "It is done.", "ranker", failing)
            next(one for one in client.elements.values() if isinstance(one, ui.input)).set_value("why not")
            await pressed(client, visit.say("confirm"))()
            assert visit.say("failed") in texts(client)
        made = log.page(Broken())
        with page_of(somebody, made.words, {"id": "r"}) as (client, visit):
            await made.build(visit)
            await tick(client)
            assert visit.say("failed") in texts(client) and visit.say("log.looking") not in texts(client)

    asyncio.run(fails())


def test_a_topic_whose_end_is_being_looked_for_is_not_called_empty(somebody):
    class Starting:
        ready = False

        def topics(self):
            return [Topic("served", 7, 0.0, self.ready)]

        def tail(self, topic):
            return []

    async def starts():
        views = Starting()
        made = log.page(views)
        with page_of(somebody, made.words) as (client, visit):
            await made.build(visit)
            assert visit.say("log.reading") in texts(client)
            views.ready = True
            await tick(client)
            assert visit.say("nothing") in texts(client) and visit.say("log.reading") not in texts(client)

    asyncio.run(starts())


def test_a_model_whose_policy_is_broken_leaves_the_page_of_traffic(somebody):
    class Broken:
        def names(self):
            return ["ranker", "other"]

        def traffic(self, model):
            raise errors.Misconfigured(f"the policy of {model} is broken")

    async def opens():
        made = traffic.page(Broken(), None)
        with page_of(somebody, made.words) as (client, visit):
            await made.build(visit)
            assert texts(client)[-3:] == ["ranker", "other", "the policy of ranker is broken"]

    asyncio.run(opens())
