"""Videos from the lab's models after training on the clips of the demo: 17 frames, 48 x 48.

    python scripts/inference.py configs/lab/inference/clips.py --ckpt-path outputs/demo/stdit3 \\
        --vae.from_pretrained outputs/demo/vae --prompt "a young man with a red bow tie talks in a car"

Two cores: about a second per video.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.inference import *
    from ..._base_.rectified_flow import *
    from ..train.clips import condition_dropout, guidance, model, scheduler, text_encoder, vae

image_size = (48, 48)
num_frames = 17
fps = 25
dtype = "fp32"
guidance.scales.text.update(scale=2.0)
save_dir = "outputs/demo/samples"
trained.update(
    num_frames=[17],
    given_frames=False,
    prompts=[
        "a young man with a red bow tie talks in a car",
        "a big grey rabbit stretches on a green meadow",
    ],
)
