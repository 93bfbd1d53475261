"""Streams: what layers keep of the frames they saw, so that a video may come in parts.

`with streaming(state):` around a call of a network that is causal as a whole makes the call continue where
the last one with that state ended. The parts together give what one call with the whole video gives, and the
state does not grow. Networks are called as ever; only their causal layers look for a state.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn


class StreamState:
    """The last frames that each layer saw; `reach` adds up what share of a call's length each one keeps."""

    def __init__(self) -> None:
        self.reach = 0.0
        self.frames: dict[nn.Module, Tensor] = {}
        self.started: set[nn.Module] = set()


_CURRENT: ContextVar[StreamState | None] = ContextVar("stream", default=None)


@contextmanager
def streaming(state: StreamState | None) -> Iterator[None]:
    """Let causal layers continue from a state, and leave theirs in it. None: nothing came before."""
    token = _CURRENT.set(state)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def past_frames(
    owner: nn.Module, x: Tensor, front: int, keep: int, repeat_first: bool = False
) -> tuple[Tensor | None, int]:
    """Return what stands before the frames of `x` for a layer, and remember the end of them.

    Args:
        owner: The layer.
        x: Its input. Shape [B, C, T, H, W].
        front: Frames that it sees before the first frame of a video.
        keep: Frames of the past that it sees before the first frame of a later part.
        repeat_first: Whether copies of the first frame stand before a video, not zeros.

    Returns:
        Real frames before `x`, shape [B, C, n, H, W] or None, and the number of zero frames before those.
    """
    state = _CURRENT.get()
    past = None if state is None else state.frames.get(owner)
    needed = front if past is None else keep
    if past is None and repeat_first and front:
        past = x[:, :, :1].expand(-1, -1, front, -1, -1)
    if state is not None and keep:
        seen = x if past is None or x.shape[2] >= keep else torch.cat((past, x), dim=2)
        state.reach += keep / x.shape[2]
        # A copy, because layers may write over their input.
        state.frames[owner] = seen[:, :, -keep:].clone()
    return past, needed - (0 if past is None else past.shape[2])


def is_first(owner: nn.Module) -> bool:
    """Return whether a layer is called for the beginning of a video. Ask once per call."""
    state = _CURRENT.get()
    if state is None:
        return True
    first = owner not in state.started
    state.started.add(owner)
    return first


def regroup(parts: Iterable[Tensor], stride: int) -> Iterator[Tensor]:
    """Cut a video that comes in parts anew, so that layers which halve time never split a pair.

    Args:
        parts: Any number of frames each. Shape [B, C, n, H, W].
        stride: Frames per latent frame.

    Yields:
        First `1 + k * stride` frames, then multiples of the stride. What is over at the end of the video has
        no latent frame and is dropped.
    """
    rest, first = None, 1
    for part in parts:
        rest = part if rest is None else torch.cat((rest, part), dim=2)
        usable = first + (rest.shape[2] - first) // stride * stride
        if usable > 0:
            yield rest[:, :, :usable]
            rest, first = rest[:, :, usable:], 0
