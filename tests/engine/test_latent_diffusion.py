"""LatentDiffusion: one path for live and precomputed inputs, and samples that do not know each other."""

import pytest
import torch

from opensora.engine.build import build_components, parse_dtype
from opensora.engine.features import encode_moments
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.schedulers.guidance import Guidance
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
    with torch.no_grad():  # as extraction and training do: with gradients the vae takes its plain layers
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


@torch.no_grad()
def test_a_reference_is_another_sample_of_the_same_posterior(diffusion):
    frames = diffusion.model.conditions["frames"]
    classes, frames.classes = frames.classes, {"v2v_head": 1.0}
    draws = Draws(5, (0, 1, 2))
    z, cond = diffusion.encode(batch(), draws)
    kept = cond["reference_mask"][:, None, :, None, None].bool().expand_as(z)
    assert torch.equal(cond["reference"][kept], z[kept])  # means are one and the same
    diffusion.sample_posterior = True
    z, cond = diffusion.encode(batch(), draws)
    moments = torch.stack([encode_moments(diffusion.vae, clip) for clip in batch()["video"]])
    cached, same = diffusion.encode({**batch(), "moments": moments}, draws)
    diffusion.sample_posterior, frames.classes = False, classes
    assert torch.equal(cached, z) and torch.equal(same["reference"], cond["reference"])
    mean, logvar = diffusion.vae.normalize(moments[:, 0]), moments[:, 1]
    first, second = (((x - mean) / (0.5 * logvar).exp())[kept] for x in (z, cond["reference"]))
    noise = torch.corrcoef(torch.stack((first, second)))
    assert abs(noise[0, 1]) < 0.1 and first.std().item() == pytest.approx(second.std().item(), rel=0.1)


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


def test_scales_of_absent_conditions_cost_nothing_and_unknown_ones_are_refused(diffusion):
    plain, diffusion.guidance = diffusion.guidance, Guidance({"frames": 5.0, "text": 4.0})
    rows = []
    hook = diffusion.model.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    prompt = {key: value for key, value in batch(rows=(0,)).items() if key != "video"}
    guided = diffusion.sample(prompt, Draws(7, [0]))
    hook.remove()
    diffusion.guidance = plain
    assert rows == [2, 2, 2]  # two branches, not three
    assert torch.equal(guided, diffusion.sample(prompt, Draws(7, [0])))
    diffusion.guidance = Guidance({"txt": 4.0})
    with pytest.raises(
        ValueError, match="guidance.scales names txt; the model has the conditions frames, size, text"
    ):
        diffusion.sample(prompt, Draws(7, [0]))
    diffusion.guidance = plain
