"""Streams: what layers keep of the frames they saw, so that a video may come in parts.

`with streaming(state):` around a call of a network that is causal as a whole makes the call continue where
the last one with that state ended. The parts together give what one call with the whole video gives, and the
state does not grow. Networks are called as ever; only their causal layers look for a state.

Parts may also follow each other from process to process of a sequence group (`SharedStream`): then each layer
gets the end of the part before from the process that has that part, at the same time as it computes its own.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from opensora.acceleration.collectives import pass_on
from opensora.acceleration.parallel import parallel_state


class StreamState:
    """The last frames that each layer saw.

    Attributes:
        frames: These frames by layer. Shape [B, C, n, H, W].
        started: Layers that saw the beginning of the video.
    """

    def __init__(self) -> None:
        self.frames: dict[nn.Module, Tensor] = {}
        self.started: set[nn.Module] = set()

    def follow(self, owner: nn.Module, x: Tensor, keep: int, start: Tensor | None) -> Tensor | None:
        """Return the last `keep` frames before `x`, None at the beginning, and remember the end of `x`.

        Args:
            owner: The layer.
            x: Its input. Shape [B, C, T, H, W].
            keep: Frames to remember; fewer only where the video, with `start` before it, has not so many.
            start: What stands before a video.
        """
        past = self.frames.get(owner)
        before = start if past is None else past
        seen = x if before is None or x.shape[2] >= keep else torch.cat((before, x), dim=2)
        # A copy, because layers may write over their input.
        self.frames[owner] = seen[:, :, -keep:].clone()
        return past

    def begins(self, owner: nn.Module) -> bool:
        """Return whether a layer sees the beginning of the video. Ask once per call."""
        first = owner not in self.started
        self.started.add(owner)
        return first


class SharedStream(StreamState):
    """Parts that follow each other from process to process of a sequence group, in turns.

    In each turn every process calls the network on one part, all at the same time. A part must be so long
    that no layer sees fewer frames than it keeps.
    """

    def follow(self, owner: nn.Module, x: Tensor, keep: int, start: Tensor | None) -> Tensor | None:
        """Return the last `keep` frames before `x`, from the process that has them; all processes call it."""
        assert x.shape[2] >= keep, "a run of a sequence group is too short for this layer"
        before = pass_on(x[:, :, -keep:])
        if parallel_state().sequence_rank:
            return before
        past = self.frames.get(owner)
        self.frames[owner] = before  # the end of this turn, where the next one begins
        return past

    def begins(self, owner: nn.Module) -> bool:
        """Return whether a layer sees the beginning of the video: once, on the first process."""
        return not parallel_state().sequence_rank and super().begins(owner)


class LongestMemory(StreamState):
    """Measures how many latent frames a part needs, so that each layer sees as many frames as it keeps.

    Attributes:
        frames_needed: After a call with one latent frame that is not the first: of a run, also of one at the
            beginning of a video, where the first latent frame stands for one frame.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frames_needed = 1.0

    def follow(self, owner: nn.Module, x: Tensor, keep: int, start: Tensor | None) -> Tensor | None:
        """As a stream does; the length of `x` is the number of frames per latent frame."""
        self.frames_needed = max(self.frames_needed, 1 + (keep - 1) / x.shape[2])
        return super().follow(owner, x, keep, start)


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
    start = x[:, :, :1].expand(-1, -1, front, -1, -1) if repeat_first and front else None
    past = state.follow(owner, x, keep, start) if state is not None and keep else None
    if past is None:
        return start, front if start is None else 0
    return past, keep - past.shape[2]


def is_first(owner: nn.Module) -> bool:
    """Return whether a layer is called for the beginning of a video. Ask once per call."""
    state = _CURRENT.get()
    return state is None or state.begins(owner)


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
