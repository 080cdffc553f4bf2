"""Each step of re-ranking by itself: its formula, its examples, and what it does with what is not known."""

import math

import numpy as np
import pytest
from rerank_house import NAN, NOW, slate

from millstream.flows.rerank import Rules, narrow
from millstream.flows.rerank.diversity import Dpp, Mmr, Window
from millstream.flows.rerank.exposure import Ads, Fresh
from millstream.flows.rerank.sift import Blocks, Boost, NearDuplicates, Newer, Pins, Seen
from millstream.flows.rerank.step import units


def listed(made, n, *steps):
    return Rules(steps).order(made, n).places.tolist()


def dropped(made, *steps):
    return {name: gone.tolist() for name, gone in Rules(steps).order(made, 100).dropped.items()}


def test_seen_and_clicked_lately_are_dropped():
    made = slate([1, 2, 3, 4], seen=[1, 0, 0, 0], clicked_at=[NAN, NOW - 10, NOW - 1000, NAN])
    assert dropped(made, Seen(clicked_s=100)) == {"seen": [0, 1]}
    assert dropped(made, Seen(shown=False, clicked_s=5000)) == {"seen": [1, 2]}
    assert dropped(slate([1, 2]), Seen()) == {}


def test_of_near_duplicates_the_best_stays_or_the_pinned():
    made = slate([1, 3, 2, 5, 5], near=[0, 0, 0, -1, -1])
    assert dropped(made, NearDuplicates()) == {"near_duplicates": [0, 2]}
    assert dropped(made, NearDuplicates(), Pins(items={"i0": 1})) == {"near_duplicates": [1, 2]}


def test_near_duplicates_are_told_by_embeddings_where_no_groups_are_known():
    turn = [[math.cos(angle), math.sin(angle)] for angle in (0.0, 0.1, 0.2, 1.0)]
    made = slate([1, 3, 2, 5, 4, 4], embedding=[*turn, [NAN, 0], [NAN, 0]])
    # 1 is the best of three in a row: it stays, both beside it go; what has no embedding stays
    assert dropped(made, NearDuplicates(likeness=0.99)) == {"near_duplicates": [0, 2]}
    assert dropped(slate([3, 2, 1], embedding=turn[:3]), NearDuplicates(likeness=0.99)) == {"near_duplicates": [1]}


def test_blocked_items_never_stand_not_even_pinned():
    made = slate([1, 2, 3])
    assert listed(made, 3, Pins(items={"i1": 1}), Blocks(items=("i1", "other"))) == [2, 0]


def test_a_boost_moves_what_has_the_value_whatever_the_sign_of_scores():
    for scores in ([1.0, 0.9, 0.8], [-0.8, -0.9, -1.0]):
        made = slate(scores, category=[0, 0, 7], codes={"category": {"news": 7}})
        assert listed(made, 3, Boost(value="news", factor=1.5)) == [2, 0, 1]
        assert listed(made, 3, Boost(value="sport", factor=1.5)) == [0, 1, 2]
    order = Rules((Boost(value="news", factor=0.5),)).order(slate([1, 2], category=[0, 7], codes=made.codes), 2)
    assert order.reasons == ["score", "score boost:-1"]
    assert Rules((Boost(value="news"),)).named == {"category": {"news"}}


def test_newer_items_are_lifted_by_half_after_half_of_their_life():
    made = slate([0.0, 0.0, 2.0, 2.0], created=[NOW - 100, NOW, NAN, NAN])
    order = Rules((Newer(weight=1.5, half_life_s=100),)).order(made, 4)
    assert order.places.tolist() == [2, 3, 1, 0]
    assert order.reasons[2:] == ["score newer:+1.5", "score newer:+0.75"]  # a spread is 1 here


def test_mmr_is_its_formula():
    random = np.random.default_rng(5)
    made = slate(random.normal(size=60), embedding=random.normal(size=(60, 8)))
    vectors, scores = units(made).astype(np.float64), made.scores.astype(np.float64)
    places, left = [], set(range(60))
    while len(places) < 25:

        def worth(place):
            like = max((max(0.0, float(vectors[place] @ vectors[other])) for other in places), default=0.0)
            return scores[place] - 0.8 * scores.std() * like

        places.append(max(sorted(left), key=worth))
        left.remove(places[-1])
    assert listed(made, 25, Mmr(weight=0.8)) == places
    assert listed(made, 25) != places


def test_mmr_by_category_says_what_it_took():
    made = slate([3.0, 3.0, 1.0], category=[4, 4, 5])
    order = Rules((Mmr(by="category", weight=3.0),)).order(made, 3)
    assert order.places.tolist() == [0, 2, 1]
    assert order.reasons == ["score", "score", "score diverse:-2.83"]
    assert listed(slate([3.0, 3.0, 1.0], category=[-1, -1, 5]), 3, Mmr(by="category", weight=3.0)) == [0, 1, 2]


def test_units_make_likeness_exact():
    random = np.random.default_rng(3)
    vectors = units(slate(np.zeros(50), embedding=random.normal(size=(50, 200))))
    exact = [[sum(int(a * 2048) * int(b * 2048) for a, b in zip(x, y, strict=True)) for y in vectors] for x in vectors]
    assert ((vectors @ vectors.T).astype(np.float64) * 2.0**22 == np.array(exact, np.float64)).all()
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 2e-3


@pytest.mark.parametrize("theta", [0.1, 0.5, 0.9])
def test_dpp_takes_what_adds_most_to_the_determinant(theta):
    random = np.random.default_rng(int(theta * 10))
    made = slate(random.normal(size=40), embedding=random.normal(size=(40, 12)))
    vectors, scores = units(made).astype(np.float64), made.scores.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    quality = np.exp(theta / (2 * (1 - theta)) * scores / scores.std())
    kernel = quality[:, None] * (vectors @ vectors.T) * quality
    places = []
    while len(places) < 10:
        able = [place for place in range(40) if place not in places]
        sizes = [np.linalg.slogdet(kernel[np.ix_([*places, one], [*places, one])])[1] for one in able]
        places.append(able[int(np.argmax(sizes))])
    assert listed(made, 10, Dpp(theta=theta)) == places


def test_dpp_goes_on_by_score_when_nothing_adds_anything():
    made = slate([5, 4, 3, 2, 1], embedding=[[1, 0], [1, 0], [0, 1], [NAN, 0], [1, 1]])
    assert listed(made, 5, Dpp(theta=0.3)) == [0, 2, 3, 1, 4]


def test_embeddings_of_few_bytes_do():
    random = np.random.default_rng(8)
    vectors = random.integers(-127, 128, (30, 16))
    wide, narrow = (slate(np.linspace(2, 1, 30), embedding=vectors) for _ in range(2))
    narrow.columns["embedding"] = vectors.astype(np.int8)
    for step in (Mmr(weight=3.0), Dpp(theta=0.3)):
        assert listed(narrow, 20, step) == listed(wide, 20, step) != list(range(20))


def test_narrow_embeddings_are_alike_as_wide_ones_are():
    vectors = np.random.default_rng(9).normal(size=(40, 64)) * np.logspace(-20, 20, 40)[:, None]
    vectors[3], vectors[4, 0], vectors[5, 1] = 0.0, NAN, np.inf
    packed = narrow(vectors.astype(np.float32))
    assert packed.dtype == np.int8
    assert not packed[3:6].any()
    wide, small = (units(slate(np.zeros(40), embedding=one)) for one in (np.nan_to_num(vectors, posinf=0.0), packed))
    rest = [place for place in range(40) if place not in (3, 4, 5)]
    assert np.abs(wide @ wide.T - small @ small.T)[np.ix_(rest, rest)].max() < 0.01
    assert narrow(np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert narrow(np.zeros((2, 0), np.float32)).shape == (2, 0)


def test_a_window_looks_ahead_to_what_is_pinned():
    made = slate([6, 5, 4, 3, 2, 1], category=[0, 0, 1, 1, 2, 0])
    order = Rules((Window(most=1, window=3), Pins(items={"i5": 3}))).order(made, 6)
    # i5 stands at 3, so nothing of its category stands at 1, 2, 4 or 5, as long as there is another
    assert order.places.tolist() == [2, 4, 5, 3, 0, 1]
    assert order.reasons == ["score", "score", "pin", "score", *["score relaxed:window:category"] * 2]


def test_what_is_pinned_ahead_takes_no_more_than_its_own_place():
    made = slate([6, 5, 4, 3], category=[0, 0, 1, 0])
    order = Rules((Window(most=2, window=4), Pins(items={"i3": 4}))).order(made, 4)
    assert order.places.tolist() == [0, 2, 1, 3]  # one more of it may stand before the pin, and two may not
    assert order.relaxed == {"window:category": 2}


def test_a_window_of_nothing_known_holds_nothing_back():
    assert listed(slate([3, 2, 1], category=[-1, -1, -1]), 3, Window(most=1)) == [0, 1, 2]
    assert listed(slate([3, 2, 1]), 3, Window(most=1)) == [0, 1, 2]


ADS = {"bid": [NAN, NAN, 2.0, 1.0, 4.0], "probability": [0.5, 0.5, 0.25, 0.3, 0.1]}


def test_the_second_price_is_what_beats_the_next():
    order = Rules((Ads(share=1.0, first=1, spacing=0),)).order(slate([9, 8, 1, 1, 1], **ADS), 5)
    assert order.places.tolist() == [2, 4, 3, 0, 1]  # eCPM 500, 400, 300
    assert order.reasons == ["ad", "ad", "ad", "score", "score"]
    # what 400 costs at a chance of .25, 300 at .1; nobody is left to beat
    assert order.charges == {2: pytest.approx(1.6), 4: pytest.approx(3.0), 3: 0.0}


def test_nobody_bids_against_the_own_items_and_the_reserve_is_a_price():
    made = slate([9, 8, 1, 1, 1], **ADS, author=[1, 1, 5, 5, 5])
    order = Rules((Ads(share=0.2, first=1, ecpm_least=350),)).order(made, 5)
    assert order.charges == {2: pytest.approx(1.4)}
    made = slate([9, 8, 1, 1, 1], **ADS, author=[1, 1, 5, 6, 5])
    assert Rules((Ads(share=0.2, first=1),)).order(made, 5).charges == {2: pytest.approx(1.2)}


def test_a_user_who_was_shown_enough_is_shown_no_more():
    ads = Ads(share=1.0, first=1, spacing=0, user_most=4)
    for shown, more in ((0.0, 3), (2.0, 2), (3.0, 1), (4.0, 0), (9.0, 0)):
        order = Rules((ads,)).order(slate([9, 8, 1, 1, 1], **ADS, facts={"ads_shown": shown}), 5)
        assert len(order.charges) == more


def test_an_ad_stands_only_where_windows_let_it():
    made = slate([9, 8, 1, 1, 1], **ADS, category=[0, 1, 0, 1, 2])
    order = Rules((Window(most=1, window=2), Ads(share=0.2, first=2, spacing=9))).order(made, 5)
    assert order.places.tolist()[:2] == [0, 4]  # 2 has the higher eCPM, and the category of what stands first


def test_ads_keep_their_distance_and_their_share_of_each_page():
    made = slate(np.linspace(9, 5, 40), bid=[NAN, 1.0] * 20, probability=np.full(40, 0.1))

    def sold(**told):
        reasons = Rules((Ads(first=1, **told),)).order(made, 20).reasons
        return [position for position, reason in enumerate(reasons) if reason == "ad"]

    assert sold(share=1.0, spacing=6) == [0, 7, 14]
    assert sold(share=0.4, spacing=0, page=5) == [0, 1, 5, 6, 10, 11, 15, 16]
    assert sold(share=0.4, spacing=0, page=12) == [0, 1, 2, 3, 12, 13, 14]  # of the last eight positions, three
    assert sold(share=1.0, spacing=0, page=1, user_most=3) == [0, 1, 2]


def test_where_windows_give_way_nothing_is_sold_and_no_floor_is_kept():
    made = slate([9, 8, 7], category=[0, 0, 0], bid=[NAN, NAN, 1.0], probability=[0.1] * 3, created=[NAN, NOW, NAN])
    window = Window(most=1, window=3)
    steps = Ads(share=1.0, first=2, spacing=0), Fresh(share=0.5)
    order = Rules((*steps, window)).order(made, 3)
    assert order.charges == {}
    assert [reason.split()[0] for reason in order.reasons][1:] == ["score", "score"]
    assert len(Rules(steps).order(made, 3).charges) == 1


def test_new_items_that_stand_by_their_scores_count():
    made = slate([9, 8, *[1] * 20], created=[NOW, NOW, *[NOW - 1e8] * 10, *[NOW] * 10])
    assert "fresh" not in Rules((Fresh(share=0.1),)).order(made, 10).reasons
    assert "fresh" in Rules((Fresh(share=0.5),)).order(made, 10).reasons


def test_new_items_get_their_share_on_average_and_sink_as_they_earn():
    def exposed(impressions, quality=None):
        stood, at = 0, []
        for seed in range(200):
            made = slate(
                [*np.linspace(9, 5, 40), *np.linspace(2, 1, 8)],
                created=[NOW - 1e8] * 40 + [NOW - 100] * 8,
                impressions=[0] * 40 + [impressions] * 8,
                quality=quality or [1.0] * 48,
                seed=seed,
            )
            places = listed(made, 20, Fresh(share=0.1, impressions=100, quality_least=0.5))
            new = [position for position, place in enumerate(places) if place >= 40]
            stood, at = stood + len(new), at + new[:1]
        return stood / 200, at

    share, first = exposed(0)
    assert share == pytest.approx(2.0, abs=0.05)
    assert set(first) == set(range(10))  # wherever within the first ten, which a drawn start makes fair
    assert exposed(50)[0] == pytest.approx(1.0, abs=0.1)
    assert exposed(95)[0] == pytest.approx(0.1, abs=0.06)
    assert exposed(100)[0] == 0
    assert exposed(0, [1.0] * 40 + [0.2] * 4 + [NAN] * 4)[0] == 0


def test_what_chance_decides_the_seed_decides():
    def drawn(seed):
        made = slate([*np.linspace(9, 5, 20), *[1] * 8], created=[NAN] * 20 + [NOW] * 8, seed=seed)
        return tuple(listed(made, 10, Fresh(share=0.1)))

    assert len({drawn(5) for _ in range(20)}) == 1
    assert len({drawn(seed) for seed in range(20)}) > 10


def test_among_new_items_need_decides_how_often_one_is_drawn():
    drawn = np.zeros(3)
    for seed in range(1000):
        made = slate([9, 1, 1], created=[NAN, NOW, NOW], impressions=[0, 0, 75], seed=seed)
        order = Rules((Fresh(share=0.5, impressions=100),)).order(made, 2)
        drawn += np.bincount(order.places[[reason == "fresh" for reason in order.reasons]], minlength=3)
    assert drawn[1] / drawn.sum() == pytest.approx(0.8, abs=0.05)  # needs of 1 and a quarter


def test_chances_are_the_published_numbers_and_even():
    # splitmix64 from the state 1234567, as its authors and others print it
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    seed = (1234567 - 0xD1342543DE82EF95) % 2**64
    assert slate([0, 0, 0], seed=seed).chances().tolist() == [((one >> 12) + 0.5) / 2**52 for one in known]
    many = slate(np.zeros(1000), seed=7).chances()
    assert many.min() > 0 and many.max() < 1
    assert np.histogram(many, 10, (0, 1))[0].min() > 70
