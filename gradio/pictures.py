"""Pictures: small pieces of HTML that say how things stand. All text of visitors is escaped."""

import base64
import html
import io
from collections.abc import Sequence
from functools import lru_cache

from jobs import Job
from PIL import Image

from opensora.datasets.video_io import is_image, read_clip, read_image

_STAGES = {
    "": "Starting",
    "starting": "Starting",
    "reading the prompt": "Reading the prompt",
    "loading the model": "Loading the model",
    "sampling": "Drawing",
    "decoding": "Writing the file",
}
EMPTY = (
    "<div class='os-empty'><div class='os-frames'><i></i><i></i><i></i><i></i></div>"
    "<p>Your video appears here.</p></div>"
)


def film(masks: Sequence[Sequence[float]], files: Sequence[str] = ()) -> str:
    """Draw which latent frames are given, edited and made anew; a row per clip, below the given files."""
    if not masks:
        return ""
    rows = []
    for number, mask in enumerate(masks):
        cells = "".join(f"<i class='{_kind(ratio)}' title='{_title(ratio)}'></i>" for ratio in mask)
        label = f"<b>clip {number + 1}</b>" if len(masks) > 1 else ""
        rows.append(f"<div class='os-film'>{label}{cells}</div>")
    kinds = {_kind(ratio) for mask in masks for ratio in mask}
    names = (("given", "given"), ("edited", "edited"), ("new", "made anew"))
    legend = "".join(f"<span><i class='{kind}'></i>{text}</span>" for kind, text in names if kind in kinds)
    thumbs = "".join(f"<img alt='given' src='{thumb(file)}'>" for file in files)
    shown = f"<div class='os-thumbs'>{thumbs}</div>" if thumbs else ""
    return f"<div class='os-films'>{shown}{''.join(rows)}<div class='os-legend'>{legend}</div></div>"


@lru_cache(64)
def thumb(path: str) -> str:
    """Return the first frame of an accepted file as the address of a small picture."""
    frame = (read_image(path) if is_image(path) else read_clip(path, [0]))[0]
    picture = Image.fromarray(frame.numpy())
    picture.thumbnail((320, 168))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def note(text: str, kind: str = "error") -> str:
    """Write a remark beside a control; nothing for an empty text."""
    return f"<p class='os-note {kind}' role='alert'>{html.escape(text)}</p>" if text else ""


def status(jobs: Sequence[tuple[Job, int]]) -> str:
    """Say how far somebody's jobs are.

    Args:
        jobs: Those that wait or run, with the number of jobs before each.
    """
    return "".join(_waiting(job, before) if job.state == "waiting" else _running(job) for job, before in jobs)


def preview(job: Job) -> str:
    """Show what a running job is heading for."""
    if job.preview is None:
        return ""
    data = base64.b64encode(job.preview).decode()
    return (
        f"<figure class='os-preview'><img alt='preview' src='data:image/jpeg;base64,{data}'>"
        "<figcaption>Four moments of it, getting sharper</figcaption></figure>"
    )


def clock(seconds: float) -> str:
    """Write a duration."""
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def _running(job: Job) -> str:
    share = job.done / job.total if job.stage in ("sampling", "decoding") else 0.0
    text = _STAGES.get(job.stage, job.stage)
    if job.stage == "sampling":
        text += f": step {job.done} of {job.total}"
        if job.rate:
            left = (job.total - job.done) / job.rate
            text += f" · {job.rate:.3g} steps/s · {clock(left)} left"
    elif job.stage == "decoding":
        text += f": frame {job.done} of {job.total}"
    moving = "" if share else " os-moving"
    return (
        f"<div class='os-job'><p>{html.escape(text)}</p><div class='os-bar{moving}' role='progressbar' "
        f"aria-valuenow='{100 * share:.0f}'><div style='width:{100 * share:.1f}%'></div></div>"
        f"{_prompt(job)}</div>"
    )


def _waiting(job: Job, before: int) -> str:
    jobs = "1 job" if before == 1 else f"{before} jobs"
    return f"<div class='os-job os-wait'><p>In the queue: {jobs} before it</p>{_prompt(job)}</div>"


def _prompt(job: Job) -> str:
    text = job.prompt if len(job.prompt) <= 80 else job.prompt[:77] + "..."
    return f"<small>{html.escape(text)}</small>"


def _kind(ratio: float) -> str:
    return "given" if ratio == 0 else "new" if ratio == 1 else "edited"


def _title(ratio: float) -> str:
    return {"given": "given", "new": "made anew"}.get(_kind(ratio), f"edited, {100 * ratio:.0f} % anew")
