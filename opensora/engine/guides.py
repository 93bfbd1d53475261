"""Guides: how users say which frames of a video are given.

Three ways, one result: six-number groups (`0,0,-5,0,5`), condition types (`i2v_head`), and sentences in
seconds or frames (`keep 0..0.5s from ref.mp4 at start`).
"""

import re
from dataclasses import dataclass, field

from opensora.layers.known_frames import KnownFrames, of_class, shorten

_SENTENCE = re.compile(
    r"(?:keep|edit\s+(?P<edit>\S+))\s+(?:(?P<range>\S+)\s+from\s+)?(?P<path>.+?)"
    r"(?:\s+at\s+(?P<place>start|end|\S*\d[sf]))?(?:\s+in\s+loop\s+(?P<loop>\d{1,6}))?"
)
_TIME = re.compile(r"(-?\d{0,9}(?:\.\d{0,9})?)([sf]?)")
_HOW = (
    "write 'keep [0..0.5s from] FILE [at start|end|2s|16f] [in loop 1]', or 'edit 0.4 ...'; times end in s "
    "(seconds) or f (frames)."
)


@dataclass(frozen=True)
class Moment:
    """A time in a video. Negative ones, and -0, count from the end.

    Args:
        value: Number of seconds or frames, 0 or more.
        unit: "s" or "f".
        from_end: Whether it counts from the end.
    """

    value: float
    unit: str
    from_end: bool = False

    @classmethod
    def parse(cls, text: str, unit: str = "") -> "Moment":
        """Read a number with its unit; `unit` is for numbers without one.

        Raises:
            ValueError: It is no such number.
        """
        match = _TIME.fullmatch(text)
        if match is None or not (match[2] or unit) or (match[2] or unit) == "f" and "." in match[1]:
            raise ValueError(f"{shorten(text)}: give seconds, such as 0.5s, or frames, such as 12f.")
        value = float(match[1])
        return cls(abs(value), match[2] or unit, match[1].startswith("-"))

    def frame(self, rate: float, length: int) -> int:
        """Return the frame number at a rate, in a video of `length` frames."""
        frame = round(self.value * rate) if self.unit == "s" else int(self.value)
        return length - frame if self.from_end else frame


START, END = Moment(0, "f"), Moment(0, "f", from_end=True)


@dataclass(frozen=True)
class Sentence:
    """A run of frames of a file, by times.

    Args:
        path: File, or the number of one of the listed references.
        place: First frame in the clip; None ends the run with the clip.
        start: First frame of the file.
        stop: Frame of the file behind the last.
        edit: As of `KnownFrames`.
        loop: As of `KnownFrames`.
        text: What was written, for messages.
    """

    path: str
    place: Moment | None
    start: Moment
    stop: Moment
    edit: float
    loop: int
    text: str

    @classmethod
    def parse(cls, text: str) -> "Sentence":
        """Read a sentence.

        Raises:
            ValueError: It is none.
        """
        match = _SENTENCE.fullmatch(" ".join(text.split()))
        if match is None:
            raise ValueError(f"mask strategy {shorten(text)}: {_HOW}")
        words = {"start": START, None: START, "end": None}
        try:
            edit = float(match["edit"] or 0)
            first, _, last = (match["range"] or "0f..end").partition("..")
            stop = END if last == "end" else Moment.parse(last)
            start = Moment.parse(first, stop.unit)
            where = match["place"]
            place = words[where] if where in words else Moment.parse(where)
            if not 0 <= edit <= 1:
                raise ValueError(f"{edit}: edit ratios lie in [0, 1].")
        except ValueError as error:
            raise ValueError(f"mask strategy {shorten(text)}: {error} {_HOW}") from None
        return cls(match["path"], place, start, stop, edit, int(match["loop"] or 0), text)

    @property
    def names_number(self) -> bool:
        """Whether `path` is the number of a listed reference."""
        return self.path.isascii() and self.path.isdigit()

    def __str__(self) -> str:
        return repr(self.text)


@dataclass(frozen=True)
class Guide:
    """What a request says about given frames.

    Args:
        references: Files of images and videos.
        entries: Which of their frames go where.
        cond_type: Or a condition class, where there are references and no entries.
        written: References and strategy as they were written.
    """

    references: tuple[str, ...] = ()
    entries: tuple[KnownFrames | Sentence, ...] = ()
    cond_type: str | None = None
    written: tuple[str | None, str | None] = field(default=(None, None), compare=False)

    @property
    def text(self) -> str:
        """All of it as it was written; part of file names."""
        if not self.references and not self.entries:
            return ""
        return f"{self.written[0]}|{self.written[1]}|{self.cond_type}"

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that it names, in order."""
        named = (e.path for e in self.entries if isinstance(e, Sentence) and not e.names_number)
        return (*self.references, *named)


def parse_strategy(text: str | None) -> tuple[KnownFrames | Sentence, ...]:
    """Read groups of numbers and sentences, with ";" between them; None and blanks give none.

    Raises:
        ValueError: A group is neither.
    """
    if text is None or not text.strip():
        return ()
    groups = (group.strip() for group in text.split(";"))
    return tuple(
        Sentence.parse(group) if group[:4] in ("keep", "edit") else KnownFrames.parse(group)
        for group in groups
    )


def make_guide(reference: str | None, strategy: str | None, cond_type: str | None) -> Guide:
    """Read what a prompt comes with.

    Args:
        reference: Files, with ";" between them.
        strategy: See `parse_strategy`; it wins over `cond_type`.
        cond_type: Condition class.

    Raises:
        ValueError: The strategy cannot be read, there is no such class, or nothing says which frames the
            references give.
    """
    if cond_type is not None:
        of_class(cond_type, 1)
    files = tuple(path.strip() for path in (reference or "").split(";") if path.strip())
    entries = parse_strategy(strategy)
    if files and not entries and cond_type is None:
        raise ValueError(
            f"reference_path={reference!r}: nothing says which of its frames go where; give --cond-type "
            "i2v_head, or --mask-strategy 'keep 0 at start' (docs/inference.md)."
        )
    kind = cond_type if files and not entries else None
    return Guide(files, entries, kind, (reference, strategy))
