"""LatentDiffusion: one path for live and precomputed inputs, and samples that do not know each other."""

import pytest
import torch

from opensora.engine.build import build_components, parse_dtype
from opensora.engine.generation import choose_length, file_name, sample_requests
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.prompts import Request, make_requests, read_prompts
from opensora.utils.random import Draws

CONFIG = {
    "model": {
        "type": "STDiT3",
        "hidden_size": 24,
        "depth": 1,
        "num_heads": 2,
        "window_size": (-1, 2, 2),
        "spatial_rope": True,
        "conditions": {
            "text": {"type": "TextCondition", "text_width": 6, "text_length": 5},
            "size": {"type": "SizeCondition"},
            "frames": {"type": "FrameCondition", "classes": {"i2v_head": 1.0, "v2v_head_noisy": 1.0}},
        },
    },
    "vae": {
        "type": "VideoVAE",
        "latent_channels": 4,
        "channels": 32,
        "channel_multipliers": (1, 1, 1, 1),
        "num_res_blocks": 1,
        "micro_frame_size": 5,
    },
    "scheduler": {"type": "RectifiedFlow", "num_sampling_steps": 3, "shift_time": True},
    "guidance": {"scales": {"text": 4.0}},
    "frame_mask": {"type": "FrameMask", "ratios": {"image_head": 0.5}},
    "condition_dropout": {("text",): 0.3, ("text", "frames"): 0.3},
    "seed": 5,
}


@pytest.fixture(scope="module")
def diffusion():
    torch.manual_seed(0)
    built = LatentDiffusion.from_config(CONFIG)
    for parameter in built.model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return built


def batch(rows=(0, 1, 2), frames=9):
    draws = Draws(99, rows)
    sizes = {"fps": 24.0, "num_frames": float(frames), "height": 16.0, "width": 24.0}
    return {
        "video": draws.normal("video", 0, (len(rows), 3, frames, 16, 24)).clamp(-1, 1),
        "text_features": draws.normal("text", 0, (len(rows), 5, 6)),
        "text_mask": torch.arange(5) < torch.tensor([[2 + row % 4] for row in rows]),
        "sample": torch.tensor(rows),
        "epoch": torch.zeros(len(rows), dtype=torch.int64),
        **{name: torch.full((len(rows),), value) for name, value in sizes.items()},
    }


def losses(diffusion, **changes):
    ((name, values),) = diffusion.losses({**batch(), **changes})
    assert name == "model"
    return values


def test_precomputed_features_give_the_same_bits(diffusion):
    live = losses(diffusion)
    latents = torch.cat([diffusion.vae.encode(clip[None]) for clip in batch()["video"]])
    assert torch.equal(
        losses(diffusion, latents=latents)["per_sample"], losses(diffusion, latents=latents)["per_sample"]
    )
    diffusion.model.conditions["frames"].classes, classes = None, diffusion.model.conditions["frames"].classes
    assert torch.equal(losses(diffusion)["per_sample"], losses(diffusion, latents=latents)["per_sample"])
    diffusion.model.conditions["frames"].classes = classes
    assert torch.equal(live["loss"], live["per_sample"].mean())


def test_the_loss_of_a_sample_does_not_depend_on_its_batch(diffusion):
    whole = losses(diffusion)["per_sample"]
    ((_, alone),) = diffusion.losses(batch(rows=(2,)))
    torch.testing.assert_close(alone["per_sample"][0], whole[2], atol=1e-6, rtol=1e-5)
    ((_, other),) = diffusion.losses({**batch(rows=(2,)), "epoch": torch.ones(1, dtype=torch.int64)})
    assert not torch.allclose(other["per_sample"], alone["per_sample"])


def test_drops_are_joint_and_as_frequent_as_the_table_says(diffusion):
    drops = diffusion._draw_drops(Draws(0, range(4000)), torch.device("cpu"))
    text, frames = drops["text"], drops["frames"]
    assert not (frames & ~text).any()
    assert text.float().mean().item() == pytest.approx(0.6, abs=0.03)
    assert frames.float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_sampled_posteriors_differ_by_sample_and_repeat(diffusion):
    diffusion.sample_posterior = True
    z, _ = diffusion.encode(batch(), Draws(5, (0, 1, 2)))
    again, _ = diffusion.encode(batch(rows=(2, 0)), Draws(5, (2, 0)))
    diffusion.sample_posterior = False
    mean, _ = diffusion.encode(batch(), Draws(5, (0, 1, 2)))
    assert torch.equal(again, z[[2, 0]])
    assert not torch.equal(mean, z)


def request(prompt, sample=0, **changes):
    values = {"negative": None, "index": 0, "num_frames": 5, "height": 16, "width": 24, "fps": 24.0}
    return Request(prompt=prompt, sample=sample, **(values | changes))


def test_a_video_depends_on_its_prompt_and_seed_only(diffusion):
    features = {name: Draws(1, [i]).normal("f", 0, (1, 3 + i, 6))[0] for i, name in enumerate("abc")}
    whole = sample_requests(diffusion, [request(p) for p in "abc"], features, 7, None)
    assert torch.equal(sample_requests(diffusion, [request("c", index=4)], features, 7, None)[0], whole[2])
    assert not torch.equal(sample_requests(diffusion, [request("c")], features, 8, None)[0], whole[2])
    assert not torch.equal(
        sample_requests(diffusion, [request("c", sample=1)], features, 7, None)[0], whole[2]
    )
    video = diffusion.decode(whole[:1], 5)
    assert video.shape == (1, 3, 5, 16, 24)


def test_lengths(diffusion, caplog):
    vae = diffusion.vae  # chunks of 5 frames that share one: 1 + 4 k
    assert choose_length(vae, 9, None, 24) == 9
    assert choose_length(vae, "13", None, 24) == 13
    assert choose_length(vae, "4s", None, 24) == 101
    assert choose_length(vae, 51, 0.5, 24) == 13
    with pytest.raises(
        ValueError, match="num_frames=10: this vae gives back 9 or 13 frames, not 10; use one of them"
    ):
        choose_length(vae, 10, None, 24)


def test_prompts_from_files_and_their_errors(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\ntwo\nthree\n")
    (tmp_path / "p.csv").write_text('text,other\n"a, b",1\nc,2\n')
    (tmp_path / "q.csv").write_text("caption\nx\n")
    assert read_prompts(None, str(tmp_path / "p.txt"), 1, None) == ["two", "three"]
    assert read_prompts(None, str(tmp_path / "p.csv"), 0, 1) == ["a, b"]
    with pytest.raises(ValueError, match=r"it has columns \['caption'\]; a column `text` is needed"):
        read_prompts(None, str(tmp_path / "q.csv"), 0, None)
    with pytest.raises(FileNotFoundError, match="no such file. Give a .txt or .csv file"):
        read_prompts(None, str(tmp_path / "no.txt"), 0, None)
    with pytest.raises(ValueError, match="give one of them, as --prompt or --prompt-path"):
        read_prompts(None, None, 0, None)
    with pytest.raises(ValueError, match="a prompt is empty"):
        read_prompts(["a", " "], None, 0, None)


def test_requests_number_prompts_and_samples():
    cfg = {"prompt": ["a", "b"], "prompt_path": None, "start_index": 0, "end_index": None, "neg_prompt": "n"}
    cfg |= {"num_sample": 2, "fps": 24, "sample_name": "sample", "prompt_as_path": False}
    requests = make_requests(cfg, (16, 24), 1)
    assert [(r.prompt, r.negative, r.index, r.sample, r.fps) for r in requests] == [
        (p, "n", i, k, 120) for i, p in enumerate("ab") for k in range(2)
    ]
    assert file_name(requests[3], cfg) == "sample_0001-1.png"
    named = request("a cat / on ../a mat")
    assert file_name(named, {**cfg, "prompt_as_path": True, "num_sample": 1}) == "a cat _ on _a mat.mp4"
    with pytest.raises(ValueError, match="3 negative prompts for 2 prompts; give one, or one each"):
        make_requests({**cfg, "neg_prompt": list("xyz")}, (16, 24), 1)


def test_facts_are_filled_in_and_misfits_found_before_building():
    with torch.device("meta"):
        built = build_components(CONFIG)
    assert built.model.x_embedder.proj.in_channels == 4
    broken = {**CONFIG, "model": {**CONFIG["model"], "hiden_size": 24}}
    with pytest.raises(TypeError, match="STDiT3: unknown key 'hiden_size' .* did you mean 'hidden_size'"):
        build_components(broken)
    with pytest.raises(KeyError, match="no such scheduler. Did you mean RectifiedFlow"):
        build_components({**CONFIG, "scheduler": {"type": "RectifedFlow"}})
    with pytest.raises(
        ValueError, match=r"condition_dropout\[\('txt',\)\]=0.1: keys are tuples of conditions"
    ):
        LatentDiffusion(built, condition_dropout={("txt",): 0.1})
    with pytest.raises(ValueError, match="dtype='bfloat': use one of fp32, bf16, fp16"):
        parse_dtype("bfloat")
