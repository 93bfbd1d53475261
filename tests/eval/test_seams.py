"""`python -m eval.seams`: seams where norms see the clip, none of chunks that continue each other."""

import json

import pytest
import torch
from PIL import Image

from eval.seams import evaluate, markdown
from opensora.datasets.video_io import write_video
from opensora.registry import MODELS, build
from opensora.utils.config import load_config
from opensora.utils.weights import save_safetensors

TINY = {"channels": 32, "channel_multipliers": (1, 1, 1, 1), "num_res_blocks": 1, "latent_channels": 4}
PIXEL = {"norm": "pixel", "attention": "none", "temporal_overlap": False}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Return a function that gives the config of a tiny random autoencoder and a clip of 14 frames."""
    folder = tmp_path_factory.mktemp("seams")
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)), (14, 40, 80), mode="trilinear"
    )
    write_video(2 * smooth[0] - 1, folder / "clip.mp4", 24)

    def make(**changes):
        torch.manual_seed(0)
        settings = {**TINY, "micro_frame_size": 5, **changes}
        save_safetensors(
            build(MODELS, {"type": "VideoVAE", **settings}).state_dict(), folder / "vae.safetensors"
        )
        cfg = load_config(["configs/vae_v1_3/inference/video_16z_256x256.py"])
        cfg["dataset"].update(data_path=str(folder / "clip.mp4"), num_frames=None, image_size=None)
        cfg["vae"].update(from_pretrained=str(folder / "vae.safetensors"), tile_size=None, **settings)
        cfg.update(dtype="fp32", device="cpu", save_dir=str(folder / "out"))
        return cfg, folder / "out_eval"

    return make


def test_chunks_that_know_nothing_of_each_other_have_seams(config):
    cfg, folder = config(temporal_overlap=True, spatial_tile=5, spatial_overlap=1)
    found = evaluate(cfg)["clip"]
    # Chunks of 5 share frames 4, 8 and 12; tiles of 5 cells begin at cells 0 and 5 minus what they share.
    assert found["frames"]["borders"] == [4, 5, 8, 9, 12, 13]
    assert found["frames"]["at_borders"] > found["frames"]["inside"] > 0
    assert set(found) == {"frames", "columns"} and found["columns"]["largest"] > 0
    assert len(found["columns"]["error"]) == 80 and len(found["columns"]["jumps"]) == 79
    assert json.loads((folder / "seams.json").read_text())["clip"]["frames"]["borders"] == [
        4,
        5,
        8,
        9,
        12,
        13,
    ]
    with Image.open(folder / "seams.png") as picture:
        assert picture.width > 400
    assert "| clip | frames |" in markdown({"clip": found})


def test_chunks_that_continue_each_other_have_none(config):
    found = evaluate(config(**PIXEL)[0])["clip"]
    assert set(found) == {"frames"} and found["frames"]["largest"] < 1e-5


def test_seams_of_the_stack_of_1_2_and_of_an_autoencoder_of_images(config, caplog):
    pytest.importorskip("diffusers")
    image = {"type": "ImageVAE", "block_out_channels": (32,) * 4, "layers_per_block": 1}
    time = {"type": "TemporalVAE", "channels": 32, "num_res_blocks": 1, "channel_multipliers": (1, 1)}
    stack = {"type": "StackedVAE", "spatial": image, "temporal": {**time, "temporal_down": (True,)}}
    for vae in ({**stack, "micro_frame_size": 5}, image):
        cfg = config()[0]
        file = cfg["vae"]["from_pretrained"]
        torch.manual_seed(0)
        save_safetensors(build(MODELS, vae).state_dict(), file)
        cfg["vae"] = {**vae, "from_pretrained": file}
        if vae is image:
            with pytest.raises(ValueError, match="'ImageVAE': it codes frame by frame"):
                evaluate(cfg)
            continue
        found = evaluate(cfg)["clip"]["frames"]
        assert found["borders"] == [5, 10] and found["largest"] > found["at_borders"] > 1e-4
        assert "chunks of 5 frames know nothing of each other: python -m eval.seams" in caplog.text


def test_a_clip_in_one_piece_has_no_seams(config):
    with pytest.raises(ValueError, match="there are no seams; set smaller ones"):
        evaluate(config(micro_frame_size=17)[0])
