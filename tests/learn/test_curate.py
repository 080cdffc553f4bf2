"""Review queues: what is chosen, within which bounds, and that nothing comes twice. The log is real; its answers are
written by hand, so that what is worth a look is known."""

import itertools
from collections import Counter

import msgspec
import numpy as np
import pytest
from curate_town import NOW, Town
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.app.curation import export, fill, label, queue, waiting
from millstream.app.installation import Installation, Settings
from millstream.clock import FakeClock
from millstream.errors import BadInput, Busy, Conflict, Misconfigured, NotFound
from millstream.learn.curate.near import Kept, clusters
from millstream.learn.curate.reasons import GOLD, REASONS, identity, moves
from millstream.learn.curate.scan import scan
from millstream.learn.validation import slices
from millstream.store.blob import locked
from millstream.stream import decode
from millstream.types import Outcome, Shadow


@pytest.fixture
def town(tmp_path):
    made = Town(tmp_path)
    yield made
    made.at.close()


def jaccard(one, other):
    one, other = set(one.tolist()) - {0}, set(other.tolist()) - {0}
    return len(one & other) / max(1, len(one | other))


# -- near-duplicates ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.floats(0.3, 1.0), st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_no_two_rows_that_are_kept_are_nearly_the_same(seed, near, width):
    """Against all pairs, compared one by one. Rows are few tokens of few, so that many are alike."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 12, (60, width)).astype(np.uint32)
    kept, held = Kept(near), []
    for row in rows:
        if kept.add(row):
            held.append(row)
        else:
            assert max(jaccard(row, one) for one in held) >= near, "it was refused for nothing"
    for one, other in itertools.combinations(held, 2):
        if near >= 0.8:  # MinHash finds these surely
            assert jaccard(one, other) < near or not (one.any() and other.any())
        assert not (np.array_equal(one, other) and one.any()), "the same row twice"


def test_clusters_are_the_planted_ones():
    random = np.random.default_rng(4)
    alone = random.integers(1000, 2**32, (300, 12)).astype(np.uint32)
    cores = random.integers(1000, 2**32, (3, 12)).astype(np.uint32)
    planted = np.repeat(cores, 20, axis=0)
    for row in planted:  # one token of twelve is another
        row[random.integers(0, 12)] = random.integers(1000, 2**32)
    rows = np.concatenate([alone, planted])
    order = random.permutation(len(rows))
    whose = np.concatenate([np.full(300, -1), np.repeat([0, 1, 2], 20)])[order]
    found = list(clusters(rows[order], 0.5, 5, 100))
    assert {int(whose[one[0]]) for one in found} == {0, 1, 2}
    for group in found:
        assert len(set(whose[group].tolist())) == 1 and whose[group[0]] >= 0


# -- reasons -----------------------------------------------------------------------------------------------------------


def reasons_of(town, **by):
    fill(town.at)
    return {(one.request, one.item): one for one in queue(town.at, 1000) if by.get("reason") in (None, *one.reasons)}


def test_each_reason_finds_what_it_is_for(tmp_path):
    town = Town(tmp_path, person_max=100, item_max=100, cluster_rows=1000)
    plain = town.served("u0", {"i1": 0.95, "i2": 0.05})
    near = town.served("u1", {"i3": 0.53, "i4": 0.9})
    disliked = town.served("u2", {"i5": 0.97})
    town.write("outcomes", Outcome(request=disliked, item="i5", kind="dislike", text="awful, call 13812345678"))
    apart = town.served("u3", {"i6": 0.9, "i7": 0.85})
    said = np.array([0.88, 0.3], "<f4").tobytes()
    town.write("shadow", Shadow(request=apart, model="ranker", version="7@0", scores=said))
    found = reasons_of(town)
    assert set(found) == {(plain, "i1"), (plain, "i2"), (near, "i3"), (near, "i4"), (disliked, "i5"), (apart, "i6"),
                          (apart, "i7")}  # fmt: skip
    more = {key: set(one.reasons) - {GOLD} for key, one in found.items()}
    assert more[near, "i3"] == {"uncertain"} and more[disliked, "i5"] == {"correction"}
    assert more[apart, "i7"] == {"disagreement"} and found[apart, "i7"].others == {"ranker 7": pytest.approx(0.3)}
    assert all(not more[key] for key in ((plain, "i1"), (plain, "i2"), (near, "i4"), (apart, "i6")))


def test_without_a_sample_the_reason_is_the_rows_own(tmp_path):
    town = Town(tmp_path, reason_max=1)
    town.served("u0", {"i1": 0.95}, request="first")
    disliked = town.served("u2", {"i5": 0.97, "i6": 0.99})
    for item in ("i5", "i6"):
        town.write("outcomes", Outcome(request=disliked, item=item, kind="dislike", text="call 13812345678"))
    fill(town.at)
    one = next(one for one in queue(town.at) if one.reasons[0] == "correction")
    assert one.why in ("the user said dislike: call [PHONE]", "the user said dislike: call [PHONE]"[:60])
    assert one.shown["item.title"] == f"Film {one.item[1:]}" and one.shown["user.sex"] == "F"


def labelled_slice(town, rate_before, rate_after, seed):
    """Women click at one rate, and in the latest quarter at another; men as scored. Everybody is scored 0.4."""
    random = np.random.default_rng(seed)
    for number in range(400):
        user = f"u{number % 30}"
        request = town.served(user, {f"i{random.integers(30)}": 0.4}, at=NOW + number)
        rate = (rate_after if number >= 300 else rate_before) if number % 2 == 0 else 0.4
        event = decode(next(iter(town.at.log.reader("served").read(0, number, 1))).value)
        town.example(request, event.candidates[0], random.random() < rate)


def test_a_slice_that_moved_is_found_and_rows_of_it_are_drawn(tmp_path):
    town = Town(tmp_path, person_max=100, item_max=100, reason_max=20)
    labelled_slice(town, 0.4, 0.95, 1)
    found = fill(town.at)
    assert [(one.slice, one.what) for one in found.moved] == [("user.sex=F", "calibration")]
    drifting = [one for one in town.reviews() if one.reasons[0] == "slice"]
    assert len(drifting) == 20
    assert all(int(one.user[1:]) % 2 == 0 and one.event_time >= NOW + 300 for one in drifting)


def test_what_has_not_moved_is_no_drift(tmp_path):
    """Forty times nothing: chance alone names no slice."""
    for seed in range(2):
        town = Town(tmp_path / str(seed))
        labelled_slice(town, 0.4, 0.4, seed)
        rows, of = town.rows(), slices(town.at.settings.learn.validate, town.at.definition)
        for again in range(40):
            random = np.random.default_rng(again)
            rows.labels[:] = random.random(len(rows)) < 0.4
            assert moves(rows, town.at.settings.curate, of) == []
        town.at.close()


def test_labels_that_contradict_among_nearly_equal_rows_are_undecided(tmp_path):
    town = Town(tmp_path, cluster_rows=6, cluster=0.5, reason_max=30)
    for number in range(8):  # one user, one item, again and again, with either label
        town.example(town.served("u0", {"i1": 0.9}), "i1", number % 2)
        town.example(town.served("u1", {"i2": 0.9}), "i2", 1)
    asked = town.served("u0", {"i1": 0.9})
    fill(town.at)
    divided = [one for one in town.reviews() if "cluster" in one.reasons]
    assert {(one.user, one.item) for one in divided} <= {("u0", "i1")} and asked
    rows = town.rows()
    picks = REASONS["cluster"](rows, town.at.settings.curate, [])
    assert {(rows.users[one.row], rows.items[one.row]) for one in picks} == {("u0", "i1")}
    assert rows.requests[picks[0].row] == asked, "the one without a label is asked about"


def test_scores_are_calibrated_by_the_labels_before_they_are_called_uncertain(tmp_path):
    """Scores of 0.9 of which half are right are uncertain, and scores of 0.5 that are always wrong are not."""
    town = Town(tmp_path, users=200)
    random = np.random.default_rng(3)
    for number in range(400):
        high = number % 2 == 0
        request = town.served(f"u{number % 200}", {"i1": 0.9 if high else 0.5})
        town.example(request, "i1", high and random.random() < 0.5)
    rows = town.rows()
    found = {round(float(rows.scores[one.row]), 1) for one in REASONS["uncertain"](rows, town.at.settings.curate, [])}
    assert found == {0.9}


# -- the queue ---------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 15), st.integers(1, 4), st.integers(1, 6),
)  # fmt: skip
@settings(max_examples=8, deadline=None)
def test_no_bound_is_exceeded_and_nothing_comes_twice(tmp_path_factory, seed, most, reason, person, item):
    bounds = {"open_max": most, "reason_max": reason, "person_max": person, "item_max": item}
    town = Town(tmp_path_factory.mktemp("town"), users=12, items=12, **bounds)
    random = np.random.default_rng(seed)
    done = set()
    for _ in range(3):
        for _ in range(40):
            chosen = random.choice(12, 3, replace=False)
            scores = {f"i{n}": float(random.choice([0.05, 0.5, 0.55, 0.97])) for n in chosen}
            request = town.served(f"u{random.integers(12)}", scores)
            if random.random() < 0.3:
                town.write("outcomes", Outcome(request=request, item=next(iter(scores)), kind="dislike"))
        before = {one.id for one in town.reviews()}
        found = fill(town.at)
        open_rows = queue(town.at, 10_000)
        assert len(open_rows) == found.waiting <= most
        assert max(Counter(one.reasons[0] for one in open_rows).values(), default=0) <= reason
        assert max(Counter(one.user for one in open_rows).values(), default=0) <= person
        assert max(Counter(one.item for one in open_rows).values(), default=0) <= item
        everything = [one.id for one in town.reviews()]
        assert len(everything) == len(set(everything)) == len(before) + sum(found.added.values())
        assert not {one.id for one in open_rows} & done, "what was labelled came back"
        kept = town.reviews()
        for one, other in itertools.combinations(kept, 2):
            assert jaccard(*(np.frombuffer(x.tokens, "<u4") for x in (one, other))) < 0.8
        for one in open_rows[: len(open_rows) // 2]:
            label(town.at, one.id, str(random.choice(["positive", "negative", "skip"])), "ann")
            done.add(one.id)
        assert {one.id for one in queue(town.at, 10_000)} == {one.id for one in open_rows} - done
        assert waiting(town.at) == Counter(one.reasons[0] for one in open_rows if one.id not in done)
    town.at.close()


def test_the_same_log_gives_the_same_queue(tmp_path):
    queues = []
    for number in range(2):
        town = Town(tmp_path / str(number), reason_max=5)
        for n in range(30):
            town.served(f"u{n}", {f"i{n}": 0.5, f"i{(n + 1) % 30}": 0.9})
        fill(town.at)
        queues.append(queue(town.at))
        assert fill(town.at).added == {}, "there is no room for more"
        assert queue(town.at) == queues[-1]
        town.at.close()
    assert queues[0] == queues[1] and len(queues[0]) == 10


def test_reasons_take_turns_and_one_can_be_asked_for(tmp_path):
    town = Town(tmp_path, reason_max=5)
    for n in range(20):
        town.served(f"u{n}", {f"i{n}": 0.5})
    fill(town.at)
    assert [one.reasons[0] for one in queue(town.at, 4)] == ["sample", "uncertain", "sample", "uncertain"]
    assert len(queue(town.at, 100, "uncertain")) == 10, "those of the sample are uncertain, too"
    assert queue(town.at, 3, "correction") == []


def test_what_waited_too_long_leaves_the_queue(tmp_path):
    town = Town(tmp_path, keep_s=3600.0)
    town.served("u1", {"i1": 0.9})
    fill(town.at)
    assert len(queue(town.at)) == 1
    town.clock.jump(3601.0)
    assert queue(town.at) == []
    town.served("u2", {"i2": 0.9})
    assert fill(town.at).added == {"sample": 1}, "the first one does not come back"
    assert [one.item for one in queue(town.at)] == ["i2"]


def test_a_label_may_be_changed_and_the_later_counts(town):
    town.served("u1", {"i1": 0.9})
    fill(town.at)
    id = queue(town.at)[0].id
    assert label(town.at, id, "positive", "ann").before == ""
    town.clock.jump(-500.0)  # a clock that goes back does not bring the first one back
    again = label(town.at, id, "negative", "bob@example.org")
    assert again.before == "positive" and again.who.startswith("[EMAIL#") and again.waiting == 0
    made = export(town.at, "d").dataset
    assert made.counts["label"] == {"negative": 1} and list(made.labellers) == [again.who]


@pytest.mark.parametrize(
    ("id", "said", "who", "error"),
    [
        ("nothing", "positive", "ann", NotFound), ("", "positive", "ann", NotFound), (None, "maybe", "ann", BadInput),
        (None, "positive", "", BadInput), (None, "positive", "x" * 300, BadInput),
        (None, "positive", "\x1b[31mann", BadInput),
    ],
)  # fmt: skip
def test_labels_that_cannot_be(town, id, said, who, error):
    town.served("u1", {"i1": 0.9})
    fill(town.at)
    with pytest.raises(error):
        label(town.at, queue(town.at)[0].id if id is None else id, said, who)
    assert len(queue(town.at)) == 1


def test_questions_that_cannot_be(town):
    for wish in ({"reason": "boredom"}, {"limit": 0}, {"limit": 10**6}):
        with pytest.raises(BadInput):
            queue(town.at, **wish)
    with pytest.raises(BadInput, match="nothing was labelled"):
        export(town.at, "d")
    assert queue(town.at) == [] and fill(town.at).rows == 0


def test_several_write_at_once_and_too_many_are_told_so(town):
    town.served("u1", {"i1": 0.9})
    fill(town.at)
    id = queue(town.at)[0].id
    held = [town.at.log.writer("reviews", partition) for partition in range(3)]
    assert label(town.at, id, "positive", "ann").waiting == 0, "another partition is free"
    held.append(town.at.log.writer("reviews", 3))
    with pytest.raises(Busy):
        label(town.at, id, "negative", "ann")
    for one in held:
        one.close()
    assert label(town.at, id, "negative", "ann").before == "positive"


def test_nothing_is_chosen_beside_a_forget_or_a_backup(town):
    town.served("u1", {"i1": 0.9})
    (town.at.folder / "state").mkdir(exist_ok=True)
    with locked(town.at.folder / "state" / "backup.lock"):
        for call in (lambda: fill(town.at), lambda: export(town.at, "d")):
            with pytest.raises(Conflict, match="under way"):
                call()


def test_without_features_there_is_nothing_to_look_at(tmp_path):
    settings = msgspec.convert({"http_port": 0}, Settings)
    with Installation(tmp_path, settings, FakeClock(NOW)) as at, pytest.raises(Misconfigured, match="features"):
        fill(at)


def test_answers_that_do_not_fit_are_left_out(town):
    """Without scores, or with some that are no numbers, of other features, of another model, twice, with a shadow's
    scores of other length, or no numbers."""
    good = town.served("u1", {"i1": 0.9, "i2": 0.2})
    event = next(iter(town.at.log.reader("served").read(0, 0, 1)))
    made = decode(event.value)
    change = msgspec.structs.replace
    town.write(
        "served", made, change(made, request="a", scores=b"1234567"), change(made, request="b", definition="other"),
        change(made, request="c", model="another"), change(made, request="d", tokens=b"1234"),
        change(made, request="e", candidates=[], scores=b"", tokens=b""),
        change(made, request="f", scores=np.array([0.5, np.nan], "<f4").tobytes()),
    )  # fmt: skip
    nothing = np.full(2, np.nan, "<f4").tobytes()
    for version, scores in (("2", b"1234"), ("3", nothing)):
        town.write("shadow", Shadow(request=good, model="ranker", version=version, scores=scores))
    town.write("outcomes", Outcome(request=good, item="no such", kind="dislike"), Outcome(request="x", kind="dislike"))
    rows = town.rows()
    assert (rows.requests, rows.items) == ([good, good], ["i1", "i2"])
    assert set(rows.others) == {"ranker 3"} and rows.corrected == {} and rows.offsets == {0: (1, 1)}
    fill(town.at)
    assert len(queue(town.at)) == 2 and not any("disagreement" in one.reasons for one in queue(town.at))
    assert all(one.others == {} for one in queue(town.at))


def test_only_the_latest_rows_are_looked_at(tmp_path):
    town = Town(tmp_path)
    for n in range(50):
        town.served("u1", {f"i{k}": 0.5 for k in range(10)}, request=f"q{n}")
    at = town.at
    rows = scan(at.log, ("ranker",), at.definition.hash, at.definition.width, (), 100)
    assert sorted(set(rows.requests)) == sorted(f"q{n}" for n in range(40, 50))
    assert rows.offsets == {0: (40, 49)}


def test_a_damaged_log_hides_no_more_than_what_is_damaged(tmp_path):
    town = Town(tmp_path)
    for n in range(20):
        town.served("u1", {f"i{n}": 0.5}, request=f"q{n}")
        if n == 9:
            town.writers["served"].roll()
    first = sorted((tmp_path / "log" / "served" / "0").glob("*.seg"))[0]
    data = bytearray(first.read_bytes())
    data[-20] ^= 0xFF
    first.write_bytes(data)
    assert {f"q{n}" for n in range(10, 20)} <= set(town.rows().requests)


def test_ids_are_a_rows_own():
    found = {identity(f"r{n}", f"i{m}") for n in range(100) for m in range(100)}
    assert len(found) == 10_000 and identity("a", "b") == identity("a", "b") != identity("ab", "")
