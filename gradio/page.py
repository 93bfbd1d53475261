"""Page: the controls on the screen, and what happens when they are used."""

import random
import secrets
from typing import Any

import pictures
from jobs import Job
from modes import MODES
from studio import Studio
from theme import TOGGLE

_TICK_S = 1.0
_GROUPS = ("prompt", "frames", "shape", "sampling")
EXAMPLES = (
    "a waterfall pours into a clear lake, seen from a drone",
    "waves roll onto a beach at sunset",
    "a cat on a window sill looks at falling snow",
)


class Page:
    """The page of a studio.

    Args:
        studio: Makes what visitors wish.
        title: What stands on top.
    """

    def __init__(self, studio: Studio, title: str) -> None:
        self.studio, self.title = studio, title
        self.examples = studio.cfg["trained"]["prompts"] or EXAMPLES
        self.names = (*studio.controls, "mode", "edit", "rule", "first", "second")
        self.at: dict[str, Any] = {}  # components by name

    def build(self) -> Any:
        """Return the page as Blocks of Gradio."""
        import gradio as gr

        with gr.Blocks(analytics_enabled=False, title=self.title, delete_cache=(3600, 86400)) as blocks:
            self.at["owner"] = gr.BrowserState("", storage_key="opensora-visitor")
            self.at["seen"] = gr.State({})
            self.at["tick"] = gr.Timer(_TICK_S, active=False)
            with gr.Row(elem_id="os-head"):
                gr.HTML(f"<h1>{self.title}</h1><p>{_about(self.studio)}</p>")
                theme = gr.Button("◐", elem_id="os-theme", size="sm")
            with gr.Row(elem_id="os-bench"):
                with gr.Column(elem_id="os-ask", elem_classes="os-card"):
                    self._ask(gr)
                with gr.Column(elem_id="os-result", elem_classes="os-card"):
                    self._result(gr)
                with gr.Column(elem_id="os-settings"):
                    self._settings(gr)
            theme.click(None, js=TOGGLE)
            self._connect(gr, blocks)
        return blocks

    def _control(self, gr: Any, name: str, **options: Any) -> Any:
        """Draw one control of the studio."""
        control = self.studio.controls[name]
        options |= {"label": control.label, "elem_id": f"os-{name}", "value": control.default}
        if control.note:
            options["info"] = control.note
        if control.choices:
            made = gr.Radio(list(control.choices), **options)
        elif control.span:
            low, high, step = control.span
            made = gr.Slider(low, high, step=step, **options)
        elif control.most:
            made = gr.Textbox(max_length=control.most, **options)
        else:
            made = gr.Checkbox(**{**options, "label": f"Use {control.label.lower()}"})
        self.at[name] = made
        return made

    def _note(self, gr: Any, group: str) -> None:
        self.at[f"note_{group}"] = gr.HTML(elem_id=f"os-note-{group}")

    def _ask(self, gr: Any) -> None:
        self._control(gr, "prompt", lines=4, placeholder="Describe what should be seen", autofocus=True)
        self._note(gr, "prompt")
        gr.Examples([[text] for text in self.examples], self.at["prompt"], label="Try one of these")
        with gr.Row(elem_classes="os-buttons"):
            self.at["refine"] = gr.Button("Refine prompt", size="sm", min_width=110, elem_id="os-refine")
            self.at["random"] = gr.Button("Random prompt", size="sm", min_width=110, elem_id="os-random")
        self.at["size"] = gr.HTML(elem_id="os-size")
        with gr.Row(elem_classes="os-buttons"):
            self.at["make"] = gr.Button("Make video", variant="primary", min_width=110, elem_id="os-make")
            self.at["draw"] = gr.Button("Make image", min_width=110, elem_id="os-draw")
        self.at["note_job"] = gr.HTML(elem_id="os-note-job")

    def _result(self, gr: Any) -> None:
        self.at["stage"] = gr.HTML(pictures.EMPTY, elem_id="os-stage")
        self.at["video"] = gr.Video(
            show_label=False, visible=False, interactive=False, autoplay=True, loop=True, elem_id="os-video",
            buttons=["download"],
        )  # fmt: skip
        self.at["image"] = gr.Image(
            show_label=False, visible=False, interactive=False, elem_id="os-image", type="filepath",
            buttons=["download", "fullscreen"],
        )  # fmt: skip
        self.at["status"] = gr.HTML(elem_id="os-status")
        self.at["cancel"] = gr.Button("Cancel", size="sm", visible=False, elem_id="os-cancel", variant="stop")
        with gr.Accordion("Command line of the same file", open=False, visible=False) as folded:
            self.at["command"] = gr.Code(
                language="shell", show_label=False, interactive=False, elem_id="os-command", wrap_lines=True,
                lines=2, show_line_numbers=False,
            )  # fmt: skip
        self.at["command_fold"] = folded
        with gr.Accordion("Contact sheet", open=False, visible=False) as folded:
            self.at["sheet"] = gr.Image(
                show_label=False, interactive=False, elem_id="os-sheet", type="filepath",
                buttons=["download", "fullscreen"],
            )  # fmt: skip
        self.at["sheet_fold"] = folded
        self.at["gallery_title"] = gr.HTML("<p class='os-size'>Made in this session</p>", visible=False)
        self.at["gallery"] = gr.Gallery(
            visible=False, columns=5, height="auto", fit_columns=False, allow_preview=False, show_label=False,
            elem_id="os-gallery", interactive=False, object_fit="cover", buttons=[],
        )  # fmt: skip

    def _settings(self, gr: Any) -> None:
        with gr.Column(elem_classes="os-card"):
            named = any(" x " not in size for size in self.studio.controls["resolution"].choices)
            self._control(gr, "resolution")
            self._control(gr, "aspect", visible=named)
            self._control(gr, "frames")
            self._note(gr, "shape")
        with gr.Column(elem_classes="os-card"):
            self.at["mode"] = gr.Dropdown(
                [(mode.label, name) for name, mode in MODES.items()], value="text", label="Given frames",
                info="frames of your images and videos that the video keeps", elem_id="os-mode",
            )  # fmt: skip
            with gr.Row():
                for name in ("first", "second"):
                    self.at[name] = gr.File(visible=False, elem_id=f"os-{name}", height=120, min_width=150)
            self.at["edit"] = gr.Slider(
                0, 1, 0.6, step=0.05, label="How much to change", visible=False, elem_id="os-edit"
            )
            self.at["rule"] = gr.Textbox(
                label="Rule", visible=False, elem_id="os-rule", placeholder="keep 0 at start; keep 1 at end"
            )
            self._note(gr, "frames")
            self.at["film"] = gr.HTML(elem_id="os-film")
        with gr.Column(elem_classes="os-card"):
            with gr.Accordion("Look and motion", open=False):
                self._control(gr, "camera")
                for name in ("motion", "aesthetic"):
                    self._control(gr, f"{name}_on")
                    self._control(gr, name)
            with gr.Accordion("Advanced", open=False):
                self._control(gr, "negative", lines=2)
                with gr.Row(equal_height=True):
                    self._control(gr, "seed", scale=5)
                    self.at["dice"] = gr.Button("🎲", size="sm", scale=1, min_width=44, elem_id="os-dice")
                for name in ("steps", "guidance", "fps", "loops", "samples"):
                    self._control(gr, name)
                self._note(gr, "sampling")

    def _connect(self, gr: Any, blocks: Any) -> None:
        """Say what each control does."""
        at = self.at
        inputs = [at[name] for name in self.names]
        quiet = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        looks = [at[name] for name in ("size", "film", *(f"note_{group}" for group in _GROUPS))]
        slots = [at[name] for name in ("first", "second", "edit", "rule")]
        shown = [at[name] for name in ("owner", "seen", "mode")]
        view = [at[name] for name in _VIEW]
        at["mode"].change(self.show_slots, [at["mode"]], slots, **quiet)
        for name in self.names:
            if name != "prompt":
                at[name].change(self.look, inputs, looks, **quiet)
        at["prompt"].input(
            self.forget_note, [at["note_prompt"]], [at["note_prompt"], at["note_job"]], **quiet
        )
        at["dice"].click(lambda: random.randint(1, 2048), None, at["seed"], **quiet)
        slow = {"api_visibility": "private", "concurrency_limit": 4}
        at["refine"].click(self.refine, [at["prompt"]], [at["prompt"], at["note_prompt"]], **slow)
        at["random"].click(self.invent, None, [at["prompt"], at["note_prompt"]], **slow)
        submitted = [at["owner"], at["note_job"], at["tick"], *looks]
        for name, kind in (("make", "video"), ("draw", "image")):
            at[name].click(
                lambda owner, *values, kind=kind: self.submit(owner, values, kind),
                [at["owner"], *inputs], submitted, **quiet,
            ).then(self.view, shown, view, **quiet)  # fmt: skip
        at["tick"].tick(self.view, shown, view, **quiet)
        at["cancel"].click(self.cancel, [at["owner"]], None, **quiet).then(self.view, shown, view, **quiet)

        def choose(owner: str, seen: dict[str, Any], event: gr.SelectData) -> dict[str, Any]:
            return self.choose(owner, seen, event.index)

        at["gallery"].select(choose, [at["owner"], at["seen"]], [at["seen"]], **quiet).then(
            self.view, shown, view, **quiet
        )
        blocks.load(self.arrive, [at["owner"]], [at["owner"], at["tick"]], **quiet).then(
            self.view, shown, view, **quiet
        )
        blocks.load(self.look, inputs, looks, **quiet)

    def raw(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Return what a browser sent, by name."""
        raw = dict(zip(self.names, values, strict=True))
        raw["files"] = [raw.pop("first"), raw.pop("second")]
        return raw

    def look(self, *values: Any) -> list[Any]:
        """Say what would be made, and what is wrong or goes beyond the model, before it is tried."""
        return self._looks(self.raw(values), "video", asked=False)

    def _looks(self, raw: dict[str, Any], kind: str, asked: bool, look: Any = None) -> list[Any]:
        notes = {}
        try:
            raw = {**raw, "files": [self.studio.uploads.accept(f) if f else None for f in raw["files"]]}
        except ValueError as error:
            notes["frames"] = str(error)
            raw = {**raw, "files": [None, None]}
        look = look or self.studio.look(raw, kind)
        waits = not asked and not any(raw["files"]) and "frames" not in notes
        wrong = {group: text for group, text in look.notes.items() if not (group == "frames" and waits)}
        wrong |= notes
        size = f"<p class='os-size'>Makes {look.size}.</p>" if look.size else ""
        beside = [
            pictures.note(wrong.get(group, "")) + pictures.note(look.marks.get(group, ""), "mark")
            for group in _GROUPS
        ]
        return [size, pictures.film(look.masks, [f for f in raw["files"] if f]), *beside]

    def show_slots(self, mode: str) -> list[Any]:
        """Show as many files as a mode takes."""
        import gradio as gr

        slots = MODES[mode].slots if mode in MODES else ()
        files = [
            gr.update(visible=i < len(slots), label=slots[i] if i < len(slots) else None) for i in range(2)
        ]
        return [*files, gr.update(visible=mode == "edit"), gr.update(visible=mode == "own")]

    def forget_note(self, shown: str) -> list[Any]:
        """Take a note away when the prompt changes."""
        return ["", ""] if shown else [_skip(), _skip()]

    def refine(self, prompt: str) -> list[Any]:
        """Let a language model rewrite the prompt; the visitor sees it before it is used."""
        return self._asked(lambda: self.studio.refine(prompt or ""))

    def invent(self) -> list[Any]:
        """Let a language model write a prompt."""
        return self._asked(self.studio.invent)

    def _asked(self, ask: Any) -> list[Any]:
        try:
            return [ask(), ""]
        except ValueError as error:
            return [_skip(), pictures.note(str(error), "info")]

    def submit(self, owner: str, values: tuple[Any, ...], kind: str) -> list[Any]:
        """Put a wish into the queue, or say beside a control why not."""
        import gradio as gr

        owner = owner or secrets.token_hex(16)
        raw = self.raw(values)
        try:
            checked = {**raw, "files": [self.studio.uploads.accept(f) if f else None for f in raw["files"]]}
        except ValueError:
            if kind == "video" and raw["mode"] != "text":
                wrong = pictures.note("Something above or below needs your attention.")
                return [owner, wrong, _skip(), *self._looks(raw, kind, asked=True)]
            checked = {**raw, "files": [None, None]}
        try:
            job, look = self.studio.submit(owner, checked, kind)
        except ValueError as error:
            return [owner, pictures.note(str(error)), _skip(), *(_skip() for _ in range(2 + len(_GROUPS)))]
        wrong = "" if job else pictures.note("Nothing was started: see the red remark beside a control.")
        looks = self._looks(raw, kind, asked=True, look=look) if not job else self._looks(raw, "video", False)
        return [owner, wrong, gr.Timer(active=True) if job else _skip(), *looks]

    def arrive(self, owner: str) -> list[Any]:
        """Know a visitor again, after a reload too."""
        import gradio as gr

        owner = owner or secrets.token_hex(16)
        return [owner, gr.Timer(active=any(job.active for job in self.studio.jobs.of(owner)))]

    def cancel(self, owner: str) -> None:
        """Stop the visitor's first job."""
        for job in self.studio.jobs.of(owner):
            if job.active:
                job.cancel()
                return

    def choose(self, owner: str, seen: dict[str, Any], index: Any) -> dict[str, Any]:
        """Show a file of the gallery."""
        made = _made(self.studio.jobs.of(owner))
        known = isinstance(index, int) and 0 <= index < len(made)
        return {**seen, "chosen": index, "stale": True} if known else seen

    def view(self, owner: str, seen: dict[str, Any], mode: str) -> list[Any]:
        """Return what has changed on the stage since the last look.

        Args:
            owner: Whose jobs are shown.
            seen: What the page shows: number of made files, the chosen one, and previews.
            mode: How frames are given; a new image becomes the first one.
        """
        import gradio as gr

        jobs = self.studio.jobs.of(owner)
        active = [job for job in jobs if job.active]
        made = _made(jobs)
        new = dict(seen)
        out: dict[str, Any] = {name: _skip() for name in _VIEW}
        out["status"] = pictures.status([(job, self.studio.jobs.before(job)) for job in active])
        ended = jobs[-1] if jobs and not active else None
        if ended is not None and ended.state != "done":
            text = "Cancelled." if ended.state == "cancelled" else ended.error
            out["status"] = pictures.note(text, "info" if ended.state == "cancelled" else "error")
        elif ended is not None:
            out["status"] = pictures.note(f"Done in {pictures.clock(ended.took)}.", "info")
        out["cancel"] = gr.update(visible=bool(active))
        running = next((job for job in active if job.state == "running"), None)
        if len(made) != seen.get("made", 0):
            new |= {"made": len(made), "chosen": len(made) - 1}
            out["gallery"] = gr.update(value=[str(path) for _, path in made], visible=True)
            out["gallery_title"] = gr.update(visible=True)
            job, path = made[-1]
            if job.kind == "image" and seen:  # not after a reload
                out["first"] = str(path)
                out["mode"] = "start" if mode in ("text", "extend", "before", "bridge", "edit") else mode
        new["preview"] = (running.name, running.previews) if running and running.preview else None
        moved = new["preview"] != seen.get("preview") or new.get("chosen") != seen.get("chosen")
        if new.pop("stale", False) or moved:
            out |= self._stage(gr, running, made[new["chosen"]] if new.get("chosen") is not None else None)
        if not active:
            out["tick"] = gr.Timer(active=False)
        out["seen"] = new
        return [out[name] for name in _VIEW]

    def _stage(self, gr: Any, running: Job | None, chosen: tuple[Job, Any] | None) -> dict[str, Any]:
        """Show a preview of the running job, else the chosen file, else an empty frame."""
        if running is not None and running.preview:
            hidden = {name: gr.update(visible=False) for name in ("video", "image")}
            return {"stage": gr.update(value=pictures.preview(running), visible=True), **hidden}
        if chosen is None:
            return {"stage": gr.update(value=pictures.EMPTY, visible=True)}
        job, path = chosen
        still = path.suffix == ".png"
        sheet = path.with_name(f"{path.stem}_sheet.png")
        return {
            "stage": gr.update(visible=False),
            "video": gr.update(value=None if still else str(path), visible=not still),
            "image": gr.update(value=str(path) if still else None, visible=still),
            "command": job.command,
            "command_fold": gr.update(visible=True),
            "sheet": str(sheet) if sheet.exists() else None,
            "sheet_fold": gr.update(visible=sheet.exists()),
        }


_VIEW = (
    *("stage", "video", "image", "status", "cancel", "command", "command_fold", "sheet", "sheet_fold"),
    *("gallery", "gallery_title", "tick", "seen", "first", "mode"),
)


def _made(jobs: list[Job]) -> list[tuple[Job, Any]]:
    return [(job, path) for job in jobs for path in job.paths]


def _skip() -> Any:
    import gradio as gr

    return gr.skip()


def _about(studio: Studio) -> str:
    """Say which model it is, in a line."""
    count = sum(p.numel() for p in studio.session.parts.model.parameters())
    size = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
    kind = type(studio.session.parts.model).__name__
    return f"{kind} with {size} parameters. Write what should be seen, and watch it come."
