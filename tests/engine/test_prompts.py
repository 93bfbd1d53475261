"""Requests: prompts from the command line and from files, scores, cleaning, numbers and keys."""

import pytest

from opensora.engine.prompt_files import is_url, read_prompts
from opensora.engine.prompts import make_requests
from opensora.utils.config_defaults import base_configs

CFG = base_configs()["inference"]


def requests(size=(16, 24), num_frames=5, **changes):
    return make_requests({**CFG, "prompt": ["a", "b"], **changes}, size, num_frames)


# Where prompts come from


def test_addresses_are_no_files():
    assert is_url("https://a.b/x.txt") and is_url("HTTP://localhost:80")
    for text in ("x.txt", "/x/y.txt", "ftp://h/x", "https://", "http://a b", "http://[x"):
        assert not is_url(text)
    with pytest.raises(ValueError, match="https://a.b/x.txt'.*nothing is downloaded"):
        requests(prompt=None, prompt_path="https://a.b/x.txt")


def test_prompts_from_the_command_line_and_files(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeffone\n\n two \nthree\n", encoding="utf-8")
    (tmp_path / "p.CSV").write_text('text,other\n"a, b",1\nc,2\n')

    def read(*arguments):
        return [prompt.text for prompt in read_prompts(*arguments)]

    assert read("a cat", None) == ["a cat"]
    assert read([" a ", "b"], None, 1, 2) == ["a", "b"]  # the range is of a file
    assert read(None, str(tmp_path / "p.txt")) == ["one", "two", "three"]
    assert read(None, str(tmp_path / "p.txt"), 1, None) == ["two", "three"]
    assert read(None, str(tmp_path / "p.txt"), 1, 9) == ["two", "three"]
    assert read(None, str(tmp_path / "p.CSV"), 0, 1) == ["a, b"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((None, None), "there is no prompt: give --prompt 'a text', or --prompt-path FILE"),
        ((["a"], "p.txt"), "give one of them, not both"),
        ((["a", " "], None), "number 1 is empty; write a prompt"),
        (([], None), "the list is empty; write a prompt"),
        ((None, "{}/q.csv"), r"it has columns \['caption'\]; a column `text` is needed"),
        ((None, "{}/short.csv"), "number 1 is empty; write a prompt"),
        ((None, "{}/empty.csv"), r"it has columns \[\]; a column `text` is needed"),
        ((None, "{}/p.txt", 3), "it has 3 prompts; start_index=3"),
        ((None, "{}/p.txt", 2, 2), "start_index=2, end_index=2: use 0 <= start_index < end_index"),
        ((None, "{}/p.txt", -1), "start_index=-1, end_index=None: use 0"),
        ((None, "{}/p.json"), "give a .txt file with a prompt per line, or a .csv or .jsonl"),
    ],
)
def test_wrong_prompts(tmp_path, arguments, said):
    files = {"p.txt": "a\nb\nc\n", "q.csv": "caption\nx\n", "short.csv": "id,text\n1,a\n2\n", "p.json": "[]"}
    for name, text in {**files, "empty.csv": ""}.items():
        (tmp_path / name).write_text(text)
    arguments = [a.format(tmp_path) if isinstance(a, str) else a for a in arguments]
    with pytest.raises(ValueError, match=said):
        read_prompts(*arguments)


@pytest.mark.parametrize("text", ["|0|a|2|b|1|c", "|0|a|0|b", "|0||1|b", "|0|a|1| "])
def test_texts_of_clips_are_in_order_and_there(text):
    with pytest.raises(ValueError, match="each number is larger than the one before, with a text"):
        requests(prompt=[text])


def test_missing_files():
    with pytest.raises(FileNotFoundError, match="no such file. Give a .txt, .csv or .jsonl file"):
        read_prompts(None, "no.txt")


# Requests


def test_requests_number_prompts_and_samples():
    found = requests(num_frames=1, num_sample=2, neg_prompt="n", start_index=4)
    assert [(r.prompt, r.text, r.negative, r.index, r.sample, r.fps) for r in found] == [
        (p, p, "n", i, k, 120) for i, p in enumerate("ab", start=4) for k in range(2)
    ]
    assert (found[0].height, found[0].width, found[0].num_frames) == (16, 24, 1)
    assert requests(fps=30)[0].fps == 30  # 120 is the mark of an image


def test_a_file_is_numbered_from_its_first_prompt(tmp_path):
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")
    found = requests(prompt=None, prompt_path=str(tmp_path / "p.txt"), start_index=1)
    assert [(r.prompt, r.index) for r in found] == [("two", 1), ("three", 2)]


def test_the_key_is_the_prompts():
    a, b = requests()
    assert a.key != b.key
    assert a.key == requests(prompt=["x", "a"], aes=7, clean_prompts=True)[1].key
    assert 0 <= a.key < 2**56
    assert a.key == 38582675093786123  # videos of today can be made again tomorrow


def test_negative_prompts():
    assert [r.negative for r in requests(neg_prompt=["x", "y"])] == ["x", "y"]
    assert [r.negative for r in requests(neg_prompt=["x"])] == ["x", "x"]
    assert [r.negative for r in requests(neg_prompt=[None, None])] == [None, None]
    with pytest.raises(ValueError, match="3 negative prompts for 2 prompts; give one, or one each"):
        requests(neg_prompt=list("xyz"))
    with pytest.raises(ValueError, match="None stands beside texts"):
        requests(neg_prompt=["x", None])


def test_prompts_are_cleaned_where_the_config_says_so():
    prompt = "A <b>Cat</b>, see www.cats.com"
    (plain,), (clean,) = (
        requests(prompt=prompt),
        requests(prompt=prompt, clean_prompts=True, neg_prompt="BAD"),
    )
    assert (plain.text, plain.prompt) == (prompt, prompt)
    assert (clean.text, clean.prompt, clean.negative) == ("a cat, see", prompt, "bad")
    with pytest.raises(ValueError, match="prompt '猫': cleaning leaves nothing of it; reword it"):
        requests(prompt="猫", clean_prompts=True)


def test_scores_stand_behind_each_text_before_it_is_cleaned():
    (made,) = requests(prompt=["|0|a cat|2|A dog"], aes=7, camera_motion="zoom in", clean_prompts=True)
    said = " the aesthetic score is excellent. camera motion: zoom in."
    assert made.text == "a cat" + said and made.later == ((2, "a dog" + said),)
