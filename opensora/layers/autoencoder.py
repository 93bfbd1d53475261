"""What video autoencoders share, whatever their layers: statistics, chunks, streams and tiles."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from opensora.acceleration.collectives import even_sizes, spread
from opensora.acceleration.parallel import parallel_state
from opensora.layers.checks import check_count, check_length, check_video
from opensora.layers.interfaces import Posterior, Reconstruction
from opensora.layers.streaming import LongestMemory, SharedStream, StreamState, regroup, streaming
from opensora.layers.tiles import check_tiles, in_tiles
from opensora.layers.vae_blocks import draw_latents
from opensora.utils.random import Draws, ReplayDraws

Statistics = Sequence[float] | Sequence[Sequence[float]]
States = dict[tuple[int, ...], StreamState]
Run = tuple[int, int]  # latent frames of a video: the first, and the one after the last


@dataclass(frozen=True)
class Pieces:
    """Into which pieces a batch of clips is cut, so that it fits into memory.

    Args:
        clips: Clips per call of encoder or decoder; None is the whole batch.
        frames: Frames per chunk, s * k + 1 for a stride of s in time; None codes a clip in one piece.
        overlap: Neighbouring chunks share one frame; decoding averages its two versions. For layers that
            stream, chunks continue each other and share none.
        tile: Height and width of a spatial tile in latent cells; None is no tiles.
        tile_overlap: Cells that neighbouring tiles share at least.

    Raises:
        ValueError: A size is out of range.
    """

    clips: int | None = None
    frames: int | None = None
    overlap: bool = False
    tile: int | None = None
    tile_overlap: int = 0

    def __post_init__(self) -> None:
        check_count("micro_batch_size", self.clips, "micro batches")
        check_count("micro_frame_size", self.frames, "chunks")
        check_tiles(self.tile, self.tile_overlap)
        if self.overlap and self.frames == 1:
            raise ValueError(
                "micro_frame_size=1 with temporal_overlap: chunks that share a frame need 2 at least."
            )


class VideoAutoencoder(nn.Module, ABC):
    """A causal encoder and decoder around latents that are normalised.

    A subclass sets `encoder` and `decoder`, and says in `_latent_side` how they round sizes.

    Args:
        latent_channels: Channels of the latents.
        stride: Frames, rows and columns per latent cell.
        streams: Whether no layer sees later frames or needs all of the past. Then chunks continue each other:
            they give what one piece gives, and a video may come in parts.
        pieces: How clips are cut.
        latent_mean: Mean of each latent channel: Z numbers, or Z lists of P numbers, one for each of P latent
            frames, which repeat along time. None is 0.
        latent_std: Standard deviation, likewise. None is 1.

    Raises:
        ValueError: Settings do not fit each other.
    """

    def __init__(
        self,
        latent_channels: int,
        stride: tuple[int, int, int],
        streams: bool,
        pieces: Pieces,
        latent_mean: Statistics | None = None,
        latent_std: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.latent_channels, self.stride = latent_channels, stride
        self.streams, self.pieces = streams, pieces
        self._shortest: dict[bool, int] = {}  # runs of encoder and decoder, once they are needed
        # Plain tensors, not buffers: they stay fp32 on the host when the weights are cast or made on "meta".
        self.latent_mean = _statistics("latent_mean", latent_mean, latent_channels, 0.0)
        self.latent_std = _statistics("latent_std", latent_std, latent_channels, 1.0)
        if self.latent_mean.shape != self.latent_std.shape and None not in (latent_mean, latent_std):
            raise ValueError(
                f"latent_mean is {tuple(self.latent_mean.shape)}, latent_std {tuple(self.latent_std.shape)}"
                " (channels, latent frames); give both the same shape."
            )
        self.period = max(self.latent_mean.shape[1], self.latent_std.shape[1])
        if streams and (pieces.overlap or self.period > 1 or ((pieces.frames or 1) - 1) % stride[0]):
            raise ValueError(
                f"temporal_overlap={pieces.overlap}, micro_frame_size={pieces.frames}, statistics of "
                f"{self.period} latent frames: the chunks of this layout continue each other; use "
                f"temporal_overlap=False, {stride[0]}k + 1 frames, and one statistic per channel."
            )

    @property
    def micro_frame_size(self) -> int | None:
        """Frames of a chunk that knows nothing of its neighbours; None if there are no such chunks."""
        return None if self.streams else self.pieces.frames

    @property
    def temporal_overlap(self) -> bool:
        """Whether such chunks share a frame."""
        return self.pieces.overlap

    @property
    def last_layer(self) -> Tensor:
        """The weight that makes pixels."""
        return self.decoder.conv_out.weight

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the size (T, H, W) of the latents of a clip. True for every size that `encode` accepts.

        Args:
            num_frames: Frames of the clip.
            height: Rows in pixels, at least 2.
            width: Columns in pixels, at least 2.

        Raises:
            ValueError: The clip has no frames, or is too small for the network.
        """
        check_length(num_frames)
        sides = [self._latent_side(size) for size in (height, width)]
        for name, size, side in (("height", height, sides[0]), ("width", width, sides[1])):
            if side < 1:
                raise ValueError(
                    f"{name}={size}: too small for {self.stride[1].bit_length() - 1} halvings; use "
                    f"{self.stride[1]} pixels or more."
                )
        return self._latent_frames(num_frames), *sides

    def legal_length(self, num_frames: int) -> int:
        """Return the largest number of frames, not above `num_frames`, that comes back from `decode`.

        In one piece, and in chunks that continue each other, these are 1 + 4k (for a stride of 4); in other
        chunks 1 and whole chunks. Statistics per latent frame allow only those whose latents they fit.

        Raises:
            ValueError: `num_frames` is below 1, or `micro_frame_size` is such that no chunk comes back whole.
        """
        check_length(num_frames)
        chunk, stride = None if self.streams else self.pieces.frames, self.stride[0]
        if chunk is not None and (chunk - 1) % stride:
            near = (chunk - 1) // stride * stride + 1
            raise ValueError(
                f"micro_frame_size={chunk}: a chunk of that length does not come back whole;"
                f" use {stride}k + 1, for example {near} or {near + stride}."
            )
        shared = int(chunk is None or self.pieces.overlap)
        step = stride if chunk is None else chunk - shared
        longest = (num_frames - shared) // step * step + shared
        fits = (n for n in range(longest, 1, -step) if self._latent_frames(n) % self.period == 0)
        return next(fits, 1)

    def normalize(self, z: Tensor) -> Tensor:
        """Subtract `latent_mean` and divide by `latent_std`. Shape [B, Z, T, H, W].

        Raises:
            ValueError: The statistics are per latent frame, and the length is no multiple of theirs.
        """
        mean, std = self._tables(z)
        return ((_precise(z) - mean) / std).to(z.dtype)

    def denormalize(self, z: Tensor) -> Tensor:
        """Undo `normalize`. Shape [B, Z, T, H, W]."""
        mean, std = self._tables(z)
        return (_precise(z) * std + mean).to(z.dtype)

    def encode_stream(self, video: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the normalised latents of a video that may come in parts; memory does not grow with length.

        Args:
            video: Shape [B, 3, T, H, W], or parts of it along T, of any lengths.

        Yields:
            The parts of `encode`. Shape [B, Z, n, H', W'].

        Raises:
            ValueError: Layers of this layout see later frames.
        """
        if not self.streams:
            raise ValueError(
                f"{type(self).__name__}: norms or attention of this layout see the whole clip, so it cannot "
                "be encoded in parts; use norm='pixel' or 'frame' with attention='frame' or 'none'."
            )
        states: States = {}
        for part in self._stream_parts([video] if isinstance(video, Tensor) else video):
            yield self.normalize(self._latents(self._run(self._encode, part, (self.stride[1], 1), states)))

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Return the video of normalised latents.

        Args:
            z: Shape [B, Z, T', H', W'].
            num_frames: Length of the result; what is beyond it is cut. None is all.

        Returns:
            float32, not clamped. Shape [B, 3, T, H, W].

        Raises:
            ValueError: The latents give fewer frames than `num_frames`.
        """
        return torch.cat(list(self.decode_stream(z, num_frames)), dim=2)

    def decode_stream(self, z: Tensor | Iterable[Tensor], num_frames: int | None = None) -> Iterator[Tensor]:
        """Yield the parts of `decode` one after the other, a chunk at a time; arguments as there.

        A layout that streams takes latents in parts too. With `micro_frame_size=None` latents that come in
        one piece are decoded in one, by a sequence group in one part per process.
        """
        if isinstance(z, Tensor):
            check_video("z", z, self.latent_channels)
            chunk = self._latent_length(self.pieces.frames) if self.pieces.frames else z.shape[2]
            produced = self._decoded_length(z.shape[2], chunk)
            if num_frames is not None and not 1 <= num_frames <= produced:
                raise ValueError(
                    f"num_frames={num_frames}: {z.shape[2]} latent frames give {produced} frames;"
                    f" ask for 1 to {produced}."
                )
            left = produced if num_frames is None else num_frames
            parts: Iterable[Tensor] = z.split(chunk, dim=2)
        else:
            left, parts = num_frames, z
        runs = self._runs(z.shape[2], decodes=True) if self.streams and isinstance(z, Tensor) else []
        if len(runs) > 1:
            for video in spread(partial(self._decode_run, {}, z), runs, z.device):
                yield video[:, :, :left]
                left -= video.shape[2]
                if left <= 0:
                    return
        elif self.streams:
            yield from self._decode_parts(parts, left)
        else:
            yield from self._decode_chunks(self.denormalize(z).split(chunk, dim=2), left)

    # What a layout says of itself

    def _latent_side(self, size: int) -> int:
        return size // self.stride[1]

    def _encode(self, video: Tensor) -> Tensor:
        return self.encoder(video)

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    @abstractmethod
    def _latents(self, encoded: Tensor) -> Tensor:
        """Return the latents, not normalised, of what the encoder gave."""

    # Pieces

    def _encoded(self, video: Tensor) -> Tensor:
        """Return what the encoder makes of a video, in float32 or wider."""
        check_video("video", video, 3)
        self.latent_shape(*video.shape[2:])
        # Runs and chunks are shared by the processes of a sequence group.
        if self.streams:
            runs = self._runs(self._latent_length(video.shape[2]), decodes=False)
            encode = self._encode_alone if len(runs) == 1 else partial(self._encode_run, {})
            out = list(spread(partial(encode, video), runs, video.device))
        else:
            parts = [video[:, :, start:stop] for start, stop in self._chunks(video.shape[2])]
            encode = partial(self._run, self._encode, cells=(self.stride[1], 1), states=None)
            out = list(spread(encode, parts, video.device))
        return _precise(out[0] if len(out) == 1 else torch.cat(out, dim=2))

    def _encode_alone(self, video: Tensor, run: Run) -> Tensor:
        parts = list(self._stream_parts([video]))
        states: States | None = {} if len(parts) > 1 else None
        out = [self._run(self._encode, part, (self.stride[1], 1), states) for part in parts]
        return out[0] if len(out) == 1 else torch.cat(out, dim=2)

    def _encode_run(self, states: States, video: Tensor, run: Run) -> Tensor:
        first, last = (max(0, self.stride[0] * (n - 1) + 1) for n in run)
        return self._run(self._encode, video[:, :, first:last], (self.stride[1], 1), states, shared=True)

    def _decode_run(self, states: States, z: Tensor, run: Run) -> Tensor:
        z = self.denormalize(z[:, :, slice(*run)])
        return _precise(self._run(self._decode, z, (1, self.stride[1]), states, shared=True))

    def _runs(self, frames: int, decodes: bool) -> list[Run]:
        """Cut latent frames into runs that the processes of a sequence group take in turns, one each.

        With chunks, runs are no longer than one, or than twice the shortest. It is one run for all with
        gradients, and where runs would be so short that a layer keeps more frames than a run has.
        """
        size = 1 if torch.is_grad_enabled() else parallel_state().sequence_size
        if size == 1:
            return [(0, frames)]
        if decodes not in self._shortest:
            self._shortest[decodes] = self._shortest_run(decodes)
        chunk = frames if self.pieces.frames is None else self._latent_length(self.pieces.frames)
        turns = min(-(-frames // (size * chunk)), frames // (size * self._shortest[decodes]))
        if not turns:
            return [(0, frames)]
        return list(pairwise(accumulate(even_sizes(frames, size * turns), initial=0)))

    @torch.no_grad()
    def _shortest_run(self, decodes: bool) -> int:
        """Return how many latent frames a run needs, so that no layer keeps more frames than it sees."""
        weight, state = next(self.encoder.parameters()), LongestMemory()
        call, channels, cell = (self._encode, 3, self.stride)
        if decodes:
            call, channels, cell = self._decode, self.latent_channels, (1, 1, 1)
        for frames in (1, cell[0]):  # the beginning, then one latent frame
            state.frames_needed = 1.0
            with streaming(state):
                call(weight.new_zeros(1, channels, frames, *(2 * side for side in cell[1:])))
        return math.ceil(state.frames_needed)

    def _decode_parts(self, parts: Iterable[Tensor], left: int | None) -> Iterator[Tensor]:
        states: States = {}
        for part in parts:
            if left == 0:
                return
            video = self._run(self._decode, self.denormalize(part), (1, self.stride[1]), states)
            video = _precise(video[:, :, :left])
            left = None if left is None else left - video.shape[2]
            yield video

    def _decode_chunks(self, chunks: Sequence[Tensor], left: int) -> Iterator[Tensor]:
        last, decode = None, partial(self._run, self._decode, cells=(1, self.stride[1]), states=None)
        for number, video in enumerate(spread(decode, chunks, chunks[0].device), 1):
            if last is not None:  # two chunks have made this frame
                video = torch.cat((0.5 * (last + video[:, :, :1]), video[:, :, 1:]), dim=2)
            if self.pieces.overlap and number < len(chunks) and video.shape[2] <= left:
                video, last = video[:, :, :-1], video[:, :, -1:]
            video = video[:, :, :left]
            left -= video.shape[2]
            if video.shape[2]:
                yield _precise(video)
            if not left:
                return

    def _run(
        self,
        network: Callable[[Tensor], Tensor],
        x: Tensor,
        cells: tuple[int, int],
        states: States | None,
        shared: bool = False,
    ) -> Tensor:
        """Call a network on micro batches and tiles; each has a stream, of its own or of the group."""
        kind = SharedStream if shared else StreamState
        x = x.to(next(self.encoder.parameters()).dtype)
        done = []
        for i, clips in enumerate(x.split(self.pieces.clips or len(x))):

            def call(tile: Tensor, place: tuple[int, int], i: int = i) -> Tensor:
                state = None if states is None else states.setdefault((i, *place), kind())
                with streaming(state):
                    return network(tile)

            done.append(in_tiles(call, clips, self.pieces.tile, self.pieces.tile_overlap, cells))
        return done[0] if len(done) == 1 else torch.cat(done)

    def _stream_parts(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        size, first = self.pieces.frames, True
        for part in regroup(parts, self.stride[0]):
            check_video("video", part, 3)
            self.latent_shape(*part.shape[2:])
            if size is None:
                yield part
                continue
            if first:
                yield part[:, :, :size]
                part, first = part[:, :, size:], False
            yield from (x for x in part.split(max(self.stride[0], size - 1), dim=2) if x.shape[2])

    def _chunks(self, num_frames: int) -> list[tuple[int, int]]:
        chunk = self.pieces.frames
        if chunk is None or num_frames == 1 or self.streams:
            return [(0, num_frames)]
        shared = int(self.pieces.overlap)
        starts = range(0, num_frames - shared, chunk - shared)
        return [(start, min(start + chunk, num_frames)) for start in starts]

    def _latent_frames(self, num_frames: int) -> int:
        return sum(self._latent_length(stop - start) for start, stop in self._chunks(num_frames))

    def _latent_length(self, num_frames: int) -> int:
        return (num_frames - 1) // self.stride[0] + 1

    def _decoded_length(self, latent_frames: int, chunk: int) -> int:
        if self.streams:
            return (latent_frames - 1) * self.stride[0] + 1
        sizes = [min(chunk, latent_frames - start) for start in range(0, latent_frames, chunk)]
        shared = (len(sizes) - 1) * int(self.pieces.overlap)
        return sum((size - 1) * self.stride[0] + 1 for size in sizes) - shared

    def _check_period(self, frames: int) -> None:
        if frames > 1 and frames % self.period:
            raise ValueError(
                f"{frames} latent frames: latent_mean and latent_std are given for groups of"
                f" {self.period}; the length must be 1 or a multiple of it. Use a legal length of the clip,"
                " or one statistic per channel."
            )

    def _tables(self, z: Tensor) -> list[Tensor]:
        frames = z.shape[2]
        self._check_period(frames)
        tables = []
        for table in (self.latent_mean, self.latent_std):
            table = table[:, :1] if frames == 1 else table.repeat(1, frames // table.shape[1])
            tables.append(table[None, :, :, None, None].to(z.device))  # [1, Z, T or 1, 1, 1]
        return tables


class GaussianAutoencoder(VideoAutoencoder):
    """A video autoencoder whose encoder gives mean and log variance of the latents."""

    def posterior(self, video: Tensor) -> Posterior:
        """Return the distribution of the latents, not normalised.

        Args:
            video: Shape [B, 3, T, H, W], in [-1, 1].

        Returns:
            float32 moments. Shape [B, Z, T', H', W'].

        Raises:
            ValueError: The shape is not that of a video that the network can take.
        """
        return _posterior(self._encoded(video))

    def encode(self, video: Tensor, draws: Draws | ReplayDraws | None = None) -> Tensor:
        """Return normalised latents.

        Args:
            video: Shape [B, 3, T, H, W], in [-1, 1].
            draws: Makes the noise of a sample ("posterior"); None takes the mean of the posterior.

        Returns:
            float32. Shape [B, Z, T', H', W'].

        Raises:
            ValueError: The network cannot take the size, or the statistics do not fit the length.
        """
        check_video("video", video, 3)
        self._check_period(self.latent_shape(*video.shape[2:])[0])
        return self.normalize(draw_latents(self.posterior(video), draws))

    def forward(self, video: Tensor, draws: Draws | ReplayDraws | None = None) -> Reconstruction:
        """Encode and decode, with the divergence of the posterior from the standard normal as regularizer.

        Args:
            video: Shape [B, 3, T, H, W]; T a legal length, else the reconstruction is shorter.
            draws: As for `encode`.
        """
        posterior = self.posterior(video)
        z = self.normalize(draw_latents(posterior, draws))
        return Reconstruction(self.decode(z), z, posterior.kl())

    def _latents(self, encoded: Tensor) -> Tensor:
        return _posterior(_precise(encoded)).mean


def _posterior(moments: Tensor) -> Posterior:
    mean, logvar = moments.chunk(2, dim=1)
    return Posterior(mean, logvar.clamp(-30.0, 20.0))


def _precise(x: Tensor) -> Tensor:
    """Return float32 for less, and anything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _statistics(name: str, values: Statistics | None, channels: int, default: float) -> Tensor:
    if values is None:
        return torch.full((channels, 1), default, dtype=torch.float32, device="cpu")
    lengths = {len(v) if isinstance(v, Sequence) else 0 for v in values}
    if len(values) != channels or len(lengths) != 1:
        raise ValueError(
            f"{name} has {len(values)} entries of lengths {sorted(lengths)} (0 is a number); expected"
            f" {channels} numbers, one per latent channel, or {channels} lists of one length."
        )
    return torch.tensor(values, dtype=torch.float32, device="cpu").reshape(channels, -1)
