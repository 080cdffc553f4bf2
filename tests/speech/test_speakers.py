"""Who speaks, by the policies, with voices made of numbers: what is told folds to what is held, and what may not change
does not."""

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_voices import Listener, People, partition, samples, talk, words

from millstream.errors import TooLarge
from millstream.flows.speech.settings import RATE
from millstream.flows.speech.speakers import Known, Moved, Named, Run, Speakers, Voiced, looked, units
from millstream.flows.speech.speakers import policy as rules
from millstream.flows.speech.speakers.changes import match
from millstream.flows.speech.speakers.cluster import Scale, group, scale, share
from millstream.flows.speech.speakers.policy import AGAIN, IDS_MAX
from millstream.flows.speech.speakers.windows import (
    LEAST,
    LOOK,
    LOOK_HOP,
    OVERLAP,
    WINDOW,
    Windows,
    looks,
    mean_within,
    overlaps,
    split,
    switches,
    united,
    within,
)
from millstream.models.speech.turns import Spoken
from millstream.spoken import Word

OF = Scale(0.6)


def turns(order, length=4.0, gap=0.9, at=1.0):
    made = []
    for person in order:
        made.append((person, at, at + length))
        at += length + gap
    return made


def random_turns(seed, count, people):
    chance = np.random.default_rng(seed)
    made, at = [], 0.5
    for _ in range(count):
        length = float(chance.uniform(0.5, 7))
        made.append((int(chance.integers(people)), at, at + length))
        at += length + float(chance.uniform(0.8, 3))
    return made


# -- windows


def grown(windows, start, length, cuts):
    """What a segment's windows are when it is looked at after each of `cuts` samples, but those past its end: some cuts
    lie behind it, as it was cut for its length before what was heard."""
    found = []
    for cut in sorted(cuts):
        found += windows.wanted(start, start + cut, closed=False)
    found += windows.wanted(start, start + length, closed=True)
    return [each for each in found if each[1] <= start + length]


@given(st.integers(0, 10**6), st.integers(0, 40 * RATE), st.lists(st.integers(0, 40 * RATE), max_size=12))
def test_windows_do_not_depend_on_how_the_segment_grew(start, length, cuts):
    whole = Windows().wanted(start, start + length, closed=True)
    assert grown(Windows(), start, length, cuts) == whole
    assert all(start <= a < b <= start + length and LEAST <= b - a <= WINDOW for a, b in whole)
    assert bool(whole) == (length >= LEAST)
    if whole:
        assert whole[0][0] == start and start + length - whole[-1][1] <= WINDOW // 4
        assert all(b[0] <= a[1] for a, b in itertools.pairwise(whole))


def test_windows_of_the_next_segment_begin_anew_and_those_of_one_that_is_heard_again_too():
    speakers = Speakers("correctable")
    first = speakers.wants(0, 3 * RATE, closed=False)
    again = Speakers.restored(speakers.save())
    assert speakers.wants(0, 3 * RATE, False) == [] and again.wants(0, 3 * RATE, False) == first
    assert [b - a for a, b in speakers.wants(5 * RATE, 6 * RATE, True)] == [RATE]
    assert speakers.wants(0, 3 * RATE, closed=False) == first


def test_a_stretch_is_the_mean_of_what_lies_in_it():
    people = People(2)
    voices = people.windows(0, samples(8), lambda at: int(at > samples(4)))
    mean, seconds, alike, pairs = mean_within(voices, 0, samples(4))
    assert mean @ people.persons[0] > 5 * abs(mean @ people.persons[1])
    assert seconds == pytest.approx(4, abs=0.5) and alike == pytest.approx(0.6, abs=0.12) and pairs >= 2
    assert mean_within(voices, samples(20), samples(21))[1] == 0
    one, other = Voiced(0, 100, people.voice(0)), Voiced(50, 150, people.voice(1))
    mean, _, _, _ = mean_within([one, other], 0, 110)
    assert mean == pytest.approx((one.voice + 0.36 * other.voice) / 1.36, abs=1e-6)


# -- a segment in which the voice changes


@pytest.mark.parametrize("line", [0.05, 0.3])
def test_words_are_cut_at_the_pause_where_the_voice_changes(line):
    people = People(2, alike=0.65, line=line)
    voices = people.windows(0, samples(12), lambda at: int(at > samples(6.2)))
    said = words(0, 12, pause=(6.0, 6.5))
    runs = split(said, voices, 0, samples(12), OF)
    cut = next(k for k, word in enumerate(said) if word.start > 6.2)
    assert [(run.first, run.last) for run in runs] == [(0, cut), (cut, len(said))]
    assert samples(5.9) < runs[0].end == runs[1].start < samples(6.6)


def test_one_voice_is_one_run_and_who_says_a_word_between_others_too():
    people = People(2)
    said = words(0, 20)
    assert split(said, people.windows(0, samples(20), 0), 0, samples(20), OF) == [Run(0, len(said), 0, samples(20))]
    brief = people.windows(0, samples(20), lambda at: int(samples(9.9) < at < samples(10.3)))
    assert len(split(said, brief, 0, samples(20), OF)) == 1
    assert split([], people.windows(0, samples(20), 0), 0, samples(20), OF) == [Run(0, 0, 0, samples(20))]


def test_who_says_a_word_between_others_gets_no_run_even_if_known():
    people = People(2, alike=0.9, line=0.0)
    heard = [(person * 0.9**0.5, 20.0) for person in people.persons]
    windows = people.windows(0, samples(8), 0)
    windows[4] = windows[4]._replace(voice=people.voice(1))
    assert split(words(0, 8), windows, 0, samples(8), OF, heard) == [Run(0, len(words(0, 8)), 0, samples(8))]
    windows[3] = windows[3]._replace(voice=people.voice(1))
    assert len(split(words(0, 8), windows, 0, samples(8), OF, heard)) == 3


def test_a_cut_that_words_move_too_near_to_the_edge_is_none():
    people = People(2)
    voices = people.windows(0, samples(10), lambda at: int(at > samples(1.8)))
    said = [Word("short", 0.0, 0.3), *words(2.9, 10)]
    assert [run.last for run in split([Word("long", 0.0, 2.0), *said[1:]], voices, 0, samples(10), OF)] == [
        1,
        len(said),
    ]
    said[0] = Word("w", 0.0, 0.1)
    said.insert(1, Word("long", 0.2, 9.9))
    assert len(split(said[:2], voices, 0, samples(10), OF)) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(1, 28), st.integers(1, 4))
def test_runs_cover_the_words_in_order_and_none_is_short(seed, length, count):
    chance = np.random.default_rng(seed)
    edges = np.sort(chance.uniform(0, length, count))
    who = chance.integers(3, size=count + 1)
    people = People(3, seed)
    voices = people.windows(0, samples(length), lambda at: who[np.searchsorted(edges, at / RATE)])
    said = words(0, length, length=float(chance.uniform(0.1, 1.5)))
    runs = split(said, voices, 0, samples(length), OF)
    assert runs[0].first == 0 and runs[-1].last == len(said) and runs[0].start == 0 and runs[-1].end == samples(length)
    for one, next_one in itertools.pairwise(runs):
        assert one.last == next_one.first and one.end == next_one.start and one.first < one.last
    assert len(runs) == 1 or all(run.end - run.start >= RATE for run in runs)


# -- groups


def slowly(alike, pairs, seconds, of, fixed):
    """The rule of cluster.py as it is said, with lists: no sums, no memory of what was best."""
    groups = [[k] for k in range(len(seconds))]
    never = set()

    def mean(a, b):
        weight = sum(pairs[i, j] for i in a for j in b)
        return sum(alike[i, j] * pairs[i, j] for i in a for j in b) / weight if weight else -np.inf

    for name in {name for name in fixed if name}:
        held = [g for g in groups if fixed[g[0]] == name]
        groups = [g for g in groups if g not in held] + [[k for g in held for k in g]]

    def names(g):
        return {fixed[k] for k in g if fixed[k]}

    while True:
        best, found = -np.inf, None
        for a in groups:
            for b in groups:
                if a is b or (names(a) and names(b)) or any(p <= set(a) and q <= set(b) for p, q in never):
                    continue
                if mean(a, b) > best:
                    best, found = mean(a, b), (a, b)
        if not found:
            return groups
        a, b = found
        usual = (sum(pairs[i, j] for i in a for j in b)) / 2
        inner = sum(alike[i, j] * pairs[i, j] for g in (a, b) for i in g for j in g) + usual * of.same
        inner /= sum(pairs[i, j] for g in (a, b) for i in g for j in g) + usual
        few = min(sum(seconds[k] for k in g) for g in (a, b))
        if best < share(few) * inner:
            never |= {(frozenset(a), frozenset(b)), (frozenset(b), frozenset(a))}
        else:
            groups = [g for g in groups if g is not a and g is not b] + [a + b]


@pytest.mark.parametrize("seed", range(12))
def test_groups_are_those_of_the_rule_done_slowly(seed):
    chance = np.random.default_rng(seed)
    count, people = int(chance.integers(1, 15)), People(3, seed, alike=0.5, line=0.15)
    voices = np.stack([people.voice(int(chance.integers(3))) for _ in range(count)]).astype(float)
    seconds = chance.uniform(0.5, 6, count)
    alike, pairs = voices @ voices.T, np.outer(seconds, seconds)
    np.fill_diagonal(alike, 0.5)
    np.fill_diagonal(pairs, np.where(chance.random(count) < 0.5, 0, seconds**2))
    fixed = [str(chance.choice(["", "", "", "S1", "S2"])) for _ in range(count)]
    labels = group(alike, pairs, seconds, OF, fixed)
    assert partition(labels) == set(map(frozenset, slowly(alike, pairs, seconds, OF, fixed)))


@pytest.mark.parametrize(("alike", "line"), [(0.5, 0.02), (0.6, 0.1), (0.7, 0.36), (0.35, 0.05)])
def test_two_voices_are_two_and_one_is_one_on_any_line(alike, line):
    for count in (1, 2, 4):
        people, speakers = People(count, count, alike, line), Speakers("correctable")
        order = [k % count for k in range(16)]
        heard = talk(speakers, Listener(), people, turns(order, 6.0)).whos()
        assert partition(heard) == partition(order)


def test_what_windows_are_to_each_other_is_the_median_of_segments_and_the_usual_before():
    assert scale([]).same == 0.55
    assert scale([0.3] * 9).same == 0.3 and scale([0.7] * 9 + [0.1]).same == 0.7


# -- correctable


def test_a_label_comes_at_once_and_little_speech_is_nobodys_yet():
    people, speakers = People(2), Speakers("correctable")
    first = speakers.hear("a", 0, samples(0.8), people.windows(0, samples(0.8), 0), samples(1.5))
    assert (first.speaker.id, first.speaker.name, first.told) == ("", "unknown", [])
    at = samples(3)
    shown = speakers.hear("b", at, at + samples(4), people.windows(at, at + samples(4), 0), at + samples(5))
    new, moved = shown.told
    assert new == Named("new", "S1") and (shown.speaker.id, shown.speaker.name) == ("S1", "S1")
    assert (moved.segment, moved.speaker.id, moved.reason) == ("a", "S1", "compared anew")


def test_partials_are_shown_with_the_nearest_and_change_nothing():
    people, speakers = People(2), Speakers("correctable")
    talk(speakers, Listener(), people, turns([0, 1]), finish=False)
    before = speakers.save()
    at = samples(20)
    assert speakers.guess("x", []).name == "unknown"
    assert speakers.guess("x", people.windows(at, at + samples(4), 1)).id == "S2"
    assert speakers.guess("x", people.windows(at, at + samples(4), 0)).id == "S1"
    stranger = People(3, 9)
    assert speakers.guess("x", stranger.windows(at, at + samples(4), 2)).name == "unknown"
    assert speakers.save() == before


def mixed_up():
    """Two persons of whom the first segments hold both, so that they begin as one."""
    people = People(2, 3)
    speakers, listener = Speakers("correctable"), Listener()
    both = people.windows(samples(1), samples(5), lambda at: int(at > samples(3)))
    listener.final("s0", 1, 5, speakers.hear("s0", samples(1), samples(5), both, samples(5.7)))
    return people, speakers, listener


def test_corrections_come_by_segment_and_an_id_is_never_given_twice():
    people, speakers, listener = mixed_up()
    talk(speakers, listener, people, turns([0, 1, 0, 1, 0, 1], at=6), begin=1)
    assert partition(listener.whos()[1:]) == partition([0, 1, 0, 1, 0, 1])
    new = [change.id for change in listener.log if isinstance(change, Named) and change.op == "new"]
    assert len(new) == len(set(new))


def test_an_id_that_was_anothers_all_along_is_told_as_merged():
    people, speakers, listener = People(4, 5), Speakers("correctable"), Listener()
    one, other = people.persons[0].copy(), people.persons[1].copy()

    def voice(degrees):  # a person who sounds otherwise by so much
        people.persons[0] = np.cos(np.radians(degrees)) * one + np.sin(np.radians(degrees)) * other
        return 0

    talk(speakers, listener, people, [(voice(0), 1, 5)], finish=False)
    talk(speakers, listener, people, [(voice(71), 6, 10)], begin=1, finish=False)
    assert listener.whos() == ["S1", "S2"]
    talk(speakers, listener, people, turns([voice(26)] * 8, at=12), begin=2)
    assert [c for c in listener.log if isinstance(c, Named) and c.op == "merge"] == [Named("merge", "S2", into="S1")]
    assert set(listener.whos()) == {"S1"}
    talk(speakers, listener, people, turns([2], at=60), begin=10)
    assert listener.who("s10") == "S3" and speakers.fix("s0", "S2")[0].id == "S1"


def test_no_merge_is_told_that_would_change_segments_beyond_the_horizon():
    merges = {}
    for horizon in (5.0, 3600.0):
        speakers, listener = Speakers("correctable", horizon_s=horizon), Listener()
        people = People(2, 5)
        talk(speakers, listener, people, turns([0, 1, 0]), finish=False)
        for unit in speakers._units:  # what was heard since has shown that all of it is one
            unit.voice = speakers._units[0].voice
        speakers._fresh = True
        listener.tell(speakers.due(samples(64)))
        merges[horizon] = [c.op for c in listener.log if isinstance(c, Named)]
    assert merges == {5.0: ["new", "new"], 3600.0: ["new", "new", "merge"]}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("policy", ["correctable", "delayed"])
def test_what_a_client_folds_is_what_is_held(policy, seed):
    people = People(4, seed, alike=0.45, line=0.12)
    speakers, listener = Speakers(policy), Listener()
    said = random_turns(seed, 60, 4)
    for number in range(0, 60, 6):
        talk(speakers, listener, people, said[number : number + 6], begin=number, finish=False)
        for unit in speakers._units:
            if unit.told:
                assert listener.who(unit.segment) == speakers._resolved(unit.told)
    given = [c.id for c in listener.log if isinstance(c, Named) and c.op == "new"]
    assert given == [f"S{k}" for k in range(1, len(given) + 1)]


@pytest.mark.parametrize("horizon", [0.0, 10.0, 3600.0])
def test_nothing_is_told_of_segments_beyond_the_horizon(horizon):
    people, speakers, listener = People(3, 1, 0.4, 0.1), Speakers("correctable", horizon_s=horizon), Listener()
    brief = [*((k % 3, 2.0 * k, 2.0 * k + 0.8) for k in range(6)), (0, 12.4, 14.9)]
    ended, second = {}, 0
    for number, (person, start, end) in enumerate(brief + [(p, a + 20, b + 20) for p, a, b in random_turns(2, 60, 3)]):
        while second < end:
            second += 1
            told = speakers.due(samples(second))
            listener.tell(told)
            assert all(second - ended[c.segment] <= horizon + 1 for c in told if isinstance(c, Moved))
        talk(speakers, listener, people, [(person, start, end)], begin=number, finish=False)
        ended[f"s{number}"] = end
    corrected = {c.segment for c in listener.log if isinstance(c, Moved)}
    assert ("s0" in corrected) == (horizon == 3600) and bool(corrected) == bool(horizon)
    if not horizon:
        assert not [c for c in listener.log if isinstance(c, Named) and c.op == "merge"]


# -- delayed


def test_delayed_is_analysed_then_decided_in_time_and_never_changed():
    people, speakers, listener = People(3, 1, 0.45, 0.1), Speakers("delayed", decide_s=2.5), Listener()
    assert speakers.guess("x", people.windows(0, samples(3), 0)).name == "analysing"
    decided, waits = {}, {}
    for number, (person, start, end) in enumerate(random_turns(7, 80, 3)):
        a, b = samples(start), samples(end)
        now = b + samples(0.7)
        told = speakers.due(now)
        assert all(isinstance(c, Moved) or c.op == "new" for c in told)
        shown = speakers.hear(f"s{number}", a, b, people.windows(a, b, person), now)
        for change in [*told, *shown.told]:
            if isinstance(change, Moved):
                assert change.segment not in decided and change.speaker.name != "analysing"
                decided[change.segment] = change.speaker
                del waits[change.segment]
        if shown.speaker.name == "analysing":
            waits[f"s{number}"] = b + samples(2.5)
        else:
            decided[f"s{number}"] = shown.speaker
        assert all(at > now for at in waits.values())
        listener.final(f"s{number}", start, end, shown)
    for change in speakers.end(now):
        assert isinstance(change, Named) or decided.setdefault(change.segment, change.speaker) is change.speaker
    assert len(decided) == 80


def test_what_is_sure_is_decided_at_once():
    people, speakers, listener = People(2, alike=0.8), Speakers("delayed", decide_s=2.0), Listener()
    talk(speakers, listener, people, turns([0, 1, 0, 1, 0], gap=2.5), finish=False)
    at_once = [entry[1].id for entry in listener.log if isinstance(entry, tuple) and entry[1].id]
    assert at_once == ["S1", "S2", "S1"]
    speakers.end(samples(60))
    assert partition([u.told for u in speakers._units]) == partition([0, 1, 0, 1, 0])


def test_parts_of_one_segment_are_decided_together():
    people, speakers = People(2), Speakers("delayed", decide_s=2.0)
    now = samples(40)
    for number in range(4):
        a, b = samples(4.0 * number), samples(4.0 * number + 4)
        shown = speakers.hear(f"s{number}", a, b, people.windows(a, b, number % 2), now)
        assert (shown.speaker.name, shown.told) == ("analysing", [])
    assert [c.segment for c in speakers.due(now + 1) if isinstance(c, Moved)] == ["s0", "s1", "s2", "s3"]


# -- enrolled


def enrolled(people, names):
    known = []
    for person, name in enumerate(names):
        voices = people.windows(0, samples(12), person)
        mean, seconds, alike, _ = mean_within(voices, 0, samples(12))
        known.append(Known(name, mean, alike, seconds))
    return known


def test_enrolled_voices_have_their_names_at_once_and_nobody_else_has_one():
    people = People(4, 2)
    speakers, listener = Speakers("enrolled", known=enrolled(people, ["法官", "原告", "被告"])), Listener()
    order = [0, 1, 2, 3, 0, 3, 2, 1]
    talk(speakers, listener, people, turns(order))
    assert listener.whos() == [["法官", "原告", "被告", "unknown"][k] for k in order]
    assert not [c for c in listener.log if isinstance(c, Moved)]
    assert {c.name for c in listener.log if isinstance(c, Named)} == {"法官", "原告", "被告"}


def test_a_name_that_a_partial_was_shown_with_stays():
    people = People(2, 4)
    speakers = Speakers("enrolled", known=enrolled(people, ["Ann", "Bob"]))
    one = people.windows(0, samples(4), 0)
    assert speakers.guess("a", one[:1]).name == "analysing" and speakers.guess("a", []).name == "analysing"
    assert speakers.guess("a", one).name == "Ann"
    other = one + people.windows(samples(4), samples(16), 1)
    assert speakers.guess("a", other).name == "Ann"
    speakers = Speakers.restored(msgspec.msgpack.decode(msgspec.msgpack.encode(speakers.save())), speakers.known)
    assert speakers.hear("a", 0, samples(16), other, samples(17)).speaker.name == "Ann"
    assert speakers.hear("b", 0, samples(16), other[4:], samples(18)).speaker.name == "Bob"


def test_a_session_that_goes_on_knows_whom_it_knew_at_its_begin():
    people = People(3, 4)
    known = enrolled(people, ["Ann", "Bob", "Cid"])
    speakers = Speakers("enrolled", known=known[1:])
    talk(speakers, Listener(), people, turns([1]), finish=False)
    later = Speakers.restored(speakers.save(), known[:2])
    assert talk(later, Listener(), people, turns([0, 1, 2], at=20), begin=1).whos() == ["unknown", "Bob", "unknown"]


def test_enrolled_voices_name_the_speakers_of_other_policies_once():
    people = People(3, 6)
    known = enrolled(people, ["Ann"])
    for policy in ("correctable", "delayed"):
        listener = talk(Speakers(policy, known=known), Listener(), people, turns([1, 0, 1, 0, 2, 0]))
        named = {c.name for c in listener.log if isinstance(c, Named) and c.name}
        assert named == {"Ann"} and listener.whos().count("Ann") == 3


# -- none, a person's word, and what is bounded


def test_none_wants_nothing_and_says_nothing():
    speakers = Speakers("none")
    assert speakers.wants(0, samples(9), True) == [] and speakers.guess("a", []).name == "unknown"
    said = words(0, 9)
    assert speakers.split(said, [], 0, samples(9)) == [Run(0, len(said), 0, samples(9))]
    shown = speakers.hear("a", 0, samples(9), [], samples(10))
    assert (shown.speaker.id, shown.speaker.name, shown.told) == ("", "unknown", [])
    assert speakers.due(samples(99)) == speakers.end(samples(99)) == []


def test_without_voices_a_segment_is_nobodys():
    for policy in ("correctable", "delayed", "enrolled"):
        speakers = Speakers(policy)
        shown = speakers.hear("a", 0, samples(4), [], samples(5))
        assert shown.speaker.name == "unknown" and speakers.end(samples(20)) == []


@pytest.mark.parametrize("policy", ["correctable", "delayed"])
def test_what_a_person_says_stands_and_counts_for_others(policy):
    people, speakers, listener = People(2), Speakers(policy), Listener()
    talk(speakers, listener, people, turns([0, 1]), finish=False)
    speaker, told = speakers.fix("s0", "Judge")
    assert told == [Named("new", speaker.id, "Judge")] and speaker.name == "Judge"
    again, nothing = speakers.fix("s0", "Judge")
    assert (again.id, nothing) == (speaker.id, []) and speakers.fix("s0", speaker.id)[0] == again
    listener.tell(told)
    before = len(listener.log)
    talk(speakers, listener, people, turns([0, 1, 0, 1], at=20), begin=2)
    assert [listener.who(f"s{k}") for k in (2, 4)] == ["Judge", "Judge"]
    assert listener.who("s3") == listener.who("s5") != "Judge"
    assert "s0" not in {c.segment for c in listener.log[before:] if isinstance(c, Moved)}
    assert speakers.fix("s99", "Judge")[0].id == speaker.id


def test_what_a_person_says_stands_against_the_voice():
    people, speakers, listener = People(2), Speakers("correctable"), Listener()
    talk(speakers, listener, people, [*turns([0, 1, 1]), (0, 16, 16.8)], finish=False)
    assert speakers.fix("s0", "S2")[0].id == speakers.fix("s3", "S2")[0].id == "S2"
    told = len(listener.log)
    talk(speakers, listener, people, turns([1, 1, 0, 0], at=20), begin=4)
    assert {unit.told for unit in speakers._units[:4]} == {unit.id for unit in speakers._units[:4]} == {"S2"}
    assert [listener.who(f"s{k}") for k in (4, 5, 6, 7)] == ["S2", "S2", "S3", "S3"]
    assert not {"s0", "s1", "s2", "s3"} & {c.segment for c in listener.log[told:] if isinstance(c, Moved)}


def test_names_are_bounded():
    speakers = Speakers("correctable")
    for number in range(2 * IDS_MAX):
        speakers.fix("none", f"name {number}")
    with pytest.raises(TooLarge, match="at most 512"):
        speakers.fix("none", "one more")


@pytest.mark.parametrize("policy", ["correctable", "delayed", "enrolled"])
def test_a_day_of_speech_is_held_in_bounds_and_still_told_apart(policy, monkeypatch):
    monkeypatch.setattr(units, "UNITS_MAX", 48)
    people = People(3, 1)
    known = enrolled(people, ["a", "b", "c"]) if policy == "enrolled" else []
    speakers, listener = Speakers(policy, known=known), Listener()
    order = np.random.default_rng(0).integers(3, size=300).tolist()
    talk(speakers, listener, people, turns(order, 3.0))
    assert len(speakers._units) <= 48 and len(msgspec.msgpack.encode(speakers.save())) < 700 * 48
    assert partition(listener.whos()) == partition(order)


# -- the same, however it is called


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["correctable", "delayed", "enrolled"]), st.integers(0, 10**6), st.sampled_from([0, 16]), st.data()
)
def test_saved_and_restored_anywhere_and_asked_at_any_time_all_is_the_same(policy, seed, early, data):
    rules.EARLY = early
    known = enrolled(People(3, seed), ["a", "b"])
    said = random_turns(seed, 14, 3)
    plain = talk(Speakers(policy, known=known), Listener(), People(3, seed, 0.45, 0.15), said)
    chance = np.random.default_rng(seed)
    people, listener, speakers = People(3, seed, 0.45, 0.15), Listener(), Speakers(policy, known=known)
    at = 0
    for number, turn in enumerate(said):
        for now in np.sort(chance.integers(at, samples(turn[2] + 0.7), size=5)).tolist():
            listener.tell(speakers.due(now))
        at = samples(turn[2] + 0.7)
        if data.draw(st.booleans()):
            speakers = Speakers.restored(msgspec.msgpack.decode(msgspec.msgpack.encode(speakers.save())), known)
        talk(speakers, listener, people, [turn], begin=number, finish=False)
    listener.tell(speakers.end(samples(said[-1][2] + 1)))
    rules.EARLY = 16
    assert listener.log == plain.log


@pytest.mark.parametrize("policy", ["correctable", "delayed"])
def test_what_is_due_is_told_with_a_segment_if_nobody_asked_before(policy, monkeypatch):
    monkeypatch.setattr(rules, "EARLY", 0)
    said, known = random_turns(3, 20, 3), []
    asked = talk(Speakers(policy), Listener(), People(3, 3, 0.45, 0.15), said, finish=False)
    speakers, people, listener = Speakers(policy), People(3, 3, 0.45, 0.15), Listener()
    for number, (person, start, end) in enumerate(said):
        a, b = samples(start), samples(end)
        shown = speakers.hear(f"s{number}", a, b, people.windows(a, b, person), b + samples(0.7))
        listener.final(f"s{number}", start, end, shown)
        known += [c for c in shown.told if isinstance(c, Moved)]
    assert known and listener.log == asked.log


def test_old_units_of_one_speaker_are_put_together_by_what_they_weigh(monkeypatch):
    monkeypatch.setattr(units, "UNITS_MAX", 4)
    one, other = (np.array(voice, np.float16) for voice in ([1.0, 0.0], [0.0, 1.0]))
    made = [units.Unit(f"{k}", k, k + 1, (one, other)[k], (2.0, 6.0)[k], 0.5, 2.0, id="S1") for k in range(2)]
    made += [units.Unit(f"{k}", k, k + 1, one, 3.0, 0.5, 2.0, id="S1") for k in (2, 3)]
    first, *rest = units.condensed(made)
    assert rest == made[2:] and (first.segment, first.start, first.end, first.weight) == ("", 0, 2, 8.0)
    assert first.voice.tolist() == [0.25, 0.75] and first.alike == pytest.approx(0.5 * (0.25**2 + 0.75**2))
    assert units.condensed(made[:3]) == made[:3]


def test_everything_is_compared_each_eight_seconds_of_audio_if_anybody_spoke(monkeypatch):
    monkeypatch.setattr(rules, "EARLY", 0)
    people, speakers, listener = mixed_up()
    talk(speakers, listener, people, turns([0, 1], at=6), begin=1, finish=False)
    speakers = Speakers.restored(speakers.save())
    assert not [c for c in listener.log if isinstance(c, Moved)] and speakers.due(AGAIN) == []
    assert [c.segment for c in speakers.due(2 * AGAIN) if isinstance(c, Moved)] == ["s1"]
    assert speakers.due(2 * AGAIN) == [] and speakers.due(9 * AGAIN) == []


def test_the_first_segments_are_compared_with_each_that_comes():
    people, speakers, listener = mixed_up()
    talk(speakers, listener, people, turns([0, 1], at=6), begin=1, finish=False)
    assert [c.segment for c in listener.log if isinstance(c, Moved)] == ["s1"]
    assert listener.who("s1") != listener.who("s2") and speakers.due(2 * AGAIN) == []


def test_ids_go_to_who_has_most_of_their_speech():
    assert match([0, 0, 1], ["S1", "S2", "S2"], [5, 1, 3], [False] * 3) == {0: "S1", 1: "S2"}
    assert match([0, 0, 1], ["S1", "S1", "S1"], [1, 1, 3], [False] * 3) == {1: "S1"}
    assert match([0, 0, 1], ["S1", "S1", "S1"], [1, 1, 3], [True, False, False]) == {1: "S1"}
    assert match([0, 1], ["S2", "S1"], [2, 2], [False] * 2) == {1: "S1", 0: "S2"}
    assert match([0], [""], [2], [False]) == {}
    assert match([0, 0, 1], ["S2", "S1", "S2"], [1, 5, 3], [True, False, False]) == {0: "S1", 1: "S2"}
    assert match([0, 0, 1], ["S2", "S1", "S2"], [3, 5, 3], [True, False, False]) == {0: "S2"}


@pytest.mark.parametrize("policy", ["correctable", "delayed", "enrolled"])
def test_who_is_shown_where_two_speak_at_once_is_flagged(policy):
    people, listener = People(2), Listener()
    speakers = Speakers(policy, known=enrolled(people, ["Ann", "Bob"]))
    seen = looked(
        [(samples(18), samples(28)), (samples(28), samples(38))],
        [Spoken([(samples(3), samples(3.5))], []), Spoken([(samples(6.95), samples(8))], [])],
    )
    assert overlaps(seen) == [(samples(21), samples(21.5)), (samples(34.95), samples(36))]
    for number, (start, flagged) in enumerate([(20, True), (25, False), (30, False), (35, True)]):
        edges = samples(start), samples(start + 4)
        if number == 2:
            speakers = Speakers.restored(speakers.save(), speakers.known)
        listener.tell(speakers.due(edges[1]))
        heard = people.windows(*edges, number % 2)
        shown = speakers.hear(f"s{number}", *edges, heard, samples(start + 4.5), seen)
        listener.final(f"s{number}", start, start + 4, shown)
        assert shown.speaker.overlap == flagged
    listener.tell(speakers.end(samples(60)))
    lines = [listener.transcript.lines[f"s{number}"] for number in range(4)]
    assert [line.speaker.overlap for line in lines] == [True, False, False, True], "also once they are corrected"
    assert len({line.speaker.id for line in lines}) == 2
    for start, end, flagged in [(31.0, 31.09, False), (31.0, 31.1, True)]:  # less may be a change of turn
        spoken = Spoken([(samples(start), samples(end))], [])
        shown = speakers.hear("x", samples(30), samples(34), [], samples(70), looked([(0, samples(40))], [spoken]))
        assert shown.speaker.overlap == flagged


def test_where_one_gives_way_to_another_is_where_turns_say_so_and_else_where_voices_do():
    def seen(*turns):
        """By one look at 10 s from second 20 on, of who speaks from .. to."""
        alone = [((samples(a - 20), samples(b - 20)), who) for a, b, who in turns]
        return looked([(samples(20), samples(30))], [Spoken([], alone)])

    assert switches(seen()) == switches(seen((21, 29, 2))) == switches([]) == []
    assert switches(seen((21, 24, 0), (24.2, 26, 0), (26.4, 29, 1))) == [pytest.approx(samples(26.2), abs=1)]
    assert switches(seen((21, 24, 0), (24, 24.5, 1), (24.5, 29, 0))) == [], "a word between is nobody's turn"
    people = People(2)
    edges, said = (samples(20), samples(30)), words(20, 30)
    same = people.windows(*edges, 0)
    turn = people.windows(*edges, lambda at: int(at > samples(25)))
    assert len(split(said, same, *edges, OF)) == 1
    by_turns = split(said, same, *edges, OF, (), seen((20, 24, 0), (24, 30, 1)))
    assert [run.start for run in by_turns] == [edges[0], pytest.approx(samples(24), abs=samples(0.2))]
    by_voices = split(said, turn, *edges, OF, (), seen((20, 30, 0)))
    assert [run.start for run in by_voices] == [edges[0], pytest.approx(samples(25), abs=samples(0.5))]
    by_both = split(said, turn, *edges, OF, (), seen((20, 24.7, 0), (24.7, 30, 1)))
    assert [run.start for run in by_both] == [edges[0], pytest.approx(samples(24.7), abs=samples(0.2))]


def test_a_moment_is_looked_at_where_it_is_nearer_the_middle():
    windows = [(0, LOOK), (LOOK_HOP, LOOK_HOP + LOOK)]
    first = Spoken([], [((0, samples(6)), 0), ((samples(6), samples(8.5)), 1), ((samples(8.5), LOOK), 0)])
    second = Spoken([], [((0, samples(1)), 0), ((samples(1), samples(2)), 1), ((samples(3.6), LOOK), 2)])
    assert switches(looked(windows, [first, second])) == [samples(6), samples(7.8)]
    for one, other in [(7.52, 7.46), (7.46, 7.52)]:  # at the border, by each a little to another side
        halves = [Spoken([], [((0, samples(at)), 0), ((samples(at), LOOK), 1)]) for at in (one, other - 5)]
        assert switches(looked(windows, halves)) == [samples(7.46)]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda each: (each[0], sum(each)))))
def test_united_spans_cover_what_any_covers_once(spans):
    made = united(spans)
    assert all(b[0] > a[1] for a, b in itertools.pairwise(made))
    covered = {at for start, end in spans for at in range(start, end)}
    assert {at for start, end in made for at in range(start, end)} == covered
    assert within(made, 10, 50) == len([at for at in covered if 10 <= at < 50])


@given(st.integers(0, 10**6), st.integers(0, 40 * RATE), st.lists(st.integers(0, 40 * RATE), max_size=12))
def test_looks_do_not_depend_on_how_the_segment_grew_and_leave_nothing_out(start, length, cuts):
    whole = looks().wanted(start, start + length, closed=True)
    assert grown(looks(), start, length, cuts) == whole
    assert all(start <= a < b <= start + length and b - a <= 10 * RATE for a, b in whole)
    if length >= LEAST:
        assert length - OVERLAP <= within(united(whole), start, start + length) <= length
