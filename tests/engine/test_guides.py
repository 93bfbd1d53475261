"""Mask strategies as numbers and as sentences, and any string whatsoever."""

import json
import random

import pytest

from opensora.engine.guides import END, START, Guide, Moment, Sentence, make_guide, parse_strategy
from opensora.engine.prompt_files import split_json, split_sections, text_of_loop
from opensora.engine.reference_files import ReferenceFiles
from opensora.layers.known_frames import KnownFrames
from opensora.utils.caption_cleaning import clean_caption


def sentence(text):
    (found,) = parse_strategy(text)
    assert isinstance(found, Sentence) and found.text == text
    return found.path, found.place, found.start, found.stop, found.edit, found.loop


def test_sentences():
    second = Moment(0.5, "s")
    assert sentence("keep 0..0.5s from ref.mp4 at start") == ("ref.mp4", START, Moment(0, "s"), second, 0, 0)
    assert sentence("keep a b.png at end") == ("a b.png", None, Moment(0, "f"), END, 0, 0)
    assert sentence("keep 1 at -2s in loop 3") == ("1", Moment(2, "s", True), Moment(0, "f"), END, 0, 3)
    assert sentence("edit 0.4 -8f..end from at.mp4 at 16f") == (
        *("at.mp4", Moment(16, "f"), Moment(8, "f", True), END),
        *(0.4, 0),
    )
    assert sentence("keep x.mp4") == ("x.mp4", START, Moment(0, "f"), END, 0, 0)
    both = parse_strategy("0,0,0,-1,1; keep x.png at 2s")
    assert [type(entry) for entry in both] == [KnownFrames, Sentence]
    for nothing in (None, "", "  "):
        assert parse_strategy(nothing) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep", "one to six numbers|write 'keep"),
        ("keep 0..1 from x.mp4", "'1': give seconds, such as 0.5s, or frames"),
        ("keep 0..1.5f from x.mp4", "'1.5f': give seconds"),
        ("edit 2 x.mp4 at start", "2.0: edit ratios lie in"),
        ("edit much x.mp4 at start", "could not convert"),
        ("keep 1s from x.mp4", "'': give seconds"),
        ("0;", "one to six numbers"),
        ("take x.mp4 at start", "one to six numbers"),
    ],
)
def test_wrong_sentences(text, said):
    with pytest.raises(ValueError, match=said):
        parse_strategy(text)


def test_moments():
    assert Moment(0.5, "s").frame(24, 100) == 12 and Moment(8, "f").frame(24, 100) == 8
    assert Moment(1, "s", True).frame(24, 100) == 76 and END.frame(24, 100) == 100


def test_guides():
    assert make_guide(None, None, None) == make_guide(" ; ", "", "i2v_head") == Guide()
    guide = make_guide("a.png; b.png", None, "i2v_loop")
    assert (guide.references, guide.entries, guide.cond_type) == (("a.png", "b.png"), (), "i2v_loop")
    guide = make_guide("a.png", "0", "i2v_loop")
    assert guide.entries == (KnownFrames(),) and guide.cond_type is None
    with pytest.raises(ValueError, match="nothing says which of its frames go where; give --cond-type"):
        make_guide("a.png", None, None)
    with pytest.raises(ValueError, match="cond_type='i2v': use None or one of"):
        make_guide(None, None, "i2v")


# Any string


PARTS = (
    *("0", "1", "-1", "5", "0.5", "1e9", "nan", "inf", ",", ",", ",", ";", ";", " ", "  ", "|", "|0|", "|2|"),
    *(
        "keep",
        "edit",
        "from",
        "at",
        "start",
        "end",
        "in loop",
        "..",
        "0..0.5s",
        "-8f",
        "2s",
        "16f",
        "ref.mp4",
    ),
    *(
        "../",
        "/etc/passwd",
        "/",
        "~",
        "a.png",
        "in/a.png",
        "in/../b.png",
        "in/link.png",
        "x" * 300,
        "http://",
        "a/b",
    ),
    *(
        "{",
        "}",
        '"',
        ":",
        '{"reference_path": "',
        '"}',
        '{"mask_strategy": "0"}',
        "[[[[",
        "null",
        "\\",
        "\\ud800",
    ),
    *("\0", "\n", "\t", "\u202e", "é", "猫", "𝕏", "٣", "²", "&#124;", "<b>", "www.x.com", "%00", "--", "'"),
)
SLOTS = (
    *(("keep", "edit", "edit 0.4", "edit x"), ("0..0.5s", "-8f..end", "0f..2f", "..", "1s..")),
    *(("from",), ("ref.mp4", "in/a.png", "in/../b.png", "in/link.png", "/etc/passwd", "0", "7", "\0", "a b")),
    *(("at",), ("start", "end", "2s", "-1f", "x"), ("", "in loop 1", "in loop x", "; 0", ";")),
)


def strings(count, seed):
    """Yield strings made of what the parsers look for, and of anything."""
    draw = random.Random(seed)
    for i in range(count):
        if i % 4 == 0:
            yield "".join(map(chr, draw.choices(range(32, 127), k=draw.randrange(24))))
        elif i % 8 == 1:  # close to a sentence
            yield " ".join(draw.choice(slot) for slot in SLOTS if draw.random() < 0.9)
        else:
            yield "".join(draw.choices(PARTS, k=draw.randrange(1, 10)))


def survives(function, text):
    """Return the result of a function, or None after a clear error."""
    try:
        return function(text)
    except ValueError as error:
        assert len(str(error)) > 20 and len(str(error)) < 900, error
        return None
    except FileNotFoundError as error:
        assert "no such file" in str(error)
        return None


def fuzz(count, seed, files, folder):
    """Feed strings to every parser; return how many results each gave."""
    counts = dict.fromkeys(("strategy", "json", "sections", "file"), 0)
    for number, text in enumerate(strings(count, seed)):
        entries = survives(parse_strategy, text)
        counts["strategy"] += entries is not None
        prompt = survives(split_json, text)
        counts["json"] += prompt is not None
        sections = survives(split_sections, text)
        if sections is not None:
            counts["sections"] += 1
            assert all(isinstance(text_of_loop(sections, loop), str) for loop in (0, 3))
        names = [text] * (number % 32 == 1) + [e.path for e in entries or () if isinstance(e, Sentence)]
        names += [] if prompt is None or prompt.reference is None else [prompt.reference]
        for name in names:
            found = survives(files.find, name)
            if found is not None:
                counts["file"] += 1
                assert found in (str(folder / "in/a.png"), str(folder / "in/ref.mp4")), (name, found)
    return counts


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder with files inside and outside of the allowed one, and where we stand in it."""
    (tmp_path / "in").mkdir()
    for name in ("in/a.png", "in/ref.mp4", "b.png", "a.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "in/link.png").symlink_to(tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    rules = {"folders": [str(tmp_path / "in")], "urls": False, "hosts": [], "megabytes": 1, "seconds": 1}
    return tmp_path, ReferenceFiles(rules, tmp_path)


def test_twenty_thousand_strings(place):
    counts = fuzz(20_000, 1, place[1], place[0])
    assert all(counts.values()), counts  # each parser also gave results
    with pytest.raises(ValueError, match="outside of references.folders"):
        place[1].find("in/link.png")


@pytest.mark.slow
def test_a_million_strings(place):
    assert all(fuzz(1_000_000, 2, place[1], place[0]).values())


@pytest.mark.slow
def test_twenty_thousand_captions_are_cleaned():
    for text in strings(20_000, 3):
        assert isinstance(clean_caption(text), str)


def test_json_that_nests_deeply_is_refused():
    with pytest.raises(ValueError, match="is no JSON"):
        split_json('a {"reference_path": ' + "[" * 100_000)
    assert split_json(json.dumps({"mask_strategy": "0"})).strategy == "0"
