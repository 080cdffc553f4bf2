"""Counters of versions and guards that come and go for years, in a page of fixed size."""

import pytest

from millstream.engine.tally import Numbers, Watched
from millstream.meter import Meter


def requests(meter, version, model="m"):
    return meter.values("millstream_requests_total", {"model": model, "version": version})


def test_two_thousand_versions_come_and_go_and_the_next_one_is_still_counted(caplog):
    meter = Meter()
    for number in range(2000):
        numbers = Numbers(meter, "m", str(number))
        numbers.requests.add()
        numbers.answer.observe(0.1)
        numbers.release()
    Numbers(meter, "m", "2001").requests.add()
    assert requests(meter, "2001") == [1] and requests(meter, "1999") == [] and not caplog.records
    assert meter.sum("millstream_answer_seconds") == 0


def test_a_version_that_is_loaded_anew_beside_its_former_self_goes_on_being_counted():
    meter = Meter()
    before, after = Numbers(meter, "m", "1"), Numbers(meter, "m", "1")
    before.requests.add()
    before.release()
    after.requests.add()
    assert requests(meter, "1") == [2]


def test_guarded_canaries_one_after_the_other_take_the_same_slots(caplog):
    meter = Meter()
    for number in range(100):
        arms = [Watched(meter, f"m{number}", arm, []) for arm in ("live", "canary")]
        for arm in arms:
            arm.failed("ann")
            assert meter.values("_guard_failures", {"model": f"m{number}", "arm": "canary"}) == [arm is arms[1]]
        for arm in arms:
            arm.release()
    assert meter.values("_guard_failures", {"model": "m99", "arm": "canary"}) == [] and not caplog.records


def test_a_claim_is_given_back_once():
    numbers = Numbers(Meter(), "m", "1")
    numbers.release()
    with pytest.raises(KeyError):
        numbers.release()
