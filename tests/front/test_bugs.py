"""What the log gets of errors that no caller can mend: each whole, none a thousand times."""

import logging

import pytest

from millstream import errors
from millstream.front import bugs
from millstream.front.bugs import Bugs, told
from millstream.front.exchange import Exchange
from millstream.front.grpc.headers import verdict

LOG = logging.getLogger("millstream.test")


def mistake(kind=KeyError):
    try:
        raise kind("a bug")
    except kind as error:
        return error


def test_a_bug_is_logged_whole_then_counted_and_told_once_a_minute(caplog):
    now = 0.0
    made = Bugs(lambda: now)
    for _ in range(100):
        made.say(LOG, mistake(), "POST /x failed")
    made.say(LOG, mistake(ValueError), "POST /x failed")
    assert [one.getMessage() for one in caplog.records] == ["POST /x failed"] * 2, "another bug is another line"
    assert all(one.exc_info for one in caplog.records)
    now = 61.0
    made.say(LOG, mistake(), "POST /y failed")
    assert caplog.records[-1].getMessage() == "POST /y failed (99 more like it since it was said last)"


def test_places_are_bounded():
    made = Bugs()
    for number in range(3 * bugs.PLACES_MAX):
        made.say(LOG, type(f"Error{number}", (Exception,), {})(), "it failed")
    assert len(made._places) <= bugs.PLACES_MAX


@pytest.mark.parametrize("error", [errors.Failed("m 1 answered NaN"), errors.Error("a bug")])
def test_a_failure_of_a_model_is_not_logged_again_by_a_border_and_tells_a_caller_nothing(caplog, monkeypatch, error):
    monkeypatch.setattr(bugs, "bugs", Bugs())
    exchange = Exchange(lambda: None, "peer", 0.0)
    exchange.refuse(error)
    assert exchange.status == 500 and b"internal error" in exchange.answer and b"NaN" not in exchange.answer
    assert verdict(error) == ("INTERNAL", "internal error, see the log")
    assert not told(LOG, error, "it failed")
    assert len(caplog.records) == (0 if isinstance(error, errors.Failed) else 1)
