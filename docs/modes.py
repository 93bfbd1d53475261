"""Draw each way of guiding a video into inference.md: which frames are given, and what came out.

    python docs/modes.py            the strips, from the code that inference runs
    python docs/modes.py --sheets   also the pictures, from videos that are made now; minutes

The strips are for the autoencoder of 1.3 and clips of 49 frames: 15 latent frames. The pictures come from the
model of `CONFIG`.
"""

import argparse
import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from opensora.datasets.buckets import ClipIndex
from opensora.datasets.video_io import read_clip, read_image, write_image, write_video
from opensora.engine.guides import make_guide
from opensora.engine.inference import infer
from opensora.engine.lengths import latent_spans, total_length
from opensora.engine.references import References
from opensora.registry import DATASETS, LOADING_KEYS, MODELS, build
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
CONFIG = "configs/lab/inference/t2v.py"
PROMPT = "a red circle moves left over a blue background"
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
    ("backward", "what came before a video", "--mask-strategy 'keep 0f..4f from other.mp4 at end'"),
    (
        "clips",
        "connection of two videos",
        "--mask-strategy 'keep 4f..5f from clip.mp4 at start; keep 1f..5f from other.mp4 at end'",
    ),
    ("insertion", "a frame put in", "--mask-strategy 'keep c.png at 4f'"),
    (
        "several",
        "several references",
        "--reference-path 'a.png;clip.mp4' --mask-strategy '0,0,0,0,1;0,1,2,1,1'",
    ),
    (
        "edit",
        "video to video: edit",
        "--mask-strategy 'edit 0.8 clip.mp4 at start' "
        f"--prompt '{PROMPT.replace('red circle', 'green square')}'",
    ),
    ("endless", "long video", "--loop 4"),
    (
        "texts",
        "long video, a prompt per clip",
        f"--loop 4 --prompt '|0|{PROMPT}|2|{PROMPT.replace('left', 'up')}'",
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
        shown = f"`{options}`".replace("|", "\\|") if options else "only `--prompt`"
        lines.append(f"| {what} | {shown} | ![{what}](../assets/modes/{name}.png) |")
    return "\n".join(lines) + "\n"


def draw_sheets() -> None:
    """Make a video of each mode by the options that the table shows, and draw its frames."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_references(Path(folder))
        for name, _, options in SHOWN:
            here = re.sub(r"\w+\.(png|mp4)", lambda file: f"{folder}/{file[0]}", options)
            words = ["--prompt", PROMPT, *shlex.split(here)]
            cfg = load_config([str(ROOT / CONFIG), *words, "--save-dir", folder, "--sample-name", name])
            (path,) = infer(cfg)
            picture(path, given_of(cfg)).save(PICTURES / f"{name}.png", optimize=True)


def write_references(folder: Path) -> None:
    """Write the images and clips that the options name: two clips of a generated scene, and frames of it."""
    kinds = {"shapes": ("circle",), "colors": ("red",), "backgrounds": ("blue",), "motions": ("left",)}
    size = {"num_frames": 17, "image_size": (SIDE, SIDE), "size": 1}
    scene = build(DATASETS, {"type": "ShapesDataset", "held_out": False, **kinds, **size})
    video = scene[ClipIndex(0, 17, SIDE, SIDE, 0)]["video"]
    write_video(video[:, :9], folder / "clip.mp4", 8)
    write_video(video[:, 8:], folder / "other.mp4", 8)
    for name, frame in (("a", 4), ("b", 12), ("c", 8)):
        write_image(video[:, frame], folder / f"{name}.png")


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
