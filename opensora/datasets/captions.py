"""Captions: what a model reads of a row, as prompts are written later."""

from opensora.datasets.manifest import Manifest
from opensora.utils.caption_cleaning import clean_caption
from opensora.utils.random import Draws
from opensora.utils.score_words import SCORE_FORMATS, Scores, append_scores

_NO_CAMERA = ("", "unknown", "undetermined", "none")  # labels of detectors that saw nothing


class Captions:
    """Captions of a table, with scores in words and cleaned as the config says.

    Args:
        manifest: The table; scores stand in its columns `aes`, `flow` and `cmotion`, as far as it has them.
        seed: Seed of the run.
        clean: Clean captions, as prompts of released weights are.
        score_format: "words" or "numbers" appends scores; None appends none.
        score_dropout: Probability that a score is left out, each for itself, in [0, 1].

    Raises:
        ValueError: An argument is wrong, or scores are asked for and there is no such column.
    """

    def __init__(
        self, manifest: Manifest, seed: int, clean: bool, score_format: str | None, score_dropout: float
    ) -> None:
        self.manifest, self.seed, self.clean = manifest, seed, clean
        self.form, self.dropout = score_format, score_dropout
        if not 0 <= score_dropout <= 1:
            raise ValueError(f"score_dropout={score_dropout}: a probability is from 0 to 1.")
        if score_format is None:
            return
        if score_format not in SCORE_FORMATS:
            raise ValueError(f"score_format={score_format!r}: use None or one of {', '.join(SCORE_FORMATS)}.")
        there = [name for name in ("aes", "flow", "cmotion") if name in manifest.extra]
        if not there or manifest.text is None:
            raise ValueError(
                f"score_format={score_format!r}: needs captions, and a column aes, flow or cmotion; the "
                f"table has {', '.join(manifest.extra) or 'no other columns'}. Name them so, or use None."
            )
        for name in ("aes", "flow"):
            if name in there:
                manifest.numbers(name)  # says which cell is none

    def __call__(self, row: int, sample: int, epoch: int, place: int = 0) -> str:
        """Return the caption of a row.

        Args:
            row: The row that was read.
            sample: Names the random numbers, with the epoch.
            epoch: From 0.
            place: Number among the captions of a sample.
        """
        text = self.manifest.text[row]
        if self.form is not None:
            text = self._with_scores(text, row, Draws(self.seed, [sample], epoch), place)
        return clean_caption(text) if self.clean else text

    def _with_scores(self, text: str, row: int, draws: Draws, place: int) -> str:
        left_out = (draws.uniform("scores", place, (1, 3))[0] < self.dropout).tolist()
        extra = self.manifest.extra
        cells = [extra[name][row].strip() if name in extra else "" for name in ("aes", "flow", "cmotion")]
        found = [float(cell) if cell else None for cell in cells[:2]] + [_camera(cells[2])]
        scores = Scores(*(None if out else value for out, value in zip(left_out, found, strict=True)))
        text = text.rstrip()
        return append_scores(text if text.endswith((".", "!", "?")) else f"{text}.", scores, self.form)


def _camera(label: str) -> str | None:
    """Return a detector's label as words: "pan_right" is "pan right"."""
    words = label.replace("_", " ").strip()
    return None if words.lower() in _NO_CAMERA else words
