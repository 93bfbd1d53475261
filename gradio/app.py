"""Serve the demo page: a prompt and pictures in, videos out.

    python gradio/app.py [CONFIG] [--port 7860] [--key value ...]

CONFIG is a config for inference, and its keys are options, as of scripts/inference.py.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEMO = "configs/opensora-v1-3/inference/demo.py"
LAB = "configs/lab/inference/t2v.py"
CONFIG = LAB if Path("assets/lab/stdit3.safetensors").is_file() else DEMO  # the lab's come with their weights
INSTALL = "the demo page needs gradio: pip install -r requirements/requirements-gradio.txt"


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line: the flags of the page, and what is left for the config."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", default=CONFIG, help=f"config for inference; {CONFIG}")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 is all of them")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at")
    parser.add_argument(
        "--share", action="store_true", help="make a public address, through a server of Gradio"
    )
    parser.add_argument("--queue-size", type=int, default=5, help="jobs that may wait or run at once")
    parser.add_argument("--output", default="samples/page", help="folder of what is made, and of uploads")
    parser.add_argument("--auth", default=None, help="file with a line NAME:PASSWORD for each visitor")
    parser.add_argument("--upload-mb", type=float, default=64.0, help="size of an uploaded file at most")
    parser.add_argument(
        "--upload-seconds", type=float, default=60.0, help="length of an uploaded video at most"
    )
    parser.add_argument("--title", default="Open-Sora", help="what stands on top of the page")
    return parser.parse_known_args(argv)


def launch(argv: Sequence[str] | None = None, wait: bool = True) -> Any:
    """Start the page.

    Args:
        argv: Command line; None takes that of the process.
        wait: Whether to serve until the process is ended.

    Returns:
        The Blocks that are served.

    Raises:
        ModuleNotFoundError: Gradio is not installed.
        ValueError: A flag or the config is wrong.
    """
    flags, rest = parse(argv)
    output = Path(flags.output)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str((output / "uploads/incoming").resolve())
    need_gradio()
    from page import Page
    from studio import Studio
    from theme import make_theme
    from walls import walls

    if flags.queue_size < 1:
        raise ValueError(f"--queue-size {flags.queue_size}: use a whole number from 1.")
    limits = {"megabytes": flags.upload_mb, "seconds": flags.upload_seconds}
    studio = Studio([flags.config, *rest], output, flags.queue_size, limits)
    blocks = Page(studio, flags.title).build()
    blocks.studio = studio
    blocks.queue(api_open=False, max_size=64).launch(
        server_name=flags.host,
        server_port=flags.port,
        share=flags.share,
        auth=None if flags.auth is None else visitors(Path(flags.auth)),
        allowed_paths=[str(output.resolve())],
        max_file_size=int(2 * flags.upload_mb * 1e6),  # below it the page itself says what is too large
        theme=make_theme(),
        css_paths=Path(__file__).with_name("page.css"),
        app_kwargs={"middleware": walls(), "docs_url": None, "redoc_url": None},
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        prevent_thread_lock=not wait,
        quiet=not wait,
    )
    return blocks


def need_gradio() -> None:
    """Import Gradio.

    Raises:
        ModuleNotFoundError: It is not installed; this folder of the same name is no package.
    """
    try:
        found = hasattr(importlib.import_module("gradio"), "Blocks")
    except ModuleNotFoundError:
        found = False
    if not found:
        raise ModuleNotFoundError(INSTALL, name="gradio")


def visitors(path: Path) -> list[tuple[str, str]]:
    """Read names and passwords.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no NAME:PASSWORD.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--auth {path}: no such file; write a line NAME:PASSWORD for each visitor.")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, colon, password = line.partition(":")
        if line.strip() and not (name and colon and password):
            raise ValueError(f"--auth {path}, line {number}: write NAME:PASSWORD.")
        found += [(name, password)] if line.strip() else []
    if not found:
        raise ValueError(f"--auth {path}: nobody is in it, so nobody could come in.")
    return found


def main() -> None:
    """Serve the page; end with one line and status 2 where something is wrong."""
    from opensora.utils.user_errors import one_line_errors

    with one_line_errors():
        launch(sys.argv[1:])


if __name__ == "__main__":
    main()
