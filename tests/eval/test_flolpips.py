"""FloLPIPS: identity, and motion that differs counts more."""

import pytest
import torch

from eval.metrics.flolpips import FloLpips
from eval.metrics.flow import dis_flow
from opensora.models.perceptual import PerceptualDistance


@pytest.fixture(scope="module")
def network():
    return PerceptualDistance("alex")


@pytest.fixture(scope="module")
def clip():
    """Return a disc that moves to the right over a textured ground. Shape [4, 3, 48, 64]."""
    ground = torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0)) * 0.5
    y, x = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    frames = []
    for t in range(4):
        disc = ((x - 20 - 4 * t) ** 2 + (y - 24) ** 2 < 100).float()
        frames.append(ground * (1 - disc) + torch.tensor([0.9, 0.2, 0.1])[:, None, None] * disc)
    return torch.stack(frames)


@torch.no_grad()
def test_equal_clips_are_at_distance_0(network, clip):
    assert FloLpips(network, dis_flow)(clip, clip).tolist() == [0.0] * 3


@torch.no_grad()
def test_it_is_lpips_where_both_clips_move_alike(network, clip):
    still = lambda a, b: torch.zeros(len(a), 2, *a.shape[2:])  # noqa: E731
    other = (clip + 0.2 * torch.rand(clip.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    plain = network(2 * clip[:-1] - 1, 2 * other[:-1] - 1)
    assert FloLpips(network, still)(clip, other) == pytest.approx(plain, rel=1e-5)


@torch.no_grad()
def test_an_error_counts_more_where_the_motion_is_wrong(network, clip):
    """The same error, in places where flows differ and where they do not."""
    error = torch.zeros_like(clip)
    error[:, :, 4:20, 4:20] = 0.4
    moved = torch.zeros(3, 2, 48, 64)
    moved[:, 0, 4:20, 4:20] = 3.0
    elsewhere = torch.zeros(3, 2, 48, 64)
    elsewhere[:, 0, 30:46, 40:60] = 3.0
    found = {}
    for name, wrong in (("here", moved), ("elsewhere", elsewhere)):
        flows = iter((torch.zeros(3, 2, 48, 64), wrong))
        other = (clip + error).clamp(0, 1)
        found[name] = float(FloLpips(network, lambda a, b, flows=flows: next(flows))(clip, other).mean())
    assert found["here"] > 2 * found["elsewhere"]
