"""Draw which frames each way of guiding a video gives, into inference.md.

    python docs/modes.py

The strips come from the code that inference runs, for the autoencoder of 1.3 and clips of 49 frames: 15
latent frames.
"""

import re
import shlex
from pathlib import Path

import torch

from opensora.engine.guides import make_guide
from opensora.engine.lengths import latent_length
from opensora.engine.references import References, _File
from opensora.layers.known_frames import chain, lay
from opensora.registry import MODELS, build
from opensora.utils.config_defaults import base_configs
from opensora.utils.meta_device import meta_device

DOCUMENT = Path(__file__).with_name("inference.md")
BLOCK = re.compile(r"(?<=<!-- modes: written by docs/modes.py -->\n).*?(?=<!-- end of modes -->)", re.DOTALL)
FRAMES, RATE = 49, 24.0
FILES = {"a.png": 1, "b.png": 1, "clip.mp4": 97, "other.mp4": 97}
MODES = (
    ("text to video, text to image (`--num-frames 1`)", ""),
    ("image to video", "--reference-path a.png --mask-strategy 0"),
    ("image as the end", "--reference-path a.png --mask-strategy 0,0,0,-1,1"),
    ("seamless loop", "--reference-path a.png --mask-strategy '0;0,0,0,-1,1'"),
    ("connection of two images", "--reference-path 'a.png;b.png' --mask-strategy '0;0,1,0,-1,1'"),
    ("continuation of a video", "--reference-path clip.mp4 --mask-strategy 0,0,-5,0,5"),
    ("what came before a video", "--reference-path clip.mp4 --mask-strategy 0,0,0,-5,5"),
    (
        "connection of two videos",
        "--reference-path 'clip.mp4;other.mp4' --mask-strategy '0,0,-5,0,5;0,1,0,-5,5'",
    ),
    ("frames put in anywhere", "--reference-path 'a.png;b.png' --mask-strategy '0,0,0,4,1;0,1,0,10,1'"),
    ("video to video: edit", "--reference-path clip.mp4 --mask-strategy 0,0,0,0,15,0.6"),
    ("by time", "--mask-strategy 'keep 0..0.75s from clip.mp4 at start; keep b.png at end'"),
    ("by time: edit", "--mask-strategy 'edit 0.4 1s..3s from clip.mp4 at start'"),
    ("long video", "--loop 3"),
    ("long video from an image", "--reference-path a.png --cond-type i2v_head --loop 3"),
    ("long loop between two images", "--reference-path 'a.png;b.png' --cond-type i2v_loop --loop 3"),
    ("long video that ends in one", "--reference-path clip.mp4 --cond-type v2v_tail --loop 2"),
    ("image in the second clip", "--reference-path a.png --mask-strategy 1,0,0,7,1 --loop 2"),
)


def strips(options: str) -> list[str]:
    """Return a strip per clip: what is given, edited and made anew."""
    words = shlex.split(options)
    given = dict(zip(words[::2], words[1::2], strict=True))
    cfg = {**base_configs()["inference"], "loop": int(given.get("--loop", 1))}
    with meta_device():
        vae = build(
            MODELS, {k: v for k, v in base_configs()["video_vae"]["vae"].items() if k != "ignore_keys"}
        )
    references = References(vae, cfg, FRAMES, (16, 16))
    for name, frames in FILES.items():
        references._files[name] = _File(name, frames, frames, latent_length(vae, frames), RATE)
    guide = make_guide(*(given.get(f"--{key}") for key in ("reference-path", "mask-strategy", "cond-type")))
    entries = [entry for entry, _ in references.resolve(guide)]
    clip, found = torch.zeros(1, references.latents, 1, 1), []
    for loop in range(cfg["loop"]):
        before = [chain(loop, 0, cfg["condition_frame_length"])] if loop else []
        mask = lay([*before, *entries], [clip], clip, loop)[1]
        found.append("".join("·" if m == 1 else "█" if m == 0 else "▒" for m in mask.tolist()))
    return found


def table() -> str:
    """Return the table of modes."""
    lines = ["| what | options | latent frames of each clip |", "|---|---|---|"]
    for name, options in MODES:
        shown = f"`{options}`" if options else "only `--prompt`"
        lines.append(f"| {name} | {shown} | {' '.join(f'`{strip}`' for strip in strips(options))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(BLOCK.sub(lambda _: table(), text), encoding="utf-8")


if __name__ == "__main__":
    main()
