"""The perceptual distance of images: networks, weights in packages, a folder with the published ones."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from opensora.models.perceptual import PerceptualDistance

NETWORKS = ("alex", "efficientnet", "vgg")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    disc = ((x - 0.2) ** 2 + y**2 < 0.25).float()
    return torch.stack([disc, 0.5 * torch.sin(12 * x), y * disc])[None].clamp(-1, 1)


@pytest.mark.parametrize("network", NETWORKS)
def test_more_damage_is_farther(network: str, images: torch.Tensor) -> None:
    if network != "efficientnet" and importlib.util.find_spec("stlpips_pytorch") is None:
        pytest.skip("needs stlpips-pytorch")
    distance = PerceptualDistance(network)
    small = F.interpolate(images, size=12, mode="area")
    blurred = F.interpolate(small, size=48, mode="bilinear").requires_grad_()
    values = distance(images.expand(3, -1, -1, -1), torch.stack([images[0], blurred[0], -images[0]]))
    assert values[0] == 0 and 0 < values[1] < values[2]
    values[1].backward()
    assert blurred.grad.isfinite().all() and blurred.grad.abs().max() > 0
    assert not any(p.requires_grad for p in distance.parameters())
    assert "package" in distance.source


def test_equal_black_images_have_a_finite_gradient() -> None:
    pytest.importorskip("stlpips_pytorch")
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    PerceptualDistance("alex")(x, torch.zeros(1, 3, 32, 32)).sum().backward()
    assert x.grad.isfinite().all()


def test_published_weights_from_a_folder(images: torch.Tensor, tmp_path) -> None:
    numbers = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in PerceptualDistance("vgg", __file__).state_dict().items()}
    values = {k: 0.05 * torch.rand(s, generator=numbers) for k, s in shapes.items()}
    trunk = {k.replace("layers.", "features."): v for k, v in values.items() if k.startswith("layers.")}
    save_file({**trunk, "classifier.0.weight": torch.ones(1)}, tmp_path / "vgg16.safetensors")
    with pytest.raises(ValueError, match="5 tensors are missing, such as heads.0"):
        PerceptualDistance("vgg", str(tmp_path))
    heads = {f"lin{k[-1]}.model.1.weight": v[None, :, None, None] for k, v in values.items() if "heads" in k}
    torch.save(heads, tmp_path / "vgg.pth")
    distance = PerceptualDistance("vgg", str(tmp_path))
    assert all(torch.equal(v, values[k]) for k, v in distance.state_dict().items())
    assert str(tmp_path) in distance.source and distance(images, -images) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("resnet", None), "use 'vgg', 'alex' or 'efficientnet'"),
        (("alex", "x"), "weights of your own go with"),
    ],
)
def test_wrong_settings(arguments: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PerceptualDistance(*arguments)


def test_small_images_and_absent_weights_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="of 32 pixels at least"):
        pytest.importorskip("stlpips_pytorch")
        PerceptualDistance("alex")(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(FileNotFoundError):
        PerceptualDistance("vgg", str(tmp_path / "absent.pth"))
