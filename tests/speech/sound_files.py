"""Files of sound for tests, written by FFmpeg or by Python's own wave."""

import io
import wave

import av
import numpy as np


def encoded(container, codec, planes, rate=48000):
    """float32 [channels, n] as the bytes of a file."""
    layout, to = {1: "mono", 2: "stereo"}[len(planes)], io.BytesIO()
    with av.open(to, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = layout
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes, np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate
        shape = av.AudioResampler(format=stream.format, layout=layout, rate=rate, frame_size=stream.frame_size or 1024)
        for some in [*shape.resample(frame), *shape.resample(None)]:
            file.mux(stream.encode(some))
        file.mux(stream.encode(None))
    return to.getvalue()


def wav(path, sound, rate=16000):
    """float32 [n], or [n, channels], as 16 bits, by Python itself."""
    samples = np.asarray(sound)
    samples = samples[:, None] if samples.ndim == 1 else samples
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path
