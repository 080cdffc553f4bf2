"""`millstream transcribe` as a person types it."""

import json

import msgspec
import numpy as np
import pytest
from recordings import models, said
from sound_files import wav

from millstream.cli import main

ONE, TWO = "alpha bravo charlie", "delta echo"


@pytest.fixture
def at(tmp_path):
    """A folder with models, two recordings, and a letter that says it is one."""
    models(tmp_path / "models")
    wav(tmp_path / "one.wav", said(ONE, TWO))
    wav(tmp_path / "two.wav", said(TWO))
    (tmp_path / "letter.wav").write_text("Dear Sir or Madam")
    return tmp_path


def typed(at, *words):
    main(["transcribe", *words, "--models", str(at / "models"), "--no-speakers"])


def test_the_text_comes_on_stdout_and_words_about_it_on_stderr(at, capsys):
    typed(at, str(at / "one.wav"))
    told = capsys.readouterr()
    assert told.out == f"{ONE}\n{TWO}\n" and "of en speech in" in told.err


def test_several_files_come_in_their_order_with_their_names(at, capsys):
    typed(at, str(at / "two.wav"), str(at / "one.wav"))
    assert capsys.readouterr().out == f"== {at / 'two.wav'}\n{TWO}\n== {at / 'one.wav'}\n{ONE}\n{TWO}\n"


def test_every_format_is_written_and_json_is_one_line(at, capsys):
    out = at / "out"
    typed(at, str(at / "one.wav"), "--format", "txt,srt,vtt,json,rttm", "--out", str(out), "--json")
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["sound"] is True and told["files"][0]["words"] == 5 and told["files"][0]["language"] == "en"
    assert sorted(path.name for path in out.iterdir()) == [
        f"one.{form}" for form in ("json", "rttm", "srt", "txt", "vtt")
    ]
    assert (out / "one.vtt").read_text().startswith("WEBVTT\n") and TWO in (out / "one.srt").read_text()
    assert json.loads((out / "one.json").read_text())["lines"][0]["words"][2]["text"] == "charlie"
    assert (out / "one.txt").read_text() == f"{ONE}\n{TWO}\n"


def test_an_error_in_one_file_stops_no_other(at, capsys):
    files = [str(at / name) for name in ("one.wav", "letter.wav", "nothing.wav", "two.wav")]
    with pytest.raises(SystemExit) as stopped:
        typed(at, *files)
    told = capsys.readouterr()
    assert stopped.value.code == "millstream: 2 of 4 files were not transcribed"
    assert told.out == f"== {files[0]}\n{ONE}\n{TWO}\n== {files[3]}\n{TWO}\n"
    assert f"{files[1]}: no file of sound" in told.err and f"{files[2]}: there is no such file" in told.err
    with pytest.raises(SystemExit) as stopped:
        typed(at, *files, "--json")
    assert stopped.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert [("error" in one, one["file"]) for one in found["files"]] == list(
        zip([False, True, True, False], files, strict=True)
    )
    assert found["files"][3]["text"] == f"{TWO}\n" and found["sound"] is False


def test_a_folder_is_every_recording_in_it(at, capsys):
    folder = at / "calls"
    (folder / "older").mkdir(parents=True)
    for name in ("b.WAV", "a.wav", ".c.wav", "older/d.wav"):
        wav(folder / name, said(TWO))
    (folder / "notes.txt").write_text("not sound")
    typed(at, str(folder), str(at / "one.wav"))
    assert capsys.readouterr().out == (
        f"== {folder / 'a.wav'}\n{TWO}\n== {folder / 'b.WAV'}\n{TWO}\n== {at / 'one.wav'}\n{ONE}\n{TWO}\n"
    )
    with pytest.raises(SystemExit, match=r"models: no recordings in this folder .* known: WAV"):
        typed(at, str(at / "models"))


@pytest.mark.parametrize(("words", "what"), [
    (["--format", "doc"], "there are txt, srt"), (["--format", "srt,vtt"], "several wants --out"),
    (["--recogniser", "other"], "has no model 'other': millstream models add"), (["--out", "one.wav"], "is a file"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_before_anything_is_read(at, words, what, monkeypatch):
    monkeypatch.chdir(at)
    with pytest.raises(SystemExit, match=what):
        typed(at, "one.wav", *words)
    with pytest.raises(SystemExit, match=r"both become one\.txt"):
        typed(at, "one.wav", str(at / "one.wav"), "--out", "there")


def test_channels_may_be_speakers(at, capsys):
    one, other = said(ONE), said(TWO, pause_s=3.5)
    both = np.zeros((max(len(one), len(other)), 2))
    both[: len(one), 0], both[: len(other), 1] = one, other
    typed(at, str(wav(at / "both.wav", both)), "--channels", "split")
    assert capsys.readouterr().out == f"channel 1: {ONE}\nchannel 2: {TWO}\n"


def test_an_installation_says_which_models(at, capsys):
    models(at / "models", name="others")
    (at / "millstream.toml").write_text('[speech]\nrecogniser = "tones"\n')
    main(["transcribe", str(at / "two.wav"), "-c", str(at / "millstream.toml"), "--no-speakers"])
    assert capsys.readouterr().out == f"{TWO}\n"


@pytest.mark.slow
def test_real_speech_is_transcribed(weights, audio, capsys):
    main([
        "transcribe", str(audio / "librispeech" / "1688-142285-0004.flac"), str(audio / "zh" / "funasr_example.flac"),
        "--models", str(weights("whisper-base")), "--recogniser", "whisper-base", "--json",
    ])  # fmt: skip
    english, chinese = json.loads(capsys.readouterr().out)["files"]
    words = english["text"].lower()
    assert english["language"] == "en" and "his statement of having been a shop" in words and "best of all" in words
    assert chinese["language"] == "zh" and "欢迎大家来体验" in chinese["text"]
    assert english["speakers"] == 1


@pytest.mark.slow
def test_enrolled_voices_give_their_names_to_recordings(weights, audio, tmp_path, capsys, caplog):
    (tmp_path / "models").symlink_to(weights("whisper-base"))
    config = tmp_path / "millstream.toml"
    config.write_text('[speech]\nrecogniser = "whisper-base"\nvoice = "wespeaker"\n')
    clips = audio / "librispeech"
    main(["speech", "enrol", "法官", str(clips / "2609-156975-0002.flac"), "-c", str(config)])
    main(["speech", "voices", "-c", str(config)])
    enrolled = capsys.readouterr().out.splitlines()
    assert enrolled[0].startswith("法官: ") and enrolled[1].startswith("法官: ") and "wespeaker/" in enrolled[1]
    for name, who in (("2609-156975-0005", "法官: "), ("367-130732-0002", "S1: ")):
        main(["transcribe", str(clips / f"{name}.flac"), "-c", str(config)])
        assert all(line.startswith(who) for line in capsys.readouterr().out.splitlines())
    kept = msgspec.msgpack.decode((tmp_path / "state" / "speech-voices").read_bytes())
    kept["voices"][0]["model"] = "wespeaker/none"
    (tmp_path / "state" / "speech-voices").write_bytes(msgspec.msgpack.encode(kept))
    main(["transcribe", str(clips / "2609-156975-0005.flac"), "-c", str(config)])
    assert capsys.readouterr().out.startswith("S1: ") and "nobody is called by name" in caplog.text
