"""Scores in words: the published texts, their bounds, and what stays."""

import pytest

from opensora.utils.score_words import Scores, append_scores


def scored(text, form="words", **scores):
    return append_scores(text, Scores(**scores), form)


def test_scores_in_words():
    assert scored("a cat") == "a cat"
    assert scored("a cat", aes=6.5, flow=3, camera="pan left") == (
        "a cat The aesthetic score is excellent. The motion strength is fair. camera motion: pan left."
    )
    assert scored("a cat", aes="superb") == "a cat The aesthetic score is superb."
    there = "a cat. The aesthetic score is poor. camera motion: zoom"
    assert scored(there, aes=7, flow=0, camera="pan") == there + " The motion strength is very low."


@pytest.mark.parametrize(
    ("key", "bounds", "words"),
    [
        (
            "aes",
            (4, 4.5, 5, 5.5, 6, 6.5),
            ("terrible", "very poor", "poor", "fair", "good", "very good", "excellent"),
        ),
        ("flow", (0.5, 2, 5, 10, 20), ("very low", "low", "fair", "high", "very high", "extremely high")),
    ],
)
def test_a_bound_belongs_to_the_word_above(key, bounds, words):
    for bound, below, above in zip(bounds, words, words[1:], strict=False):
        assert scored("x", **{key: bound - 0.01}).endswith(f" is {below}.")
        assert scored("x", **{key: bound}).endswith(f" is {above}.")


def test_scores_in_numbers():
    numbers = {"form": "numbers", "aes": 6.54, "flow": 10.25, "camera": "zoom in"}
    said = " aesthetic score: 6.5. motion score: 10.2. camera motion: zoom in."
    assert scored("a cat", **numbers) == "a cat" + said
    assert (
        scored("motion score: 1", **numbers)
        == "motion score: 1 aesthetic score: 6.5. camera motion: zoom in."
    )
    with pytest.raises(ValueError, match="flow='high': score_format='numbers' needs a number"):
        scored("x", **{**numbers, "flow": "high"})
    with pytest.raises(ValueError, match="score_format='stars': use one of words, numbers"):
        scored("x", "stars")


@pytest.mark.parametrize("form", ["words", "numbers"])
def test_scores_are_appended_once(form):
    scores = {"aes": 5.0, "flow": 3.0, "camera": "static"}
    once = scored("a cat", form, **scores)
    assert scored(once, form, **scores) == once
    assert scored(once.upper(), form, **scores) == once.upper()
    nan = float("nan")
    assert scored("a cat", form, aes=nan, flow=nan) == "a cat"
    assert scored("a cat", aes=float("inf")).endswith("is excellent.")
