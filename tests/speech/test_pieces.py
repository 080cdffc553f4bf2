"""Tokens to words: nothing lost, times in order, a prefix kept as it is; loops found and cut."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.models.speech.hanzi import simplified
from millstream.models.speech.heard import HeardWord
from millstream.models.speech.loops import compression, doubled, looping, unlooped
from millstream.models.speech.pieces import Tokens, begun, split, text_of, without_silence, words

TEXT = st.text(st.sampled_from("abcé .,?'-3 我们说广州“”《，。！あ𠀀 \n"), max_size=40)


def tokens(text, cuts=()):
    """The bytes of a text cut at some places, a second a token."""
    data = text.encode()
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges) if a < b]
    return Tokens(pieces, list(range(len(pieces) + 1)), [0.5] * len(pieces))


def written(found):
    return "".join(f" {word.text}" if word.space else word.text for word in found).strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Hello, world. It's 3.5!", [(1, "Hello,"), (1, "world."), (1, "It's"), (1, "3.5!")]),
        ("我说：“你好，世界！”", [(0, "我"), (0, "说："), (0, "“你"), (0, "好，"), (0, "世"), (0, "界！”")]),
        ("用Python写的代码", [(0, "用"), (0, "Python"), (0, "写"), (0, "的"), (0, "代"), (0, "码")]),
        (" The word 你好 means hello", [(1, "The"), (1, "word"), (1, "你"), (0, "好"), (1, "means"), (1, "hello")]),
        ("", []),
        ("  ", []),
    ],
)
def test_words_are_split_at_spaces_and_characters(text, expected):
    assert [(int(piece.space), piece.text) for piece in split(text)] == expected


@given(TEXT)
@settings(max_examples=300)
def test_the_words_of_a_text_are_the_text(text):
    found = split(text)
    assert "".join(text[piece.begin : piece.end] for piece in found) == text.rstrip()
    assert "".join(f" {p.text}" if p.space else p.text for p in found).split() == text.split()


@given(TEXT, st.lists(st.integers(0, 200), max_size=20))
@settings(max_examples=300)
def test_words_do_not_depend_on_how_their_bytes_are_cut_into_tokens(text, cuts):
    whole, cut = words(tokens(text)), words(tokens(text, cuts))
    assert [(word.text, word.space) for word in whole] == [(word.text, word.space) for word in cut]
    ends = [time for word in cut for time in (word.start, word.end)]
    assert ends == sorted(ends)
    assert all(word.confidence == 0.5 for word in cut)


@given(TEXT, TEXT, st.lists(st.integers(0, 200), max_size=20))
@settings(max_examples=300)
def test_a_prefix_keeps_its_words_whatever_comes_behind_it(prefix, more, cuts):
    expected = [(piece.text, piece.space) for piece in split(begun(prefix))]
    found = words(tokens(begun(prefix) + more, cuts), prefix)
    assert [(word.text, word.space) for word in found[: len(expected)]] == expected
    assert written(found).split() == (begun(prefix) + more).split()


def test_punctuation_behind_a_prefix_is_a_word_of_its_own():
    found = words(tokens(" hello, world"), "hello")
    assert [(word.text, word.space) for word in found] == [("hello", True), (",", False), ("world", True)]


def test_a_word_lasts_from_its_first_to_its_last_token():
    found = words(Tokens([b" Wh", b"at", b" now", b"?"], [0.5, 1.0, 1.5, 2.0, 2.25], [0.2, 0.4, 0.9, 0.7]))
    assert [(word.start, word.end, word.confidence) for word in found] == [(0.5, 1.5, 0.3), (1.5, 2.25, 0.8)]


def test_characters_that_share_a_token_share_its_time():
    spelling = ["大家".encode(), "好".encode()[:1], "好".encode()[1:]]
    found = words(Tokens(spelling, [1.0, 2.0, 2.2, 3.0], [0.9, 0.8, 0.4]))
    assert [(word.text, word.start, word.end) for word in found] == [("大", 1, 1.5), ("家", 1.5, 2), ("好", 2, 3)]
    assert found[2].confidence == pytest.approx(0.6)


def test_pauses_belong_to_no_word():
    loud = np.array([0] * 30 + [1] * 40 + [0] * 100 + [1] * 20 + [0] * 10, bool)
    found = [HeardWord("so", 0.0, 1.5), HeardWord("it", 1.5, 1.55), HeardWord("is", 1.55, 2.0)]
    spans = [(word.start, word.end) for word in without_silence(found, loud, 0.01)]
    assert spans == [(0.3, 0.7), (1.5, 1.55), (1.55, 2.0)]


def test_bytes_that_are_no_text_are_left_out():
    broken = [b" good", "好".encode()[:2]]
    assert [word.text for word in words(Tokens(broken, [0, 1, 2], [1, 1]))] == ["good"]
    assert [word.text for word in words(Tokens(broken, [0, 1, 2], [1, 1]), respell=simplified)] == ["good"]
    assert len(text_of(broken)) == len(" good") + 2


def test_respelling_leaves_the_prefix_as_it_is():
    found = words(tokens("廣州廣州"), "廣州", simplified)
    assert written(found) == "廣州广州"


def test_chinese_is_simplified_by_its_words_and_stays_as_long():
    assert simplified("歡迎大家來體驗語音識別模型") == "欢迎大家来体验语音识别模型"
    assert simplified("乾隆皇帝吃餅乾") == "乾隆皇帝吃饼干"
    assert simplified("hello 3.5 简体") == "hello 3.5 简体"


def test_a_loop_is_told_from_what_people_say():
    said = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"
    assert not looping(said, 23, 11.0)
    assert not looping("no no no no", 4, 2.0)
    assert looping("I'm going to go. " * 12, 60, 10.0)
    assert compression("I'm going to go. " * 12) > 2.4 > compression(said)
    assert looping(" ".join(map(str, range(300))), 300, 10.0), "no loop by its text, but faster than anybody speaks"
    assert not looping("天" + "地玄黄宇宙洪荒" * 3, 60, 5.0) or compression("天" + "地玄黄宇宙洪荒" * 3) > 2.4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([9, 1, 2, 3, 1, 2, 3, 1, 2, 3], [9, 1, 2, 3]),
        ([9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2], [9, 1, 2, 3]),
        ([1, 2, 1, 2, 8], [1, 2, 1, 2, 8]),
        ([5, 5, 5, 5, 5], [5, 5, 5, 5, 5]),
        ([5] * 60, [5]),
        ([1, 2, 3] * 5 + [7] + [4, 5] * 4, [1, 2, 3, 7, 4, 5]),
        ([], []),
    ],
)
def test_loops_are_cut_to_their_first_round(given, expected):
    assert unlooped(given) == expected


def test_a_sentence_said_twice_at_the_end_is_found():
    sentence = [1, 2, 3, 4, 5, 6]
    assert doubled([9, *sentence, *sentence]) == 6
    assert doubled([*sentence, *sentence, 9]) == 0
    assert doubled(sentence[:5] * 2) == 0
    assert doubled([]) == 0


@given(st.lists(st.integers(0, 3), max_size=60))
def test_what_is_cut_was_there_twice(given):
    found = unlooped(given)
    at = 0
    for token in found:  # a subsequence
        at = given.index(token, at) + 1
    assert set(found) == set(given)
