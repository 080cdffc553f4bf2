"""Rankings: best first, an id is answered once, strangers are welcome, people's names stay out of every file."""

import asyncio

import numpy as np
import pytest
from flow_house import DEFINITION, NOW, bytes_of, full_disk, house, rank

from millstream.errors import BadInput, Conflict, NotFound, TooLarge
from millstream.features import Entities
from millstream.flows.recommend import RecommendLimits
from millstream.guard.pii import pseudonym
from millstream.models.manifest import Manifest
from millstream.models.online import Ftrl, Settings


def play(folder, scene, limits=None):
    async def run():
        async with house(folder, limits) as made:
            return await scene(made)

    return asyncio.run(run())


def test_candidates_come_best_first_with_the_scores_that_were_logged(tmp_path):
    async def scene(made):
        ranked = await made.recommend.call(rank(candidates=[f"i{n}" for n in range(9)]))
        (event,) = made.served()
        logged = dict(zip(event.candidates, np.frombuffer(event.scores, np.float32).tolist(), strict=True))
        assert [c.item for c in ranked.items] == sorted(logged, key=lambda item: -logged[item])
        assert {c.item: c.score for c in ranked.items} == logged and len(set(logged.values())) > 1
        assert (ranked.version, ranked.model) == (event.version, event.model) == ("1@0", "ranker")
        tokens = np.frombuffer(event.tokens, np.uint32).reshape(9, -1)
        assert np.array_equal(tokens, Entities(DEFINITION).rows("u", event.candidates))
        assert event.definition == DEFINITION.hash and event.event_time == NOW

    play(tmp_path, scene)


def test_ties_stay_in_the_order_in_which_they_were_given(tmp_path):
    async def scene(made):
        flat = Ftrl(Settings(bits=10), DEFINITION.width).dump()
        made.repository.put("flat", Manifest(format="ftrl", file="model.ftrl"), {"model.ftrl": flat})
        await made.engine.refresh()
        candidates = [f"i{n * 7 % 20}" for n in range(20)]
        ranked = await made.recommend.call(rank(model="flat", candidates=candidates))
        assert [(c.item, c.score) for c in ranked.items] == [(item, 0.5) for item in candidates]

    play(tmp_path, scene)


def test_strangers_are_ranked_too(tmp_path):
    async def scene(made):
        ranked = await made.recommend.call(rank(user="never seen", candidates=("nor this", "nor that")))
        assert sorted(c.item for c in ranked.items) == ["nor that", "nor this"]
        assert all(0 < c.score < 1 for c in ranked.items)

    play(tmp_path, scene)


def test_an_id_is_answered_alike_and_logged_once(tmp_path):
    async def scene(made):
        first = await made.recommend.call(rank())
        again = await made.recommend.call(rank())
        assert first == again
        twins = await asyncio.gather(*(made.recommend.call(rank(id="r2")) for _ in range(20)))
        assert all(twin == twins[0] for twin in twins)
        assert [event.request for event in made.served()] == ["r1", "r2"]
        assert made.submitted == 2

    play(tmp_path, scene)


OTHERS = [{"user": "v"}, {"model": "flat"}, {"candidates": ("i7", "i8")}, {"candidates": ("i3", "i2", "i1")}]


@pytest.mark.parametrize("other", OTHERS)
def test_an_id_of_another_request_is_refused_under_way_answered_and_recalled(tmp_path, other):
    async def answered(made):
        under_way = made.recommend.call(rank())
        for _ in range(2):
            with pytest.raises(Conflict, match="'r1' is already used for another request"):
                made.recommend.call(rank(**other))
            await under_way
        assert len(made.served()) == made.submitted == 1

    async def recalled(made):
        made.recommend.recall(made.log.reader("served"), 0)
        with pytest.raises(Conflict, match="already used"):
            made.recommend.call(rank(**other))
        assert (await made.recommend.call(rank(model="ranker"))).id == "r1", "the model by name or by default: the same"
        assert made.submitted == 0

    play(tmp_path, answered)
    play(tmp_path, recalled)


def test_a_twin_that_goes_away_does_not_take_the_answer_along(tmp_path):
    async def scene(made):
        gone, stays = made.recommend.call(rank()), made.recommend.call(rank())
        gone.cancel()
        assert (await stays).id == "r1"
        assert len(made.served()) == 1

    play(tmp_path, scene)


def test_a_failed_id_may_be_asked_again(tmp_path):
    async def scene(made):
        with pytest.raises(NotFound):
            await made.recommend.call(rank(model="nowhere"))
        assert (await made.recommend.call(rank())).id == "r1"

    play(tmp_path, scene)


def test_a_restart_recalls_what_was_answered(tmp_path):
    async def before(made):
        return [await made.recommend.call(rank(id=f"r{n}", user=f"u{n}")) for n in range(30)]

    async def after(made):
        made.recommend.recall(made.log.reader("served"), 0)
        assert [await made.recommend.call(rank(id=f"r{n}", user=f"u{n}")) for n in range(10, 30)] == answers[10:]
        assert made.submitted == 0 and len(made.served()) == 30
        await made.recommend.call(rank(id="r9", user="u9"))
        assert made.submitted == 1, "no more is remembered than the bound says"

    answers = play(tmp_path, before)
    play(tmp_path, after, RecommendLimits(answers_kept=20))


def test_the_memory_of_answers_is_bounded(tmp_path):
    async def scene(made):
        for number in (1, 2, 3, 3, 2, 1):
            await made.recommend.call(rank(id=f"r{number}"))
        assert [event.request for event in made.served()] == ["r1", "r2", "r3", "r1"]

    play(tmp_path, scene, RecommendLimits(answers_kept=2))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"candidates": ()}, "candidates is empty"),
        ({"candidates": ("a", "b", "a")}, "twice"),
        ({"candidates": tuple(map(str, range(11)))}, "at most 10"),
        ({"candidates": ("a", "")}, "1 to 512 bytes"),
        ({"candidates": ("a", "é" * 257)}, "of 514"),
        ({"user": ""}, "must not be empty"),
        ({"user": "x" * 513}, "of 513"),
        ({"id": ""}, "must not be empty"),
        ({"id": "x" * 513}, "of 513"),
        ({"event_time": float("nan")}, "unix seconds"),
        ({"event_time": float("inf")}, "unix seconds"),
        ({"event_time": -5.0}, "before 1970; send unix seconds"),
        ({"event_time": NOW * 1000}, "unix seconds"),
        ({"id": "\ud800"}, "UTF-8"),
    ],
)
def test_what_cannot_be_used_is_refused_with_words(tmp_path, bad, words):
    async def scene(made):
        with pytest.raises((BadInput, TooLarge), match=words):
            await made.recommend.call(rank(**bad))
        assert made.served() == []

    play(tmp_path, scene, RecommendLimits(candidates_max=10))


def test_the_past_may_be_replayed(tmp_path):
    async def scene(made):
        await made.recommend.call(rank(event_time=5.0))
        assert made.served()[0].event_time == 5.0

    play(tmp_path, scene)


def test_an_address_as_a_name_reaches_no_file_and_still_is_one_person(tmp_path):
    async def scene(made):
        for number, user in enumerate(["jane.doe@example.org", "jane.doe@example.org", "john@example.org"]):
            await made.recommend.call(rank(id=f"r{number}", user=user))
        return made.served()

    first, second, other = play(tmp_path, scene)
    assert first.user == second.user == pseudonym("jane.doe@example.org") != other.user
    assert first.tokens == second.tokens != other.tokens
    known = Entities(DEFINITION).rows(first.user, first.candidates)
    assert first.tokens == known.tobytes(), "what is known of this person stands under the pseudonym"
    content = bytes_of(tmp_path)
    assert first.user.encode() in content
    for name in (b"jane.doe", b"john@", b"example.org"):
        assert name not in content


def test_a_full_disk_does_not_stop_answers_and_the_gap_is_counted_and_said_once(tmp_path, monkeypatch, caplog):
    async def scene(made):
        with full_disk(monkeypatch, made.log.root / "served"):
            for number in range(3):
                assert (await made.recommend.call(rank(id=f"r{number}"))).items
        assert made.meter.sum("millstream_served_missing_total") == 3
        assert caplog.text.count("without a served event") == 1
        await made.recommend.call(rank(id="r9"))
        assert [event.request for event in made.served()] == ["r9"]

    play(tmp_path, scene)


def test_now_and_then_chance_puts_one_first_and_the_log_says_how_likely_that_was(tmp_path):
    share, count, asked = 0.25, 4, 2000

    async def scene(made):
        return [
            await made.recommend.call(rank(id=f"q{n}", candidates=("a", "b", "c", "d"))) for n in range(asked)
        ], made.served()

    answers, events = play(tmp_path, scene, RecommendLimits(explore=share))
    firsts = dict.fromkeys("abcd", 0)
    for ranked, event in zip(answers, events, strict=True):
        scores, likely = (np.frombuffer(field, np.float32) for field in (event.scores, event.propensities))
        best = int(np.argmax(scores))
        assert likely.sum() == pytest.approx(1.0) and likely.min() == pytest.approx(share / count)
        assert int(np.argmax(likely)) == best
        expected = sorted(range(count), key=lambda i: -scores[i])
        if event.explored >= 0:
            expected.remove(event.explored)
            expected.insert(0, event.explored)
        assert [one.item for one in ranked.items] == [event.candidates[i] for i in expected]
        firsts[ranked.items[0].item] += 1
    told = dict(zip("abcd", np.frombuffer(events[0].propensities, np.float32).tolist(), strict=True))
    for item, times in firsts.items():  # five binomial standard deviations
        assert abs(times - asked * told[item]) < 5 * (asked * told[item] * (1 - told[item])) ** 0.5, item


def test_a_restart_recalls_what_was_explored(tmp_path):
    async def scene(made):
        return [await made.recommend.call(rank(id=f"q{n}")) for n in range(40)]

    first = play(tmp_path, scene, RecommendLimits(explore=0.5))

    async def again(made):
        made.recommend.recall(made.log.reader("served"), 0)
        found = [await made.recommend.call(rank(id=f"q{n}")) for n in range(40)]
        assert len(made.served()) == 40 and any(event.explored >= 0 for event in made.served())
        return found

    assert play(tmp_path, again, RecommendLimits(explore=0.0)) == first
