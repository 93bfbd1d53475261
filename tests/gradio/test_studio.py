"""From wishes to files, without a browser: the page makes what the shown command line makes."""

import json
import runpy
import shlex
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from limits import GIB, machine_memory, marks, memory
from modes import MODES
from PIL import Image
from studio import Studio

from opensora.datasets.video_io import probe, write_video
from opensora.engine.recipe import read_recipe


@pytest.fixture(scope="module")
def studio(start, tmp_path_factory):
    return Studio(start, tmp_path_factory.mktemp("studio") / "out", 4)


@pytest.fixture(scope="module")
def files(studio):
    """Return an accepted image and an accepted video."""
    image, video = studio.uploads.folder / "a.png", studio.uploads.folder / "a.mp4"
    Image.effect_noise((48, 32), 60).convert("RGB").save(image)
    write_video(torch.rand(3, 17, 16, 24) * 2 - 1, video, 8)
    return studio.uploads.accept(str(image)), studio.uploads.accept(str(video))


def wish(studio, **changes):
    """Return what a browser sends."""
    raw = {name: control.default for name, control in studio.controls.items()}
    raw |= {"mode": "text", "edit": 0.6, "rule": "", "files": [None, None]}
    return raw | {"prompt": "a cat", "frames": 5, "steps": 2} | changes


def made(studio, kind="video", **changes):
    job, look = studio.submit("ann", wish(studio, **changes), kind)
    assert job is not None, look.notes
    deadline = time.monotonic() + 60
    while job.active and time.monotonic() < deadline:
        time.sleep(0.01)
    assert job.state == "done", job.error
    return job


# The command line


def test_the_command_line_makes_the_same_bytes(studio, files, root, monkeypatch):
    job = made(
        studio, mode="connect", files=[files[0], files[0]], samples=2, seed=7, fps=6, guidance=2.5,
        prompt="|0|it's a \"cat\"; $HOME|1|rain --seed 3", negative="blurry", loops=2, frames=13,
        camera="pan left", motion_on=True, motion="high",
    )  # fmt: skip
    assert len(job.paths) == 2
    page = [(path.read_bytes(), path.with_name(f"{path.stem}_sheet.png").read_bytes()) for path in job.paths]
    for path in job.paths:
        path.unlink()
    program, script, *words = shlex.split(job.command)
    assert (program, script) == ("python", "scripts/inference.py")
    monkeypatch.setattr(sys, "argv", [script, *words])
    runpy.run_path(str(root / script), run_name="__main__")
    assert [path.read_bytes() for path in job.paths] == [video for video, _ in page]
    sheets = [path.with_name(f"{path.stem}_sheet.png").read_bytes() for path in job.paths]
    assert sheets == [sheet for _, sheet in page]
    recipe = read_recipe(job.paths[1])
    request = recipe["request"]
    assert (recipe["seed"], request.sample, request.fps, request.negative) == (7, 1, 6, "blurry")
    assert request.texts[0].endswith("The motion strength is high. camera motion: pan left.")
    assert recipe["config"]["loop"] == 2 and probe(str(job.paths[0])).fps == 6


def test_an_image_ignores_given_frames(studio, files):
    job = made(studio, "image", mode="start", files=[files[0], None])
    (path,) = job.paths
    assert path.suffix == ".png" and "--reference-path" not in job.command
    with Image.open(path) as image:
        assert image.size == (24, 16)


def test_settings_of_the_config_are_not_repeated(studio):
    look = studio.look(wish(studio, frames=13, steps=2, seed=42), name="x")
    assert look.notes == {} and look.size == "13 frames of 24 x 16 pixels, 1.6 seconds"
    assert [word.partition("=")[0] for word in look.words] == [
        "--prompt", "--num-frames", "--save-dir", "--sample-name",
    ]  # fmt: skip


# Given frames


@pytest.mark.parametrize(
    ("mode", "film"),
    [
        ("text", ""),
        ("start", "#......"),
        ("end", "......#"),
        ("loop", "#.....#"),
        ("connect", "#.....#"),
        ("extend", "##....."),
        ("before", ".....##"),
        ("bridge", "##...##"),
        ("edit", "/" * 7),
    ],
)
def test_each_mode_shows_which_frames_it_gives_and_makes_them(studio, files, mode, film):
    file = files[1] if MODES[mode].video else files[0]
    raw = wish(studio, mode=mode, files=[file, file][: len(MODES[mode].slots)] + [None] * 2, frames=13)
    raw["files"] = raw["files"][:2]
    empty = studio.look({**raw, "files": [None, None]})
    look = studio.look(raw)
    assert look.notes == {}
    drawn = ["".join("#" if m == 0 else "." if m == 1 else "/" for m in mask) for mask in look.masks]
    latents = studio.session.parts.vae.latent_shape(13, 16, 24)[0]
    assert drawn == ([spread(film, latents)] if film else [])
    if film:
        assert empty.masks == look.masks and "choose a" in empty.notes["frames"]


def spread(film, latents):
    """Return the film at another length: its middle grows or shrinks."""
    extra = latents - len(film)
    middle = film[len(film) // 2]
    at = film.index(middle * 2) if middle * 2 in film else len(film) // 2
    return film[:at] + middle * extra + film[at:] if extra >= 0 else film[:at] + film[at - extra :]


def test_own_rules_and_what_is_wrong_with_them(studio, files):
    rule = "keep 0 at end; keep 1 at start"
    good = wish(studio, mode="own", files=list(files), rule=rule, frames=13)
    assert studio.look(good).notes == {}
    for wrong, said in (
        ("", "Write a rule"),
        ("0,1,2,x", "give one to six numbers"),
        ("0,7", "names reference 7"),
        ("keep secret.png at end", "secret.png"),
    ):
        assert said in studio.look({**good, "rule": wrong}).notes["frames"]


def test_no_prompt_reads_other_files(studio, root):
    for path in (
        str(root / "assets/demo.png"),
        f"{studio.uploads.folder}/../../x.png",
        "http://127.0.0.1/a.png",
    ):
        text = "a cat " + json.dumps({"reference_path": path, "mask_strategy": "0"})
        look = studio.look(wish(studio, prompt=text))
        assert look.notes, path
        assert "outside of references.folders" in str(look.notes) or "not fetched" in str(look.notes)
        job, _ = studio.submit("ann", wish(studio, prompt=text), "video")
        assert job is None


# Errors stand beside their control


@pytest.mark.parametrize(
    ("changes", "group", "said"),
    [
        ({"prompt": " "}, "prompt", "Write a prompt first"),
        ({"prompt": "a {b"}, "prompt", "is no JSON"),
        ({"prompt": "|0|a|x|b"}, "prompt", "write |0|first text"),
        ({"frames": 7}, "shape", "7 is none of"),
        ({"steps": 0}, "sampling", "no number from 1 to 200"),
        ({"mode": "dance"}, "frames", "no such way"),
        ({"mode": "start"}, "frames", "First frame: choose an image"),
        ({"frames": 1, "mode": "start"}, "frames", "An image has one frame"),
    ],
)
def test_errors_name_their_control(studio, changes, group, said):
    job, look = studio.submit("ann", wish(studio, **changes), "video")
    assert job is None and said in look.notes[group]


# Limits


def test_what_the_model_has_not_learned_is_marked(studio, files):
    base = {**studio.cfg, "trained": {**studio.cfg["trained"], "num_frames": [5], "given_frames": False}}
    requests = studio.session.requests({**base, "prompt": "a", "num_frames": 13}, Path())
    found = marks(studio.session.parts, base, requests[0], guided=True)
    assert "was not trained for frames 13; it learned 5" in found["shape"]
    assert "not trained with given frames" in found["frames"]
    assert marks(studio.session.parts, base, requests[0], guided=False).keys() == {"shape"}


def test_what_does_not_fit_is_marked(studio, monkeypatch):
    request = studio.session.requests({**studio.cfg, "prompt": "a"}, Path())[0]
    parts = studio.session.parts
    needed = memory(parts, studio.cfg, request)
    weights = sum(p.numel() for part in (parts.model, parts.vae) for p in part.parameters()) * 4
    assert weights < needed < 0.1 * GIB < machine_memory("cpu")
    assert memory(parts, {**studio.cfg, "dtype": "bf16"}, request) == needed / 2
    assert marks(parts, studio.cfg, request, guided=False) == {}
    monkeypatch.setattr("limits.machine_memory", lambda device: needed)
    found = marks(parts, studio.cfg, request, guided=False)
    assert "Needs about 0.0 GiB of memory" in found["shape"]


# The language model


class Answer(BaseHTTPRequestHandler):
    """Speaks OpenAI's protocol."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        body = {"choices": [{"message": {"content": f"A cat, refined from {len(text)} letters."}}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *args):
        pass


def test_prompts_are_refined_and_invented_with_a_server(studio, monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    try:
        assert studio.refine("ein Kater").startswith("A cat, refined from")
        assert studio.invent().startswith("A cat") and studio.refine(" ").startswith("A cat")
    finally:
        server.shutdown()
        server.server_close()


def test_without_a_key_a_sentence_says_what_is_missing(studio, monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for ask in (studio.invent, lambda: studio.refine("a cat")):
        with pytest.raises(ValueError, match="set OPENAI_API_KEY, or OPENAI_BASE_URL"):
            ask()


def test_the_model_is_read_once(studio, monkeypatch):
    made(studio)
    monkeypatch.setattr("opensora.engine.inference.build_network", None)
    made(studio, seed=9)
