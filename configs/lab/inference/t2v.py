"""Videos from the models in assets/lab: 9 frames, 32 x 32, of moving shapes.

    python scripts/inference.py configs/lab/inference/t2v.py \\
        --prompt "a red circle moves left over a blue background"

One core: about a third of a second per video.
"""

from mmengine.config import read_base

with read_base():
    from ..._base_.inference import *
    from ..._base_.rectified_flow import *
    from ..train.stage1 import condition_dropout, guidance, model, scheduler, text_encoder, vae

model.update(from_pretrained="assets/lab/stdit3.safetensors")
image_size = (32, 32)
num_frames = 9
fps = 8
dtype = "fp32"
scheduler.update(num_sampling_steps=12)
condition_frame_length = 1
save_dir = "samples/lab"
trained.update(
    num_frames=[9],
    prompts=[
        "a red circle moves left over a blue background",
        "a green star moves down over a black background",
        "a yellow square moves right over a pink background",
        "a cyan triangle moves up over a white background",
    ],
)
