import sys

import pytest

from opensora.utils.caption_cleaning import clean_caption, fix_text

pytest.importorskip("ftfy")
pytest.importorskip("bs4")

PLAIN = [
    "a cat sitting on a mat.",
    "two dogs run, one after the other, along a beach at 5 pm",
    "camera motion: pan left. the aesthetic score is 5.5.",
    "café naïve résumé",
    "emoji 😀 test",
    "100% sure",
]


@pytest.mark.parametrize("text", PLAIN)
def test_clean_text_stays_as_it_is(text):
    assert clean_caption(text) == text


@pytest.mark.parametrize("text", PLAIN)
def test_case_blanks_and_quotes_around_it_do_not_matter(text):
    assert clean_caption(f'  "{text.upper()}"\n') == text


@pytest.mark.parametrize(
    "text", [*PLAIN, "<b>Bold</b> & more", "photo_of_a_very_nice_cat.jpg page 3", "a - b -- c"]
)
def test_cleaning_again_changes_nothing(text):
    once = clean_caption(text)
    assert clean_caption(once) == once


@pytest.mark.parametrize(
    ("noise", "left"),
    [
        ("see {} there", "https://www.example.com/"),
        ("see {} there", "@someone"),
        ("see {} there", "192.168.1.1"),
        ("see {} there", "世界"),
        ("see {} there", "photo.jpg"),
        ("see {} there", "1234567"),
        ("see {} there", "#123"),
        ("see {} there", "jc6640"),
        ("see {} there", "1920x1080"),
        ("see {} there", "page 12"),
        ("see {} there", "<br/>"),
        ("see {} there", "***"),
    ],
)
def test_what_is_removed(noise, left):
    assert clean_caption(noise.format(left)) == "see there"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("<person> waves at <person>", "person waves at person"),
        ("a — b", "a - b"),
        ("“quoted” here", '"quoted" here'),
        ("a%20cat+runs", "a cat runs"),
        ("this_is_a_long_name", "this is a long name"),
        ("a-b-c", "a-b-c"),
        ("first,second", "first, second"),
        ("1,000 and 3.14", "1,000 and 3.14"),
        ("wait... what", "wait what"),
        ("&lt;div&gt; text", "text"),  # the second pass reads what the first one resolved
        (".hidden", ""),
        ("", ""),
        (None, "none"),
    ],
)
def test_what_becomes_of_it(text, clean):
    assert clean_caption(text) == clean


def test_one_pass_resolves_entities_without_reading_them():
    assert clean_caption("&lt;div&gt; text", passes=1) == "<div> text"


def test_fix_text_resolves_doubly_escaped_entities():
    assert fix_text(" a &amp;quot;b&amp;quot; ") == 'a "b"'


@pytest.mark.parametrize(("module", "package"), [("ftfy", "ftfy"), ("bs4", "beautifulsoup4")])
def test_a_missing_package_is_named(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {package}"):
        clean_caption("a cat")
