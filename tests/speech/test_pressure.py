"""Profiles: what they are made of, what a recogniser must be able to do for them, and what gives way under load."""

import pytest

from millstream import config
from millstream.clock import FakeClock
from millstream.errors import BadInput, Misconfigured
from millstream.flows.speech.pressure import Cost, Pressure, first_step_ms, fits, follows
from millstream.flows.speech.settings import PROFILES, Profile, SpeechSettings


def test_a_profile_says_what_differs_and_keeps_the_rest_of_what_is_built_in():
    said = config.parse("[profiles.court]\nhangover_ms = 608\n[profiles.mine]\nstep_ms = 512\n", SpeechSettings, "here")
    court = said.profile_of("court")
    assert court.hangover_ms == 608 == Profile().hangover_ms  # what equals a default is said all the same
    assert (court.speakers, court.first_token_ms_max) == ("delayed", 2000)
    assert said.profile_of("mine") == Profile(step_ms=512)
    assert said.profile_of("") == PROFILES["caption"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[profiles.court]\nhangover_ms = 1", "hangover_ms"),
        ("[profiles.x]\nhang_ms = 1", "hang_ms"),
        ("[profiles.x]\ncorrections = false", "Allow corrections"),
        ("[profiles.x]\nspeakers = 'delayed'", "instant = false"),
        ("turns = 'pyannote'", 'voice = "wespeaker" too'),
        ("profile = 'parliament'", "assistant, caption, court, meeting"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_with_the_reason(text, words):
    with pytest.raises(Misconfigured, match=words):
        config.parse(text, SpeechSettings, "here")


def test_a_client_may_ask_for_another_policy_if_the_profile_can_have_it():
    said = SpeechSettings()
    assert said.asked("caption", "delayed").speakers == "delayed"
    assert said.asked("", "") == PROFILES["caption"]
    with pytest.raises(BadInput, match="Allow corrections"):
        said.asked("court", "correctable")


def test_the_arithmetic_of_the_built_in_profiles_is_as_documented():
    assert {name: first_step_ms(profile) for name, profile in PROFILES.items()} == {
        "assistant": 212,
        "caption": 724,
        "meeting": 724,
        "court": 724,
    }


def test_a_recogniser_that_is_too_slow_for_a_profile_is_refused_with_what_would_do():
    assistant, caption = PROFILES["assistant"], PROFILES["caption"]
    assert fits(assistant, Cost(0.08)) is None
    assert "allow 412" in fits(assistant, Cost(0.2))
    assert fits(caption, Cost(0.2)) is None
    behind = Profile(first_token_ms_max=5000, step_ms=512)
    assert "step_ms = 864 or more" in fits(behind, Cost(0.6))
    assert fits(Profile(first_token_ms_max=50, partials=False), Cost(9.0)) is None  # it promises no hypotheses


def test_how_many_sessions_cores_can_follow():
    """Hypotheses of .1 s each second, final texts of .05 s, .007 beside: .157 of a core; of two, 1.4 may be used."""
    assert follows(Profile(step_ms=1000), Cost(0.1, 0.5, 10.0), 2) == 8
    assert follows(Profile(step_ms=1000, partials=False), Cost(0.1, 0.5, 10.0), 2) == 24
    assert follows(Profile(), Cost(99.0), 1) == 1


def test_there_is_always_a_bound_and_what_else_a_session_takes_counts():
    assert 0 < follows(Profile(), Cost(0.0), 2) < 1000  # a recogniser that costs nothing
    voices = Cost(0.1, 0.5, 10.0, voices_s=0.15)
    assert follows(Profile(step_ms=1000), voices, 2) == 4
    assert follows(Profile(step_ms=1000, speakers="none"), voices, 2) == 8
    assert follows(Profile(step_ms=1000), Cost(0.1, 0.5, 10.0), 0.5) == 2  # of four processes on two cores, each


def test_who_speaks_is_listened_to_on_one_core_however_many_there_are():
    cost = Cost(0.01, 0.05, 10.0, voices_s=0.04)
    assert follows(Profile(step_ms=1000), cost, 64) == 17
    assert follows(Profile(step_ms=1000, speakers="none"), cost, 64) > 1000


def test_the_first_hypothesis_may_cost_less_than_the_others():
    assert fits(PROFILES["caption"], Cost(0.6, first_s=0.2)) is None
    assert "takes 600 ms" in fits(PROFILES["caption"], Cost(0.6))


def test_hypotheses_that_take_all_there_is_give_way_to_final_texts_that_wait_behind_them():
    pressure = Pressure(0.5, FakeClock())
    for _ in range(20):
        pressure.waited(0.1)
        pressure.waited(1.5, final=True)
    assert pressure.level() == 0  # they may wait longer
    for _ in range(20):
        pressure.waited(0.1)
        pressure.waited(3.0, final=True)
    assert pressure.level() == 1
    for _ in range(20):
        pressure.waited(0.1)
        pressure.waited(9.0, final=True)
    assert pressure.level() == 2
    for _ in range(20):
        pressure.waited(0.0, final=True)
    assert pressure.level() == 0


def test_hypotheses_give_way_by_how_long_they_wait_and_come_back():
    clock = FakeClock()
    pressure = Pressure(0.5, clock)
    assert pressure.level() == 0
    pressure.waited(2.0)  # one that waits is no overload yet
    assert pressure.level() == 0
    seen = []
    for waited in [0.7] * 20 + [2.0] * 20 + [0.0] * 20:
        pressure.waited(waited)
        seen.append(pressure.level())
    assert (seen[19], seen[39], seen[59]) == (1, 2, 0)
    assert seen[40] == 2  # not at the first that did not wait
    for _ in range(20):
        pressure.waited(2.0)
    clock.advance(6)
    assert pressure.level() == 0  # where none is asked for, none waits
