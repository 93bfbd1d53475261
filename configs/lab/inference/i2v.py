"""The models in assets/lab go on from a picture.

    python scripts/inference.py configs/lab/inference/i2v.py --reference-path image.png \\
        --prompt "a red circle moves left over a blue background"

One core: about a third of a second per video.
"""

from mmengine.config import read_base

with read_base():
    from .t2v import *

cond_type = "i2v_head"
save_dir = "samples/lab_i2v"
