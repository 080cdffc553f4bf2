"""Features over HTTP on a real service: what a back end writes is what it reads once `learn` has made a step, of every
set, in both forms; who may; and what is refused with words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import numpy as np
import orjson
import pytest
from front_house import Client, Reply, http

from millstream import errors
from millstream.app.installation import FeatureStore, Installation, Settings
from millstream.app.roles import Serve
from millstream.clock import Clock, FakeClock, SystemClock
from millstream.features.events import tokens_of
from millstream.features.pipeline import PUBLISHED_S, Pipeline
from millstream.flows import features as flow
from millstream.front import features as front
from millstream.front import openapi
from millstream.guard.auth import new_key
from millstream.meter import Meter

DEFINITIONS = """
from millstream.features import Aggregate, Attribute, FeatureSet, Sequence, Source, Transform

prices = Source(name="prices", columns={"item": "text", "price": "number", "brand": "text"})
profiles = Source(name="profiles", columns={"user": "text", "age": "number"})
price = Attribute("price", prices, key="item", column="price")
changes = Aggregate(name="changes", source=prices, key="item", op="count", window="1h")
cheap = Transform(
    name="cheap", function=lambda of: (of["price"] < of["budget"]) * 1.0, inputs=("price",), request=("budget",)
)
ranker = FeatureSet(
    name="ranker",
    features=(price, changes, Attribute("age", profiles, key="user", column="age")),
)
brands = FeatureSet(
    name="brands", features=(Attribute("brand", prices, key="item", column="brand"), price), owner="shop"
)
wishes = FeatureSet(name="wishes", features=(cheap,), parts=(price,))
"""
ROWS = [{"item": "i1", "price": 9.5, "brand": "acme"}, {"item": "i2", "price": 30}, {"item": "i1", "price": 10.25}]
GET, WRITE = "/v1/features/get", "/v1/features/write"
ASKED = {"set": "ranker", "entities": {"user": ["u1"], "item": ["i1", "i2", "i3"]}}


class House:
    """A service with feature sets, and the steps of `learn` in the same process."""

    def __init__(self, folder: Path, clock: Clock, definitions: str = DEFINITIONS, **settings: Any) -> None:
        (folder / "features.py").write_text(definitions)
        store = FeatureStore(definitions="features.py" if definitions else "")
        self.at = Installation(folder, Settings(http_port=0, feature_store=store, **settings), clock)
        self.serve = Serve(self.at)
        self.pipelines: list[Pipeline] = []

    def learn(self) -> None:
        """One step of what keeps the rows."""
        at = self.at
        if not self.pipelines:
            sets = at.registry.sets.values()
            self.pipelines = [Pipeline(one, at.log, at.rows, at.clock, at.meter("learn")) for one in sets]
        for one in self.pipelines:
            one.step()

    async def post(self, url: str, body: object, **headers: str) -> Reply:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        client.send(http("POST", url, body if isinstance(body, bytes) else orjson.dumps(body), **headers))
        reply = await client.read()
        client.close()
        return reply

    async def __aenter__(self) -> House:
        self.port = await self.serve.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.serve.stop()
        for one in self.pipelines:
            one.close()
        self.at.close()


def on_a_service(folder: Path, test: Callable[[House], Awaitable[None]], **more: Any) -> None:
    async def run() -> None:
        async with House(folder, SystemClock(), **more) as house:
            await test(house)

    asyncio.run(run())


def conforms(document: object, schema: str) -> None:
    components = openapi.document()["components"]
    jsonschema_rs.validate({"components": components, "$ref": f"#/components/schemas/{schema}"}, document)


def test_what_is_written_is_read_after_one_step_of_every_set(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        facts = {"source": "prices", "rows": ROWS}
        conforms(facts, "Facts")
        reply = await house.post(WRITE, facts)
        assert (reply.status, reply.json) == (200, {"accepted": 3})
        await house.post(WRITE, {"source": "profiles", "rows": [{"user": "u1", "age": 30}]})
        house.learn()
        conforms(ASKED, "FeaturesRequest")
        reply = await house.post(GET, ASKED)
        assert reply.status == 200, reply.body
        found = reply.json
        conforms(found, "Features")
        assert found["columns"] == ["price", "changes", "age"]
        assert found["values"] == [[10.25, 2, 30], [30, 1, 30], [None, 0, 30]]
        assert found["missing"] == {"user": [False], "item": [False, False, True]}
        assert (found["set"], found["stale"]) == ("ranker", False) and 0 <= found["age_s"] < 30
        assert found["hash"] == house.at.registry.sets["ranker"].hash

        brands = await house.post(GET, {"set": "brands", "entities": {"item": ["i1", "i2"]}})
        token = int(tokens_of(["acme"])[0])
        assert brands.json["values"] == [[token, 10.25], [0, 30]]
        assert type(brands.json["values"][0][0]) is int and b".0" not in brands.body.partition(b'"values"')[2]
        assert brands.json["hash"] != found["hash"]

        await house.post(WRITE, {"source": "prices", "rows": [{"item": "i3", "price": 1}]})
        assert (await house.post(GET, ASKED)).json == found | {"age_s": pytest.approx(found["age_s"], abs=30)}
        house.learn()
        assert (await house.post(GET, ASKED)).json["values"][2] == [1, 1, 30]
        page = house.at.meter("reader").render()
        assert 'millstream_feature_reads_total{set="ranker"} 3' in page
        assert 'millstream_feature_missing_total{set="ranker",entity="item"} 2' in page
        assert 'millstream_feature_read_seconds_count{set="brands"} 1' in page

    on_a_service(tmp_path, test)


def test_the_bytes_are_the_same_matrix(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        await house.post(WRITE, {"source": "prices", "rows": ROWS})
        house.learn()
        for name, kind, dtype in (("ranker", "FP32", "<f4"), ("brands", "FP64", "<f8")):
            entities = {"item": ["i1", "i2", "i3"]} | ({"user": ["u1"]} if name == "ranker" else {})
            asked = {"set": name, "entities": entities}
            told, raw = (await house.post(GET, asked)).json, await house.post(GET, asked | {"as": "binary"})
            headers = raw.headers
            assert headers["content-type"] == "application/octet-stream"
            assert headers["millstream-columns"].split(",") == told["columns"]
            assert (headers["millstream-datatype"], headers["millstream-rows"]) == (kind, "3")
            assert headers["millstream-hash"] == told["hash"] and float(headers["millstream-age"]) < 30
            assert headers["millstream-missing"] == ("item=1,user=1" if name == "ranker" else "item=1")
            assert {f"millstream-{one.lower()}" for one in front.SAID} <= headers.keys()
            values = np.frombuffer(raw.body, dtype).reshape(3, -1)
            json = np.array(told["values"], np.float64)
            assert np.array_equal(values, json.astype(dtype), equal_nan=True) and np.isnan(json).any()

    on_a_service(tmp_path, test)


def test_a_large_read_is_the_same_as_many_small_ones(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        await house.post(WRITE, {"source": "prices", "rows": ROWS})
        house.learn()
        names = [f"i{n}" for n in range(flow.ROWS_HERE_MAX + 1)]
        large = (await house.post(GET, {"set": "brands", "entities": {"item": names}})).json
        many = 40_000
        assert len(names) * 2 < front.VALUES_HERE_MAX < 3 * many
        parts = [names[at : at + 500] for at in range(0, len(names), 500)]
        small = [(await house.post(GET, {"set": "brands", "entities": {"item": part}})).json for part in parts]
        assert large["values"] == [one for found in small for one in found["values"]]
        assert large["missing"]["item"] == [one for found in small for one in found["missing"]["item"]]
        raw = await house.post(GET, ASKED | {"entities": {"user": ["u"], "item": ["i1"] * many}, "as": "binary"})
        assert raw.status == 200 and len(raw.body) == many * 12
        assert np.frombuffer(raw.body, "<f4").reshape(-1, 3)[:, 0].tolist() == [10.25] * many
        reply = await house.post(GET, {"set": "brands", "entities": {"item": ["i"] * 100_001}})
        assert reply.status == 413 and "at most 100000" in reply.error

    on_a_service(tmp_path, test)


def test_transforms_take_values_of_the_request(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        await house.post(WRITE, {"source": "prices", "rows": ROWS})
        house.learn()
        asked = {"set": "wishes", "entities": {"item": ["i1", "i2"]}}
        assert (await house.post(GET, asked | {"request": {"budget": [20]}})).json["values"] == [[1], [0]]
        assert (await house.post(GET, asked | {"request": {"budget": [1, 50]}})).json["values"] == [[0], [1]]
        reply = await house.post(GET, asked)
        assert reply.status == 400 and "needs budget" in reply.error
        reply = await house.post(GET, asked | {"request": {"budget": [1, 2, 3]}})
        assert reply.status == 400 and "send as many, or one" in reply.error

    on_a_service(tmp_path, test)


def test_people_are_known_by_the_name_that_the_log_has(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        who = "jane.doe@example.org"
        await house.post(WRITE, {"source": "profiles", "rows": [{"user": who, "age": 41}]})
        house.learn()
        found = (await house.post(GET, {"set": "ranker", "entities": {"user": [who], "item": ["i"]}})).json
        assert found["values"][0][2] == 41 and found["missing"]["user"] == [False]

    on_a_service(tmp_path, test)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"jane.doe" in path.read_bytes()]


REFUSED: list[tuple[str, object, int, str]] = [
    (GET, b"", 400, "features: the body is empty; send a body like"),
    (GET, b"[" * 100_000, 400, "features:"),
    (GET, {"entities": {}}, 400, "missing required field `set`"),
    (GET, ASKED | {"sets": "x"}, 400, "unknown field `sets`"),
    (GET, ASKED | {"as": "xml"}, 400, "Invalid enum value 'xml'"),
    (GET, {"set": "ranker", "entities": {"item": "i1"}}, 400, "Expected `array`, got `str`"),
    (GET, {"set": "ranker", "entities": {"item": [1]}}, 400, "Expected `str`, got `int`"),
    (GET, {"set": "none", "entities": {"item": ["i1"]}}, 404, "no feature set 'none'; there are: brands, ranker"),
    (GET, {"set": "ranker", "entities": {"item": ["i1"]}}, 400, "feature set ranker needs user: send them"),
    (GET, {"set": "ranker", "entities": {"item": [], "user": ["u"]}}, 400, "needs item"),
    (GET, {"set": "ranker"}, 400, "needs item, user"),
    (GET, {"set": "brands", "entities": {"items": ["i1"]}}, 400, "takes no kind of entity 'items' of a request"),
    (GET, {"set": "brands", "entities": {"item": ["i"]}, "request": {"x": [1]}}, 400, "takes no value 'x'"),
    (GET, {"set": "ranker", "entities": {"item": ["i", "j"], "user": ["u", "v", "w"]}}, 400, "send as many, or one"),
    (WRITE, b"{", 400, "facts: Input data was truncated; send a body like"),
    (WRITE, {"source": "prices", "rows": []}, 400, "facts: rows is empty"),
    (WRITE, {"source": "prices", "rows": [{"item": ["i"]}]}, 400, "Expected `float | str | null`, got `array`"),
    (WRITE, {"source": "prices", "rows": [{"item": True}]}, 400, "got `bool`"),
    (WRITE, b'{"source": "prices", "rows": [{"price": NaN}]}', 400, "malformed"),
    (WRITE, b'{"source": "prices", "rows": [{"price": 1e999}]}', 400, "Number out of range"),
    (WRITE, {"source": "prices", "rows": [{"prise": 1}]}, 400, "has no column 'prise'"),
    (WRITE, {"source": "ranker", "rows": [{"item": "i"}]}, 404, "those that are written here: prices, profiles"),
]  # fmt: skip


def test_mistakes_are_refused_with_words(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        house.learn()
        for url, body, status, words in REFUSED:
            reply = await house.post(url, body)
            assert reply.status == status and words in reply.error, (body, reply.status, reply.body)
        page = await house.post(WRITE, {"source": "prices", "rows": ROWS}, Origin="http://x")
        assert page.status == 403 and "web pages" in page.error
        assert house.at.log.reader("prices").end(0) == 0

    on_a_service(tmp_path, test)


def test_keys_open_sets_and_sources(tmp_path: Path) -> None:
    rights = {"reader": "ranker:features", "writer": "prices:facts", "all": "*:features", "shop": "ranker:infer"}
    made = {name: new_key(name, (may,)) for name, may in rights.items()}
    (tmp_path / "keys.toml").write_text("\n".join(entry for _, entry in made.values()))
    asks: dict[str, tuple[str, object]] = {
        "ranker": (GET, ASKED),
        "brands": (GET, {"set": "brands", "entities": {"item": ["i1"]}}),
        "none": (GET, {"set": "none"}),
        "prices": (WRITE, {"source": "prices", "rows": ROWS}),
        "profiles": (WRITE, {"source": "profiles", "rows": [{"user": "u", "age": 1}]}),
    }
    open_to = {"reader": {"ranker"}, "writer": {"prices"}, "all": {"ranker", "brands", "none"}, "shop": set()}

    async def test(house: House) -> None:
        house.learn()
        for name, (key, _) in made.items():
            for what, (url, body) in asks.items():
                reply = await house.post(url, body, Authorization=f"Bearer {key}")
                wanted = (404 if what == "none" else 200) if what in open_to[name] else 403
                assert reply.status == wanted, (name, what, reply.body)
        assert (await house.post(GET, ASKED)).status == 401

    on_a_service(tmp_path, test, keys="keys.toml")


def test_reads_and_writes_count_against_the_rate_of_a_key(tmp_path: Path) -> None:
    key, entry = new_key("slow", ("*:*",), rate=0.001, burst=2.0)
    (tmp_path / "keys.toml").write_text(entry)

    async def test(house: House) -> None:
        house.learn()
        bearer = {"Authorization": f"Bearer {key}"}
        assert (await house.post(WRITE, {"source": "prices", "rows": ROWS}, **bearer)).status == 200
        assert (await house.post(GET, ASKED, **bearer)).status == 200
        assert (await house.post(GET, ASKED, **bearer)).status == 429

    on_a_service(tmp_path, test, keys="keys.toml")


def test_without_definitions_there_are_no_sets(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        for url, body in ((GET, ASKED), (WRITE, {"source": "prices", "rows": ROWS})):
            reply = await house.post(url, body)
            assert reply.status == 404 and "[feature_store] definitions" in reply.error

    on_a_service(tmp_path, test, definitions="")


@pytest.mark.parametrize(("definitions", "status"), [(DEFINITIONS, 200), ("", 503)])
def test_a_service_needs_no_model_to_be_ready_where_it_serves_features(tmp_path, definitions, status) -> None:
    async def test(house: House) -> None:
        client = Client(*await asyncio.open_connection("127.0.0.1", house.port))
        client.send(http("GET", "/v2/health/ready"))
        assert (await client.read()).status == status
        client.close()

    on_a_service(tmp_path, test, definitions=definitions)


def test_rows_that_are_not_there_yet_are_a_503_until_learn_has_made_them(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        reply = await house.post(GET, ASKED)
        assert reply.status == 503 and reply.headers["retry-after"] == "1"
        assert "the rows of feature set ranker" in reply.error and "the role learn makes them" in reply.error
        assert (await house.post(WRITE, {"source": "prices", "rows": ROWS})).status == 200, "writing goes on"

    on_a_service(tmp_path, test)


def test_rows_are_looked_for_once_a_second_and_only_vouched_ones_are_read(tmp_path: Path) -> None:
    clock = FakeClock(1_700_000_000.0)
    house = House(tmp_path, clock)
    at = house.at
    looked: list[str] = []
    reads = flow.Features(at.registry, at.rows, clock, Meter(), 60.0)
    rows = reads._sets["ranker"].rows
    stores = rows._stores
    rows._stores = lambda features: looked.append(features.name) or stores(features)  # type: ignore[func-returns-value]

    def read() -> Any:
        return reads.read("ranker", ASKED["entities"], {})  # type: ignore[arg-type]

    for _ in range(3):
        with pytest.raises(errors.Busy, match="not there yet"):
            read()
    assert len(looked) == 1
    pipeline = Pipeline(at.registry.sets["ranker"], at.log, at.rows, clock, Meter())
    clock.advance(1.0)
    with pytest.raises(errors.Busy, match="not there yet"):  # made, and nothing is said of them
        read()
    pipeline.step()
    with pytest.raises(errors.Busy):
        read()
    clock.advance(1.0)
    assert len(looked) == 2
    assert read().missing["item"].tolist() == [True] * 3 and len(looked) == 3
    assert read().age_s == pytest.approx(1.0 + PUBLISHED_S) and not read().stale
    clock.advance(59.5)
    assert read().age_s == pytest.approx(60.5 + PUBLISHED_S) and read().stale
    assert len(looked) == 3, "what is open stays open"
    pipeline.close()
    at.close()


def test_rows_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        house.learn()
        pipeline = next(one for one in house.pipelines if one.features.name == "ranker")
        for path in pipeline.folder.glob("item.rows"):
            path.write_bytes(b"x" * 100)
        reply = await house.post(GET, ASKED)
        assert reply.status == 500 and "no whole file of rows" in reply.error
        assert (await house.post(GET, {"set": "brands", "entities": {"item": ["i1"]}})).status == 200, "others go on"
        house.pipelines.clear()  # their files are not to be closed in order

    on_a_service(tmp_path, test)


def test_settings_reach_the_flow(tmp_path: Path) -> None:
    async def test(house: House) -> None:
        reply = await house.post(WRITE, {"source": "prices", "rows": ROWS})
        assert reply.status == 413 and "at most 2: split it" in reply.error

    on_a_service(tmp_path, test, facts=msgspec.convert({"rows_max": 2}, type(Settings().facts)))
