"""Which frames latents stand for, and how long videos of several clips are."""

import pytest
import torch

from opensora.engine.lengths import chunk_latents, chunks, latent_spans, longest_clip, total_length
from opensora.engine.long_video import as_reference, check_loops
from opensora.registry import CONDITIONS, MODELS, build
from opensora.utils.config_defaults import base_configs
from opensora.utils.meta_device import meta_device


@pytest.fixture(scope="module")
def video_vae():
    """Return a function that gives the autoencoder of 1.3 without weights."""

    def make(**changes):
        plain = {
            key: value for key, value in base_configs()["video_vae"]["vae"].items() if key != "ignore_keys"
        }
        with meta_device():
            return build(MODELS, {**plain, "channels": 32, **changes})

    return make


class Stacked:
    """The lengths of the autoencoder of 1.2: 17 frames are five latents, and nothing is shared."""

    stride, micro_frame_size = (4, 8, 8), 17

    def latent_shape(self, frames, height, width):
        return frames // 17 * 5 + -(-(frames % 17) // 4), height // 8, width // 8

    def legal_length(self, frames):
        return frames


def test_chunks_that_share_a_frame(video_vae):
    vae = video_vae()
    assert chunk_latents(vae) == 5
    assert chunks(vae, 33) == [(0, 17, 0, 5), (16, 33, 5, 10)] and chunks(vae, 1) == [(0, 1, 0, 1)]
    spans = latent_spans(vae, 33)
    assert spans[:6] == [(0, 1), (1, 5), (5, 9), (9, 13), (13, 17), (16, 17)] and spans[-1] == (29, 33)
    assert latent_spans(vae, 1) == [(0, 1)]


def test_chunks_that_share_nothing_and_clips_in_one_piece(video_vae):
    assert chunks(Stacked(), 51) == [(0, 17, 0, 5), (17, 34, 5, 10), (34, 51, 10, 15)]
    assert latent_spans(Stacked(), 34)[4:7] == [(13, 17), (17, 18), (18, 22)]
    whole = video_vae(micro_frame_size=None)
    assert chunk_latents(whole) == 1 and chunks(whole, 33) == [(0, 33, 0, 9)]
    assert latent_spans(whole, 9) == [(0, 1), (1, 5), (5, 9)]


@pytest.mark.parametrize("loops", [1, 2, 3, 7])
def test_the_length_of_a_long_video(video_vae, loops):
    assert (
        total_length(Stacked(), 51, loops, 5) == (loops * 2 + 1) * 17
    )  # L (N - c) + c = 5 (2 L + 1) latents
    assert total_length(video_vae(), 49, loops, 5) == 16 * (2 * loops + 1) + 1
    assert total_length(video_vae(micro_frame_size=None), 17, loops, 2) == 4 * (3 * loops + 1) + 1
    assert [longest_clip(Stacked(), n) for n in (5, 10, 25)] == [17, 34, 85]


def test_clips_that_cannot_continue_each_other(video_vae):
    cfg = {**base_configs()["inference"], "loop": 2}
    assert check_loops(video_vae(), 49, cfg) == 81
    assert check_loops(video_vae(), 49, {**cfg, "loop": 1, "condition_frame_length": 99}) == 49
    for length in (15, 4):
        with pytest.raises(
            ValueError, match="has 15 latent frames and shares fewer.*; use 5 or 10, or another"
        ):
            check_loops(video_vae(), 49, {**cfg, "condition_frame_length": length})
    with pytest.raises(ValueError, match="condition_frame_edit=1.5: use a number from 0"):
        check_loops(video_vae(), 49, {**cfg, "condition_frame_edit": 1.5})
    with pytest.raises(ValueError, match="43 frames has 13 latent frames.*; use another num_frames"):
        check_loops(Stacked(), 43, cfg)


class Model(torch.nn.Module):
    """A network with a condition for given frames, which starts from zero."""

    def __init__(self):
        super().__init__()
        frames = build(
            CONDITIONS, dict(type="FrameCondition", hidden_size=8, patch_size=(1, 2, 2), in_channels=4)
        )
        self.conditions = torch.nn.ModuleDict({"frames": frames})


def test_given_frames_are_a_condition_only_of_models_that_have_learned_one():
    model, cfg = Model(), base_configs()["inference"]
    scales = {"frames": 2.0}
    assert not as_reference(model, scales, cfg)  # zeros have no effect
    assert as_reference(model, {}, {**cfg, "known_as": "reference"})
    torch.nn.init.normal_(model.conditions["frames"].reference_embedder.proj.weight)
    assert as_reference(model, scales, cfg) and not as_reference(model, {}, cfg)
    assert as_reference(model, {}, {**cfg, "cond_type": "i2v_head"})
    assert not as_reference(model, scales, {**cfg, "known_as": "frames"})
    model.conditions = torch.nn.ModuleDict()
    assert not as_reference(model, scales, {**cfg, "cond_type": "i2v_head"})
    with pytest.raises(ValueError, match="this model has no FrameCondition"):
        as_reference(model, {}, {**cfg, "known_as": "reference"})
