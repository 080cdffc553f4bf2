"""Files become sound, and what is wrong with one is said with its name."""

import io
import wave

import numpy as np
import pytest
from sound_files import encoded, wav

from millstream.errors import BadInput, NotFound, TooLarge
from millstream.flows.speech import files

AT = np.arange(2 * 48000) / 48000
TWO = np.stack([0.5 * np.sin(2 * np.pi * 440 * AT), 0.25 * np.sin(2 * np.pi * 880 * AT)])
KINDS = [
    ("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("mp4", "aac"),
    ("ogg", "libopus"), ("webm", "libopus"), ("adts", "aac"), ("aiff", "pcm_s16be"),
]  # fmt: skip


def heard(source, name="x", **more):
    blocks = list(files.blocks(source, name, **more))
    return [np.concatenate([block[k] for block in blocks]) for k in range(len(blocks[0]))]


def loudest(sound):
    """Hz, and its amplitude."""
    middle = sound[8000:24000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    return np.argmax(spectrum) * 16000 / len(middle), spectrum.max() / (len(middle) / 4)


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_each_kind_of_file_is_its_sound(container, codec):
    data = encoded(container, codec, TWO)
    left, right = heard(io.BytesIO(data), split=True)
    assert len(left) == len(right) and abs(len(left) - 32000) < 1600  # some encoders add a frame or two
    assert loudest(left)[0] == 440 and loudest(left)[1] == pytest.approx(0.5, rel=0.1)
    assert loudest(right)[0] == 880 and loudest(right)[1] == pytest.approx(0.25, rel=0.1)
    (mixed,) = heard(io.BytesIO(data))
    assert np.allclose(mixed, (left + right) / 2, atol=1e-6)


def test_samples_of_16_khz_come_as_they_are(tmp_path):
    given = np.random.default_rng(0).uniform(-1, 1, 70_000)
    path = wav(tmp_path / "a.wav", given)
    with wave.open(str(path)) as file:
        expected = np.frombuffer(file.readframes(70_000), "<i2") / 32768
    assert np.array_equal(heard(path)[0], expected.astype(np.float32))


def test_it_comes_in_blocks_of_about_a_second(tmp_path):
    path = wav(tmp_path / "a.wav", np.zeros((5 * 44100, 2)), 44100)
    sizes = [len(block[0]) for block in files.blocks(path, "a")]
    assert sum(sizes) == 5 * 16000 and max(sizes) < 2 * 16000


@pytest.mark.parametrize("data", [b"", b"hello, this is a letter", bytes(range(256)) * 40])
def test_what_is_no_sound_is_refused(data):
    with pytest.raises(BadInput, match=r"letter\.wav: no file of sound"):
        heard(io.BytesIO(data), "letter.wav")


@pytest.mark.parametrize("name", ["a.m3u8", "a.wav"])
@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.0,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
        "v=0\nm=audio 5004 RTP/AVP 0\nc=IN IP4 127.0.0.1\n",
    ],
)
def test_no_other_file_is_read_for_one_that_names_it(playlist, name, tmp_path):
    (tmp_path / "secret.aac").write_bytes(encoded("adts", "aac", TWO))
    path = tmp_path / name
    path.write_text(playlist.format(tmp_path / "secret.aac"))
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(BadInput, match=r"x: no file of sound"):
            heard(source)


def test_a_damaged_file_says_where(tmp_path):
    data = bytearray(encoded("flac", "flac", TWO))
    del data[len(data) // 2 :]
    with pytest.raises(BadInput, match=r"x\.flac: damaged 0\.\d s from its start"):
        heard(io.BytesIO(bytes(data)), "x.flac")


def test_a_file_that_holds_less_than_it_says_is_damaged():
    data = encoded("flac", "flac", np.tile(TWO, 8))
    broken = data[: len(data) // 3] + np.random.default_rng(0).bytes(len(data))
    with pytest.raises(BadInput, match=r"x\.flac: damaged: it says that it lasts 16\.0 s"):
        heard(io.BytesIO(broken), "x.flac")


def test_an_empty_recording_is_said_and_a_missing_file_too(tmp_path):
    with pytest.raises(BadInput, match="there is no sound in it"):
        heard(wav(tmp_path / "a.wav", np.zeros(0)))
    with pytest.raises(NotFound, match=r"b\.wav"):
        heard(tmp_path / "b.wav", "b.wav")
    with pytest.raises(NotFound, match="a folder"):
        heard(tmp_path)
    (tmp_path / "c.wav").touch()
    with pytest.raises(BadInput, match=r"no file of sound \(it is empty\)"):
        heard(tmp_path / "c.wav")


def test_a_recording_that_is_too_long_is_refused_before_it_is_read_whole(tmp_path):
    path, taken = wav(tmp_path / "a.wav", np.zeros(16000 * 60)), 0
    with pytest.raises(TooLarge, match="longer than 5 s"):
        for block in files.blocks(path, "a", seconds_max=5):
            taken += len(block[0])
    assert taken <= 5 * 16000


def test_rates_and_channels_have_bounds(tmp_path):
    with pytest.raises(BadInput, match="2000 Hz"):
        heard(wav(tmp_path / "a.wav", np.zeros(5000), 2000))
    with pytest.raises(BadInput, match="9 channels"):
        heard(wav(tmp_path / "b.wav", np.zeros((5000, 9))))


def test_numbers_that_are_none_become_silence():
    data = bytearray(encoded("wav", "pcm_f32le", TWO[:1]))
    data[-400:] = np.array([np.nan, np.inf, -np.inf, 7.0] * 25, "<f4").tobytes()
    (sound,) = heard(io.BytesIO(bytes(data)))
    assert np.isfinite(sound).all() and np.abs(sound).max() < 1.3
