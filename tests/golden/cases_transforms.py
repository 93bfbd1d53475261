"""Golden cases of the image and video transforms."""

from collections.abc import Callable, Mapping
from typing import Any

from einops import rearrange

from opensora.datasets import transforms
from opensora.datasets.transforms import TRANSFORMS


def _video_transform(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    args = case["args"]
    frames = rearrange(inputs["x"], "T C H W -> T H W C")
    video = TRANSFORMS[args["name"]](frames, *args["size"], False)
    return {"out": rearrange(video, "C T H W -> T C H W")}


def _image_transform(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    args = case["args"]
    return {"out": TRANSFORMS[args["name"]](inputs["x"][None], *args["size"], True)[:, 0]}


def _sized(function: Callable) -> Callable[..., dict[str, Any]]:
    """Adapt `function(x, height, width)`."""
    return lambda case, inputs, weights: {"out": function(inputs["x"], *case["args"]["size"])}


def _ucf_center_crop(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    size = case["args"]["size"]
    return {"out": transforms.central(transforms.short_side(inputs["x"], size), size, size)}


def _to_tensor(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    return {"out": (transforms.normalize(inputs["x"]) + 1) / 2}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "video_transform": _video_transform,
    "image_transform": _image_transform,
    "video_resize_crop_to_fill": _sized(transforms.fill),
    "image_resize_crop_to_fill": _sized(transforms.fill_image),
    "image_center_crop": lambda c, i, w: {"out": transforms.center_image(i["x"], c["args"]["size"])},
    "video_center_crop": _sized(transforms.central),
    "video_ucf_center_crop": _ucf_center_crop,
    "video_short_edge_crop_resize": _sized(transforms.central_square),
    "video_to_tensor": _to_tensor,
    "video_hflip": lambda c, i, w: {"out": transforms.flip(i["x"])},
    "downsample_spatial": lambda c, i, w: {"out": transforms.downsample_space(i["x"], c["args"]["ratio"])},
    "downsample_temporal": lambda c, i, w: {"out": transforms.downsample_time(i["x"], c["args"]["ratio"])},
}
