"""Voices by name: what a recording must be, and the file that keeps them."""

import stat
from multiprocessing import get_context

import msgspec
import numpy as np
import pytest
from made_voices import People

from millstream.app import voices
from millstream.cli import main
from millstream.errors import BadInput, Corrupt, Later, Misconfigured, NotFound, TooLarge
from millstream.flows.speech.settings import RATE
from millstream.flows.speech.speakers import enrolled
from millstream.flows.speech.speakers.cluster import Scale

MODEL = "wespeaker/1"


class Recorder:
    """Sound whose every sample is the number of the person who speaks, and what makes voices of it."""

    def __init__(self, count=3, seed=0, **how):
        self.people = People(count, seed, **how)

    def sound(self, *spoken):
        return np.concatenate([np.full(int(seconds * RATE), person, np.float32) for person, seconds in spoken])

    def embed(self, windows):
        return np.stack([self.people.voice(round(float(np.median(window)))) for window in windows])

    def enrol(self, path, name, *spoken, model=MODEL):
        return enrolled.enrol(path, name, [self.sound(*spoken)], self.embed, model, 1.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "speech-voices"


def test_an_enrolled_voice_is_known_by_what_it_sounds_like(path):
    recorder = Recorder()
    made = recorder.enrol(path, "法官", (0, 8))
    assert (made.name, made.seconds, made.nearest, made.warning) == ("法官", 8.0, "", "")
    assert made.windows == 9 and made.alike == pytest.approx(0.6, abs=0.1)
    recorder.enrol(path, "原告", (1, 8))
    known = enrolled.load(path, MODEL)
    assert [voice.name for voice in known] == ["原告", "法官"]
    for person, name in ((0, "法官"), (1, "原告")):
        found, best, second, bound = enrolled.nearest(known, recorder.people.voice(person), Scale(0.6), 3.0)
        assert found.name == name and second < bound < best
    found, best, _, bound = enrolled.nearest(known, recorder.people.voice(2), Scale(0.6), 3.0)
    assert best < bound
    assert enrolled.nearest([], recorder.people.voice(2), Scale(0.6), 3.0)[0] is None


@pytest.mark.parametrize("parts", [[4.9], [], [0.3] * 30, [0.39] * 10 + [4.5]])
def test_too_little_speech_is_refused(path, parts):
    recorder = Recorder()
    speech = [recorder.sound((0, seconds)) for seconds in parts]
    with pytest.raises(BadInput, match=r"Ann: .* s of speech, it takes 5 s"):
        enrolled.enrol(path, "Ann", speech, recorder.embed, MODEL, 1.0)
    assert not path.exists()


def test_two_voices_in_a_recording_are_refused_and_a_word_from_aside_is_not(path):
    recorder = Recorder()
    with pytest.raises(BadInput, match=r"\d\d% of the recording sounds like somebody else"):
        recorder.enrol(path, "Ann", (0, 8), (1, 4))
    assert not path.exists()
    recorder.enrol(path, "Ann", (0, 6), (1, 0.7), (0, 8))
    assert [voice.name for voice in enrolled.load(path, MODEL)] == ["Ann"]


def test_a_voice_that_has_another_name_is_refused_and_one_that_is_near_is_warned_of(path):
    recorder = Recorder(3)
    recorder.enrol(path, "Ann", (0, 10))
    with pytest.raises(BadInput, match=r"sounds like Ann, who is enrolled \(likeness 0\.\d+"):
        recorder.enrol(path, "Eve", (0, 10))
    near = recorder.people.persons
    near[1] = 0.6 * near[0] + np.sqrt(1 - 0.6**2) * near[1]
    made = recorder.enrol(path, "Bob", (1, 20))
    assert made.nearest == "Ann" and "sounds like Ann" in made.warning
    assert recorder.enrol(path, "Cid", (2, 10)).warning == ""


def test_a_name_is_replaced_listed_and_removed(path):
    recorder = Recorder()
    assert enrolled.listed(path) == [] and enrolled.load(path, MODEL) == []
    recorder.enrol(path, "Ann", (0, 6))
    recorder.enrol(path, "Ann", (1, 7))
    assert enrolled.listed(path) == [{"name": "Ann", "model": MODEL, "seconds": 7.0, "at": 1.0}]
    (known,) = enrolled.load(path, MODEL)
    assert known.voice @ recorder.people.voice(1) > 0.4 > known.voice @ recorder.people.voice(0)
    with pytest.raises(NotFound, match=r"no voice 'Bob' is enrolled; there are: Ann"):
        enrolled.remove(path, "Bob")
    enrolled.remove(path, "Ann")
    assert enrolled.listed(path) == []
    with pytest.raises(NotFound, match="nobody"):
        enrolled.remove(path, "Ann")


@pytest.mark.parametrize("name", ["", " Ann", "a\nb", "x" * 65, "\x00"])
def test_what_is_no_name_is_refused(path, name):
    with pytest.raises(BadInput, match="is no name"):
        Recorder().enrol(path, name, (0, 6))


def test_the_file_is_its_owners_and_what_is_damaged_or_of_another_model_is_said(path):
    recorder = Recorder()
    recorder.enrol(path, "Ann", (0, 6))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(Misconfigured, match=r"Ann: enrolled with wespeaker/1, and wespeaker/2 tells voices here"):
        enrolled.load(path, "wespeaker/2")
    with pytest.raises(Misconfigured):
        recorder.enrol(path, "Bob", (1, 6), model="wespeaker/2")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Corrupt, match="not a file of enrolled voices"):
        enrolled.load(path, MODEL)
    with pytest.raises(Corrupt):
        recorder.enrol(path, "Bob", (1, 6))


def test_a_file_of_another_form_or_size_is_refused_and_left_as_it_is(path):
    recorder = Recorder()
    recorder.enrol(path, "Ann", (0, 6))
    kept = msgspec.msgpack.decode(path.read_bytes())
    (ann,) = kept["voices"]
    for changed, what, where in (
        (kept | {"format": 2}, Later, r"speech-voices: format version 2, and this Millstream reads up to 1"),
        (kept | {"format": 2, "voices": "elsewhere"}, Later, "format version 2"),
        (
            kept | {"voices": [ann | {"voice": ann["voice"][:768]}]},
            Misconfigured,
            r"Ann: voices of 192 numbers, .* 256",
        ),
    ):
        path.write_bytes(msgspec.msgpack.encode(changed))
        before = path.read_bytes()
        with pytest.raises(what, match=where):
            enrolled.load(path, MODEL)
        with pytest.raises(what, match=where):
            recorder.enrol(path, "Bob", (1, 6))
        assert path.read_bytes() == before


def test_there_is_a_bound(path, monkeypatch):
    monkeypatch.setattr(enrolled, "VOICES_MAX", 2)
    recorder = Recorder(4)
    for person in range(2):
        recorder.enrol(path, f"n{person}", (person, 6))
    with pytest.raises(TooLarge, match="2 voices are enrolled"):
        recorder.enrol(path, "n2", (2, 6))
    recorder.enrol(path, "n1", (3, 6))


def enrol_one(path, person):
    Recorder(6).enrol(path, f"n{person}", (person, 6))


def test_processes_that_enrol_at_once_lose_nobody(path):
    processes = [get_context("fork").Process(target=enrol_one, args=(path, person)) for person in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert [voice.name for voice in enrolled.load(path, MODEL)] == [f"n{person}" for person in range(6)]


@pytest.mark.parametrize("words", [["voices"], ["unenrol", "ann"]])
def test_an_installation_that_is_not_there_is_said_and_no_folder_is_made(tmp_path, words):
    with pytest.raises(SystemExit, match=r"none\.toml"):
        main(["speech", *words, "-c", str(tmp_path / "none.toml")])
    assert not list(tmp_path.iterdir())


def test_a_person_sees_and_forgets_voices(tmp_path, capsys):
    file = tmp_path / "millstream.toml"
    file.write_text("[speech]\n")
    Recorder().enrol(voices.kept_in(tmp_path), "Ann", (0, 8))
    main(["speech", "voices", "-c", str(file)])
    assert "Ann" in capsys.readouterr().out
    main(["speech", "unenrol", "Ann", "-c", str(file)])
    with pytest.raises(SystemExit, match="no voice 'Ann' is enrolled; there are: nobody"):
        main(["speech", "unenrol", "Ann", "-c", str(file)])
