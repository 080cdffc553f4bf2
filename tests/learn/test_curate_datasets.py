"""Datasets of labelled rows: what they hold, that they stay as they are, what a teacher may add, what is trained from
them, and that a person who is forgotten is in none of them."""

import asyncio
import json
import math

import msgspec
import numpy as np
import pytest
from curate_town import NOW, SETTINGS, Town

from millstream.app.curation import datasets, export, fill, folder_of, label, queue
from millstream.app.forget import forget
from millstream.app.installation import Installation, Settings
from millstream.app.training import train_joined
from millstream.cli import main
from millstream.errors import BadInput, Conflict, Corrupt, Later, NotFound
from millstream.learn.curate import dataset as stored
from millstream.learn.curate.settings import CurateSettings
from millstream.learn.curate.teacher import interval, measure
from millstream.learn.offline import Plan
from millstream.models import Manifest, online
from millstream.ops.backup import backup
from millstream.ops.restore import restore
from millstream.stream import encode
from millstream.types import Outcome, Review

WIDE = {"open_max": 2000, "reason_max": 2000, "person_max": 1000, "item_max": 1000}


def truth(item):
    """People like kind 0, not kind 1, and kind 2 as chance has it."""
    return (True, False, int(item[1:]) % 2 == 0)[int(item[1:]) % 3]


def answered(town, count, seed=0):
    """So many answers of three items."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        items = random.choice(30, 3, replace=False)
        town.served(f"u{random.integers(30)}", {f"i{n}": float(random.uniform(0.3, 0.7)) for n in items})


def say(town, said=truth):
    """Label all that waits."""
    for one in queue(town.at, 10_000):
        label(town.at, one.id, "positive" if said(one.item) else "negative", "ann")


def learnt(town, model, rows, said):
    """A version that learnt what `said` says of every user and item, so many times over."""
    learner = town.at.learner(alpha=0.5)
    users, items = [f"u{n}" for n in range(30)], [f"i{n}" for n in range(30)]
    for _ in range(rows):
        for user in users:
            learner.learn(town.entities.rows(user, items), np.array([said(item) for item in items], np.float32))
    learner.delta()
    manifest = Manifest(format="ftrl", file="model.ftrl", features=town.at.definition.hash)
    return town.at.repository.put(model, manifest, {"model.ftrl": learner.dump()})


@pytest.fixture
def town(tmp_path):
    made = Town(tmp_path / "installation", **WIDE)
    yield made
    made.at.close()


def rows_of(town, of):
    return stored.rows(folder_of(town.at), of)


# -- versions ----------------------------------------------------------------------------------------------------------


def test_a_version_says_what_it_came_from_and_stays(town):
    answered(town, 20)
    town.write("outcomes", Outcome(request="r1", item=town.rows().items[3], kind="dislike"))
    fill(town.at)
    asked = {one.id: one for one in queue(town.at, 10_000)}
    say(town)
    skipped = next(iter(asked))
    label(town.at, skipped, "skip", "bob")
    first = export(town.at, "films")
    made, rows = first.dataset, rows_of(town, first.dataset)
    assert first.new and (made.name, made.version, made.parent) == ("films", "1", "")
    assert {row.id for row in rows} == set(asked) - {skipped}
    for row in rows:
        one = asked[row.id]
        assert (row.request, row.item, row.user, row.reason) == (one.request, one.item, one.user, one.reasons[0])
        assert row.tokens == town.entities.rows(row.user, [row.item])[0].tolist()
        assert row.label == truth(row.item) and row.who == "ann"
        assert row.kind == ("gold" if one.reasons[0] == "sample" else "human")
    assert made.counts["label"] == {"positive": sum(row.label for row in rows),
                                    "negative": len(rows) - sum(row.label for row in rows)}  # fmt: skip
    assert made.labellers == {"ann": len(rows)} and made.definition == town.at.definition.hash
    assert made.rules["reason_max"] == 2000 and made.offsets["reviews"] == {"0": [0, len(asked) * 2 + 1]}
    before = {path: path.read_bytes() for path in folder_of(town.at).rglob("*") if path.is_file()}
    again = export(town.at, "films")
    assert not again.new and again.dataset == made, "nothing is new, so it is the same version"
    label(town.at, rows[0].id, "negative" if rows[0].label else "positive", "bob")
    later = export(town.at, "films").dataset
    assert (later.version, later.parent, later.rows) == ("2", "1", made.rows) and later.digest != made.digest
    assert all(path.read_bytes() == data for path, data in before.items() if path.parent.name == "1")
    assert [(one.name, one.version) for one in datasets(town.at)] == [("films", "2"), ("films", "1")]
    assert stored.find(folder_of(town.at), "films").version == "2"
    assert stored.find(folder_of(town.at), "films@1") == made


def test_a_number_is_never_given_twice_and_what_was_left_half_is_no_version(town):
    answered(town, 5)
    fill(town.at)
    say(town)
    made = export(town.at, "films").dataset
    root = folder_of(town.at)
    (root / "films" / ".put").mkdir()
    (root / "films" / ".put" / "examples.jsonl").write_text("half")
    assert stored.versions(root, "films") == ["1"]
    for path in (root / "films" / "1").iterdir():
        path.unlink()
    (root / "films" / "1").rmdir()
    assert export(town.at, "films").dataset == msgspec.structs.replace(made, version="2")
    assert not (root / "films" / ".put").exists()


@pytest.mark.parametrize("name", ["", "../up", "Films", "a" * 65, "a/b", ".put", "-x"])
def test_names_that_are_none(town, name):
    answered(town, 2)
    fill(town.at)
    say(town)
    with pytest.raises(BadInput, match="a name has 1 to 64"):
        export(town.at, name)


def test_what_is_damaged_or_from_later_is_never_read_as_data(town):
    answered(town, 5)
    fill(town.at)
    say(town)
    made, root = export(town.at, "films").dataset, folder_of(town.at)
    file = root / "films" / "1" / "examples.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"label":1', b'"label":0', 1))
    with pytest.raises(Corrupt, match="expected sha256"):
        rows_of(town, made)
    file.write_bytes(whole)
    head = root / "films" / "1" / "dataset.toml"
    head.write_text("schema = 2\n" + head.read_text())
    with pytest.raises(Later):
        stored.find(root, "films")
    head.write_text("rows = 'many'")
    with pytest.raises(Corrupt):
        stored.find(root, "films")
    for spec, error in (("films@7", NotFound), ("books", NotFound), ("../x", BadInput)):
        with pytest.raises(error):
            stored.find(root, spec)


# -- a teacher ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "count", "low", "high"), [(10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (0, 20, 0, 0.1611)]
)
def test_intervals_are_those_of_the_books(right, count, low, high):
    """81 of 263 is the example of R. Newcombe, Statistics in Medicine 17 (1998), method 3."""
    assert interval(right, count) == pytest.approx((low, high), abs=1e-4)
    assert interval(0, 0) == (0.0, 1.0)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    true = random.uniform(0.5, 0.99, 5000)
    ends = np.array([interval(int(n), 100) for n in random.binomial(100, true)])
    assert 0.94 < np.mean((ends[:, 0] <= true) & (true <= ends[:, 1])) < 0.965


def test_a_teacher_is_measured_by_class_and_refused_where_it_may_be_bad():
    scores = np.array([0.95] * 60 + [0.05] * 60 + [0.5] * 40 + [math.nan] * 5)
    people = np.array([True] * 57 + [False] * 3 + [False] * 40 + [True] * 20 + [True] * 45)
    found = measure(scores, people, CurateSettings(precision_min=0.8, gold_min=50))
    assert (found["positive"].count, found["positive"].right, found["positive"].refused) == (60, 57, "")
    assert (found["negative"].count, found["negative"].right) == (60, 40)
    assert "precision may be 0.54" in found["negative"].refused
    assert all(
        "160 gold labels" in one.refused for one in measure(scores, people, CurateSettings(gold_min=200)).values()
    )
    nothing = measure(np.empty(0), np.empty(0, np.bool_), CurateSettings())
    assert all(one.refused and one.count == 0 for one in nothing.values())


def taught(tmp_path, said=truth, **more):
    """A town of which a part was labelled, and a teacher that knows the truth."""
    town = Town(tmp_path / "installation", **{**WIDE, "reason_max": 60, "near": 1.0, **more})
    answered(town, 150)
    version = learnt(town, "teacher", 6, truth)
    fill(town.at)
    say(town, said)
    return town, version


def test_a_good_teachers_labels_say_who_and_how_sure(tmp_path):
    town, version = taught(tmp_path)
    found = export(town.at, "films", f"teacher@{version}")
    rows = rows_of(town, found.dataset)
    pseudo = [row for row in rows if row.kind == "pseudo"]
    labelled = {(row.request, row.item) for row in rows if row.kind != "pseudo"}
    assert len(pseudo) > 50 and found.teacher["positive"].precision > 0.9
    assert not {(row.request, row.item) for row in pseudo} & labelled
    served = online.load_served(town.at.repository.folder("teacher", version) / "model.ftrl")
    for row in pseudo:
        p = float(served.predict({"tokens": np.array([row.tokens], np.uint32)})["probability"][0])
        assert row.teacher == f"teacher {version}" and row.confidence == pytest.approx(max(p, 1 - p))
        assert row.confidence >= 0.9 and row.label == (p > 0.5) and row.who == "" and row.weight == 0.5
    assert found.dataset.teacher["model"] == "teacher" and found.dataset.counts["kind"]["pseudo"] == len(pseudo)


def test_a_bad_teachers_labels_are_refused_and_people_are_exported_all_the_same(tmp_path):
    """People say that nothing is any good: what it calls positive is refused, what it calls negative is not."""
    town, version = taught(tmp_path, said=lambda item: False)
    found = export(town.at, "films", f"teacher@{version}")
    assert found.teacher["positive"].refused and not found.teacher["negative"].refused
    kinds = {(row.kind, row.label) for row in rows_of(town, found.dataset)}
    assert ("pseudo", 0.0) in kinds and ("pseudo", 1.0) not in kinds and ("gold", 0.0) in kinds
    other = export(town.at, "strict", f"teacher@{version}")
    assert other.dataset.counts["kind"].keys() == {"gold", "human", "pseudo"}


def test_teachers_that_cannot_be(tmp_path):
    town, _ = taught(tmp_path)
    manifest = Manifest(format="ftrl", file="model.ftrl", features="others")
    town.at.repository.put("stranger", manifest, {"model.ftrl": town.at.learner().dump()})
    for spec, words in (("teacher@9", "there are: 1"), ("nobody@1", "none"), ("stranger@1", "features others")):
        with pytest.raises(BadInput, match=words):
            export(town.at, "films", spec)


# -- training ----------------------------------------------------------------------------------------------------------


def with_examples(town, count=300):
    random = np.random.default_rng(5)
    for _ in range(count):
        user, item = f"u{random.integers(30)}", f"i{random.integers(30)}"
        town.example(f"other{next(town.number)}", item, random.random() < 0.5, user)


def weights(town, version):
    return online.load(town.at.repository.folder("ranker", version) / "model.ftrl")[0].weights()


def fold(town, *parts):
    """Weights of a learner that learns these (tokens, labels, weights) in order."""
    learner = town.at.learner()
    for part in parts:
        learner.learn(*part)
    return learner.weights()


def test_training_learns_labels_of_people_beside_the_log_and_nothing_of_the_gold(tmp_path):
    town = Town(tmp_path, **{**WIDE, "reason_max": 40, "near": 1.0})
    with_examples(town)
    answered(town, 40)
    fill(town.at)
    say(town)
    made = export(town.at, "films").dataset
    got = train_joined(town.at, Plan(), dataset="films@1")
    assert got.figures["candidate by gold"].examples == made.counts["kind"]["gold"]
    lineage = town.at.repository.manifest("ranker", got.version).lineage
    assert (lineage["dataset"], lineage["dataset_digest"]) == ("films@1", made.digest)
    rows = rows_of(town, made)
    people = [row for row in rows if row.kind == "human"]
    gold = {tuple(row.tokens) for row in rows if row.kind == "gold"}
    batch = examples(town)
    batch[2][[tuple(row) in gold for row in batch[0].tolist()]] = 0.0  # twins of gold in the log are not learnt
    labels = (
        np.array([row.tokens for row in people], np.uint32), np.array([row.label for row in people], np.float32),
        np.full(len(people), 3.0, np.float32),
    )  # fmt: skip
    end = int(len(batch[0]) * 0.8)
    learnt_too = {tuple(row.tokens) for row in people}
    apart = [tuple(row) not in learnt_too for row in batch[0][end:].tolist()]
    assert got.figures["candidate"].examples == got.figures["served"].examples == sum(apart) < len(apart)
    expected = fold(town, tuple(x[:end] for x in batch), labels, tuple(x[end:] for x in batch))
    assert np.array_equal(weights(town, got.version), expected)
    assert not np.array_equal(expected, fold(town, batch)), "labels that change nothing prove nothing"


def examples(town):
    from millstream.learn.train import gather

    records = town.at.log.reader("examples").read(0, 0, 10_000)
    batch, _ = gather(records, "ranker", town.at.definition.hash, town.at.definition.width)
    return batch.tokens, batch.labels, batch.weights.copy()


def test_what_a_teacher_adds_is_told_apart(tmp_path):
    town, version = taught(tmp_path)
    with_examples(town)
    export(town.at, "people")
    export(town.at, "both", f"teacher@{version}")
    alone = train_joined(town.at, Plan(), dataset="people")
    both = train_joined(town.at, Plan(), dataset="both")
    assert "without a teacher by gold" not in alone.figures
    ablation = both.figures["without a teacher by gold"]
    assert ablation == alone.figures["candidate by gold"], "the same labels, without the teacher's"
    assert both.figures["candidate by gold"].logloss != ablation.logloss


def test_a_dataset_of_other_features_is_refused_and_its_labels_stay_out(tmp_path):
    town = Town(tmp_path, **WIDE)
    answered(town, 5)
    fill(town.at)
    say(town)
    export(town.at, "films")
    town.at.close()
    changed = {**SETTINGS, "features": {"user": [{"name": "id"}], "item": [{"name": "id"}]}, "curate": WIDE}
    changed["learn"] = {"model": "ranker"}
    with Installation(tmp_path, msgspec.convert(changed, Settings), town.clock) as at:
        with pytest.raises(Conflict, match="label rows of these"):
            train_joined(at, Plan(), dataset="films")
        with pytest.raises(BadInput, match="of others"):
            export(at, "more")
        with pytest.raises(NotFound, match="there are: films"):
            train_joined(at, Plan(), dataset="nothing")


# -- a person who is forgotten -----------------------------------------------------------------------------------------


def test_who_is_forgotten_is_in_no_review_and_no_dataset(tmp_path):
    town = Town(tmp_path, **WIDE)
    answered(town, 40)
    mine = {town.served("ann.secret@example.org", {f"i{n}": 0.5}, request=f"secret-{n}") for n in range(6)}
    fill(town.at)
    say(town)
    export(town.at, "films")
    answered(town, 10, seed=9)
    fill(town.at)
    before = export(town.at, "films").dataset
    others = [row for row in rows_of(town, before) if row.request not in mine]
    assert len(others) < before.rows, "they are in it"
    town.at.close()
    with Installation(tmp_path, town.at.settings, town.clock) as at:
        report = asyncio.run(forget(at, ["ann.secret@example.org"]))
        assert report.sound and report.labelled >= 6 and report.records["reviews"] >= 12
        found = [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
        assert found == []
        left = stored.find(at.folder / "datasets", "films")
        assert stored.rows(at.folder / "datasets", left) == others
        assert left.forgotten == before.rows - len(others) and left.rows == len(others)
        assert sorted(path.name for path in (at.folder / "datasets/films/1").iterdir()) == [
            "dataset.toml", f"examples-{left.forgotten}.jsonl"
        ]  # fmt: skip
        assert not {one.request for one in queue(at, 10_000)} & mine
        again = asyncio.run(forget(at, ["ann.secret@example.org"]))
        assert not again.found and stored.find(at.folder / "datasets", "films") == left
        assert export(at, "films").dataset.digest != before.digest


def test_a_dataset_that_cannot_be_read_is_named_and_the_rest_is_forgotten(tmp_path):
    town = Town(tmp_path, **WIDE)
    answered(town, 30)
    fill(town.at)
    say(town)
    made = export(town.at, "films").dataset
    export(town.at, "other")
    (tmp_path / "datasets/films/1" / made.file).write_text("nothing")
    user = rows_of(town, stored.find(folder_of(town.at), "other"))[0].user
    town.at.close()
    with Installation(tmp_path, town.at.settings, town.clock) as at:
        report = asyncio.run(forget(at, [user]))
        assert not report.sound and "films/1" in report.damaged[0] and report.labelled > 0
        assert user not in {
            row.user for row in stored.rows(at.folder / "datasets", stored.find(at.folder / "datasets", "other"))
        }


def test_forgetting_datasets_is_finished_by_the_next_one(tmp_path):
    """Killed between the new rows and the new dataset.toml, and again after it."""
    town = Town(tmp_path, **WIDE)
    answered(town, 30)
    fill(town.at)
    say(town)
    made, root = export(town.at, "films").dataset, folder_of(town.at)
    folder = root / "films" / "1"
    user = rows_of(town, made)[0].user
    (folder / "examples-99.jsonl").write_text("half written")
    assert rows_of(town, stored.read(folder))
    gone, unread = stored.forget(root, lambda name: name == user)
    assert gone > 0 and unread == []
    left = stored.read(folder)
    assert {path.name for path in folder.iterdir()} == {"dataset.toml", left.file}
    (folder / made.file).write_text(f'{{"user":"{user}"}}')  # the old rows, as after a kill before they went
    assert stored.forget(root, lambda name: name == user) == (0, [])
    assert {path.name for path in folder.iterdir()} == {"dataset.toml", left.file}


def test_a_backup_has_the_datasets(tmp_path):
    town = Town(tmp_path / "installation", **WIDE)
    answered(town, 5)
    fill(town.at)
    say(town)
    made = export(town.at, "films").dataset
    before = queue(town.at), rows_of(town, made)
    town.at.close()
    (tmp_path / "installation" / "millstream.toml").write_text(TOML)
    (folder_of(town.at) / "films" / ".put").mkdir()
    backup(tmp_path / "installation", "millstream.toml", (), tmp_path / "all.tar", town.clock)
    restore(tmp_path / "all.tar", tmp_path / "again", town.clock)
    with Installation(tmp_path / "again", town.at.settings, town.clock) as at:
        assert datasets(at) == [made] and (queue(at), stored.rows(at.folder / "datasets", made)) == before
        assert export(at, "films").dataset == made, "the reviews came back, too"


# -- the command line --------------------------------------------------------------------------------------------------

KINDS = ("impression", "like")
TOML = """
http_port = 0
[learn]
model = "ranker"
[ftrl]
bits = 10
[features]
user = [{ name = "id" }, { name = "sex" }]
item = [{ name = "id" }, { name = "kind" }]
"""


def test_what_strangers_wrote_reaches_no_terminal_from_the_queue(tmp_path, capsys):
    hostile = "\x1b]0;you\x07\n\u202e"
    file = tmp_path / "millstream.toml"
    file.write_text("http_port = 0\n")
    with Installation.open(file) as at:
        row = Review(
            id="0" * 16, request="r", item=hostile, user=hostile, model="m", version="1@0", definition="d", tokens=b"",
            score=0.5, calibrated=0.5, reasons=["correction"], worth=1.0, event_time=NOW, at=at.clock.now(),
            said=f"the user said correction: {hostile}", shown={"item.title": hostile},
        )  # fmt: skip
        at.log.writer("reviews").append_durable_wait(b"0", encode(row))
    main(["curate", "list", "-c", str(file)])
    out = capsys.readouterr().out
    assert "correction" in out and all(c.isprintable() or c == "\n" for c in out) and len(out.splitlines()) == 3


def test_all_of_it_as_a_person_types_it(tmp_path, capsys):
    town = Town(tmp_path)
    answered(town, 10)
    rows, told = town.rows(), []
    for request, item in zip(rows.requests, rows.items, strict=True):
        told += [Outcome(request=request, item=item, kind=kind, value=float(truth(item))) for kind in KINDS]
    town.write("outcomes", *told, Outcome(kind="watermark", event_time=NOW + 1e6))
    town.at.close()
    file = tmp_path / "millstream.toml"
    file.write_text(TOML)

    def typed(*argv):
        capsys.readouterr()
        main([*argv, "-c", str(file), "--json"])
        return json.loads(capsys.readouterr().out)

    assert sum(typed("curate", "fill")["added"].values()) == 30
    listed = typed("curate", "list", "-n", "100")
    assert len(listed) == 30 and listed[0]["shown"]["item.title"].startswith("Film ")
    for one in listed:
        said = typed("curate", "label", one["id"], "positive" if truth(one["item"]) else "negative", "--who", "ann")
    assert said["waiting"] == 0 and typed("curate", "list") == []
    assert typed("curate", "export", "films")["dataset"]["rows"] == 30
    assert [one["version"] for one in typed("curate", "datasets")] == ["1"]
    made = typed("train", "offline", "--dataset", "films@1")
    assert made["role"] == "live" and "candidate by gold" in made["figures"]
    for argv in (["curate", "list"], ["curate", "fill"], ["curate", "datasets"], ["curate", "export", "films"]):
        main([*argv, "-c", str(file)])
    assert "films@1" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["train", "offline", "--model", "din", "--dataset", "films", "-c", str(file)])
    assert "leave one out" in str(end.value)
