"""What the console is made of, without a browser: who may, numbers, drawings, words, counters, tails, alerts."""

import contextlib
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from millstream import errors
from millstream.app.console.alerts import AlertsSeen, condition
from millstream.app.console.counts import Counts
from millstream.app.console.tails import LAST, SEARCHES_MAX, VALUE_BYTES, Tails, line, shown
from millstream.app.console.traffic import shares, what
from millstream.app.installation import Installation, Settings
from millstream.clock import FakeClock
from millstream.console import chart, text
from millstream.console.sign import SIGNED_MAX, Sign
from millstream.guard.auth import Keys, new_key
from millstream.meter import Meter
from millstream.models.policy import Canary, Policy
from millstream.stream import encode
from millstream.types import Alert, Entity, Outcome, Served
from millstream.watch.alarms.rule import Rule

HOSTILE = "<img src=x onerror=hacked()>\"'&"


@pytest.fixture
def clock():
    return FakeClock(1_700_000_000.0)


@pytest.fixture
def installation(tmp_path, clock):
    with Installation(tmp_path, Settings(), clock) as made:
        yield made


class TestSign:
    @pytest.fixture
    def sign(self, tmp_path, clock):
        self.path, self.keys, snippets = tmp_path / "keys.toml", {}, []
        for name, verbs, tenants in (
            ("viewer", ("*:view",), ()), ("operator", ("ranker:control",), ()), ("shop", ("*:infer",), ()),
            ("acme", ("*:*",), ("acme",)),
        ):  # fmt: skip
            self.keys[name], snippet = new_key(name, verbs, tenants=tenants)
            snippets.append(snippet)
        self.path.write_text("\n".join(snippets))
        return Sign(Keys.load(self.path, clock), clock, 3600.0)

    def test_a_key_with_the_right_gets_in_and_others_do_not(self, sign):
        for name in ("viewer", "operator"):
            cookie = sign.enter(self.keys[name], "10.0.0.9")
            assert sign.who(cookie, "10.0.0.9", "any.host").name == name
        for name in ("shop", "acme"):
            with pytest.raises(errors.Forbidden):
                sign.enter(self.keys[name], "127.0.0.1")
        with pytest.raises(errors.Unauthenticated):
            sign.enter("ms_guess", "127.0.0.1")
        with pytest.raises(errors.Unauthenticated):
            sign.who("guess", "127.0.0.1", "localhost")

    def test_a_revoked_key_is_refused_at_once(self, sign, clock):
        cookie = sign.enter(self.keys["viewer"], "10.0.0.9")
        self.path.write_text("")
        clock.advance(2.0)
        with pytest.raises(errors.Unauthenticated):
            sign.who(cookie, "10.0.0.9", "h")

    def test_what_was_entered_is_forgotten_when_idle_and_when_it_is_too_much(self, sign, clock):
        first = sign.enter(self.keys["viewer"], "10.0.0.9")
        clock.advance(3000.0)
        sign.who(first, "10.0.0.9", "h")
        clock.advance(3000.0)
        sign.who(first, "10.0.0.9", "h")
        clock.advance(3601.0)
        with pytest.raises(errors.Unauthenticated):
            sign.who(first, "10.0.0.9", "h")
        assert sign.key(first) == ""
        left = sign.enter(self.keys["viewer"], "10.0.0.9")
        clock.advance(3601.0)
        old = sign.enter(self.keys["viewer"], "10.0.0.9")
        assert sign.key(left) == "", "a key that nobody uses is kept no longer, whoever comes next"
        for _ in range(SIGNED_MAX):
            sign.enter(self.keys["viewer"], "10.0.0.9")
        with pytest.raises(errors.Unauthenticated):
            sign.who(old, "10.0.0.9", "h")

    @pytest.mark.parametrize(
        "peer, host, lets_in",
        [
            ("127.0.0.1", "localhost:8002", True),
            ("::1", "[::1]:8002", True),
            ("127.0.0.1", "LOCALHOST", True),
            ("10.0.0.9", "localhost:8002", False),  # another machine that lies about the name
            ("127.0.0.1", "evil.example:8002", False),  # a site whose name points here
            ("127.0.0.1", "localhost.evil.example", False),
            ("", "", False),
        ],
    )
    def test_without_keys_it_is_of_this_machine_alone(self, clock, peer, host, lets_in):
        sign = Sign(None, clock, 3600.0)
        if lets_in:
            assert sign.who("", peer, host).verbs == ("*:*",)
        else:
            with pytest.raises(errors.Forbidden):
                sign.who("", peer, host)


@pytest.mark.parametrize(
    "said, wanted",
    [
        (text.number(0), "0"),
        (text.number(1234), "1,234"),
        (text.number(12345), "12.3 k"),
        (text.number(4_500_000), "4.5 M"),
        (text.number(0.1234), "0.123"),
        (text.number(math.nan), "–"),
        (text.number(-3), "-3"),
        (text.share(0.05), "5 %"),
        (text.seconds(0.00025), "250 µs"),
        (text.seconds(0.0123), "12.3 ms"),
        (text.seconds(7.5), "7.5 s"),
        (text.seconds(600), "10 min"),
        (text.seconds(259200), "3 d"),
        (text.seconds(math.inf), "–"),
        (text.size(905_000), "905 kB"),
        (text.moment(1_700_000_000), "2023-11-14 22:13:20"),
        (text.clock(math.nan), "–"),
    ],
)
def test_numbers_are_written_as_people_read_them(said, wanted):
    assert said == wanted


class Tags(HTMLParser):
    """What a browser would make of a drawing."""

    def __init__(self, drawing):
        super().__init__()
        self.tags, self.attributes, self.said = [], {}, ""
        self.feed(drawing)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.setdefault(tag, []).append(dict(attrs))

    def handle_data(self, data):
        self.said += data


def test_texts_in_drawings_stay_texts():
    one = chart.Line(HOSTILE, [(0, 0), (1, 1)])
    drawings = [
        chart.lines([one], x=lambda x: HOSTILE, y=lambda y: HOSTILE),
        chart.bars([HOSTILE], [1.0], colour=HOSTILE),
        chart.radar([HOSTILE] * 3, [(HOSTILE, (1, 1, 1))]),
        chart.spark([1, 2], colour=HOSTILE),
    ]
    for drawing in drawings:
        seen = Tags(drawing)
        assert set(seen.tags) <= {"svg", "g", "path", "text", "circle", "title", "rect"}
        assert not any(name.startswith("on") for tag in seen.attributes.values() for one in tag for name in one)
    assert HOSTILE in Tags(drawings[0]).said


def test_lines_break_where_there_is_no_number_and_bear_nothing_at_all():
    drawing = chart.lines([chart.Line("a", [(0, 1), (1, math.nan), (2, 3), (3, 4)])])
    assert drawing.count('class="line"') == 2
    for points in ([], [(0, math.nan)], [(5, 5)]):
        assert Tags(chart.lines([chart.Line("a", points)])).tags[0] == "svg"
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', chart.lines([chart.Line("a", [(0, 0), (1, 10)])]))]
    assert heights[0] > heights[1], "more is higher"


def test_every_text_is_there_in_both_languages(installation):
    from millstream.app.console.following import Following
    from millstream.console.words import SHARED

    pages = Following(installation).pages
    for words in (SHARED, *(page.words for page in pages)):
        for key, (english, chinese) in words.items():
            assert english and chinese, key
            assert set(re.findall(r"{(\w+)}", english)) == set(re.findall(r"{(\w+)}", chinese)), key
    assert len({page.path for page in pages}) == len({page.letter for page in pages}) == len(pages)
    assert all(f"{page.name}.title" in page.words for page in pages)


def test_colours_have_contrast_in_both_themes():
    """WCAG 2: text 4.5 to 1 on each ground that it stands on."""
    from millstream.console.shell import STATIC

    def light(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        return sum(
            w * (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4)
            for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    sheet = Path(STATIC / "colours.css").read_text()
    for theme in sheet.split(":root")[1:]:
        found = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", theme))
        pairs = [(ink, ground) for ink in ("text", "soft", "accent", "bad") for ground in ("ground", "card", "raised")]
        pairs += [(kind, f"{kind}-soft") for kind in ("good", "warn", "bad", "accent")]
        pairs += [("accent-text", "accent"), ("text", "accent-soft"), ("soft", "accent-soft")]
        for ink, ground in pairs:
            a, b = sorted((light(found[ink]), light(found[ground])))
            assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, ground, found[ink], found[ground])


class TestCounts:
    def test_rates_are_of_ten_seconds_and_a_counter_that_begins_anew_is_no_rate(self, tmp_path, clock):
        meter = Meter(tmp_path, "serve")
        asked = meter.counter("millstream_requests_total", "", {"model": "m", "version": "1"})
        other = meter.counter("millstream_requests_total", "", {"model": "n", "version": "1"})
        counts = Counts(tmp_path, clock.monotonic)
        for second in range(30):
            counts.poll()
            asked.add(1 if second < 15 else 5)
            other.add(1)
            clock.advance(1.0)
        counts.poll()
        assert counts.rate("millstream_requests_total", {"model": "m"}) == 5.0
        assert counts.rate("millstream_requests_total") == 6.0
        assert counts.total("millstream_requests_total") == 120
        assert counts.past("requests")[-1] == 6.0
        asked.set(0.0)
        clock.advance(1.0)
        counts.poll()
        assert counts.rate("millstream_requests_total", {"model": "m"}) == 0.0

    def test_quantiles_are_of_the_last_minute(self, tmp_path, clock):
        times = Meter(tmp_path, "serve").histogram("millstream_answer_seconds", "", {"model": "m"})
        counts = Counts(tmp_path, clock.monotonic)
        times.observe(30.0)
        counts.poll()
        assert math.isnan(counts.quantile("millstream_answer_seconds", 0.5))
        for _ in range(100):
            times.observe(0.004)
        clock.advance(1.0)
        counts.poll()
        assert 0.003 < counts.quantile("millstream_answer_seconds", 0.5, {"model": "m"}) <= 0.005
        for _ in range(70):
            clock.advance(1.0)
            counts.poll()
        assert math.isnan(counts.quantile("millstream_answer_seconds", 0.5))
        assert len(counts._moments) < 70, "what is remembered is bounded"


def fill(installation, topic, events):
    writer = installation.log.writer(topic, 0)
    for key, event in events:
        writer.append(key.encode(), encode(event))
    return writer


class TestTails:
    def test_a_tail_is_the_newest_and_no_more_than_its_bounds(self, installation):
        writer = fill(
            installation, "items", ((f"i{n}", Entity(id=f"i{n}", attributes={"title": HOSTILE})) for n in range(500))
        )
        tails = Tails(installation)
        tails.poll()
        assert [one.key for one in tails.tail("items")][:2] == ["i499", "i498"]
        assert len(tails.latest("items")) == LAST and tails.topics()[0].records == 500
        writer.append(b"i500", encode(Entity(id="i500", attributes={"text": "x" * (VALUE_BYTES + 1)})))
        tails.poll()
        assert tails.tail("items")[0].said == "too large to show"
        for n in range(100):
            writer.append(b"wide", encode(Entity(id=f"w{n}", attributes={"text": "x" * 100_000})))
        tails.poll()
        assert sum(len(one.value) for one in tails.latest("items")) <= 4 << 20
        assert tails.tail("nothing") == []

    def test_records_are_found_by_key_and_their_number_is_bounded(self, installation):
        fill(
            installation,
            "outcomes",
            ((f"r{n % 7}", Outcome(request=f"r{n % 7}", item="i", kind="like")) for n in range(1000)),
        )
        found = Tails(installation).find("r3", ())
        assert len(found.records) == 100 and found.more and found.looked == 1000
        assert {one.key for one in found.records} == {"r3"}
        assert Tails(installation).find("nobody", ("outcomes",)).records == []
        for wrong in ("", "x" * 5000):
            with pytest.raises(errors.BadInput):
                Tails(installation).find(wrong, ())
        with pytest.raises(errors.NotFound):
            Tails(installation).story("nobody")

    def test_searches_at_one_moment_are_bounded(self, installation):
        tails = Tails(installation)
        installation.log.writer("items", 0)
        with contextlib.ExitStack() as searched:
            for _ in range(SEARCHES_MAX):
                searched.enter_context(tails._searching())
            for search in (lambda: tails.find("i1", ()), lambda: tails.story("r1")):
                with pytest.raises(errors.Busy, match="searched"):
                    search()
        assert tails.find("i1", ()).records == []

    def test_damage_and_numbers_that_are_none_are_said(self, installation):
        event = Served(
            request="r", model="m", version="1", policy=1, arm="live", user="u", candidates=["a"], event_time=1.0,
            scores=b"\x00\x00\xc0\x7f",
        )  # fmt: skip
        writer = fill(installation, "served", [("r", event)])
        tails = Tails(installation)
        tails.poll()
        record = tails.tail("served")[0]
        assert '"nan"' in record.whole and record.said == "m 1 answered u: 1 items" == line(event)
        broken = shown("served", msgspec.structs.replace(tails.latest("served")[0], value=b"\xff\x00"))
        assert "damaged" in broken.said
        assert writer is not None


class TestAlerts:
    def alert(self, id, state, at=1.0, **other):
        return Alert(
            id=id, rule="r", severity="page", state=state, labels={"model": "m"}, value=1.0, limit=0.5, since=1.0,
            at=at, said="s", **other,
        )  # fmt: skip

    def test_what_fires_and_what_is_over_is_followed(self, installation):
        counts = Counts(installation.folder / "state" / "meters", installation.clock.monotonic)
        seen = AlertsSeen(installation, counts)
        writer = fill(installation, "alerts", [("a", self.alert("a", "firing")), ("b", self.alert("b", "firing"))])
        seen.poll()
        assert [one.id for one in seen.firing()] == ["b", "a"]
        writer.append(b"a", encode(self.alert("a", "resolved", 9.0)))
        seen.poll()
        now = seen.alerts()
        assert [row.alert.id for row in now.firing] == ["b"]
        assert [(row.alert.id, row.ended) for row in now.past] == [("a", 9.0)]
        assert seen.alert("a").state == "firing"
        with pytest.raises(errors.NotFound):
            seen.alert("c")

    def test_nobody_who_looks_is_not_the_same_as_well(self, installation):
        meters = installation.folder / "state" / "meters"
        counts = Counts(meters, installation.clock.monotonic)
        seen = AlertsSeen(installation, counts)
        counts.poll()
        seen.poll()
        assert seen.well().state == "silent"
        serve = Meter(meters, "serve")
        serve.gauge("process_resident_memory_bytes", "", {"role": "serve"}).set(1e6)
        counts.poll()
        assert seen.well().state == "unwatched"
        from millstream.types import Readings

        fill(installation, "readings", [("", Readings(at=installation.clock.now(), values=b""))])
        seen.poll()
        assert seen.well().state == "well"
        fill(installation, "alerts", [("a", self.alert("a", "firing"))])
        seen.poll()
        assert (seen.well().state, seen.well().pages) == ("firing", 1)
        installation.clock.advance(3600.0)
        assert seen.well().state == "unwatched"

    def test_a_rule_is_said_as_a_formula(self):
        rule = Rule(quantity="failures", of="requests", above=0.05, over_s=60, for_s=20, least=50, by=("model",))
        assert condition(rule) == "failures / requests > 0.05 over 60 s, for 20 s, of 50 or more, by model"


def test_shares_are_what_the_policy_gives():
    policy = Policy(live="1", canary=Canary("3", 0.1), split={"1": 3.0, "2": 1.0})
    assert shares(policy) == {"3": 0.1, "1": 0.675, "2": 0.225}
    assert shares(Policy(live="1")) == {"1": 1.0}
    assert what(policy) == "live 1; canary 3 at 0.1; split 1=3, 2=1"
