"""Studio: from what a visitor set to files, without a page around it."""

import io
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controls import make_controls
from jobs import Job, Jobs, job_name, said
from limits import marks
from mmengine.config import Config
from modes import MODES, Guides
from PIL import Image
from torch import Tensor
from uploads import Uploads
from wishes import Maker

from opensora.datasets.video_io import to_uint8
from opensora.engine.inference import Session
from opensora.engine.output import file_fps
from opensora.engine.prompts import Request
from opensora.engine.refinement import Refiner, invent_prompts
from opensora.utils.config import load_config
from opensora.utils.logging import get_logger
from opensora.utils.user_errors import USER_ERRORS

_PREVIEWS = 8  # of a video
_GROUPS = (  # which control an error belongs to, by how its message starts or what it names
    ("frames", re.compile(r"reference|mask strategy|cond_type|.*\breference\b")),
    ("shape", re.compile(r"num_frames|image_size|aspect_ratio|resolution|loop|condition_frame|.*\bvae\b")),
    ("prompt", re.compile(r"prompt|there is no prompt|neg_prompt|\d+ negative")),
)


@dataclass
class Look:
    """What is known about a wish before it is tried.

    Args:
        notes: What is wrong, by group: "prompt", "frames", "shape", "sampling".
        marks: What goes beyond the model or the machine, by group.
        masks: Edit ratio of each latent frame of each clip.
        size: What comes out, in words.
        words: Options of the command line.
        cfg: The config that they give.
    """

    notes: dict[str, str] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    masks: list[list[float]] = field(default_factory=list)
    size: str = ""
    words: list[str] = field(default_factory=list)
    cfg: Config | None = None


class Studio:
    """One model that makes what visitors wish.

    Args:
        start: Config file and options.
        output: Folder of files that are made; uploads are kept in `uploads` in it.
        queue_size: Jobs that may wait or run at once.
        limits: Of uploads, see `Uploads`.
    """

    def __init__(
        self,
        start: Sequence[str],
        output: Path,
        queue_size: int = 5,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        self.cfg = load_config(start)
        self.output = output
        if ";" in str(output):
            raise ValueError(f"output {str(output)!r}: a folder without ';', which separates references.")
        output.mkdir(parents=True, exist_ok=True)
        self.uploads = Uploads(output / "uploads", limits or {"megabytes": 64.0, "seconds": 60.0})
        self.session = Session(self.cfg)
        self.session.check_files(self.cfg)  # a page without weights is of no use
        self.controls = make_controls(self.cfg, self.session.parts.vae)
        self.maker = Maker(start, self.cfg, [str(self.uploads.folder)])
        self.guides = Guides(self.maker.base, self.session.parts.vae)
        self.jobs = Jobs(self._make, queue_size)
        self._checks = threading.Lock()

    def look(self, raw: Mapping[str, Any], kind: str = "video", name: str | None = None) -> Look:
        """Check a wish without making it.

        Args:
            raw: What a browser sent: values of the controls by name, `mode`, `files`, `edit`, `rule`.
            kind: "video" or "image"; images take no references.
            name: Of the file; None invents one.
        """
        look = Look()
        wish = self._checked(raw, kind, look)
        if wish is None:
            return look
        files = list(wish["files"]) if wish["mode"] != "text" else []
        place = {"save-dir": str(self.output), "sample-name": name or job_name()}
        options: dict[str, Any] = {}
        try:
            if wish["mode"] != "text":
                look.masks = self.guides.masks(wish, files)
            options = self.guides.options(wish, files)
        except USER_ERRORS as error:
            look.notes["frames"] = said(error)
            wish = {**wish, "mode": "text"}
        try:
            if not options and "frames" in look.notes:
                options = self.guides.options(wish, [])
            shown = {**wish, "prompt": wish["prompt"] or "a"}
            look.words = self.maker.words(shown, options, place)
            look.cfg = self.maker.config(look.words)
            with self._checks, tempfile.TemporaryDirectory() as folder:
                requests = self.session.requests({**look.cfg, "verbose": 0}, Path(folder))
            look.size = size_of(requests[0], file_fps(look.cfg))
            guided = raw["mode"] != "text" and kind == "video"
            look.marks = marks(self.session.parts, look.cfg, requests[0], guided)
        except USER_ERRORS as error:
            text = said(error)
            group = next((name for name, pattern in _GROUPS if pattern.match(text)), "sampling")
            look.notes.setdefault(group, text)
        return look

    def submit(self, owner: str, raw: Mapping[str, Any], kind: str) -> tuple[Job | None, Look]:
        """Put a wish into the queue, if nothing is wrong with it.

        Raises:
            ValueError: The queue is full.
        """
        name = job_name()
        look = self.look(raw, kind, name)
        if not str(raw["prompt"] or "").strip():
            look.notes["prompt"] = "Write a prompt first: what should be seen?"
        if look.notes or look.cfg is None:
            return None, look
        command, prompt = self.maker.command(look.words), str(raw["prompt"]).strip()
        job = Job(owner, kind, look.cfg, command, prompt, name)
        self.jobs.submit(job)
        return job, look

    def refine(self, prompt: str) -> str:
        """Return a prompt rewritten by the language model.

        Raises:
            ValueError: There is no key, or no answer came.
        """
        if not prompt.strip():
            return self.invent()
        refiner = Refiner(self.cfg["llm"])
        if refiner.off:
            raise ValueError(NO_KEY)
        refined = refiner.refine(prompt)
        if refined == prompt:
            raise ValueError("The language model gave no better prompt; the server's log says why.")
        return refined

    def invent(self) -> str:
        """Return a prompt of the language model's own; errors as of `refine`."""
        if Refiner(self.cfg["llm"]).off:
            raise ValueError(NO_KEY)
        asked = {**self.cfg, "random_prompts": 1, "prompt": None, "prompt_path": None}
        return invent_prompts(asked)[0]

    def _checked(self, raw: Mapping[str, Any], kind: str, look: Look) -> dict[str, Any] | None:
        wish: dict[str, Any] = {}
        for name, control in self.controls.items():
            try:
                wish[name] = control.check(raw[name])
            except ValueError as error:
                look.notes[GROUP_OF.get(name, "sampling")] = str(error)
        if look.notes:
            return None
        mode, edit, rule = raw["mode"], raw["edit"], str(raw["rule"] or "").strip()
        if mode not in MODES or not isinstance(edit, int | float) or not 0 <= edit <= 1 or len(rule) > 500:
            look.notes["frames"] = f"{mode!r}, {edit!r}: no such way to give frames."
            return None
        wish |= {"mode": mode, "edit": edit, "rule": rule, "files": raw["files"]}
        if kind == "image":
            wish |= {"mode": "text", "frames": 1, "loops": 1}
        return wish

    def _make(self, job: Job) -> list[Path]:
        steps = job.cfg["scheduler"]["num_sampling_steps"] * job.cfg["loop"]
        cfg = Config({**job.cfg, "preview": max(1, steps // _PREVIEWS)})

        def show(request: Request, frames: Tensor) -> None:
            job.preview, job.previews = strip_of(frames), job.previews + 1

        get_logger().info("job %s: %s", job.name, job.command)
        return self.session.run(cfg, listen=job.listen, show=show)


NO_KEY = (
    "This needs a language model: set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own, and start "
    "the page again."
)
GROUP_OF = {
    **dict.fromkeys(("prompt", "negative"), "prompt"),
    **dict.fromkeys(("resolution", "aspect", "frames", "fps", "loops"), "shape"),
}


def size_of(request: Request, fps: float) -> str:
    """Say what comes out."""
    if request.num_frames == 1:
        return f"an image of {request.width} x {request.height} pixels"
    seconds = request.length / fps
    return f"{request.length} frames of {request.width} x {request.height} pixels, {seconds:.1f} seconds"


def strip_of(frames: Tensor) -> bytes:
    """Return frames side by side, as a JPEG. Shape [3, n, H, W], about [-1, 1]."""
    pictures = to_uint8(frames.float().cpu())  # [n, H, W, 3]
    stream = io.BytesIO()
    Image.fromarray(pictures.permute(1, 0, 2, 3).flatten(1, 2).numpy()).save(stream, "JPEG", quality=85)
    return stream.getvalue()
