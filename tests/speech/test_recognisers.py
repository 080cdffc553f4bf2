"""The contract of recognisers, kept by Whisper with its weights."""

import pytest

from millstream.models.model import load
from millstream.models.repository import Repository
from millstream.testing import check_recogniser


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whisper-base", "whisper-tiny-en"])
def test_whisper_keeps_the_contract_of_windowed_recognisers(name, weights, speech):
    repository = Repository(weights(name))
    check_recogniser(lambda: load(repository, name, repository.versions(name)[-1]), speech[:96_000])
