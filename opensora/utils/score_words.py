"""Scores of a clip as words behind its caption, which models learn and prompts then ask for.

Source: Open-Sora 1.2 and 1.3 reports, conditioning on scores; the words and their bounds are those of 1.3.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

# Below each bound stands a word that 1.3 learned; the last word is for everything above.
_AESTHETIC = (
    *((4.0, "terrible"), (4.5, "very poor"), (5.0, "poor"), (5.5, "fair"), (6.0, "good")),
    *((6.5, "very good"), (math.inf, "excellent")),
)
_MOTION = (
    *((0.5, "very low"), (2.0, "low"), (5.0, "fair"), (10.0, "high"), (20.0, "very high")),
    (math.inf, "extremely high"),
)
_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,9})?")
SCORE_FORMATS = ("words", "numbers")


@dataclass(frozen=True)
class Scores:
    """What is known about a clip, or asked for. None and NaN say nothing.

    Args:
        aes: Aesthetic score, about 3 to 7, or a word.
        flow: Strength of motion, from 0, or a word.
        camera: Motion of the camera, such as "pan left".
    """

    aes: float | str | None = None
    flow: float | str | None = None
    camera: str | None = None


def append_scores(text: str, scores: Scores, form: str) -> str:
    """Append scores to a text. One that the text names already stays as it is there.

    Args:
        text: Prompt or caption.
        scores: What to append.
        form: "words", as 1.3 learned ("The aesthetic score is good."), or "numbers", as 1.2 did.

    Raises:
        ValueError: The form is unknown, or a score is no number where one is needed.
    """
    if form not in SCORE_FORMATS:
        raise ValueError(f"score_format={form!r}: use one of {', '.join(SCORE_FORMATS)}.")
    if form == "words":
        parts = [
            ("aesthetic score is", _word(scores.aes, _AESTHETIC), " The aesthetic score is {}."),
            ("motion strength is", _word(scores.flow, _MOTION), " The motion strength is {}."),
        ]
    else:
        parts = [
            ("aesthetic score:", _decimal("aes", scores.aes), " aesthetic score: {}."),
            ("motion score:", _decimal("flow", scores.flow), " motion score: {}."),
        ]
    for marker, value, suffix in (*parts, ("camera motion:", scores.camera, " camera motion: {}.")):
        if value is not None and marker not in text.lower():
            text += suffix.format(value)
    return text


def _word(score: float | str | None, table: Sequence[tuple[float, str]]) -> str | None:
    if score is None or (isinstance(score, str) and not _NUMBER.fullmatch(score)):
        return score
    score = float(score)
    return next((word for bound, word in table if score < bound or score == bound == math.inf), None)


def _decimal(name: str, score: float | str | None) -> str | None:
    if isinstance(score, str):
        raise ValueError(f"{name}={score!r}: score_format='numbers' needs a number, such as 6.5.")
    return None if score is None or math.isnan(score) else f"{score:.1f}"
