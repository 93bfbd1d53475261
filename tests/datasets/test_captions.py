"""Captions as a model reads them: cleaned, with scores, the same at every reading."""

import pytest

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.captions import Captions
from opensora.datasets.columns import Strings
from opensora.datasets.manifest import Manifest
from opensora.registry import DATASETS, build
from opensora.utils.score_words import Scores, append_scores

TEXTS = ["A cat, on <b>a mat</b>", "a dog.", "rain!", "snow"]
COLUMNS = {
    "aes": ["6.2", "", "3", ""],
    "flow": ["0.1", "25", "", " 7 "],
    "cmotion": ["pan_right", "unknown", "static", ""],
}


def captions(dropout=0.0, clean=False, form="words", columns=COLUMNS):
    extra = {name: Strings(cells) for name, cells in columns.items()}
    table = Manifest(Strings(list("abcd")), None, None, None, text=Strings(TEXTS), extra=extra)
    return Captions(table, 1, clean, form, dropout)


def test_captions_stay_as_they_are_unless_asked():
    assert [captions(form=None)(i, i, 0) for i in range(4)] == TEXTS
    assert captions(form=None, clean=True)(0, 0, 0) == "a cat, on a mat"


def test_scores_of_the_table_stand_behind_captions():
    found = [captions()(i, i, 0) for i in range(4)]
    assert found == [
        "A cat, on <b>a mat</b>. The aesthetic score is very good. The motion strength is very low. camera "
        "motion: pan right.",
        "a dog. The motion strength is extremely high.",
        "rain! The aesthetic score is terrible. camera motion: static.",
        "snow. The motion strength is high.",
    ]
    assert captions(form="numbers")(1, 1, 0) == "a dog. motion score: 25.0."
    assert captions(columns={"aes": COLUMNS["aes"]})(3, 3, 0) == "snow."


def test_a_cleaned_caption_is_what_a_cleaned_prompt_is():
    from opensora.utils.caption_cleaning import clean_caption

    prompt = append_scores("a cat, on a mat.", Scores(6.2, 0.1, "pan right"), "words")
    assert captions(clean=True)(0, 0, 0) == clean_caption(prompt)


def test_scores_are_left_out_by_chance_but_the_same_each_time():
    some, every = captions(0.5), range(200)
    found = [some(0, sample, 3) for sample in every]
    assert [some(0, sample, 3) for sample in every] == found
    for words in ("aesthetic", "motion strength", "camera"):
        assert 70 < sum(words in text for text in found) < 130
    both = sum("aesthetic" in text and "camera" in text for text in found)
    assert 30 < both < 70  # each for itself
    assert captions(1.0)(0, 0, 0) == TEXTS[0] + "."
    assert some(0, 5, 3, place=0) in {some(0, 5, 3, place=p) for p in range(20)}
    assert len({some(0, 5, 3, place=p) for p in range(20)}) > 1


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="score_dropout=2: a probability"):
        captions(2)
    with pytest.raises(ValueError, match="score_format='stars': use None or one of words, numbers"):
        captions(form="stars")
    with pytest.raises(ValueError, match="a column aes, flow or cmotion; the table has other"):
        captions(columns={"other": ["1"] * 4})
    with pytest.raises(ValueError, match="aes"):
        captions(columns={"aes": ["good"] * 4})


def test_a_dataset_reads_them(write_clip, tmp_path):
    table = tmp_path / "clips.csv"
    table.write_text(
        f"path,text,num_frames,height,width,aes\n{write_clip(num_frames=20)},A Cat,20,48,64,5.2\n"
    )
    cfg = {"type": "VideoDataset", "data_path": str(table), "cache": None, "score_dropout": 0.0}
    data = build(DATASETS, {**cfg, "score_format": "words", "clean_captions": True})
    assert data[ClipIndex(0, 5, 48, 64, 0)]["text"] == "a cat. the aesthetic score is fair."
