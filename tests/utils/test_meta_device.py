"""Building on the meta device: shapes without values, and without torch's compiler."""

import subprocess
import sys

import torch
from torch import nn

from opensora.utils.meta_device import meta_device


def test_modules_have_shapes_and_other_tensors_their_values():
    values = torch.zeros(3)
    with meta_device():
        layer = nn.Linear(4, 5)
        nn.init.ones_(values)
    assert layer.weight.is_meta and layer.weight.shape == (5, 4)
    assert values.tolist() == [1, 1, 1]


def test_the_compiler_is_not_imported(root):
    code = (
        "import sys; from torch import nn; from opensora.registry import MODELS, build;"
        "from opensora.utils.meta_device import meta_device\n"
        "with meta_device():\n"
        "    cfg = dict(type='STDiT3', conditions={}, hidden_size=24, num_heads=2, depth=1)\n"
        "    build(MODELS, cfg, in_channels=4)\n"
        "    nn.Embedding(3, 4)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr
