"""History comes in alike from every format, in order of time; what is wrong with a file is told by row and column."""

import json

import msgspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from millstream.app.installation import Installation, Settings
from millstream.app.roles import import_history
from millstream.app.training import train
from millstream.clock import FakeClock
from millstream.errors import BadInput, Conflict
from millstream.features import Column, Definition
from millstream.learn.history import Field, import_entities, read_map, read_rows
from millstream.stream import Log, LogLimits, decode
from millstream.types import Example, SetAside

DEFINITION = Definition(user=(Column("id"), Column("age", bucket=10)), item=(Column("id"), Column("genres", places=3)))
SETTINGS = Settings(features=DEFINITION)
MAP = ["user=user id", "item=movie", "event_time=at", "like = rating >= 4", "rating=rating:float"]
ROWS = [
    {"user id": 1, "movie": "m1", "at": 300.0, "rating": 5.0},
    {"user id": 2, "movie": "m2", "at": 100.0, "rating": 3.0},
    {"user id": 1, "movie": "m3", "at": 100.0, "rating": None},
    {"user id": 3, "movie": 'say "m4", loud', "at": 100.0, "rating": 4.0},
]
USERS = [{"id": 1, "age": 33, "note": "a"}, {"id": 2, "age": None, "note": "call 555-0123456"}]
ITEMS = [{"id": "m1", "genres": "drama|war"}, {"id": "m2", "genres": "comedy"}]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        comma = "\t" if path.suffix == ".tsv" else ","

        def cell(value):
            text = "" if value is None else str(value)
            return '"' + text.replace('"', '""') + '"' if '"' in text or comma in text else text

        lines = [comma.join(rows[0]), *(comma.join(map(cell, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


def installation(folder) -> Installation:
    return Installation(folder, SETTINGS, FakeClock(1_000_000.0))


def imported(folder, file, topic="outcomes", entries=MAP):
    with installation(folder) as at:
        return import_history(at, file, topic, entries, 1.0)


def topics(folder):
    with Log(folder / "log", FakeClock()) as log:
        return {
            topic: [(r.offset, r.arrival, r.key, r.value) for r in log.reader(topic).read(0, 0, 10_000)]
            for topic in log.topics()
        }


def test_every_format_makes_the_same_topics(tmp_path):
    found = {}
    for ending in (".csv", ".tsv", ".jsonl", ".parquet"):
        folder = tmp_path / ending[1:]
        folder.mkdir()
        users = write(folder / f"users{ending}", USERS)
        items = write(folder / f"items{ending}", ITEMS)
        assert imported(folder, users, "users", ["id=id", "age=age:int", "note=note"]) == 2
        assert imported(folder, items, "items", ["id=id", "genres=genres:list"]) == 2
        assert imported(folder, write(folder / f"ratings{ending}", ROWS)) == 4
        found[ending] = topics(folder)
    assert all(found[".csv"] == other for other in found.values())
    assert [len(records) for records in found[".csv"].values()] == [2, 11, 4, 2]
    (one, two) = (decode(value) for *_, value in found[".csv"]["users"])
    assert (one.id, one.attributes) == ("1", {"age": 33, "note": "a"})
    assert two.attributes == {"note": "call [PHONE]"}, "an empty cell is unknown, and words are redacted"
    assert decode(found[".csv"]["items"][0][3]).attributes == {"genres": ["drama", "war"]}


def test_ties_keep_the_order_of_the_file_and_arrival_is_event_time_plus_the_delay(tmp_path):
    imported(tmp_path, write(tmp_path / "x.csv", ROWS))
    found = topics(tmp_path)
    served = [(arrival, decode(value)) for _, arrival, _, value in found["served"]]
    assert [(event.candidates[0], event.event_time, arrival) for arrival, event in served] == [
        ("m2", 100.0, 100.0),
        ("m3", 100.0, 100.0),
        ('say "m4", loud', 100.0, 100.0),
        ("m1", 300.0, 300.0),
    ]
    outcomes = [(arrival, decode(value)) for _, arrival, _, value in found["outcomes"]]
    assert [(o.item, o.kind, o.value, o.event_time, at) for at, o in outcomes[:4]] == [
        ("m2", "impression", 1.0, 100.0, 101.0),
        ("m2", "like", 0.0, 101.0, 101.0),
        ("m2", "rating", 3.0, 101.0, 101.0),
        ("m3", "impression", 1.0, 100.0, 101.0),
    ]
    assert outcomes[-1][1].kind == "watermark"


def test_many_ties_keep_the_order_of_the_file(tmp_path):
    rows = [{"user": 1, "item": f"m{n}", "at": 7 - n % 3} for n in range(300)]
    imported(tmp_path, write(tmp_path / "x.csv", rows), entries=["user=user", "item=item", "event_time=at"])
    items = [int(decode(value).candidates[0][1:]) for *_, value in topics(tmp_path)["served"]]
    assert items == [*range(2, 300, 3), *range(1, 300, 3), *range(0, 300, 3)]


def test_every_row_ends_as_one_example_with_its_label(tmp_path):
    imported(tmp_path, write(tmp_path / "x.csv", ROWS), entries=MAP[:4])
    with installation(tmp_path) as at:
        assert train(at).version == "1"
        events = [decode(r.value) for r in at.log.reader("examples").read(0, 0)]
    assert not [event for event in events if isinstance(event, SetAside)]
    assert {event.item: event.label for event in events if isinstance(event, Example)} == {
        "m1": 1.0,
        "m2": 0.0,
        "m3": 0.0,
        'say "m4", loud': 1.0,
    }


def test_a_second_import_has_requests_of_its_own(tmp_path):
    file = write(tmp_path / "x.csv", ROWS)
    imported(tmp_path, file)
    imported(tmp_path, file)
    requests = [decode(value).request for *_, value in topics(tmp_path)["served"]]
    assert len(set(requests)) == len(requests) == 8


def test_an_address_as_a_name_reaches_no_file_of_the_log(tmp_path):
    rows = [{"user": "jane.doe@example.org", "item": "i", "at": 5}]
    imported(tmp_path, write(tmp_path / "x.csv", rows), entries=["user=user", "item=item", "event_time=at"])
    imported(tmp_path, write(tmp_path / "y.csv", rows), "users", ["id=user"])
    content = b"".join(path.read_bytes() for path in (tmp_path / "log").rglob("*") if path.is_file())
    assert b"jane.doe" not in content and b"[EMAIL#" in content
    assert decode(topics(tmp_path)["users"][0][3]).id == decode(topics(tmp_path)["served"][0][3]).user


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["user"], "write FIELD=COLUMN"),
        (["user=id:number"], "str, int, float, list"),
        (["like=rating>=four"], "FIELD=COLUMN>=NUMBER"),
        (["like=rating>=1.2.3"], "FIELD=COLUMN>=NUMBER"),
        (["like=a", "like=b"], "mapped twice"),
        (["=x"], "write FIELD=COLUMN"),
    ],
)
def test_a_map_that_cannot_be_read_is_refused(entries, words):
    with pytest.raises(BadInput, match=words):
        read_map(entries)


def test_a_map_reads_columns_with_spaces_types_and_thresholds():
    assert read_map([" user = User Id ", "age=a:int", "like=r>=-3.5", "n=a b : float >= 2"]) == {
        "user": Field("User Id"),
        "age": Field("a", "int"),
        "like": Field("r", least=-3.5),
        "n": Field("a b", "float", 2.0),
    }


@pytest.mark.parametrize(
    ("row", "entries", "words"),
    [
        ({}, [*MAP, "x=nowhere"], "row 2: no column 'nowhere'; the columns are user id, movie, at, rating"),
        ({"rating": "many"}, MAP, "row 2: column 'rating' should be a number, got 'many'"),
        ({"rating": "nan"}, [*MAP[:3], "stars=rating"], r"row 2: column 'rating' \(stars\) should be a finite number"),
        ({"at": "yesterday"}, MAP, r"row 2: column 'at' \(event_time\) should be a finite number .*unix seconds"),
        ({"at": "inf"}, MAP, r"row 2: column 'at' \(event_time\) should be a finite"),
        ({"user id": ""}, MAP, "row 2: user, item and event_time must not be empty"),
        ({}, ["user=user id"], "needs event_time, item too"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_and_nothing_is_written(tmp_path, row, entries, words):
    good = {"user id": 1, "movie": "m1", "at": 300.0, "rating": 5.0}
    if "nowhere" in entries[-1]:
        words = words.replace("row 2", "row 1")
    file = write(tmp_path / "x.csv", [good, good | row])
    for _ in range(2):  # again: the first attempt holds no lock
        with pytest.raises(BadInput, match=words):
            imported(tmp_path, file, entries=entries)
    assert not (tmp_path / "log" / "served").exists()


@pytest.mark.parametrize(
    ("row", "entries", "words"),
    [
        ({"id": None}, ["id=id"], "row 2: column 'id' is the id and must not be empty"),
        ({"age": "old"}, ["id=id", "age=age:int"], "row 2: column 'age' should be int, got 'old'"),
        ({"age": "inf"}, ["id=id", "age=age:float"], "row 2: column 'age' should be a finite float"),
        ({}, ["age=age"], "needs id=COLUMN, got age"),
    ],
)
def test_what_is_wrong_with_an_entity_is_told(tmp_path, row, entries, words):
    file = write(tmp_path / "x.csv", [{"id": "1", "age": "3"}, {"id": "2", "age": "4"} | row])
    for _ in range(2):
        with pytest.raises(BadInput, match=words):
            imported(tmp_path, file, "users", entries)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"a,b\n1,2,3\n", "row 1: 3 cells where the header names 2 columns"),
        ("x.csv", b"a,b\n1,2\n1\n", "row 2: 1 cells where the header names 2"),
        ("x.csv", b'a,b\n1,"2\n', "cannot be read as csv"),
        ("x.tsv", b"a\tb\n1\t\xff\n", "not UTF-8"),
        ("x.jsonl", b'{"a": 1}\n\n{"a"\n', "line 3: not JSON"),
        ("x.jsonl", b"[1, 2]\n", "line 1: a row is an object"),
        ("x.parquet", b"PAR1 or so", "cannot be read as parquet"),
        ("x.xlsx", b"", "name it .csv, .tsv, .jsonl or .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=words) as caught:
        list(read_rows(tmp_path / name))
    assert name in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfid,age\n1,2\n")
    assert list(read_rows(tmp_path / "x.csv")) == [{"id": "1", "age": "2"}]


def test_lists_of_numbers_become_lists_of_text(tmp_path):
    file = write(tmp_path / "x.parquet", [{"id": "m1", "genres": [3, 1]}])
    imported(tmp_path, file, "items", ["id=id", "genres=genres:list"])
    assert decode(topics(tmp_path)["items"][0][3]).attributes == {"genres": ["3", "1"]}


def test_what_the_definition_cannot_take_keeps_no_role_from_starting(tmp_path, caplog):
    rows = [{"id": "m1", "genres": "a"}, {"id": "m2", "genres": "x" * 5000}, {"id": "m3", "genres": "b"}]
    imported(tmp_path, write(tmp_path / "x.csv", rows), "items", ["id=id", "genres=genres"])
    with installation(tmp_path) as at:
        assert at.entities().count("item") == 2
    assert "m2 stays unknown" in caplog.text


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    for ending in (".csv", ".jsonl"):
        file = write(tmp_path / f"rows{ending}", ITEMS)
        plain = [*read_rows(file)]
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        assert [*read_rows(file)] == plain


def test_importing_while_a_role_runs_is_a_conflict_that_names_it(tmp_path):
    file = write(tmp_path / "x.csv", ROWS)
    with installation(tmp_path) as running:
        for topic in ("served", "outcomes"):
            writer = running.log.writer(topic)
            with pytest.raises(Conflict, match=rf"log/{topic}/0 has a writer already \(process \d+\)"):
                imported(tmp_path, file)
            writer.close()
    assert imported(tmp_path, file) == 4


def test_users_are_imported_while_roles_run_and_the_latest_counts(tmp_path):
    for age in (20, 30):
        rows = [{"id": "1", "age": age}]
        import_entities(tmp_path / "log", LogLimits(), "users", rows, read_map(["id=id", "age=age:int"]), 5.0)
    with installation(tmp_path) as at:
        thirty = at.entities().rows("1", ["x"])
        assert at.entities().count("user") == 1
    with installation(tmp_path / "other") as at:
        import_entities(tmp_path / "other/log", LogLimits(), "users", rows, read_map(["id=id", "age=age:int"]), 5.0)
        assert (at.entities().rows("1", ["x"]) == thirty).all()


def test_history_older_than_retention_is_learnt_whole(tmp_path):
    """Four hundred days in segments of a few events, with retention at thirty days: the import outlives its own age."""
    settings = msgspec.structs.replace(SETTINGS, log=LogLimits(segment_bytes=2048, retain_s=30 * 86400.0))
    rows = [{"u": f"u{n % 7}", "i": f"i{n % 5}", "t": n * 86400.0, "r": n % 6} for n in range(400)]
    file = tmp_path / "old.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Installation(tmp_path, settings, FakeClock(1e9)) as old:
        assert import_history(old, file, "outcomes", ["user=u", "item=i", "event_time=t", "like=r>=4"], 1.0) == 400
        train(old)
        events = [decode(record.value) for record in old.log.reader("examples").records(0)]
    assert [type(event) for event in events] == [Example] * 400
