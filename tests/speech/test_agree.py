"""Stable words: what two hypotheses in a row agree on, and nothing that would have to be taken back."""

from hypothesis import given
from hypothesis import strategies as st

from millstream.flows.speech.agree import Agreement, behind, ends_sentence
from millstream.flows.speech.settings import RATE
from millstream.spoken import Word

S = RATE


def words(text, at=0.0, each=0.3):
    return [Word(text=one, start=at + n * each, end=at + (n + 1) * each) for n, one in enumerate(text.split())]


def texts(found):
    return " ".join(word.text for word in found)


def test_words_are_stable_once_two_hypotheses_in_a_row_agree_on_them():
    agreement = Agreement()
    agreement.hear(words("the cat sat"), 1 * S)
    assert texts(agreement.stable) == ""
    agreement.hear(words("the cat sang a"), 2 * S)
    assert texts(agreement.stable) == "the cat"
    agreement.hear(words("the cat sat down"), 3 * S)
    assert texts(agreement.stable) == "the cat"  # "sang" and "sat" do not agree, nor does what comes behind
    agreement.hear(words("the cat sat down there"), 4 * S)
    assert texts(agreement.stable) == "the cat sat down"


def test_case_and_punctuation_are_no_disagreement_and_stay_as_they_became_stable():
    agreement = Agreement()
    agreement.hear(words("Hello world"), 1 * S)
    found = agreement.hear(words("hello, world. It"), 2 * S)
    assert texts(found) == "hello, world. It"
    found = agreement.hear(words("Hello World! It's"), 3 * S)
    assert texts(found) == "hello, world. It's"


def test_a_stable_word_stays_whatever_is_heard_later():
    agreement = Agreement()
    for n in (1, 2):
        agreement.hear(words("one two three"), n * S)
    found = agreement.hear(words("won too three four"), 3 * S)
    assert texts(found) == "one two three four"  # what is spoken behind the stable words, by its times


def test_look_ahead_keeps_late_words_from_being_stable():
    agreement = Agreement(look_ahead=S)
    for n in (1, 2):
        agreement.hear(words("one two three four"), n * S)
    assert texts(agreement.stable) == "one two three"  # which end by .9 s, at 2 s with 1 s of look-ahead


def test_a_hypothesis_of_a_window_is_joined_to_what_lies_before_it():
    agreement = Agreement()
    for n in (1, 2):
        agreement.hear(words("one two three"), n * S)
    found = agreement.hear(words("three four five", at=0.6), 3 * S, known=2)
    assert texts(found) == "one two three four five"
    agreement.hear(words("three four five", at=0.6), 4 * S, known=2)
    assert texts(agreement.stable) == "one two three four five"


def test_stability_is_the_share_of_hypotheses_that_had_the_word_there():
    agreement = Agreement()
    agreement.hear(words("a b"), S)
    found = agreement.hear(words("a c d"), 2 * S)
    assert [round(word.stability, 2) for word in found] == [1.0, 0.33, 0.33]
    found = agreement.hear(words("a b d"), 3 * S)
    assert [round(word.stability, 2) for word in found] == [1.0, 0.67, 0.67]


def test_a_sentence_ends_with_its_stop_also_within_quotation_marks():
    assert all(ends_sentence(words(text)) for text in ("he said stop.", "well?”", "好。", 'no!"'))
    assert not any(ends_sentence(words(text)) for text in ("and", "well,", ""))


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c,", "C", "d."]), max_size=6), max_size=10))
def test_what_was_stable_begins_all_that_comes(hypotheses):
    agreement, before = Agreement(), []
    for n, hypothesis in enumerate(hypotheses):
        found = agreement.hear(words(" ".join(hypothesis)), (n + 9) * S)
        assert found[: len(before)] == before == agreement.stable[: len(before)]
        assert all(0 < word.stability <= 1 for word in found)
        before = list(agreement.stable)


def test_a_text_that_begins_otherwise_goes_on_where_it_is_most_like_the_stable_words():
    stable = words("one two")
    assert texts(behind(stable, words("One, two three"))) == "three"
    assert texts(behind(stable, words("zero one two three"))) == "three", "a word more"
    assert texts(behind(stable, words("two three"))) == "three", "a word less"
    assert texts(behind(stable, words("won two three"))) == "three", "another word"
    assert texts(behind(stable, words("two"))) == "" == texts(behind(stable, []))
    fence = words("some sung out tear down the fence tear down the fence")
    assert texts(behind(words("some sung out pair"), fence)) == "down the fence tear down the fence"


@given(st.lists(st.sampled_from("abcd"), max_size=6), st.lists(st.sampled_from("abcd"), max_size=4))
def test_a_text_that_begins_with_the_stable_words_loses_nothing(stable, rest):
    assert [word.text for word in behind(words(" ".join(stable)), words(" ".join([*stable, *rest])))] == rest
