"""`millstream init`: from tables in the formats of public sets to an installation, and from bad ones to a clear word.
The tables are made up (tastes.py), so what is to be found in them is known."""

import asyncio
import json
import os
import pty
import shlex
import subprocess
import sys
import time
import urllib.request

import pytest
from pyarrow import parquet

import tastes
from millstream import config
from millstream.app import batch
from millstream.app.installation import Installation, Settings
from millstream.cli import main
from millstream.clock import SystemClock
from millstream.learn.tables import Tables, look
from millstream.stream import Log, decode

PORT = 18833


def init(folder, tables, *more, capsys=None):
    """What the command says of what it made, as JSON."""
    options = [str(word) for name, paths in tables.items() for word in (f"--{name}", *paths)]
    main(["init", str(folder), *options, "--yes", "--json", *map(str, more)])
    return json.loads(capsys.readouterr().out)


def refused(folder, *options, capsys):
    """The error of a command that fails, and leaves nothing."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(SystemExit) as end:
        main(["init", str(folder), *map(str, options)])
    capsys.readouterr()
    assert sorted(folder.parent.iterdir()) == before, "nothing is left behind"
    assert isinstance(end.value.code, str), end.value
    return end.value.code


def suiting(folder, **more) -> float:
    """Which part of the items in everybody's list suits whom it is for."""
    made = asyncio.run(batch.run(folder / "millstream.toml", None, folder / "lists.parquet", **more))
    assert made.lists and not made.empty and not made.unlogged
    rows = parquet.read_table(folder / "lists.parquet").to_pylist()
    return sum(tastes.taste(row["user"]) == tastes.taste(row["item"]) for row in rows) / len(rows)


def test_events_by_kind_and_properties_by_row_become_a_recommender(tmp_path, capsys, caplog):
    of = tastes.Moments(60, 80, 4000)
    shop = tmp_path / "shop"
    made = init(shop, tastes.retailrocket(tmp_path, of), "--http-port", PORT, capsys=capsys)
    assert (made["items"], made["users"]) == (80, len({row[1] for row in of.rows}))
    assert made["liked"] == "addtocart transaction"
    assert of.liked * 0.97 < made["positives"] <= of.liked, "a view that was liked soon after it is one showing"
    assert made["examples"] <= 4000 and made["version"] == "1" and made["auc"] > 0.6
    assert made["next"][0] == f"millstream up -c {shop}/millstream.toml" and str(PORT) in made["next"][1]
    settings = config.read(shop / "millstream.toml", Settings)
    assert (settings.catalogue.category, settings.catalogue.stock) == ("categoryid", "available")
    assert settings.histories.kinds == {"addtocart": 1.0, "transaction": 1.0, "view": 1.0}
    assert settings.join.kinds("like") == {"addtocart": 1.0, "transaction": 1.0}
    assert settings.recommend.placements["home"].filters.done == ("transaction",)
    with Installation.open(shop / "millstream.toml") as at:
        items = {event.id: event.attributes for _, event in entities(at.log, "items")}
    assert items["9"]["available"] == 1.0 and items["19"]["available"] == 0.0, "the latest value of a property"
    assert items["6"]["categoryid"] == "702" and items["6"]["created"] >= tastes.BEGAN
    text = (shop / "millstream.toml").read_text()
    short = 'definitions = "features.py"\nstale_s_max = 0.1'  # a server would do without them, as no `learn` runs
    (shop / "millstream.toml").write_text(text.replace('definitions = "features.py"', short))
    assert suiting(shop) > 0.38, "at most 2 of 5 are of one category"
    assert "without feature set" not in caplog.text


def entities(log, topic):
    return [(record, decode(record.value)) for record in log.reader(topic).records(0)]


def test_stars_in_lines_of_json_become_a_recommender(tmp_path, capsys):
    of = tastes.Moments(60, 80, 4000, user="A{}X", item="B00{}")
    made = init(tmp_path / "here", tastes.amazon(tmp_path, of), capsys=capsys)
    assert made["liked"] == "rating>=4" and made["positives"] == of.liked and made["examples"] == 4000
    settings = config.read(tmp_path / "here" / "millstream.toml", Settings)
    assert (settings.catalogue.title, settings.catalogue.author, settings.catalogue.tags) == (
        "title",
        "brand",
        "categories",
    )
    columns = {one.name: one for one in settings.features.item}
    assert columns["price"].bucket == 10.0 and "description" not in columns
    with Log(tmp_path / "here" / "log", SystemClock()) as log:
        kinds = {(event.kind, event.value) for _, event in entities(log, "outcomes")}
    assert {("like", 1.0), ("like", 0.0), ("impression", 1.0), ("rating", 5.0)} <= kinds
    assert suiting(tmp_path / "here", n=10) > 0.35


def test_plays_without_times_and_without_items_become_a_recommender(tmp_path, capsys):
    of = tastes.Moments(100, 200, 4000, user="sha{}", item="artist{}")
    made = init(tmp_path / "here", tastes.lastfm(tmp_path, of), "--liked", "rating>=40", capsys=capsys)
    assert made["items"] == len({row[2] for row in of.rows}) and made["users"] == 100 and made["positives"] == of.liked
    assert any("no times" in line for line in made["warnings"])
    settings = config.read(tmp_path / "here" / "millstream.toml", Settings)
    assert settings.histories.segment == "country" and not settings.features.set
    assert {one.name: one.bucket for one in settings.features.user} == {"id": 0, "gender": 0, "age": 5.0, "country": 0}
    assert suiting(tmp_path / "here", n=10) > 0.33, "a quarter by chance"


def test_ratings_with_dates_in_parquet_become_a_recommender(tmp_path, capsys):
    of = tastes.Moments(60, 80, 4000)
    made = init(tmp_path / "here", tastes.movielens(tmp_path, of), "--newest", 3000, capsys=capsys)
    assert made["liked"] == "rating>=4" and made["interactions"] == 3000
    assert made["positives"] == sum(row[3] for row in of.rows[-3000:]), "the newest"
    assert any("1,000 older ones" in line for line in made["warnings"])
    settings = config.read(tmp_path / "here" / "millstream.toml", Settings)
    assert settings.catalogue.tags == settings.catalogue.category == "genres"
    age = (time.time() - tastes.BEGAN) / 86400
    assert settings.log.retain_s / 86400 > age, "what recall learns from again is kept"
    assert suiting(tmp_path / "here") > 0.3


def test_where_everything_is_a_like_there_is_no_ranker_yet(tmp_path, capsys):
    of = tastes.Moments(60, 80, 6000)
    rows = [f"{user},{item},{at}\n" for at, user, item, liked in of.rows if liked]
    (tmp_path / "plays.csv").write_text("user_id,song_id,ts\n" + "".join(rows))
    made = init(tmp_path / "here", {"interactions": [tmp_path / "plays.csv"]}, capsys=capsys)
    assert made["liked"] == "all" and made["version"] == "" and made["indexed"] == of.liked
    assert any("train offline" in line for line in made["warnings"])
    assert suiting(tmp_path / "here", n=5) > 0.4, "recall goes by who liked the same"


def test_bad_tables_are_told_and_leave_nothing(tmp_path, capsys, monkeypatch):
    def file(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    good = file(
        "good.csv", "user,item,ts,rating\n" + "".join(f"u{n % 5},i{n % 7},{10**9 + n},{n % 5 + 1}\n" for n in range(99))
    )
    empty, head = file("empty.csv", ""), file("head.csv", "user,item,ts\n")
    nobody = file("nobody.csv", "a,b,c\n1,2,3\n4,5,6\n")
    twice = file("twice.csv", "user,item,ts,ts\n1,2,3,4\n")
    late = file("late.csv", "user,item,when\n" + "a,b,2015-01-01\n" * 9 + "a,b,yesterday\n")
    other = file("other.csv", "id,category\n" + "".join(f"x{n},c\n" for n in range(9)))
    blank = file("blank.csv", "item_id,category\n" + "i1,c\n" * 9 + ",c\n")
    new = tmp_path / "new"
    for options, said in (
        (["--interactions", tmp_path / "none.csv", "--yes"], "none.csv: no such file"),
        (["--interactions", empty, "--yes"], "empty.csv: it has no rows"),
        (["--interactions", head, "--yes"], "head.csv: it has no rows"),
        (
            ["--interactions", nobody, "--yes"],
            "which column is the user? Say --map user=COLUMN; the columns are a, b, c",
        ),
        (["--interactions", twice, "--yes"], "column 'ts' twice"),
        (["--interactions", late, "--yes"], "late.csv row 10: column 'when' should be a time (iso), got 'yesterday'"),
        (
            ["--interactions", good, "--items", other, "--yes"],
            "7 of 7 items in the interactions, such as 'i0', are not in",
        ),
        (["--interactions", good, "--items", blank, "--yes"], "is empty in 1 rows; say --map items.id=COLUMN"),
        (["--interactions", good, "--map", "user=nobody", "--yes"], "no column 'nobody'"),
        (["--interactions", good, "--map", "users.id=user", "--yes"], "there is no table of users: give --users FILE"),
        (["--interactions", good, "--liked", "rating>=9", "--yes"], "nothing counts as liked by rating>=9"),
        (["--interactions", good, "--liked", "buy", "--yes"], "--liked buy: there is no such kind of event"),
        (["--interactions", good], "--yes takes what is proposed"),
    ):
        assert said in refused(new, *options, capsys=capsys)
    (tmp_path / "full").mkdir()
    kept = file("full/kept.txt", "mine")
    assert "is not empty" in refused(tmp_path / "full", "--interactions", good, "--yes", capsys=capsys)
    assert kept.read_text() == "mine"
    (tmp_path / "stood").mkdir()
    monkeypatch.chdir(tmp_path / "stood")
    for name in (".", tmp_path / "stood"):
        with pytest.raises(SystemExit, match="is where you are"):
            main(["init", str(name), "--interactions", str(good), "--yes"])
    assert os.path.samefile(".", tmp_path / "stood")
    with pytest.raises(SystemExit, match="make it first"):
        main(["init", str(tmp_path / "no" / "folder"), "--interactions", str(good), "--yes"])


def test_what_is_odd_in_few_rows_is_counted(tmp_path, capsys):
    known = [f"i{n},k{n % 2}\n" for n in range(7)] + [f"j{n},k0\n" for n in range(20)]
    (tmp_path / "items.csv").write_text("sku,kind\n" + "".join(known) + "i1,k1\n  ,k1\n")
    rows = [f"u{n % 5},i{n % 9},{10**9 + n},{n % 5 + 1}\n" for n in range(200)]
    (tmp_path / "rated.csv").write_text("user,sku,ts,rating\n" + "".join(rows) + ",i1,5,5\nu1,i1,soon,5\n")
    (tmp_path / ".here.init").mkdir()  # of one that was killed
    (tmp_path / ".here.init" / "millstream.toml").write_text("torn")
    (tmp_path / "here").mkdir()
    tables = {"interactions": [tmp_path / "rated.csv"], "items": [tmp_path / "items.csv"]}
    made = init(tmp_path / "here", tables, capsys=capsys)
    said = "\n".join(made["warnings"])
    assert "2 of 202 interactions" in said and "2 items of interactions are not in" in said
    assert "1 rows have an id that came before" in said
    assert "1 rows without an id are left out" in said
    assert made["items"] == 28 and not [*tmp_path.glob(".here*")]


def test_the_latest_value_of_a_property_counts_in_whatever_way_times_are_written(tmp_path):
    (tmp_path / "done.csv").write_text("user,itemid\n" + "".join(f"u{n},i{n}\n" for n in range(9)))
    for new, old in (("2024-02-01T00:00:00", "2024-01-31T23:00:00"), (1706745600, 1706742000)):
        rows = [f"i{n},size,{n},{new}\ni{n},colour,new{n % 2},{new}\ni{n},colour,old,{old}\n" for n in range(9)]
        (tmp_path / "items.csv").write_text("itemid,property,value,timestamp\n" + "".join(rows))
        looked = look(Tables([tmp_path / "done.csv"], [tmp_path / "items.csv"]))
        assert [row["colour"] for row in looked.rows("items")] == [f"new{n % 2}" for n in range(9)]


def test_on_a_terminal_it_asks_and_takes_what_is_typed(tmp_path):
    rows = [f"w{n % 9},t{n % 11},{1.5e9 + 60 * n:.0f},{['look', 'buy'][n % 3 == 0]}\n" for n in range(300)]
    (tmp_path / "rows.csv").write_text("who,thing,moment,what\n" + "".join(rows))
    here, there = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "millstream",
        "init",
        str(tmp_path / "here"),
        "--interactions",
        str(tmp_path / "rows.csv"),
    ]
    child = subprocess.Popen(command, stdin=there, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.close(there)
    # nothing typed will not do at first; a column that is not there will not either; then what is right
    for line in ("", "user=whom", "user=who item=thing kind=what", "", "steal", "buy", ""):
        os.write(here, line.encode() + b"\n")
    out = child.communicate(timeout=100)[0]
    os.close(here)
    assert child.returncode == 0, out
    assert "which column is the user?" in out and "no column 'whom'" in out
    assert "no such kind of event; there are: " in out and "liked: buy (33.3 %" in out
    assert config.read(tmp_path / "here" / "millstream.toml", Settings).join.kinds("like") == {"buy": 1.0}


@pytest.mark.slow
def test_what_init_made_comes_up_and_lists_go_by_taste(tmp_path):
    """As a user does it: the three commands that it says."""
    of = tastes.Moments(120, 120, 9000)
    tables = tastes.retailrocket(tmp_path, of)
    options = [str(word) for name, paths in tables.items() for word in (f"--{name}", *paths)]
    millstream = [sys.executable, "-m", "millstream"]
    done = subprocess.run(
        [*millstream, "init", str(tmp_path / "shop"), *options, "--yes", "--json", "--http-port", str(PORT)],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    up, curl, ask = json.loads(done.stdout)["next"]
    service = subprocess.Popen([*millstream, *shlex.split(up)[1:]], stderr=subprocess.PIPE, text=True)
    try:
        for line in service.stderr:
            if "recall goes by index" in line:
                break
        url, body = shlex.split(curl)[2], shlex.split(curl)[4]
        with urllib.request.urlopen(urllib.request.Request(url, body.encode()), timeout=20) as answer:
            listing = json.loads(answer.read())
        assert len(listing["items"]) == 20 and listing["model"] == "ranker" and listing["version"]
        lists, shares = {}, []
        for user in of.users[:40]:
            request = urllib.request.Request(url, json.dumps({"user": user, "n": 10}).encode())
            with urllib.request.urlopen(request, timeout=20) as answer:
                lists[user] = [slot["item"] for slot in json.loads(answer.read())["items"]]
            shares.append(sum(tastes.taste(item) == tastes.taste(user) for item in lists[user]) / 10)
        assert len({tuple(one) for one in lists.values()}) > 20, "not one list for all"
        assert sum(shares) / len(shares) > 0.37, "a quarter would suit by chance; at most 2 of 5 are of one category"
        told = subprocess.run([*millstream, *shlex.split(ask)[1:]], capture_output=True, text=True, timeout=60)
        assert told.returncode == 0 and "found by" in told.stdout
    finally:
        service.terminate()
        service.stderr.read()
        service.wait(30)
