"""Open-Sora 1.3, video continued: the first latent frames are those of a reference video.

    python scripts/inference.py configs/opensora-v1-3/inference/v2v.py \\
        --prompt "a waterfall" --reference-path clip.mp4

One GPU with 80 GB. Seconds per video: to be measured.

The published v2v.py is set to i2v_head: that is i2v.py here.
"""

from mmengine.config import read_base

with read_base():
    from .i2v import *

cond_type = "v2v_head"
save_dir = "samples/v2v"
trained.update(
    resolutions=["360p", "720p"],
    aspect_ratios=["9:16", "16:9", "3:4", "4:3", "1:1"],
    num_frames=[1, 49, 65, 81, 97, 113],
    given_frames=True,
    scores=True,
)
