"""LatentWindow: parts of longer clips, so that a model learns to begin where another clip ended."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from opensora.engine.lengths import chunk_latents, latent_length, longest_clip


class LatentWindow:
    """Cut a few latent frames out of longer clips; those that are not the beginning get their first ones.

    A long video is sampled clip by clip, each of which starts with the last latent frames of the one before.
    These differ from the first ones of a clip: a causal autoencoder codes its first frame alone and several
    frames in each latent after it, and what they show has begun already. A model that only ever saw
    beginnings continues them badly.

    Args:
        frames: Latent frames of the window. Clips that have no more are taken whole.
        given: Its first latent frames that are given where the window is not a clip's beginning: what
            sampling has as `condition_frame_length`.
        begin: Share of windows that are a clip's beginning, in [0, 1]; the rest lies anywhere, each place
            equally likely.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(self, frames: int, given: int = 1, begin: float = 0.5) -> None:
        whole = isinstance(frames, int) and isinstance(given, int)
        if not whole or not 1 <= given < frames or not 0 <= begin <= 1:
            raise ValueError(
                f"latent_window: frames={frames}, given={given}, begin={begin}; use whole numbers "
                "with 1 <= given < frames, and a share in [0, 1] for begin."
            )
        self.frames, self.given, self.begin = frames, given, begin

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> "LatentWindow":
        """Build it from the value of `latent_window`.

        Raises:
            ValueError: A key is unknown or missing, or a number is out of range.
        """
        if not {"frames"} <= set(cfg) <= {"frames", "given", "begin"}:
            raise ValueError(f"latent_window={dict(cfg)}: give frames, and if you like given and begin.")
        return cls(**cfg)

    def check(self, vae: Any) -> None:
        """Check that windows fit an autoencoder.

        Raises:
            ValueError: It codes several latent frames as one piece, and `frames` or `given` is no multiple.
        """
        whole = chunk_latents(vae)
        if self.frames % whole or self.given % whole:
            raise ValueError(
                f"latent_window: frames={self.frames}, given={self.given}: this vae codes {whole} latent "
                f"frames at once; use multiples of {whole}."
            )

    def check_lengths(self, vae: Any, lengths: Iterable[int]) -> None:
        """Check that some clips are long enough to be cut.

        Args:
            vae: The autoencoder.
            lengths: Frames of the clips.

        Raises:
            ValueError: Every clip would be taken whole, or at its beginning.
        """
        longest, least = max(lengths), self.frames + chunk_latents(vae)
        if latent_length(vae, longest) < least:
            raise ValueError(
                f"latent_window: frames={self.frames}: the longest clips have {longest} frames, "
                f"{latent_length(vae, longest)} latent ones, so no window lies anywhere but at their "
                f"beginning; train on clips of at least {longest_clip(vae, least)} frames."
            )

    def cut(self, batch: Mapping[str, Any], vae: Any, draws: Any = None) -> dict[str, Any]:
        """Cut the latents of a batch.

        Args:
            batch: Has `latents` [B, Z, T, H, W], and may have `reference_latents` of that shape and
                `num_frames` [B].
            vae: The autoencoder that made them; its weights are not used.
            draws: Random numbers of the samples; without them each window is the beginning.

        Returns:
            The batch with `latents` [B, Z, frames, H, W], with `num_frames` of a clip of that length, and
            with `given_latents` if there are draws: how many latent frames are given. Shape [B].
        """
        z, whole = batch["latents"], chunk_latents(vae)
        spare = z.shape[2] - self.frames
        if spare <= 0:
            return dict(batch)
        out, starts = dict(batch), torch.zeros(len(z), dtype=torch.long)
        if draws is not None:
            u = draws.uniform("latent_window", 0, (len(z), 2)).double()
            later = whole * (1 + (u[:, 1] * (spare // whole)).long())
            starts = torch.where((u[:, 0] < self.begin) | (later > spare), 0, later)
            out["given_latents"] = torch.where(starts > 0, self.given, 0)
        for name in ("latents", "reference_latents"):
            if name in batch:
                rows = zip(batch[name], starts.tolist(), strict=True)
                out[name] = torch.stack([row[:, start : start + self.frames] for row, start in rows])
        if "num_frames" in batch:
            out["num_frames"] = self.length(vae, batch["num_frames"])
        return out

    def length(self, vae: Any, num_frames: Tensor) -> Tensor:
        """Return the frames of windows of clips: those of a clip of their latent frames. Shape [B]."""
        return torch.as_tensor(num_frames).clamp(max=longest_clip(vae, self.frames))
