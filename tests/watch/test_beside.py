"""Servers beside their peers and a fleet beside its past: the same as plain loops and scipy's exact test say."""

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from millstream.watch.alarms.rule import Rule
from millstream.watch.alarms.state import DAY_S, LEAST, values
from millstream.watch.history import History
from millstream.watch.reading import Key

START = 1_700_000_000.0
SICK = Rule(quantity="failures", of="requests", above=3.0, against="peers", over_s=60, by=("server",))


def read(cells):
    """{(server, model): (failed, requests)} as readings."""
    return {
        Key.of(quantity, {"server": server, "model": model}): float(pair[which])
        for (server, model), pair in cells.items()
        for which, quantity in enumerate(("failures", "requests"))
    }


def beside(cells):
    history = History()
    history.add(START, read(cells))
    return {dict(one.group)["server"]: one for one in values(SICK, history)}


def expected(cells, server):
    """Indirect standardisation, told as one would on paper: (observed, expected, number)."""
    observed = wanted = number = 0.0
    for model in {model for _, model in cells}:
        rates = {name: f / n for (name, of), (f, n) in cells.items() if of == model and n}
        peers = [rate for name, rate in rates.items() if name != server]
        if server in rates and len(peers) >= 2:
            failed, requests = cells[server, model]
            observed, number = observed + failed, number + requests
            wanted += requests * statistics.median(peers)
    return observed, wanted, number


cell = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
fleets = st.lists(st.tuples(cell, cell), min_size=3, max_size=6)


@settings(max_examples=150, deadline=None)
@given(fleets)
def test_a_multiple_is_that_of_indirect_standardisation_or_one(drawn):
    cells = {(f"s{n}", model): pair[at] for n, pair in enumerate(drawn) for at, model in enumerate("ab")}
    found = beside(cells)
    for number in range(len(drawn)):
        server = f"s{number}"
        observed, wanted, requests = expected(cells, server)
        if requests < LEAST:
            assert server not in found
            continue
        plain = min(observed / wanted, 1000.0) if wanted else (1000.0 if observed else 1.0)
        assert found[server].value in (pytest.approx(plain), 1.0) and found[server].events == requests


@settings(max_examples=150, deadline=None)
@given(st.integers(20, 2000), st.integers(0, 30), st.integers(0, 60))
def test_chance_is_what_an_exact_test_says_it_is(requests, failed, peers_failed):
    """Of one stratum: beyond four standard deviations either way, an exact test finds chance most unlikely, and where
    it finds nothing the multiple is one."""
    cells = {("s0", "a"): (failed, requests)} | {(f"s{n}", "a"): (peers_failed, 2 * requests) for n in (1, 2, 3)}
    value = beside(cells)["s0"].value
    total = failed + 3 * peers_failed
    chance = binomtest(failed, total, 1 / 7).pvalue if total else 1.0
    if value != 1.0:
        assert chance < 2e-3
    if chance < 1e-8:
        assert value != 1.0
    if chance > 1e-3:
        assert value == 1.0


def test_healthy_servers_hardly_ever_look_sick_and_a_sick_one_nearly_always_does():
    rng = np.random.default_rng(4)
    false = found = 0
    for _ in range(300):
        healthy = {(f"s{n}", "a"): (rng.binomial(1000, 0.002), 1000) for n in range(4)}
        false += any(SICK.passes(one.value) for one in beside(healthy).values())
        sick = healthy | {("s3", "a"): (rng.binomial(1000, 0.03), 1000)}
        found += SICK.passes(beside(sick)["s3"].value)
    assert false == 0 and found >= 295


def test_fewer_requests_than_can_tell_say_nothing():
    cells = {(f"s{n}", "a"): (0, 500) for n in range(3)} | {("s3", "a"): (19, 19)}
    assert "s3" not in beside(cells)
    assert beside(cells | {("s3", "a"): (20, 20)})["s3"].value == 1000.0


def test_seconds_are_no_events_and_stand_as_they_are():
    rule = Rule(quantity="compute_seconds", of="batches", above=2.0, against="peers", over_s=60, by=("server",))
    history = History()
    history.add(START, {
        Key.of(quantity, {"server": f"s{n}", "model": "a"}): value
        for n, spent in enumerate((1.0, 1.0, 1.2, 3.0))
        for quantity, value in (("compute_seconds", spent), ("batches", 100.0))
    })  # fmt: skip
    found = {dict(one.group)["server"]: one.value for one in values(rule, history)}
    assert found["s3"] == pytest.approx(3.0) and found["s0"] == pytest.approx(1.0 / 1.2)


def days(counts, rule, gaps=()):
    """Values of a rule after two days of looks each minute, `counts(second)` in each; none within `gaps`."""
    history = History()
    for second in np.arange(0.0, DAY_S + 7200.0, 60.0):
        if not any(begin <= second < end for begin, end in gaps):
            history.add(START + second, {Key.of(q, {"model": "m"}): float(v) for q, v in counts(second).items()})
    return values(rule, history)


GONE = Rule(quantity="requests", below=0.3, against="past", over_s=600, least=100, by=("model",))


@pytest.mark.parametrize("today, times", [(10, 0.1), (100, 1.0), (200, 2.0), (0, 0.0)])
def test_traffic_beside_the_day_before(today, times):
    (one,) = days(lambda second: {"requests": today if second > DAY_S else 100}, GONE)
    assert one.value == pytest.approx(times) and GONE.passes(one.value) is (times < 0.3)


@pytest.mark.parametrize("gap", [(DAY_S + 6700, DAY_S + 7100), (6700, 7100)])
def test_a_role_that_was_away_sees_no_traffic_come_or_go(gap):
    (one,) = days(lambda second: {"requests": 100}, GONE, [gap])
    assert one.value == pytest.approx(1.0)


def test_a_rate_beside_its_past_needs_more_than_chance_and_little_traffic_says_nothing():
    rule = Rule(quantity="failures", of="requests", above=3.0, against="past", over_s=600, least=100, by=("model",))

    def of(today, before):
        return lambda second: {"requests": 100, "failures": today if second > DAY_S else before}

    assert days(of(5, 1), rule)[0].value == pytest.approx(5.0)
    assert days(of(0.4, 0.1), rule)[0].value == 1.0  # four failures where one was
    assert days(of(5, 0), rule)[0].value == 1000.0
    assert days(lambda second: {"requests": 1, "failures": 1}, rule) == []
