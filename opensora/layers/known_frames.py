"""Known frames: which latent frames of a clip a reference gives, in training and in generation alike.

In training a clip is its own reference: a frame is given at its own place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace

import torch
from torch import Tensor

CLASSES = ("none", "i2v_head", "i2v_tail", "i2v_loop", "v2v_head", "v2v_tail")


@dataclass(frozen=True)
class KnownFrames:
    """A run of latent frames of a reference, and its place in a clip.

    Args:
        loop: Clip of a long video, from 0.
        reference: Number of the reference, from 0.
        source: First frame of the reference; negative counts from its end.
        target: First frame of the clip; negative counts from its end, -1 is the last one.
        length: Frames, cut to what the reference and the clip have.
        edit: 0 keeps them, 1 makes them anew, between they are made anew from this time on.

    Raises:
        ValueError: A number is out of range.
    """

    loop: int = 0
    reference: int = 0
    source: int = 0
    target: int = 0
    length: int = 1
    edit: float = 0.0

    def __post_init__(self) -> None:
        if self.loop < 0 or self.reference < 0 or self.length < 0 or not 0 <= self.edit <= 1:
            raise ValueError(
                f"mask strategy {str(self)!r}: loop, reference and length are 0 or more, the edit ratio (the "
                "sixth number) lies in [0, 1]."
            )

    def __str__(self) -> str:
        return ",".join(map(str, astuple(self)))

    @classmethod
    def parse(cls, text: str) -> "KnownFrames":
        """Read up to six numbers with commas; what is missing has its default.

        Raises:
            ValueError: There are none, or more than six, or one is no number.
        """
        words = text.split(",")
        kinds = [float if field.name == "edit" else int for field in fields(cls)]
        try:
            return cls(*(kind(word) for kind, word in zip(kinds[: len(words)], words, strict=True)))
        except ValueError as error:
            if "mask strategy" in str(error):
                raise
            raise ValueError(
                f"mask strategy {shorten(text)}: give one to six numbers with commas: loop, reference, its "
                "first frame, first frame in the clip, length (whole numbers), edit ratio (0 to 1); or write "
                "'keep FILE at start' (docs/inference.md)."
            ) from None

    def span(self, given: int, frames: int, align: int | None = None) -> tuple[int, int, int]:
        """Return first frame of the reference, first frame of the clip, and length.

        Args:
            given: Frames of the reference.
            frames: Frames of the clip.
            align: Round both first frames to multiples of it.

        Returns:
            The length is 0 where the place is behind the clip's end.

        Raises:
            ValueError: The reference or the clip does not reach back or on so far.
        """
        source = self.source + given if self.source < 0 else self.source
        target = self.target + frames if self.target < 0 else self.target
        if not 0 <= source < given or target < 0:
            raise ValueError(
                f"mask strategy {str(self)!r}: the reference has {given} latent frames, the clip {frames}; "
                "both first frames must lie within."
            )
        if align is not None:
            source, target = align_start(source, align, given), align_start(target, align, frames)
        return source, target, max(0, min(self.length, given - source, frames - target))


def align_start(value: int, align: int, limit: int) -> int:
    """Round a first frame to a multiple of `align`; up only if a whole one is left before `limit`."""
    multiple, rest = divmod(value, align)
    return align * (multiple + (rest > align / 2 and multiple < limit // align - 1))


def of_class(name: str, length: int, loops: int = 1, references: int = 1) -> tuple[KnownFrames, ...]:
    """Return the frames of a condition class.

    Args:
        name: One of `CLASSES`. Heads are given in the first clip of a long video, tails in the last.
        length: Frames of `v2v_head` and `v2v_tail`.
        loops: Clips of the video.
        references: With a second one, its first frame is the end of a loop, and of long videos.

    Raises:
        ValueError: There is no such class.

    Source: Open-Sora 1.3 report, image and video conditions.
    """
    if name not in CLASSES:
        raise ValueError(f"cond_type={name!r}: use None or one of {', '.join(CLASSES)}.")
    first, last = KnownFrames(), KnownFrames(source=-1, target=-1)
    other = KnownFrames(reference=1, target=-1) if references > 1 else last
    entries = {
        "none": (),
        "i2v_head": (first,),
        "i2v_tail": (other if loops > 1 else last,),
        "i2v_loop": (first, other),
        "v2v_head": (replace(first, length=length),),
        "v2v_tail": (KnownFrames(source=-length, target=-length, length=length),),
    }[name]
    return tuple(replace(e, loop=loops - 1) if e.target < 0 else e for e in entries)


def chain(loop: int, reference: int, length: int, edit: float = 0.0) -> KnownFrames:
    """Return what continues a long video: the last frames of the clip before are the first ones of `loop`."""
    return KnownFrames(loop, reference, -length, 0, length, edit)


def given_frames(entries: Iterable[KnownFrames], frames: int) -> Tensor:
    """Return which frames are given when the clip is its own reference. Bool, shape [T]."""
    mask = torch.zeros(frames, dtype=torch.bool)
    for entry in entries:
        _, target, length = entry.span(frames, frames)
        mask[target : target + length] = True
    return mask


def give_first(given: Tensor, count: Tensor) -> Tensor:
    """Give the first frames of clips too; where nothing would be left to make, only these.

    Args:
        given: Which frames are given. Bool, shape [B, T].
        count: How many first frames, fewer than T. Shape [B].

    Returns:
        Bool, shape [B, T].
    """
    first = torch.arange(given.shape[1], device=given.device) < count.to(given.device)[:, None]
    both = given | first
    return torch.where(both.all(1, keepdim=True), first, both)


def lay(
    entries: Iterable[KnownFrames],
    references: Sequence[Tensor],
    z: Tensor,
    loop: int = 0,
    align: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Put frames of references into a clip; later entries lie over earlier ones.

    Args:
        entries: Those of other loops are left out.
        references: Latents, each of shape [Z, F, H, W].
        z: Clip that they are put into; it stays as it is. Shape [Z, T, H, W].
        loop: Number of the clip.
        align: See `KnownFrames.span`.

    Returns:
        The clip with the frames, and the frame mask of `RectifiedFlow.sample`: their edit ratios, and 1
        elsewhere. Shapes [Z, T, H, W] and [T].

    Raises:
        ValueError: A reference is missing or too short.
    """
    out, mask = z.clone(), torch.ones(z.shape[1])
    for entry in entries:
        if entry.loop != loop:
            continue
        if entry.reference >= len(references):
            raise ValueError(
                f"mask strategy {str(entry)!r}: it names reference {entry.reference}, and there are "
                f"{len(references)}, numbered from 0."
            )
        reference = references[entry.reference]
        source, target, length = entry.span(reference.shape[1], out.shape[1], align)
        out[:, target : target + length] = reference[:, source : source + length].to(out)
        mask[target : target + length] = entry.edit
    return out, mask


def shorten(text: str) -> str:
    """Return a text in quotes for a message, without its end if it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
