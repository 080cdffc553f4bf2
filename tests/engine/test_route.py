"""The choice of a version: stable, in the shares that the policy says, and the same in every process."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import Weight

from millstream.engine.lane import Lane
from millstream.engine.route import Route, assigned
from millstream.engine.tally import Watched
from millstream.errors import NotFound
from millstream.meter import Meter
from millstream.models import Canary, Guard, Manifest, Policy
from millstream.models.manifest import Batching
from millstream.types import Request, TensorSpec

MANIFEST = Manifest(format="weight", file="w")
LANES = {
    v: Lane("m", v, Manifest(format="weight", file="w"), Weight(), Batching(rows_max=8)) for v in ("1", "2", "3", "10")
}


def route(lanes=LANES, model="m", **policy):
    return Route(model, Policy(**{"live": "1", "version": 4, **policy}), lanes)


def chosen(made, key, **more):
    arm = made.choose(Request("m", {}, 1, key=key, **more))
    return arm.lane.version, arm.name


def count(made, n=20_000):
    return Counter(chosen(made, f"user-{i}") for i in range(n))


def test_everything_goes_to_live_by_default():
    assert route().plain
    assert chosen(route(), "ann") == ("1", "live")


def test_shares_are_what_the_policy_says():
    counts = count(route(canary=Canary("2", 0.05), split={"1": 3, "3": 1}))
    shares = {name: n / 20_000 for (_, name), n in counts.items()}
    assert shares == {
        "canary": pytest.approx(0.05, abs=0.01),
        "split-1": pytest.approx(0.7125, abs=0.015),
        "split-3": pytest.approx(0.2375, abs=0.015),
    }


@given(
    st.text(min_size=1),
    st.one_of(st.none(), st.floats(0.001, 1)),
    st.dictionaries(st.sampled_from(sorted(LANES)), st.floats(0.1, 5), max_size=4),
)
def test_who_is_assigned_what_is_known_from_names_alone(key, share, split):
    policy = Policy(live="1", canary=Canary("2", share) if share else None, split=split)
    assert assigned("m", policy, key) == chosen(Route("m", policy, LANES), key)[0]


@given(st.text(min_size=1), st.floats(0.001, 1), st.floats(0.001, 1))  # who has no key draws anew each time
def test_a_growing_canary_keeps_whom_it_has(key, a, b):
    small, large = (route(canary=Canary("2", share), split={"1": 1, "3": 1}) for share in sorted((a, b)))
    if chosen(small, key)[1] == "canary":
        assert chosen(large, key)[1] == "canary"
    if chosen(large, key)[1] != "canary":
        assert chosen(large, key) == chosen(small, key)


def test_the_choice_never_changes_between_processes_or_releases():
    made = route(split={"1": 1, "2": 1, "10": 1})
    got = [chosen(made, f"user-{i}")[0] for i in range(12)]
    assert got == ["10", "10", "10", "2", "1", "2", "10", "10", "10", "1", "10", "2"]
    assert got == [chosen(made, f"user-{i}", id="whatever")[0] for i in range(12)]


def test_sticky_by_request_ignores_the_user():
    made = route(split={"1": 1, "2": 1}, sticky_by="request")
    assert len({chosen(made, "ann", id=str(i)) for i in range(50)}) == 2
    assert len({chosen(made, str(i), id="same") for i in range(50)}) == 1


def test_requests_without_a_name_are_spread():
    counts = Counter(chosen(route_, "")[0] for route_ in [route(split={"1": 1, "2": 1})] for _ in range(2000))
    assert counts["1"] == pytest.approx(1000, abs=150)


def test_two_models_split_their_users_independently():
    a, b = route(split={"1": 1, "2": 1}), route(split={"1": 1, "2": 1}, model="other")
    same = sum(chosen(a, f"u{i}") == chosen(b, f"u{i}") for i in range(2000))
    assert same == pytest.approx(1000, abs=150)


def test_an_arm_that_is_not_loaded_gets_no_traffic():
    lanes = {"1": LANES["1"], "3": LANES["3"]}
    made = route(lanes, canary=Canary("2", 0.9), split={"2": 5, "3": 1}, shadow=("10",))
    assert set(count(made, 500)) == {("3", "split-3")}
    assert made.live.shadows == ()


def test_a_version_asked_for_wins_and_one_that_is_not_there_is_explained():
    made = route(split={"1": 1}, shadow=("3",))
    assert chosen(made, "ann", version="2") == ("2", "explicit")
    assert made.live.shadows == (LANES["3"],)
    assert made.explicit("2").shadows == ()
    with pytest.raises(NotFound, match="these do: 1, 2, 3, 10"):
        chosen(made, "ann", version="9")


def test_a_canary_of_other_tensors_gets_no_traffic():
    class Wide(Weight):
        outputs = (TensorSpec("y", "FP64", (-1,)),)

    lanes = LANES | {"3": Lane("m", "3", MANIFEST, Wide(), Batching(rows_max=8))}
    for policy in (
        Policy(live="1", canary=Canary("3", 1.0)),
        Policy(live="1", split={"1": 1, "3": 1000}),
    ):
        made = Route("m", policy, lanes)
        assert made.unlike == ["3"]
        assert {made.choose(Request("m", {}, 1, id=str(n))).lane.version for n in range(50)} == {"1"}
        assert made.explicit("3").lane.version == "3"


def test_a_route_that_is_left_gives_back_where_its_guarded_arms_were_counted():
    meter = Meter()
    watch = lambda lane, arm: Watched(meter, lane.model, arm, [])  # noqa: E731
    guarded = Policy(live="1", version=4, split={"1": 1, "2": 1}, canary=Canary("2", 0.5, Guard()))
    first = Route("m", guarded, LANES, watch)
    first.live.watched.failed("ann")
    second = Route("m", guarded, LANES, watch)
    first.left()
    second.live.watched.failed("ann")
    assert meter.values("_guard_failures", {"model": "m", "arm": "live"}) == [2], "the next route counts on"
    second.left()
    assert meter.values("_guard_failures", {"model": "m", "arm": "live"}) == []
