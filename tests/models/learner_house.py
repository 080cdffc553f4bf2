"""Rows to learn, and every kind of learner."""

from __future__ import annotations

import numpy as np

from millstream.models.online import DeepFmSettings, FmSettings, FtrlTableSettings, OnlineLearner, Settings, begin

WIDTH = 5
SMALL = {
    "ftrl": Settings(bits=10),
    "ftrl_table": FtrlTableSettings(bits=10, seen=2, keep=40),
    "fm": FmSettings(bits=10, factors=3, scale=0.2, rate=0.1, decay=0.01),
    "deepfm": DeepFmSettings(bits=10, factors=3, scale=0.2, rate=0.1, hidden=(6, 5), dense_rate=0.05),
}
KINDS = tuple(SMALL)
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def new(kind: str, width: int = WIDTH) -> OnlineLearner:
    return begin(kind, SMALL[kind], width)  # type: ignore[arg-type]


def stream(rows: int, seed: int = 1, vocabulary: int = 300, width: int = WIDTH) -> Rows:
    """Rows with empty places, repeated tokens, soft labels and uneven weights; tokens use all 32 bits."""
    random = np.random.default_rng(seed)
    words = random.integers(1, 2**32, vocabulary, dtype=np.uint32)
    tokens = words[(vocabulary * random.random((rows, width)) ** 2).astype(int)]
    tokens[random.random((rows, width)) < 0.2] = 0
    tokens[::17] = 0
    tokens[5::11, 1] = tokens[5::11, 0]
    labels = (random.random(rows) < 0.05 + 0.9 * (tokens > 2**31).mean(axis=1)).astype(np.float32)
    labels[::13] = 0.25
    weights = random.choice([0.0, 0.5, 1.0, 2.0], rows).astype(np.float32)
    return tokens, labels, weights


def cut(rows: Rows, start: int, end: int) -> Rows:
    return rows[0][start:end], rows[1][start:end], rows[2][start:end]
