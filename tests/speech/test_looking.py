"""What is put up for review reaches the queue that people see, and goes again when its session is forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

from test_look import settling

from millstream.app import curation
from millstream.app.forget import forget
from millstream.app.installation import Installation
from millstream.app.looking import Looking, folder_of
from millstream.meter import Meter
from millstream.spoken import Edited

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
        looking(settling("yes"))
        looking(settling("we were walking along the river when it began to rain"))
        looking.edited("s1", Edited(seq=4, id="a", rev=3, by="ann", text="no"))
        looking.close()
        assert meter.sum("millstream_speech_reviews_lost_total") == 0
        waiting = curation.queue(at)
        assert [(one.reasons, one.request, one.shown["text"]) for one in waiting] == [
            (["speech-thin"], "s1", "yes"),
            (["speech-edited"], "s1", "no"),
        ]
        assert curation.waiting(at) == {"speech-thin": 1, "speech-edited": 1}
        assert [one.id for one in curation.queue(at, reason="speech-edited")] == [waiting[1].id]
        assert [path.name for path in folder_of(at).iterdir()] == [waiting[0].shown["audio"]]
        report = asyncio.run(forget(at, ["s1"], wait_s=1.0))
        assert report.audio == 1 and not list(folder_of(at).iterdir())
        assert curation.queue(at) == []
