"""`millstream features`: what is defined, what changed, what it is in SQL, and what it is of somebody now."""

import json
import re

import pytest

from millstream.app.installation import Installation
from millstream.cli import main
from millstream.clock import SystemClock
from millstream.features.events import tokens_of
from millstream.features.pipeline import Pipeline
from millstream.features.registry import Registry
from millstream.features.sql import DIALECTS
from millstream.meter import Meter
from millstream.models.manifest import Manifest
from millstream.stream import encode
from millstream.types import Fact

DEFINITIONS = """
from millstream.features import Aggregate, Attribute, Cross, FeatureSet, Ratio, Source, Transform

prices = Source(name="prices", columns={"item": "text", "shop": "text", "price": "number", "brand": "text"})
price = Attribute("price", prices, key="item", column="price", description="what it costs")
changes = Aggregate(name="changes", source=prices, key="item", op="count", window="7d", where="price > 1", owner="ann")
all_changes = Aggregate(name="all_changes", source=prices, key="item", op="count", window="7d")
share = Ratio(name="share", over="changes", under="all_changes")
shop_price = Aggregate(name="shop_price", source=prices, key="shop", op="mean", column="price")
cheap = Transform(name="cheap", function=lambda of: of["price"] < of["budget"], inputs=("price",), request=("budget",))
brand = Attribute("brand", prices, key="item", column="brand")
ranker = FeatureSet(
    name="ranker", features=(price, share), parts=(changes, all_changes), owner="shop", description="what it consumes"
)
wishes = FeatureSet(name="wishes", features=(brand, shop_price, cheap), parts=(price,))
"""


@pytest.fixture
def call(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def run(*argv):
        capsys.readouterr()
        code = 0
        try:
            main(["features", *map(str, argv)])
        except SystemExit as end:
            code = end.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def result(call):
    def run(*argv):
        code, out, err = call(*argv, "--json")
        assert code == 0 and out.count("\n") == 1, (code, err)
        return json.loads(out)

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "features.py"
    path.write_text(DEFINITIONS)
    return path


@pytest.fixture
def toml(tmp_path, file):
    """An installation: three facts, rows of both sets, and a model that was trained on one of them."""
    path = tmp_path / "millstream.toml"
    path.write_text('[feature_store]\ndefinitions = "features.py"\n')
    with Installation.open(path) as at:
        writer = at.log.writer("prices")
        for values in ({"item": "i1", "price": 9.5, "brand": "acme", "shop": "s"}, {"item": "i1", "price": 1.0}):
            writer.append(b"", encode(Fact(event_time=at.clock.now(), values=values)))
        for one in at.registry.sets.values():
            pipeline = Pipeline(one, at.log, at.rows, SystemClock(), Meter())
            pipeline.step()
            pipeline.close()
        manifest = Manifest(format="ftrl", file="m", features=at.registry.sets["ranker"].hash)
        for name in ("big", "small"):
            at.repository.put(name, manifest, {"m": b"x"})
        at.repository.put("other", Manifest(format="ftrl", file="m"), {"m": b"x"})
    return path


def test_list_has_every_set_with_its_features_and_who_takes_them(result, call, toml, file):
    ranker, wishes = result("list", "-c", toml)
    known = Registry.load(file).sets["ranker"]
    assert (ranker["set"], ranker["hash"], ranker["owner"]) == ("ranker", known.hash, "shop")
    assert ranker["columns"] == ["price", "share"] and ranker["entities"] == ["item"]
    assert ranker["models"] == ["big/1", "small/1"] and wishes["models"] == []
    assert wishes["entities"] == ["item", "shop"]
    price, share, changes, _ = ranker["features"]
    assert price == {
        "feature": "price", "version": known.hash_of("price"), "made_of": ["prices.item", "prices.price"],
        "sets": ["ranker", "wishes"], "description": "what it costs",
    }  # fmt: skip
    assert changes["made_of"] == ["prices.item", "prices.price"] and changes["sets"] == ["ranker"]
    assert share["made_of"] == ["changes", "prices.item", "prices.price", "all_changes"]
    assert result("list", "--definitions", file) == [ranker | {"models": []}, wishes]
    code, out, _ = call("list", "-c", toml)
    assert code == 0 and "  models big/1,small/1\n" in out
    assert re.search(
        r"^  feature price  version \w{16}  made_of prices.item,prices.price  sets ranker,wishes", out, re.M
    )


def test_show_says_all_of_a_set_or_a_feature(result, call, toml, file):
    ranker = result("show", "ranker", "-c", toml)
    assert (ranker["datatype"], ranker["ttl"], ranker["sources"]) == ("FP32", "lifetime", ["prices"])
    assert ranker["state_bytes"] == ["item 720"]  # 16 for the last price, and two windows of counts
    changes = next(one for one in ranker["features"] if one["feature"] == "changes")
    assert changes == {
        "feature": "changes", "version": changes["version"], "made_of": ["prices.item", "prices.price"],
        "sets": ["ranker"], "description": "", "kind": "aggregate", "datatype": "FP32", "owner": "ann",
        "entity": "item", "op": "count", "window": "7d", "values": 1, "grain_s": 14400, "where": "price > 1",
    }  # fmt: skip
    assert result("show", "changes", "-c", toml) == changes | {"models": ["big/1", "small/1"]}
    assert result("show", "price", "--definitions", file)["models"] == []
    assert "grain_s 14400  where" in call("show", "ranker", "--definitions", file)[1]
    assert call("show", "changes", "-c", toml)[1].splitlines() == [
        "feature changes", f"version {changes['version']}", "made_of prices.item,prices.price", "sets ranker",
        "kind aggregate", "datatype FP32", "owner ann", "entity item", "op count", "window 7d", "values 1",
        "grain_s 14400", "where price > 1", "models big/1,small/1",
    ]  # fmt: skip
    assert "models" not in call("show", "changes", "--definitions", file)[1]
    code, out, _ = call("show", "none", "--definitions", file)
    assert out == "" and "no feature set and no feature 'none'; sets: ranker, wishes" in code


def test_diff_names_what_is_computed_otherwise(result, call, tmp_path, file):
    before = tmp_path / "before.py"
    before.write_text(DEFINITIONS)
    assert result("diff", before, "--definitions", file) == []
    assert call("diff", before, "--definitions", file)[1] == ""
    before.write_text(DEFINITIONS.replace('"price > 1"', '"price > 2"').replace("wishes", "dreams"))
    rows = result("diff", before, "--definitions", file)
    assert [(one["set"], one["feature"]) for one in rows] == [
        ("dreams", ""), ("ranker", ""), ("ranker", "changes"), ("ranker", "share"), ("wishes", ""),
    ]  # fmt: skip
    assert rows[0]["after"] == "" and rows[4]["before"] == ""
    old, new = (Registry.load(path).sets["ranker"] for path in (before, file))
    assert (rows[1]["before"], rows[1]["after"]) == (old.hash, new.hash)
    assert (rows[2]["before"], rows[2]["after"]) == (old.hash_of("changes"), new.hash_of("changes"))
    out = call("diff", before, "--definitions", file)[1].splitlines()
    assert out[0].startswith("set dreams  ") and out[0].endswith(" -> not there") and out[2].startswith("  feature ")


def test_sql_prints_one_statement(result, call, file):
    found = result("sql", "ranker", "--definitions", file, "--dialect", "bigquery", "--labels", "shop.labels")
    assert found["dialect"] == "bigquery" and "`share`" in found["sql"] and "shop" in found["sql"]
    assert '"share"' in call("sql", "ranker", "--definitions", file)[1]
    assert "no dialect 'oracle'" in call("sql", "ranker", "--definitions", file, "--dialect", "oracle")[0]
    code, _, _ = call("sql", "wishes", "--definitions", file)
    assert "SQL cannot compute" in code


def test_every_dialect_is_in_the_help(call):
    out = " ".join(call("sql", "--help")[1].split())
    assert [one for one in DIALECTS if one not in out] == []


def test_get_reads_rows_as_serving_does(result, call, toml):
    found = result("get", "ranker", "--item", "i1,i2", "-c", toml)
    assert found["columns"] == ["price", "share"] and found["values"] == [[1, 0.5], [None, None]]
    assert found["missing"] == {"item": [False, True]} and not found["stale"] and found["age_s"] < 30
    asked = ("get", "wishes", "--item", "i1", "--of", "shop=s", "--request", "budget=5,0.5", "-c", toml)
    assert result(*asked)["values"] == [[int(tokens_of(["acme"])[0]), 9.5, 1], [int(tokens_of(["acme"])[0]), 9.5, 0]]
    code, out, err = call("get", "ranker", "--item", "i1,i2", "-c", toml)
    assert code == 0 and out.splitlines() == ["item i1  price 1  share 0.5", "item i2  price None  share None"]
    assert re.match(r"as of [\d.]+ s ago; without a row: item i2\n", err)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["get", "ranker", "--user", "u"], "takes no kind of entity 'user'"),
        (["get", "ranker"], "needs item"),
        (["get", "none", "--item", "i"], "no feature set 'none'; there are: ranker, wishes"),
        (["get", "wishes", "--item", "i", "--of", "shop=s", "--request", "budget=x"], "budget=x: numbers"),
        (["sql", "none"], "no feature set 'none'"),
    ],
)
def test_mistakes_are_a_sentence(call, toml, argv, words):
    code, out, _ = call(*argv, "-c", toml)
    assert out == "" and code.startswith("millstream: ") and words in code


def test_what_is_not_there_is_a_sentence(call, tmp_path, file):
    toml = tmp_path / "millstream.toml"
    toml.write_text("")
    assert "[feature_store] definitions" in call("list", "-c", toml)[0]
    assert "[feature_store] definitions" in call("get", "ranker", "--item", "i", "-c", toml)[0]
    toml.write_text('[feature_store]\ndefinitions = "features.py"\n')
    assert "the role learn makes them" in call("get", "ranker", "--item", "i", "-c", toml)[0]
    assert "No such file" in call("list", "--definitions", tmp_path / "none.py")[0]
    file.write_text("import this is wrong")
    assert "cannot be run: SyntaxError" in call("list", "-c", toml)[0]
    assert call("list")[0] == 2 and call("get", "x", "--definitions", file)[0] == 2
    assert call("get", "x", "-c", toml, "--of", "s")[0] == 2
