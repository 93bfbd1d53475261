"""Golden cases of the image and video transforms."""

from collections.abc import Callable, Mapping
from typing import Any

from einops import rearrange

from opensora.datasets import transforms
from opensora.datasets.transforms import apply_cut, plan_cut, scale_window, transform


def _video_transform(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    args = case["args"]
    frames = rearrange(inputs["x"], "T C H W -> T H W C")
    return {"out": rearrange(transform(args["name"], frames, *args["size"]), "C T H W -> T C H W")}


def _image_transform(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    args = case["args"]
    return {"out": transform(args["name"], inputs["x"][None], *args["size"], image=True)[:, 0]}


def _scaled(name: str) -> Callable[..., dict[str, Any]]:
    """Adapt a transform to float frames."""

    def run(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
        frames, size = rearrange(inputs["x"], "T C H W -> T H W C"), case["args"]["size"]
        height, width = size if isinstance(size, list) else (size, size)
        cut = plan_cut(name, tuple(frames.shape[1:3]), height, width)
        return {"out": rearrange(scale_window(frames, cut), "T H W C -> T C H W")}

    return run


def _image_bytes(name: str) -> Callable[..., dict[str, Any]]:
    """Adapt a transform of images to bytes."""

    def run(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
        image, size = inputs["x"][None], case["args"]["size"]
        height, width = size if isinstance(size, list) else (size, size)
        cut = plan_cut(name, tuple(image.shape[1:3]), height, width, image=True)
        video = apply_cut(image, cut, image=True, halve=name == "center")
        return {"out": rearrange(((video + 1) * 127.5).round().byte(), "C 1 H W -> H W C")}

    return run


def _sized(function: Callable) -> Callable[..., dict[str, Any]]:
    """Adapt `function(x, height, width)`."""
    return lambda case, inputs, weights: {"out": function(inputs["x"], *case["args"]["size"])}


def _to_tensor(case: Mapping[str, Any], inputs: Any, weights: Any) -> dict[str, Any]:
    return {"out": (transforms.normalize(inputs["x"]) + 1) / 2}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "video_transform": _video_transform,
    "image_transform": _image_transform,
    "video_resize_crop_to_fill": _scaled("resize_crop"),
    "image_resize_crop_to_fill": _image_bytes("resize_crop"),
    "image_center_crop": _image_bytes("center"),
    "video_center_crop": _sized(transforms.central),
    "video_ucf_center_crop": _scaled("center"),
    "video_short_edge_crop_resize": _sized(transforms.central_square),
    "video_to_tensor": _to_tensor,
    "video_hflip": lambda c, i, w: {"out": transforms.flip(i["x"])},
    "downsample_spatial": lambda c, i, w: {"out": transforms.downsample_space(i["x"], c["args"]["ratio"])},
    "downsample_temporal": lambda c, i, w: {"out": transforms.downsample_time(i["x"], c["args"]["ratio"])},
}
