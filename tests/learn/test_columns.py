"""What columns are is told from their names, from other tables' ids, and from their looks; nothing else is guessed."""

import datetime

import pytest

from millstream.errors import BadInput
from millstream.learn.columns import (
    Part,
    bucket,
    facts,
    guess_entities,
    guess_interactions,
    read_entries,
    revised,
    value_of,
    when,
)

MOMENT = datetime.datetime(2015, 5, 3, 12, 30, tzinfo=datetime.UTC)


def table(**columns):
    """Rows of columns that are given one by one."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def by_name(found):
    return {one.name: one for one in found}


@pytest.mark.parametrize(
    ("cell", "unit"),
    [
        (MOMENT.timestamp(), "s"), (str(int(MOMENT.timestamp() * 1e3)), "ms"), (MOMENT.timestamp() * 1e6, "us"),
        (int(MOMENT.timestamp() * 1e9), "ns"), ("2015-05-03T12:30:00Z", "iso"), ("2015-05-03 12:30:00", "iso"),
        ("2015-05-03 14:30:00+02:00", "iso"), (MOMENT, "iso"), (MOMENT.replace(tzinfo=None), "iso"),
        ("2015-05-03 12:30:00 UTC", "iso"), (" 2015-05-03 12:30:00", "iso"),
    ],
)  # fmt: skip
def test_a_time_is_read_in_whatever_unit_it_is_written(cell, unit):
    (one,) = facts(table(anything=[cell, cell]))
    assert one.unit == unit
    assert when(cell, unit) == pytest.approx(MOMENT.timestamp(), abs=1e-3)


@pytest.mark.parametrize("cell", ["", None, "soon", "2015-13-45", "-5", 0, float("nan"), "1995", [1]])
def test_what_is_no_time_is_none(cell):
    assert when(cell, "iso") is None
    assert facts(table(anything=[cell, cell]))[0].unit == ""
    assert cell == "1995" or when(cell, "s") is None


def test_names_of_public_sets_are_understood():
    retail = facts(
        table(
            timestamp=[1433221332117, 1433224214164], visitorid=[257597, 992329], event=["view", "addtocart"],
            itemid=[355908, 248676], transactionid=["", "7"],
        )
    )  # fmt: skip
    assert guess_interactions(retail) == {
        "event_time": Part("timestamp", "ms"), "item": Part("itemid"), "user": Part("visitorid"), "kind": Part("event"),
    }  # fmt: skip
    amazon = facts(
        table(
            reviewerID=["A2SUAM1J3GNN3B", "A14VAT5EAX3D9S"], asin=["0000013714", "0000013714"], overall=[5.0, 4.0],
            reviewText=["Quite good. " * 9, "Not for me, alas. " * 9], unixReviewTime=[1252800000, 1362787200],
        )
    )  # fmt: skip
    assert guess_interactions(amazon) == {
        "event_time": Part("unixReviewTime", "s"), "item": Part("asin"), "user": Part("reviewerID"),
        "rating": Part("overall", "float"),
    }  # fmt: skip
    songs = facts(table(**{"user-mboxsha1": ["0f", "1a"], "musicbrainz-artist-id": ["3b", "f2"], "plays": [2137, 9]}))
    assert guess_interactions(songs) == {
        "item": Part("musicbrainz-artist-id"), "user": Part("user-mboxsha1"), "rating": Part("plays", "float"),
    }  # fmt: skip


def test_a_column_whose_name_says_nothing_is_known_by_the_ids_of_another_table():
    items = facts(table(nummer=["a", "b", "c", "d"], was=["x", "x", "y", "y"]))
    found = facts(table(wer=["1", "2", "3"], was=["a", "c", "d"], wann=["2020-01-01", "2020-01-02", "2020-01-03"]))
    map = guess_interactions(found, items)
    assert map == {"event_time": Part("wann", "iso"), "item": Part("was")}, "nobody said who"
    assert guess_entities("items", items, by_name(found)["was"])["id"] == Part("nummer")


def test_two_columns_that_are_as_good_are_not_guessed():
    found = facts(table(owner_of_it=["a", "b"], taker_of_it=["a", "b"], itemid=["1", "2"]))
    assert "user" not in guess_interactions(found, [], facts(table(id=["a", "b", "c"])))


def test_attributes_keep_their_names_and_what_nobody_learns_from_is_left_out():
    rows = 40
    items = facts(
        table(
            id=[f"p{n}" for n in range(rows)], name=[f"Thing number {n}" for n in range(rows)],
            dept=[f"d{n % 3}" for n in range(rows)], genres=["a|b", "b|c|d"] * (rows // 2),
            price=[1.5 * n for n in range(rows)], added=["2020-02-03"] * rows, colour=["red", "blue"] * (rows // 2),
            description=[f"{n} " + "word " * 30 for n in range(rows)], seen_at=[1.6e9 + n for n in range(rows)],
        )
    )  # fmt: skip
    assert guess_entities("items", items) == {
        "id": Part("id"), "title": Part("name"), "tags": Part("genres", "list"), "created": Part("added", "iso"),
        "dept": Part("dept"), "price": Part("price", "float"), "colour": Part("colour"),
    }  # fmt: skip
    assert bucket(by_name(items)["price"]) == 10.0, "about eight steps"


def test_what_somebody_says_counts_and_errors_say_what_to_write():
    found = facts(table(a=["1", "2"], b=["x", "y"], c=[5, 4], d=["2020-01-01", "2020-01-02"]))
    said = read_entries(["user=a", "item=b", "event_time=d", "rating=c", "kind="])["interactions"]
    assert revised({"item": Part("a"), "kind": Part("b")}, said, found, "file") == {
        "user": Part("a"), "item": Part("b"), "event_time": Part("d", "iso"), "rating": Part("c", "float"),
    }  # fmt: skip
    assert read_entries(["items.size=a:b:float"])["items"] == {"size": Part("a:b", "float")}
    for entry in ("user", "=x", "things.id=a", "colour=a"):
        with pytest.raises(BadInput, match="--map"):
            read_entries([entry])
    with pytest.raises(BadInput, match=r"no column 'z'; the columns are a, b, c, d"):
        revised({}, read_entries(["user=z"])["interactions"], found, "file")


def test_cells_become_attributes():
    assert value_of("a|b c|", "list") == ["a", "b c"] and value_of([["x", "y"], ["x"]], "list") == ["x", "y"]
    assert value_of("7.50", "float") == 7.5 and value_of("much", "float") is None and value_of("nan", "float") is None
    assert value_of(7.0, "str") == "7" and value_of("", "str") is None and value_of(" x ", "str") == "x"
    assert value_of("['Action', \"Sci-Fi\"]", "list") == ["Action", "Sci-Fi"] and value_of("[a]", "list") == ["a"]
    assert value_of("   ", "str") is None and value_of("1925-04-10", "iso") == 1.0, "long ago, not unknown"


def test_a_vector_keeps_all_its_numbers():
    items = facts(
        table(
            sku=["a", "b", "c"], vector=["[0.5, 0.5, 1.0]", "[0, 0, 1]", "[1, 0, 0]"],
            place=["Oslo, Norway", "Rome, Italy", "Oslo, Norway"],
        )
    )  # fmt: skip
    assert guess_entities("items", items)["embedding"] == Part("vector", "list")
    assert guess_entities("items", items)["place"] == Part("place"), "commas, but no list"
    assert value_of([0.5, 0.5, 0.0, 0.0], "list") == ["0.5", "0.5", "0", "0"]
    assert value_of("[0.5, 0.5, 0.0]", "list") == ["0.5", "0.5", "0.0"]


def test_a_column_that_gets_a_meaning_is_no_attribute_beside():
    found = facts(table(sku=["a", "b", "c"] * 9, grp=["x", "y", "x"] * 9, genres=["p|q", "q|r", "p|r"] * 9))
    guessed = guess_entities("items", found)
    assert "grp" in guessed and guessed["tags"].column == "genres"
    said = read_entries(["items.category=grp", "items.author=genres"])["items"]
    made = revised(guessed, said, found, "file")
    assert "grp" not in made and made["category"].column == "grp" and made["tags"].column == "genres"
