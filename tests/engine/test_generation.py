"""From requests to videos: lengths, sizes, progress, and what a video depends on."""

import weakref
from pathlib import Path

import pytest
import torch

from opensora.datasets.video_io import probe
from opensora.engine.generation import (
    Progress,
    encode_texts,
    generate,
)
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.lengths import choose_length, covering_size
from opensora.engine.long_video import sample_requests
from opensora.engine.prompts import Request
from opensora.utils.config import load_config
from opensora.utils.random import Draws

CONFIG = str(Path(__file__).parents[1] / "data/tiny_inference.py")


@pytest.fixture(scope="module")
def cfg():
    return load_config([CONFIG])


@pytest.fixture(scope="module")
def diffusion(cfg):
    torch.manual_seed(0)
    built = LatentDiffusion.from_config(cfg)
    for parameter in built.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return built


def request(prompt, sample=0, **changes):
    values = {"text": prompt, "negative": None, "index": 0, "num_frames": 5, "height": 16, "width": 24}
    return Request(prompt=prompt, sample=sample, **(values | {"fps": 24.0} | changes))


# Lengths and sizes


def test_lengths(diffusion, caplog):
    vae = diffusion.vae  # chunks of 5 frames that share one: 1 + 4 k
    assert choose_length(vae, 9, None, 24) == 9
    assert choose_length(vae, 1, None, 24) == 1
    assert choose_length(vae, "13", None, 24) == 13
    assert choose_length(vae, "4s", None, 24) == 101
    assert "4s is 102 frames, cut to 101, the longest that this vae gives back" in caplog.text
    assert choose_length(vae, 51, 0.5, 24) == 13
    assert "0.5 seconds at 24 fps: 13 frames" in caplog.text
    assert choose_length(vae, 51, 0.01, 24) == 1
    assert choose_length(vae, 51, 15 / 24, 24) == 13  # half way: the shorter one
    for wrong in (10, "10"):
        with pytest.raises(
            ValueError, match="num_frames=10: this vae gives back 9 or 13 frames, not 10; use one of them"
        ):
            choose_length(vae, wrong, None, 24)
    with pytest.raises(ValueError, match="num_frames='3y': use a number from 1, or one of 1x"):
        choose_length(vae, "3y", None, 24)
    with pytest.raises(ValueError, match="num_frames=5.5: use a whole number"):
        choose_length(vae, 5.5, None, 24)


class RoundsDown:
    """An autoencoder as that of v1.2: what is no multiple of 8 is cut."""

    stride = (4, 8, 8)

    def latent_shape(self, num_frames, height, width):
        return num_frames, height // 8, width // 8


@pytest.mark.parametrize("kind", ["1.3", "1.2"])
def test_sizes_that_cover_what_was_asked(diffusion, kind):
    vae = diffusion.vae if kind == "1.3" else RoundsDown()
    assert covering_size(vae, 240, 424) == (240, 424)
    for height, width in ((50, 70), (49, 51), (8, 15), (240, 426)):
        chosen = covering_size(vae, height, width)
        _, rows, columns = vae.latent_shape(1, *chosen)
        assert height <= 8 * rows < height + 8 and width <= 8 * columns < width + 8
        assert height <= chosen[0] < height + 8 and width <= chosen[1] < width + 8


@pytest.mark.parametrize(("height", "width"), [(17, 25), (18, 31), (23, 16)])
def test_odd_sizes_come_out_as_asked(diffusion, cfg, tmp_path, height, width):
    asked = [request("a", height=height, width=width)]
    (path,) = generate(diffusion, asked, {**cfg, "save_dir": tmp_path})
    info = probe(str(path))  # H.264 wants even sizes: one more row or column
    assert (info.height, info.width) == (height + height % 2, width + width % 2)
    assert (info.num_frames, info.fps) == (5, 8)


# What a video depends on


def test_a_video_depends_on_its_prompt_sample_and_seed_only(diffusion):
    features = {name: Draws(1, [i]).normal("f", 0, (1, 3 + i, 384))[0] for i, name in enumerate("abc")}
    alone = [sample_requests(diffusion, [request(p)], features, 7)[0] for p in "abc"]
    assert torch.equal(sample_requests(diffusion, [request("c", index=4)], features, 7)[0], alone[2])
    for other in (request("c", sample=1), request("b")):
        assert not torch.allclose(sample_requests(diffusion, [other], features, 7)[0], alone[2], atol=1e-3)
    assert not torch.allclose(sample_requests(diffusion, [request("c")], features, 8)[0], alone[2], atol=1e-3)
    batched = sample_requests(diffusion, [request(p) for p in "abc"], features, 7)  # as a GPU does
    torch.testing.assert_close(batched, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_a_negative_prompt_takes_the_place_of_the_null_caption(diffusion):
    features = {name: Draws(1, [i]).normal("f", 0, (1, 3 + i, 384))[0] for i, name in enumerate("abn")}
    plain = sample_requests(diffusion, [request("a")], features, 7)
    away = sample_requests(diffusion, [request("a", negative="n")], features, 7)
    assert not torch.allclose(plain, away, atol=1e-3)
    pair = [request(p, negative="n") for p in "ab"]
    torch.testing.assert_close(sample_requests(diffusion, pair, features, 7)[:1], away, atol=1e-4, rtol=1e-4)
    # Moving away from the prompt itself is no guidance at all.
    same = sample_requests(diffusion, [request("a", negative="a")], features, 7)
    scales, diffusion.guidance.scales = diffusion.guidance.scales, {}
    unguided = sample_requests(diffusion, [request("a")], features, 7)
    diffusion.guidance.scales = scales
    torch.testing.assert_close(same, unguided, atol=1e-4, rtol=1e-4)


def test_the_text_encoder_is_gone_when_the_first_step_runs(diffusion, cfg, tmp_path, monkeypatch):
    encoder, alive, seen = diffusion.text_encoder, [], []
    encode, sample = encoder.encode, diffusion.sample

    def watched(texts):
        out = encode(texts)
        alive.append(weakref.ref(encoder.model))
        return out

    def first(*args, **kwargs):
        seen.append((encoder.model, alive[0]()))
        return sample(*args, **kwargs)

    monkeypatch.setattr(encoder, "encode", watched)
    monkeypatch.setattr(diffusion, "sample", first)
    list(generate(diffusion, [request("a"), request("b")], {**cfg, "save_dir": tmp_path}))
    assert len(alive) == 2 and seen[0] == (None, None)


def test_a_cpu_makes_one_video_after_the_other(diffusion, cfg, tmp_path, monkeypatch):
    sizes, sample = [], diffusion.sample

    def counted(batch, draws, **options):
        sizes.append(len(draws))
        return sample(batch, draws, **options)

    monkeypatch.setattr(diffusion, "sample", counted)
    three = [request(prompt, index=i) for i, prompt in enumerate("abc")]
    made = list(generate(diffusion, three, {**cfg, "save_dir": tmp_path, "batch_size": 3}))
    assert sizes == [1, 1, 1] and len(made) == 3


def test_texts_are_encoded_once_each(diffusion, monkeypatch):
    asked = []
    encode = diffusion.text_encoder.encode
    monkeypatch.setattr(diffusion.text_encoder, "encode", lambda texts: asked.append(texts) or encode(texts))
    pair = [request("a", k, negative="blurry", text="a cat on a mat") for k in range(2)]
    features = encode_texts(diffusion.text_encoder, pair)
    assert asked == [["a cat on a mat"], ["blurry"]]
    assert features["a cat on a mat"].shape == (7, 384) and features["blurry"].shape[0] < 7


# Progress


def lines(caplog, verbose, seconds_per_step):
    """Log two batches, of 2 videos and of 1, 4 steps each."""
    now = [0.0]
    progress = Progress(3, verbose, lambda: now[0])
    for first, count in ((0, 2), (2, 1)):
        report = progress.begin(first, count)
        for step in range(1, 5):
            now[0] += seconds_per_step
            report(step, 4)
    return [record.getMessage() for record in caplog.records]


def test_progress_at_every_step(caplog):
    found = lines(caplog, 2, 600)
    assert len(found) == 8
    assert found[0] == "1-2 of 3: step 1/4, 0.00167 steps/s, 0:50:00 left"
    assert found[3] == "1-2 of 3: step 4/4, 0.00167 steps/s, 0:20:00 left"
    assert found[7] == "3 of 3: step 4/4, 0.00167 steps/s, 0:00:00 left"


def test_progress_now_and_then(caplog):
    assert [line.split(",")[0] for line in lines(caplog, 1, 4)] == [
        "1-2 of 3: step 1/4", "1-2 of 3: step 4/4", "3 of 3: step 3/4",
    ]  # fmt: skip


def test_no_progress(caplog):
    assert lines(caplog, 0, 4) == []
