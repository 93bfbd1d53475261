"""Caption cleaning: brings a caption to the form that published models were trained on.

Source: DeepFloyd IF and PixArt-alpha, the cleaning of T5 captions; the order of the steps matters.
"""

import html
import re
import urllib.parse
from collections.abc import Sequence
from types import ModuleType

Rule = tuple[re.Pattern[str], str]

_HOST_ENDINGS = "com|co|ru|net|org|edu|gov|it"
_IMAGE_ENDINGS = "png|jpe?g|bmp|webp|eps|pdf"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32"
    "\ufe58\ufe63\uff0d"
)
_CJK = "\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff"


def _url(prefix: str) -> str:
    """Pattern of an address: a scheme with its slashes, or a bare host with an optional path."""
    host = rf"[a-z0-9.\-]+[.](?:{_HOST_ENDINGS})[\w/-]*\b/?(?!@)"
    return rf"\b(?:{prefix}:(?:/{{1,3}}|[a-z0-9%])|{host})"


def _rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


# Before the HTML is read.
_ADDRESSES = _rules(
    (r"<person>", "person"),
    (_url("https?"), ""),
    (_url("www"), ""),
)

# Characters, numbers and file names.
_SYMBOLS = _rules(
    (r"@\w+\b", ""),
    (rf"[{_CJK}]+", ""),
    (rf"[{_DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_IMAGE_ENDINGS}|apk|mp4)", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    ("[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~()\\[\\]{}|\\\\/*]+", " "),
    (r"\s+\.\s+", " "),
)

# Shop titles and page furniture, after entities are resolved.
_SHOP_TALK = _rules(
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-z]+\d+[a-z]+\b", ""),
    (r"\b\d+[a-z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (r"\b(?:png|jpe?g|bmp|webp|eps|pdf|apk|mp4)(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),
    ("\\b(?:\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*)\\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)

_ENDS = _rules(
    (r"^[\"'](.+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(text: object, passes: int = 2) -> str:
    """Clean a caption: lower case, no addresses, markup, CJK characters, file names, numbers and shop talk.

    Args:
        text: The caption; what is not a string is written as one.
        passes: How often the steps run; published models ran them twice.

    Returns:
        The clean caption; it may be empty.

    Raises:
        ModuleNotFoundError: ftfy or beautifulsoup4 is not installed.
    """
    caption = str(text)
    for _ in range(passes):
        caption = _clean(caption)
    return caption


def fix_text(text: str) -> str:
    """Repair broken Unicode and resolve HTML entities, doubly escaped ones too.

    Raises:
        ModuleNotFoundError: ftfy is not installed.
    """
    text = _require("ftfy", "ftfy").fix_text(text)
    return html.unescape(html.unescape(text)).strip()


def _clean(caption: str) -> str:
    caption = _apply(_ADDRESSES, urllib.parse.unquote_plus(caption).strip().lower())
    caption = _require("bs4", "beautifulsoup4").BeautifulSoup(caption, features="html.parser").text
    caption = _apply(_SYMBOLS, caption)
    if len(re.findall(r"[-_]", caption)) > 3:  # words joined by dashes, as in file names
        caption = re.sub(r"[-_]", " ", caption)
    caption = _apply(_SHOP_TALK, fix_text(caption))
    return _apply(_ENDS, caption.strip()).strip()


def _apply(rules: Sequence[Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _require(module: str, package: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"cleaning captions needs {package}, which is not installed; run `pip install {package}`."
        ) from error


_OPENING = re.compile(
    r"\s*(?:the (?:video|image) (?:is|shows|features|portrays|depicts|displays|captures|presents|begins with)"
    r"|in (?:the|this) (?:video|image),)\s+",
    re.IGNORECASE,
)


def without_opening(caption: str) -> str:
    """Take words such as "The video shows" off the start of a caption that a model wrote.

    Raises:
        ValueError: Nothing is left.
    """
    match = _OPENING.match(caption)
    if match is None:
        return caption
    rest = caption[match.end() :].strip()
    if not rest:
        raise ValueError(f"caption {caption!r}: it says nothing after its opening words.")
    return rest[0].upper() + rest[1:]
