"""What is put up for review reaches the queue that people see, and goes again when its session is forgotten."""

from __future__ import annotations

import asyncio
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
from test_look import RAIN, settling

from millstream.app import curation, reviews
from millstream.app import looking as looking_room
from millstream.app.forget import forget
from millstream.app.installation import Installation
from millstream.app.looking import Looking, folder_of
from millstream.meter import Meter
from millstream.spoken import Edited
from millstream.stream import encode
from millstream.types import Served

TOML = """
[speech]
recogniser = "fake"
keep_audio = true
"""


def test_final_texts_reach_the_queue_and_are_forgotten_with_their_session(tmp_path: Path) -> None:
    (tmp_path / "millstream.toml").write_text(TOML)
    with Installation.open(tmp_path / "millstream.toml") as at:
        meter = Meter()
        looking = Looking(at, meter, lambda: "3")
        looking(settling(RAIN, confidence=0.3))
        looking(settling(RAIN))
        looking.edited("s1", Edited(seq=4, id="a", rev=3, by="ann", text="no"))
        looking.close()
        assert meter.sum("millstream_speech_reviews_lost_total") == 0
        waiting = curation.queue(at)
        assert [(one.reasons, one.request, one.shown["text"]) for one in waiting] == [
            (["speech-unsure"], "s1", RAIN),
            (["speech-edited"], "s1", "no"),
        ]
        assert curation.waiting(at) == {"speech-unsure": 1, "speech-edited": 1}
        assert [one.id for one in curation.queue(at, reason="speech-edited")] == [waiting[1].id]
        assert [path.name for path in folder_of(at).iterdir()] == [waiting[0].shown["audio"]]
        report = asyncio.run(forget(at, ["s1"], wait_s=1.0))
        assert report.audio == 1 and not list(folder_of(at).iterdir())
        assert curation.queue(at) == []


def test_what_is_kept_of_a_session_goes_with_whose_it_was(tmp_path: Path) -> None:
    (tmp_path / "millstream.toml").write_text(TOML)
    with Installation.open(tmp_path / "millstream.toml") as at:
        looking = Looking(at, Meter(), lambda: "3")
        looking(settling(RAIN, confidence=0.3))
        looking.close()
        told = Served(
            request="s1", model="fake", version="3", policy=0, arm="live", user="u7", candidates=[], event_time=1.0
        )
        with at.log.writer("served", 0) as writer:
            writer.append(b"s1", encode(told))
        report = asyncio.run(forget(at, ["u8"], wait_s=1.0))
        assert not report.found and len(curation.queue(at)) == 1 and len(list(folder_of(at).iterdir())) == 1
        report = asyncio.run(forget(at, ["u7"], wait_s=1.0))
        assert report.audio == 1 and not list(folder_of(at).iterdir()) and curation.queue(at) == []


def test_what_the_log_has_no_time_for_is_counted_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    (tmp_path / "millstream.toml").write_text(TOML)
    monkeypatch.setattr(looking_room, "WAITING_MAX", 3)
    monkeypatch.setattr(reviews, "writer", lambda at: go_on.wait(10) and nullcontext(_Nothing()))
    with Installation.open(tmp_path / "millstream.toml") as at:
        meter = Meter()
        looking = Looking(at, meter, lambda: "3")
        for rev in range(5):
            looking.edited("s1", Edited(seq=rev + 1, id="a", rev=rev, by="ann", text="no"))
        assert meter.sum("millstream_speech_reviews_lost_total") == 2
        go_on.set()
        looking.close()
        assert meter.sum("millstream_speech_reviews_lost_total") == 2


class _Nothing:
    def append_durable_wait(self, key: bytes, value: bytes) -> None:
        pass
