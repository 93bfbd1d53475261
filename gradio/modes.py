"""Modes: which frames of a video a visitor gives, and the options that say so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opensora.engine.guides import make_guide
from opensora.engine.lengths import chunk_latents
from opensora.engine.references import References

_IMAGE, _VIDEO = 1, 1000  # frames that are taken for granted while no file is there


@dataclass(frozen=True)
class Mode:
    """One way of giving frames.

    Args:
        label: Its name on the page.
        slots: What stands above each file.
        strategy: Mask strategy; `end` is the last clip, `k` a run of latent frames, `all` the whole clip, and
            `edit` the ratio.
        video: Whether files are videos.
    """

    label: str
    slots: tuple[str, ...] = ()
    strategy: str = ""
    video: bool = False


MODES = {
    "text": Mode("Only the prompt"),
    "start": Mode("Start with an image", ("First frame",), "0"),
    "end": Mode("End with an image", ("Last frame",), "{end},0,0,-1,1"),
    "loop": Mode("Seamless loop", ("First and last frame",), "0;{end},0,0,-1,1"),
    "connect": Mode("Connect two images", ("First frame", "Last frame"), "0;{end},1,0,-1,1"),
    "extend": Mode("Continue a video", ("Video to continue",), "0,0,-{k},0,{k}", True),
    "before": Mode("Lead up to a video", ("Video that follows",), "{end},0,0,-{k},{k}", True),
    "bridge": Mode(
        "Connect two videos", ("First video", "Second video"), "0,0,-{k},0,{k};{end},1,0,-{k},{k}", True
    ),
    "edit": Mode("Edit a video", ("Video to edit",), "0,0,0,0,{all},{edit}", True),
    "own": Mode("My own rule", ("File 0", "File 1"), ""),
}


class Guides:
    """Turn modes and files into options, and into pictures of what is given.

    Args:
        cfg: Config of the page.
        vae: The autoencoder; it needs no weights.
    """

    def __init__(self, cfg: Mapping[str, Any], vae: Any) -> None:
        self.cfg, self.vae = cfg, vae

    def options(self, wish: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
        """Return the options of a wish: references, mask strategy, and what long videos share.

        Args:
            wish: `mode`, `edit`, `rule`, `frames`, `loops`.
            files: As many as the mode has slots; own rules may have fewer.

        Raises:
            ValueError: A file is missing, or the mode makes no sense for one frame.
        """
        mode = MODES[wish["mode"]]
        options: dict[str, Any] = {}
        latents = self.vae.latent_shape(wish["frames"], *self.vae.stride[1:])[0]
        whole = chunk_latents(self.vae)
        run = whole if whole > 1 else max(1, latents // 3)
        if wish["loops"] > 1:
            own = self.cfg["condition_frame_length"]
            options["condition-frame-length"] = run if own >= latents or own % whole else own
        if not mode.slots:
            return options
        if wish["frames"] == 1:
            raise ValueError("An image has one frame: choose a longer video, or only the prompt.")
        missing = [label for label, file in zip(mode.slots, files, strict=False) if not file]
        if missing and wish["mode"] != "own":
            raise ValueError(
                f"{' and '.join(missing)}: choose {'a video' if mode.video else 'an image'} below."
            )
        rule = wish["rule"] if wish["mode"] == "own" else mode.strategy
        if not rule:
            raise ValueError("Write a rule, such as: keep 0 at start; keep 1 at end")
        given = [file for file in files[: len(mode.slots)] if file]
        if given:
            options["reference-path"] = ";".join(given)
        named = {"end": wish["loops"] - 1, "k": run, "all": latents, "edit": wish["edit"]}
        options["mask-strategy"] = rule if wish["mode"] == "own" else rule.format(**named)
        conditions = self.cfg["model"]["conditions"] if "conditions" in self.cfg["model"] else {}
        if "frames" in (conditions or {}) and self.cfg["cond_type"] is None:
            options["cond-type"] = (
                "v2v_head" if mode.video else "i2v_head"
            )  # networks that learned references
        return options

    def masks(self, wish: Mapping[str, Any], files: Sequence[str]) -> list[list[float]]:
        """Return the edit ratio of each latent frame of each clip; files that are not there are assumed."""
        mode = MODES[wish["mode"]]
        assumed = [file or f"{label}.mp4" for label, file in zip(mode.slots, files, strict=False)]
        if wish["mode"] == "own":
            assumed = [file for file in files if file]
        options = self.options(wish, assumed)
        cfg = {**self.cfg, "loop": wish["loops"]}
        if "condition-frame-length" in options:
            cfg["condition_frame_length"] = options["condition-frame-length"]
        references = References(self.vae, cfg, wish["frames"], tuple(self.vae.stride[1:]))
        for name, file in zip(assumed, files, strict=False):
            if not file:
                references.assume(name, _VIDEO if mode.video else _IMAGE, cfg["fps"])
        given = (options.get("reference-path"), options.get("mask-strategy"))
        return references.known_masks(make_guide(*given, None))
