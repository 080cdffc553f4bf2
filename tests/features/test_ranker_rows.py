"""A ranker that takes a feature set: what was served, what is learnt and what a backfill makes are one matrix."""

import asyncio
import random

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from millstream.app.installation import Installation, Settings
from millstream.app.roles import Learn, Serve
from millstream.app.training import train
from millstream.clock import FakeClock
from millstream.errors import Misconfigured
from millstream.features.export import export
from millstream.features.offline import training_frame
from millstream.features.pipeline import group_of
from millstream.learn.history import Field, import_entities, import_outcomes
from millstream.stream import decode
from millstream.types import Example, Outcome, Principal, Rank, Served

ANYBODY = Principal("test")
START = 1_000_000.125  # and in steps of a quarter of a second from there: no request falls on the edge of a window
HISTORY, MOMENTS = 150, 150
DEFINITIONS = """
from millstream.features import Aggregate, Cross, FeatureSet, Ratio, Sequence, Source, Transform

outcomes = Source(
    name="outcomes",
    columns={"user": "text", "item": "text", "kind": "text", "value": "number", "id": "text"},
    id="id",
)
parts, features = [], []
for key in ("user", "item"):
    for window in ("1h", "1d", "lifetime"):
        likes, shown = (
            Aggregate(name=f"{key}_{kind}_{window}", source=outcomes, key=key, op="count", window=window, where=where)
            for kind, where in (("likes", "kind == 'like' and value >= 1"), ("shown", "kind == 'impression'"))
        )
        rate = Ratio(name=f"{key}_rate_{window}", over=likes.name, under=shown.name, prior=(1, 2))
        parts.append(likes)
        features += [shown, rate]
since = Aggregate(name="since", source=outcomes, key="user", op="since")
ranker = FeatureSet(
    name="ranker",
    features=(*features, since, Cross(name="both", left="user_rate_1h", right="item_rate_1d"),
              Sequence("history", outcomes, key="user", column="item", n=3, where="kind == 'like' and value >= 1")),
    parts=tuple(parts),
)
"""
SETTINGS = msgspec.convert(
    {
        "http_port": 0,
        "learn": {"model": "ranker", "push": {"push_s": 1.0}},
        "ftrl": {"bits": 12},
        "join": {"tasks": {"like": {"window_s": 10.0}}},
        "engine": {"poll_s": 0.01},
        "feature_store": {"definitions": "features.py", "stale_s_max": 30.0},
        "features": {
            "user": [{"name": "id"}, {"name": "age", "bucket": 10}],
            "item": [{"name": "id"}],
            "crosses": ["user.id*item.id", "set.history*item.id"],
            "set": "ranker",
        },
    },
    Settings,
)


class Loop:
    """Both roles in one process over one folder, after some history was imported."""

    def __init__(self, folder, seed=5):
        self.folder, self.clock, self.random = folder, FakeClock(START), random.Random(seed)
        (folder / "features.py").write_text(DEFINITIONS)
        self.at = Installation(folder, SETTINGS, self.clock)
        fields = {"id": Field("id"), "age": Field("age", "int")}
        users = [{"id": f"u{n}", "age": str(20 + n)} for n in range(5)]
        import_entities(folder / "log", SETTINGS.log, "users", users, fields, 1.0)
        rows = [
            {"user": self.one("u", 5), "item": self.one("i", 9), "like": str(self.random.randint(0, 1)),
             "event_time": str(START - 200_000 + 4000 * self.random.randint(0, 45) + self.random.randint(0, 3))}
            for _ in range(HISTORY)
        ]  # fmt: skip
        fields = {name: Field(name, "float" if name == "event_time" else "str") for name in rows[0]}
        import_outcomes(
            folder / "log", SETTINGS.log, self.at.entities(), "ranker", rows, fields,
            delay_s=1.5, window_s=10.0, features=self.at.ranker_set,
        )  # fmt: skip
        self.kept_for = set(self.at.log.groups())  # before `learn` has read any of it
        train(self.at)

    def one(self, letter, many):
        return f"{letter}{self.random.randrange(many)}"

    async def run(self):
        self.serve = Serve(self.at)
        await self.serve.engine.start()
        self.serve.poll()
        await self.rank("early")  # nobody has made the rows yet
        self.learn = Learn(self.at)
        self.clock.advance(2.0)  # files of rows are looked for once a second
        for number in range(MOMENTS):
            self.clock.advance(0.25 * self.random.choice([1, 2, 7, 400, 20_000]))
            while self.learn.step():
                pass
            rank = await self.rank(f"q{number}")
            for item in rank.candidates[:3]:
                await self.tell(rank, item, "impression", 1.0)
                await self.tell(rank, item, "like", float(self.random.randint(0, 1)))
            if self.random.random() < 0.3:  # a client that sends again
                await self.tell(rank, rank.candidates[0], "impression", 1.0)
            await self.serve.engine.refresh()
            self.serve.poll()
        self.clock.advance(10.0)
        await self.rank("aged")  # learn stands still, but not for long enough
        self.clock.advance(31.0)
        await self.rank("stale")
        while self.learn.step():
            pass
        await self.serve.engine.stop()

    async def rank(self, name):
        items = tuple(f"i{n}" for n in self.random.sample(range(11), 4))
        rank = Rank(id=name, user=self.one("u", 7), candidates=items, event_time=0.0)
        await self.serve.door.call(rank, ANYBODY)
        return rank

    async def tell(self, rank, item, kind, value):
        late = self.random.choice([0.0, 0.0, 0.5, 5000.0])
        outcome = Outcome(request=rank.id, item=item, kind=kind, value=value, event_time=self.clock.now() - late)
        await self.serve.door.call([outcome], ANYBODY)

    def served(self):
        """(arrival, event) of every ranking."""
        return [(one.arrival, decode(one.value)) for one in self.at.log.reader("served").records(0)]


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    made = Loop(tmp_path_factory.mktemp("ranker"))
    asyncio.run(made.run())
    yield made
    made.at.close()


def backfill(loop, served):
    """The token rows of rankings, made anew: from files that the log was exported to, as of the time of each."""
    features = loop.at.ranker_set
    export(features.sources[0], loop.at.log, loop.folder / "events", FakeClock(loop.clock.now() + 60.0))
    pairs = [
        # a ranking of history was made at the time that its row says
        (event.event_time if event.arm == "history" else arrival, event.user, item)
        for arrival, event in served for item in event.candidates
    ]  # fmt: skip
    times, users, items = (list(column) for column in zip(*pairs, strict=True))
    labels = pa.table({"event_time": times, "user": users, "item": items})
    frame = training_frame(features, labels, {"outcomes": loop.folder / "events"})
    matrix = np.column_stack([frame.column(name).to_numpy().astype(np.float64) for name in features.columns])
    known, at, rows = loop.at.entities(), 0, []
    for _, event in served:
        many = len(event.candidates)
        rows.append(known.rows(event.user, event.candidates, matrix[at : at + many]))
        at += many
    return matrix, rows


def test_what_was_served_and_what_history_was_given_is_what_a_backfill_makes(loop):
    served = [one for one in loop.served() if one[1].request not in ("early", "stale", "aged")]
    matrix, rows = backfill(loop, served)
    assert len(served) == HISTORY + MOMENTS
    for (_, event), row in zip(served, rows, strict=True):
        assert isinstance(event, Served) and event.definition == loop.at.definition.hash
        assert event.tokens == row.tobytes(), event.request
    assert group_of(loop.at.ranker_set) in loop.kept_for, "retention waits for who makes the rows"
    columns = dict(zip(loop.at.ranker_set.columns, matrix.T, strict=True))
    for name in ("user_shown_1h", "item_shown_1d", "user_rate_lifetime", "since", "both", "history_2"):
        assert len(np.unique(columns[name])) > 3, f"{name} says nothing here"
    assert (columns["user_shown_1h"] < columns["user_shown_1d"]).any(), "windows move on"


def test_what_is_learnt_is_what_was_logged(loop):
    served = {event.request: event for _, event in loop.served()}
    records = loop.at.log.reader("examples").records(0)
    examples = [event for event in (decode(one.value) for one in records) if isinstance(event, Example)]
    width = loop.at.definition.width
    assert len(examples) > HISTORY
    for one in examples:
        asked = served[one.request]
        tokens = np.frombuffer(asked.tokens, np.uint32).reshape(-1, width)
        assert one.tokens == tokens[asked.candidates.index(one.item)].tobytes()
        assert one.definition == loop.at.definition.hash
    assert np.count_nonzero(loop.learn.learning._training.learner.weights()) > 0


def test_a_ranking_goes_on_without_its_features_and_it_is_counted(loop):
    served = {event.request: event for _, event in loop.served()}
    definition, known = loop.at.definition, loop.at.entities()
    first = definition.user_width + definition.item_width
    for name in ("early", "stale"):
        event = served[name]
        assert event.tokens == known.rows(event.user, event.candidates).tobytes()
        row = np.frombuffer(event.tokens, np.uint32).reshape(-1, definition.width)
        assert (row[:, 0] != 0).all() and not row[:, first : first + definition.set_width].any()
    aged = served["aged"]
    assert aged.tokens != known.rows(aged.user, aged.candidates).tobytes()
    page = loop.serve.meter.render()
    for cause, count in (("absent", 1), ("stale", 1), ("failed", 0)):
        assert f'millstream_feature_rankings_without_total{{set="ranker",cause="{cause}"}} {count}\n' in page


def test_a_changed_set_is_a_changed_definition_and_a_version_of_the_other_is_refused(loop):
    changed = Installation(loop.folder, SETTINGS, loop.clock)
    text = DEFINITIONS.replace('"1h", "1d"', '"2h", "1d"').replace("_rate_1h", "_rate_2h")
    (loop.folder / "features.py").write_text(text)
    assert changed.definition.width == loop.at.definition.width
    assert changed.definition.hash != loop.at.definition.hash
    manifest = loop.at.repository.manifest("ranker", "1")
    assert manifest.features == loop.at.definition.hash
    loop.serve._admit("ranker", manifest)
    with pytest.raises(Misconfigured, match=f"trained on feature set {manifest.features}"):
        other = Serve.__new__(Serve)
        other.installation = changed
        other._admit("ranker", manifest)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"set": "nothing"}, "no feature set 'nothing'.*there are: ranker"),
        ({"set": "ranker", "crosses": ["set.history_0*item.id"]}, r"set\.history_0.*among.*set\.history'"),
        ({"crosses": ["set.history*item.id"]}, r"set\.history'"),
    ],
)
def test_what_the_settings_cannot_mean_is_refused(loop, tmp_path, features, message):
    (tmp_path / "features.py").write_text(DEFINITIONS)
    table = {"user": [{"name": "id"}], "item": [{"name": "id"}]} | features
    with pytest.raises(Misconfigured, match=message):
        settings = msgspec.structs.replace(SETTINGS, features=type(loop.at.definition).read(table))
        assert Installation(tmp_path, settings, loop.clock).definition.hash
