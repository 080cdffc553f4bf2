"""The page Speech in a real Chromium: its microphone hears a file, its service, recogniser and console are processes of
their own. The recogniser knows words by their tones, so what must stand on the page is known to the letter."""

import json
import os
import random
import shutil
import sys
import wave
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np
import pytest
from console_house import SAID, console, until

from millstream.demo.speech import two_people
from millstream.guard.auth import new_key
from millstream.models.repository import Repository
from millstream.spoken import Correction, Edited, End, Segment, Speaker, SpeakerTold, Transcript, Word
from service import Served, free_port

sys.path.append(str(Path(__file__).parent.parent / "speech"))
from recordings import models, said

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
SENTENCES = (
    "alpha bravo charlie delta echo foxtrot golf hotel golf foxtrot echo delta",
    "foxtrot golf",
    "hotel alpha bravo",
)
HOSTILE = "<img src=x onerror=window.hacked=1>"
TOML = """
http_port = {port}
grpc_port = {grpc}
{keys}
[console]
on = true
port = 0
[speech]
recogniser = "{recogniser}"
profile = "caption"
{more}
"""


def waved(path, sound, rate=16_000):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def installed(folder, recogniser="tones", more="", keys="", name="millstream.toml"):
    """The millstream.toml of an installation that hears."""
    port, grpc = free_port(), free_port()
    (folder / name).write_text(TOML.format(port=port, grpc=grpc, recogniser=recogniser, more=more, keys=keys))
    return folder / name


@pytest.fixture(scope="module")
def heard(tmp_path_factory):
    """What the microphone hears, as a file."""
    return waved(tmp_path_factory.mktemp("sound") / "microphone.wav", said(*SENTENCES, pause_s=1.6))


@pytest.fixture(scope="module")
def chromium(heard):
    """A browser whose microphone is a file, and is given to every page."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "Chromium is missing: apt-get install chromium"
    args = [
        "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
        "--disable-component-update", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={heard}%noloop", "--autoplay-policy=no-user-gesture-required",
    ]  # fmt: skip
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=args)
        yield made
        made.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The console of a service that hears tones."""
    folder = tmp_path_factory.mktemp("hears")
    models(folder / "models")
    file = installed(folder)
    with Served("", folder / "up.log", verb=("up", "-c", str(file))) as up:
        yield f"http://localhost:{up.said(SAID)}/speech"


def lines(page):
    """(who, text) of what is final. A microphone of a busy machine stutters, and a tone that it breaks is heard twice:
    no sentence here has a word twice in a row."""
    found = page.locator(".speech-line[data-state=final]").all()
    return [
        (
            one.locator(".speech-who").inner_text(),
            " ".join(word for word, _ in groupby(one.locator(".speech-text").inner_text().split())),
        )
        for one in found
    ]


def ended(page, seconds=60):
    until(lambda: page.locator(".speech-state").inner_text().startswith("Finished"), seconds)


def exported(page, form):
    with page.expect_download() as download:
        page.get_by_role("button", name=f"Export as {form}").click()
    assert download.value.suggested_filename == f"{'microphone' if form == 'rttm' else 'speech'}.{form}"
    return Path(download.value.path()).read_text()


def test_the_microphone_is_read_corrected_and_exported(url, open_tab, shots):
    """Partials are grey, then stable, then final, line by line; first words and final text are timed; a correction by a
    click is the service's; what is exported is what stands there."""
    page = open_tab(url).page
    page.wait_for_selector("#speech button")
    page.keyboard.press("p")
    seen = set()

    def watched():
        for one in page.locator(".speech-line").all():
            seen.add((one.get_attribute("data-state", timeout=1000), one.get_attribute("aria-hidden", timeout=1000)))
        return len(lines(page)) == len(SENTENCES)

    page.wait_for_selector(".speech-text .loose")
    page.wait_for_selector(".speech-text .stable")
    page.screenshot(path=shots / "speech-partial.png")
    until(watched, 40)
    assert {state for state, _ in seen} >= {"final"} and ("final", "true") not in seen
    assert [text for _, text in lines(page)] == list(SENTENCES)
    assert "ms of 3" in page.locator(".speech-first").inner_text()
    assert "ms of 3" in page.locator(".speech-final").inner_text()
    middle = int(page.locator(".speech-final").inner_text().split()[1])
    assert 500 <= middle < 5000, "final text comes 512 ms after speech ends, and what it took to hear"
    assert page.locator(".chart circle").count() == page.locator(".chart rect").count() == 3

    heard_first = page.locator(".speech-text").nth(0).inner_text()
    page.locator(".speech-line").nth(1).locator(".speech-text").click()
    page.keyboard.type(HOSTILE)
    page.keyboard.press("Enter")
    page.wait_for_selector(".speech-line >> text=edited")
    page.locator(".speech-line").nth(0).locator(".speech-text").click()
    page.keyboard.type("not this")
    page.keyboard.press("Escape")
    assert [text.partition("edited")[0] for _, text in lines(page)] == [SENTENCES[0], HOSTILE, SENTENCES[2]]

    page.keyboard.press("p")
    ended(page)
    page.locator(".speech-line").nth(0).locator(".speech-who").click()
    page.keyboard.type("Anna")
    page.keyboard.press("Enter")
    assert lines(page)[0] == ("Anna", SENTENCES[0]), "after the end corrections stay in the page"
    assert exported(page, "txt").splitlines() == [f"Anna: {heard_first}", HOSTILE, SENTENCES[2]]
    assert "<v Anna>alpha bravo charlie" in exported(page, "vtt")
    assert "&lt;img" in exported(page, "vtt") and "-->" in exported(page, "srt")
    told = json.loads(exported(page, "json"))
    assert [line["text"] for line in told["lines"]] == [heard_first, HOSTILE, SENTENCES[2]]
    assert told["language"] == "en" and told["lines"][2]["words"][0]["text"] == "hotel"
    page.screenshot(path=shots / "speech.png", full_page=True)


def test_a_file_is_played_as_if_it_were_live(url, open_tab, heard, tmp_path):
    """What cannot be read is said, and the page goes on."""
    tab = open_tab(url)
    page = tab.page
    (tmp_path / "broken.wav").write_bytes(b"RIFF, but no sound")
    page.locator("input[type=file]").set_input_files(tmp_path / "broken.wav")
    page.wait_for_selector(".notice.bad >> text=cannot read broken.wav")
    page.locator("input[type=file]").set_input_files(heard)
    page.wait_for_selector(".speech-text .loose")
    assert page.locator(".notice.bad").count() == 0
    ended(page)
    assert [text for _, text in lines(page)] == list(SENTENCES)
    fields = exported(page, "rttm").splitlines()[0].split()
    assert fields[0] == "SPEAKER" and fields[1] == "microphone" and abs(float(fields[3]) - 1.6) < 0.4


def test_two_people_are_told_apart_in_what_they_said(tmp_path, open_tab, shots):
    """Whisper, the detector and the voices as they are fetched, and a recording: who said what, and a colour each."""
    folder = Path(os.environ.get("MILLSTREAM_SPEECH_MODELS") or Path(sys.prefix) / "speech-models")
    kept, ours = Repository(folder), Repository(tmp_path / "models")
    wanted = ("whisper-base", "silero-vad", "wespeaker", "pyannote")
    if absent := [name for name in wanted if name not in kept.models()]:
        pytest.skip(f"millstream speech fetch {' '.join(absent)} --models {folder}")
    for name in wanted:
        live = kept.policy(name).live
        manifest, at = kept.manifest(name, live), kept.folder(name, live)
        ours.put(name, manifest, {file: at / file for file in manifest.digests})
    clip = waved(tmp_path / "two.wav", two_people(tmp_path)[: int(18.3 * 16_000)])
    said = 'voice = "wespeaker"\nturns = "pyannote"\n[speech.profiles.caption]\nfirst_token_ms_max = 9000'
    file = installed(tmp_path, "whisper-base", said)
    with Served("", tmp_path / "up.log", verb=("up", "-c", str(file))) as up:
        page = open_tab(f"http://localhost:{up.said(SAID)}/speech").page
        page.locator("input[type=file]").set_input_files(clip)
        ended(page, 90)
        told = lines(page)
        assert "best of times" in told[0][1] and "ditch" in told[-1][1]
        assert {who for who, _ in told} == {"S1", "S2"} and told[0][0] != told[-1][0]
        page.screenshot(path=shots / "speech-two.png", full_page=True)
        colours = {who.inner_text(): who.get_attribute("class") for who in page.locator(".speech-who").all()}
        assert len(set(colours.values())) == 2
        page.goto("about:blank")


@pytest.mark.parametrize(("language", "width", "theme"), [("zh-CN", 390, "dark"), ("en-US", 390, "light")])
def test_it_fits_a_phone_in_both_languages(url, open_tab, language, width, theme, shots):
    tab = open_tab(url, locale=language, color_scheme=theme, viewport={"width": width, "height": 800})
    page = tab.page
    name = {"zh-CN": "麦克风", "en-US": "Microphone"}[language]
    page.get_by_role("button", name=name).click()
    page.wait_for_selector(".speech-line[data-state=final]")
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    page.screenshot(path=shots / f"speech-{language}-{width}-{theme}.png", full_page=True)
    page.get_by_role("button", name={"zh-CN": "停止", "en-US": "Stop"}[language]).click()
    until(
        lambda: (
            page.locator(".speech-state").inner_text().startswith({"zh-CN": "已结束", "en-US": "Finished"}[language])
        )
    )


def test_a_service_that_is_not_there_or_refuses_is_said(tmp_path, open_tab):
    """No service; a key that may look and not speak; and none of [speech] at all."""
    viewer, snippet = new_key("viewer", ("*:view",))
    (tmp_path / "keys.toml").write_text(snippet)
    models(tmp_path / "models")
    with console(installed(tmp_path), tmp_path / "console.txt") as at:
        page = open_tab(f"{at}/speech").page
        page.get_by_role("button", name="Microphone").click()
        page.wait_for_selector(".notice.bad >> text=cannot reach")
        assert page.get_by_role("button", name="Microphone").is_enabled()
        page.goto("about:blank")
    keyed = installed(tmp_path, keys='keys = "keys.toml"', name="keyed.toml")
    with Served("", tmp_path / "up.log", verb=("up", "-c", str(keyed))) as up:
        page = open_tab(f"http://localhost:{up.said(SAID)}/enter").page
        page.get_by_label("Key").fill(viewer)
        page.get_by_role("button", name="Enter").click()
        page.goto(f"http://localhost:{up.said(SAID)}/speech")
        page.get_by_role("button", name="Microphone").click()
        page.wait_for_selector(".notice.bad >> text=403")
        page.goto("about:blank")
    (tmp_path / "deaf.toml").write_text("[console]\nport = 0\n")
    with console(tmp_path / "deaf.toml", tmp_path / "deaf.txt") as at:
        page = open_tab(f"{at}/speech").page
        page.wait_for_selector("text=millstream speech fetch whisper-base")
        assert page.locator("#speech").count() == 0
        page.goto("about:blank")


def test_the_page_folds_messages_as_the_client_does(url, open_tab):
    """Whatever is lost, comes twice or in another order: the page holds what spoken.Transcript holds."""
    page = open_tab(url).page
    page.wait_for_selector("#speech button")
    chance = random.Random(7)
    for _ in range(40):
        messages = list(history(chance))
        told = [one for one in messages if chance.random() < 0.9]
        told += chance.sample(told, len(told) // 4)
        chance.shuffle(told)
        held = Transcript()
        for one in told:
            held.hear(one)
        expected = [[line.id, line.state, held.who(line), line.text] for line in held.shown()]
        found = page.evaluate(
            "(told) => { const held = new MillstreamTranscript(); for (const one of told) held.hear(one);"
            "return held.shown().map((line) => [line.id, line.state, held.who(line), held.text(line)]); }",
            [json.loads(msgspec.json.encode(one)) for one in told],
        )
        assert found == expected


def history(chance):
    """Messages of a session: segments that grow, voices that are named and merged, corrections and edits."""
    seq = 0
    speakers = [Speaker(id=f"S{n}", name=f"S{n}", score=0.7) for n in range(1, 4)]
    for number in range(1, 6):
        rev = 0
        for state in ("partial", "partial", "stable", "final"):
            seq, rev = seq + 1, rev + 1
            words = [
                Word(text=f"w{chance.randrange(9)}", start=n, end=n + 0.5, space=chance.random() < 0.8)
                for n in range(chance.randrange(1, 5))
            ]
            who = chance.choice([Speaker(), Speaker(name="analysing"), *speakers])
            yield Segment(
                seq=seq,
                id=str(number),
                rev=rev,
                state=state,
                start=chance.randrange(9),
                end=9.0,
                words=words,
                speaker=who,
            )
        for _ in range(chance.randrange(3)):
            seq, rev = seq + 1, rev + 1
            if chance.random() < 0.5:
                yield Correction(seq=seq, id=str(number), rev=rev, speaker=chance.choice(speakers), reason="heard more")
            else:
                text, who = chance.choice([("said", None), (None, speakers[0]), ("both", speakers[1]), ("", None)])
                yield Edited(seq=seq, id=str(number), rev=rev, text=text, speaker=who)
    for op, into in (("new", ""), ("rename", ""), ("merge", f"S{chance.randrange(1, 4)}")):
        seq += 1
        yield SpeakerTold(seq=seq, op=op, id=f"S{chance.randrange(1, 4)}", name=chance.choice(["", "Anna"]), into=into)
    yield End(seq=seq + 1, last_seq=seq, audio_ms=9000)
