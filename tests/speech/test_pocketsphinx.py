"""Pocketsphinx: real state that hears the same whoever spoke before, and goes on where a saved one stood."""

import shutil

import numpy as np
import pytest

from millstream.errors import Misconfigured
from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.models.runtimes.pocketsphinx import Pocketsphinx
from millstream.models.speech.heard import read
from millstream.testing import check_recogniser


@pytest.fixture(scope="module")
def sphinx(weights):
    repository = Repository(weights("pocketsphinx"))
    return load(repository, "pocketsphinx", repository.versions("pocketsphinx")[-1])


def utterance(slots, sound, size, slot=0):
    for at in range(0, len(sound), size):
        part = sound[at : at + size][None]
        row = {"audio": part, "samples": np.array([part.shape[1]]), "end": np.array([at + size >= len(sound)])}
        out = slots.step(row, np.array([slot]))
    return read(out["heard"][0])


@pytest.mark.slow
def test_the_contract(sphinx, speech):
    check_recogniser(lambda: sphinx, speech[8000:24_000])


def test_words_do_not_depend_on_the_size_of_steps_nor_on_who_spoke_before(sphinx, speech):
    slots, some, other = sphinx.slots(2), speech[8000:24_000], speech[30_000:46_000]
    alone = utterance(slots, some, 16_000)
    utterance(slots, other * 0.05, 16_000)
    assert utterance(slots, some, 1600) == utterance(slots, some, 5000, slot=1) == alone
    assert all(0 < word.confidence <= 1 for word in alone.words)


def test_it_hears_most_of_a_sentence(sphinx, clip):
    heard = utterance(sphinx.slots(1), clip("librivox/0880"), 16_000)
    said = ["he", "was", "not", "an", "ill", "disposed", "young", "man"]
    assert len({word.text for word in heard.words} & set(said)) >= 6


def test_a_step_that_fails_leaves_every_slot_as_it_was(sphinx, speech, monkeypatch):
    slots, some = sphinx.slots(2), speech[8000:20_000]
    alone = utterance(slots, some, 4000)
    slots.step({"audio": some[None, :4000], "samples": np.array([4000]), "end": np.array([False])}, np.array([0]))
    both = {"audio": np.stack([some[4000:8000]] * 2), "samples": np.array([4000] * 2), "end": np.array([False] * 2)}
    begin = slots._begin
    monkeypatch.setattr(slots, "_begin", lambda: 1 / 0)  # of the second row, once the first has moved
    with pytest.raises(ZeroDivisionError):
        slots.step(both, np.array([0, 1]))
    monkeypatch.setattr(slots, "_begin", begin)
    rest = some[4000:]
    assert utterance(slots, rest, 4000) == alone


def test_a_version_without_its_dictionary_is_refused(weights, tmp_path):
    repository = Repository(weights("pocketsphinx"))
    folder = repository.folder("pocketsphinx", repository.versions("pocketsphinx")[-1])
    shutil.copytree(folder, tmp_path / "version")
    (tmp_path / "version" / "cmudict-en-us.dict").unlink()
    with pytest.raises(Misconfigured, match=r"expected one \*\.dict beside en-us, got none"):
        Pocketsphinx(tmp_path / "version" / "en-us")
