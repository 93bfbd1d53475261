"""Serve the page in a hosted space: all addresses, the space's port, files in a temporary folder."""

import os
import shlex
import sys
import tempfile
from pathlib import Path

CONFIG = "configs/opensora-v1-3/inference/t2v.py"


def words() -> list[str]:
    """Return the command line of the page."""
    folder = Path(tempfile.gettempdir()) / "opensora-page"
    config = os.environ.get("OPENSORA_CONFIG", CONFIG)
    flags = ["--host", "0.0.0.0", "--port", os.environ.get("PORT", "7860"), "--output", str(folder)]
    start = ["--resolution", "360p"] if config == CONFIG else []
    return [config, *flags, *start, *shlex.split(os.environ.get("OPENSORA_FLAGS", ""))]


def main() -> None:
    """Serve until the space is stopped."""
    here = Path(__file__).resolve().parent
    root = next(folder for folder in (here, *here.parents) if (folder / "opensora").is_dir())
    os.chdir(root)
    sys.path[:0] = [str(root / "gradio"), str(root)]
    import importlib.util

    spec = importlib.util.spec_from_file_location("page_app", root / "gradio/app.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    page.launch(words())


if __name__ == "__main__":
    main()
