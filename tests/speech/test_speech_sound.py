"""What a client sends becomes the same sound, whatever the form, the rate and the cuts."""

import av
import numpy as np
import pytest
import soxr

from millstream.errors import BadInput, TooLarge
from millstream.flows.speech import opus, sound
from millstream.flows.speech.resample import Resampler
from millstream.flows.speech.sound import Intake

RATES = (4000, 8000, 11025, 16000, 22050, 24000, 44100, 48000, 47999, 96000, 192000)


def resampled(rate, given):
    resampler = Resampler(rate)
    return np.concatenate([resampler.feed(given.astype(np.float32)), resampler.flush()])


def decibels(error, of):
    return 10 * np.log10(np.mean(np.square(error)) / np.mean(np.square(of)) + 1e-20)


def fed(intake, data, cut):
    """All of `data` in messages of `cut()` bytes."""
    made, at = [], 0
    while at < len(data):
        size = cut()
        made.append(intake.feed(data[at : at + size]))
        at += size
    return np.concatenate([*made, intake.flush()])


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_stays_the_tone_at_its_time(rate):
    seconds = 1.3
    at = np.arange(round(rate * seconds)) / rate
    expected = np.arange(np.ceil(len(at) * 16000 / rate)) / 16000
    for hertz in (0, 100, 1000, 0.42 * min(rate, 16000)):
        made = resampled(rate, 0.5 * np.cos(2 * np.pi * hertz * at + 0.3))
        assert len(made) == len(expected)
        wanted = 0.5 * np.cos(2 * np.pi * hertz * expected + 0.3)
        assert decibels((made - wanted)[400:-400], wanted) < -80  # at both ends lies silence, which is no tone


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate > 16400])
def test_what_16_khz_cannot_hold_is_gone(rate):
    at = np.arange(rate) / rate
    for hertz in (8200, 0.49 * rate):
        made = resampled(rate, np.cos(2 * np.pi * hertz * at))
        assert decibels(made[400:-400], [np.sqrt(0.5)]) < -80


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_it_is_what_another_resampler_makes(rate):
    noise = np.random.default_rng(1).standard_normal(6000).astype(np.float32) * 0.1
    given = soxr.resample(noise, 6000, rate, "VHQ")  # nothing above 3 kHz
    other = soxr.resample(given, rate, 16000, "VHQ")
    made = resampled(rate, given)
    least = min(len(made), len(other))
    assert decibels((made[:least] - other[:least])[500:-500], other) < -60


@pytest.mark.parametrize(("form", "rate", "channels"), [
    ("pcm16", 16000, 1), ("pcm16", 44100, 2), ("float32", 48000, 1), ("float32", 11025, 3), ("pcm16", 8000, 8),
    ("pcm16", 47999, 1),
])  # fmt: skip
def test_cuts_change_no_bit(form, rate, channels):
    random = np.random.default_rng(rate)
    samples = np.clip(random.standard_normal(rate * channels) * 0.2, -1, 1)
    data = samples.astype("<f4").tobytes() if form == "float32" else (samples * 32767).astype("<i2").tobytes()
    whole = fed(Intake(form, rate, channels), data, lambda: len(data))
    assert len(whole) == 16000
    for cut in (lambda: 37, lambda: rate // 10 * 2, lambda: int(random.integers(1, 9000))):
        assert np.array_equal(fed(Intake(form, rate, channels), data, cut), whole)
    some = data[: 4 * 1000 * channels]
    byte_by_byte = fed(Intake(form, rate, channels), some, lambda: 1)
    assert np.array_equal(byte_by_byte, fed(Intake(form, rate, channels), some, lambda: len(some)))


@pytest.mark.parametrize(
    ("form", "rate", "channels"), [("pcm16", 44100, 2), ("float32", 22050, 1), ("pcm16", 16000, 1)]
)
def test_who_goes_on_at_audio_ms_hears_the_same(form, rate, channels):
    random = np.random.default_rng(5)
    samples = np.clip(random.standard_normal(rate * channels) * 0.2, -1, 1)
    data = samples.astype("<f4").tobytes() if form == "float32" else (samples * 32767).astype("<i2").tobytes()
    frame = channels * (4 if form == "float32" else 2)
    whole = fed(Intake(form, rate, channels), data, lambda: len(data))
    for _ in range(5):
        first, second = Intake(form, rate, channels), Intake(form, rate, channels)
        made = [first.feed(data[: int(random.integers(1, len(data)))])]
        second.restore(first.save())
        assert second.audio_ms == first.audio_ms
        again = data[second.audio_ms * rate // 1000 * frame :]
        made += [second.feed(again[:3]), second.feed(again[3:]), second.flush()]
        assert np.array_equal(np.concatenate(made), whole)


def test_channels_are_mixed_and_what_is_too_loud_is_cut_off_and_counted():
    intake = Intake("float32", 16000, 2)
    made = intake.feed(np.array([0.5, -0.25, 3.0, 1.0, -60.0, -1.0], "<f4").tobytes())
    assert made.tolist() == [0.125, 1.0, -1.0] and intake.clipped == 2 and intake.taken == 3


def test_half_a_sample_waits_for_its_other_half_and_is_dropped_at_the_end():
    intake, data = Intake(), np.array([1, -2, 3], "<i2").tobytes()
    made = np.concatenate([intake.feed(data[:1]), intake.feed(data[1:4]), intake.feed(data[4:5])])
    assert (made * 32768).tolist() == [1, -2]
    assert len(intake.flush()) == 0 and intake.dropped == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1000.0])
def test_what_is_no_audio_is_refused_and_nothing_of_it_is_taken(wrong):
    intake, good = Intake("float32"), np.array([0.1, 0.2], "<f4")
    intake.feed(good.tobytes())
    with pytest.raises(BadInput, match="audio sample 3 is"):
        intake.feed(np.array([0.3, wrong], "<f4").tobytes())
    assert intake.taken == 2 and np.array_equal(intake.feed(good.tobytes()), good)


def test_a_message_has_a_bound():
    intake = Intake()
    with pytest.raises(TooLarge):
        intake.feed(bytes(sound.BYTES_MAX + 2))
    assert len(intake.feed(bytes(sound.BYTES_MAX))) == sound.BYTES_MAX // 2


@pytest.mark.parametrize("of", [("mp3", 16000, 1), ("pcm16", 3999, 1), ("pcm16", 192_001, 1), ("pcm16", 8000, 9),
                                ("pcm16", 8000, 0), ("opus", 48000, 3)])  # fmt: skip
def test_what_a_client_cannot_send_is_said(of):
    with pytest.raises(BadInput):
        Intake(*of)


# -- Opus


def packets(given, rate=16000):
    """`given` as an encoder's packets of 20 ms."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = rate, "mono", "s16", 32000
    encoder.open()
    made = []
    for at in range(0, len(given) // encoder.frame_size * encoder.frame_size, encoder.frame_size):
        samples = (given[at : at + encoder.frame_size] * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, at
        made += [bytes(packet) for packet in encoder.encode(frame)]
    return made


@pytest.fixture(scope="module")
def spoken_packets():
    """Three seconds that rise and fall as speech does."""
    at = np.arange(48000) / 16000
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.8 * at)
    voice = sum(np.sin(2 * np.pi * np.cumsum(k * pitch) / 16000) / k for k in range(1, 20))
    given = 0.15 * voice * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * at))
    return given, packets(given)


def decoded(intake, some):
    return np.concatenate([*(intake.feed(packet) for packet in some), intake.flush()])


def test_packets_of_opus_are_what_was_encoded(spoken_packets):
    given, some = spoken_packets
    made = decoded(Intake("opus"), some)
    assert len(made) == len(some) * 320
    delays = range(400)  # an encoder's own delay is not told in a packet
    best = max(np.corrcoef(made[d : d + 40000], given[:40000])[0, 1] for d in delays)
    assert best > 0.95


def test_who_goes_on_with_opus_hears_the_same(spoken_packets, monkeypatch):
    monkeypatch.setattr(opus, "RESTART", 40)
    _, some = spoken_packets
    whole = decoded(Intake("opus"), some)
    for at in (1, 39, 40, 41, 66, 100):
        first, second = Intake("opus"), Intake("opus")
        made = [first.feed(packet) for packet in some[:at]]
        saved = first.save()
        assert sum(map(len, saved["packets"]["kept"])) <= opus.HELD_BYTES_MAX
        second.restore(saved)
        assert second.audio_ms == 20 * at
        assert np.array_equal(np.concatenate([*made, decoded(second, some[at:])]), whole)


def test_a_decoder_that_begins_anew_is_not_heard(spoken_packets, monkeypatch):
    _, some = spoken_packets
    without = decoded(Intake("opus"), some)
    monkeypatch.setattr(opus, "RESTART", 40)
    assert decibels(decoded(Intake("opus"), some) - without, without) < -60


def test_what_is_kept_has_a_bound(spoken_packets, monkeypatch):
    monkeypatch.setattr(opus, "RESTART", 40)
    stream = opus.Packets()
    for packet in spoken_packets[1]:
        stream.feed(packet)
        assert len(stream.save()["kept"]) <= 40 + opus.PRE_ROLL


def test_what_is_kept_of_large_packets_has_a_bound(monkeypatch):
    monkeypatch.setattr(opus, "HELD_BYTES_MAX", 2000)
    stream = opus.Packets()
    for packet in packets(np.random.default_rng(0).standard_normal(16000) * 0.1) * 3:
        stream.feed(packet)
        assert sum(map(len, stream.save()["kept"])) <= 2000 + len(packet)


def test_a_broken_packet_is_refused_and_the_next_is_heard(spoken_packets):
    _, some = spoken_packets
    whole, intake = decoded(Intake("opus"), some), Intake("opus")
    made = [intake.feed(packet) for packet in some[:10]]
    for broken in (b"", b"\xff", b"\x03\xff" + bytes(50)):
        with pytest.raises(BadInput):
            intake.feed(broken)
    with pytest.raises(TooLarge):
        intake.feed(bytes(opus.PACKET_BYTES_MAX + 1))
    assert np.array_equal(np.concatenate([*made, decoded(intake, some[10:])]), whole)
