"""Write the tree of this repository into architecture.md.

    python docs/tree.py

A file's line is the first sentence of its own docstring or comment. `make format` calls this; a test compares
the paths in the document with the paths on disk.
"""

import ast
import fnmatch
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs/architecture.md"
BLOCK = re.compile(r"(?<=<!-- tree: written by docs/tree.py -->\n```\n).*?(?=```\n)", re.DOTALL)
FOLDERS_ONLY = ("tests", "configs", "assets")  # many small files: their folders, two levels deep, say enough
ABOUT = {
    "LICENSE": "Apache License 2.0",
    "README.md": "What it is, how to install it, what to run first.",
    "requirements": "Pinned versions, and the script that installs them.",
    "docs": "What a reader needs beyond the code.",
    "configs": "One Python file per run; `_base_` holds every key with its default.",
    "tests": "Mirrors the tree.",
    "tests/golden": "Comparison with a reference implementation.",
    "tests/regression": "Our own losses, step by step.",
    "scripts": "What people run.",
    "tools": "Data work: tables, scenes, scores, captions.",
    "gradio": "The demo page.",
    "assets": "Prompts and small reference images.",
}


def repo_files(root: Path) -> list[str]:
    """Return the files that belong to the repository, as sorted relative paths.

    Args:
        root: Folder of the repository. Without git the patterns of .gitignore decide.
    """
    if (root / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        return sorted(name for name in names if name and (root / name).is_file())
    ignored = [line.strip("/") for line in (root / ".gitignore").read_text().split() if line]
    found = []
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if path.is_file() and not any(
            fnmatch.fnmatch(part, pattern) for part in parts for pattern in ignored
        ):
            found.append("/".join(parts))
    return sorted(found)


def tree_paths(files: list[str]) -> list[str]:
    """Return the paths that the tree shows, folders with a slash at the end.

    Args:
        files: Relative paths, as `repo_files` returns them.
    """
    shown = set()
    for name in files:
        parts = name.split("/")
        depth = min(len(parts), 3) if parts[0] in FOLDERS_ONLY else len(parts)
        shown |= {"/".join(parts[:i]) + "/" for i in range(1, depth)}
        if parts[0] not in FOLDERS_ONLY and parts[-1] != "__init__.py":
            shown.add(name)
    # Files of a folder stand before its folders, hidden ones first.
    return sorted(shown, key=lambda name: [(("/" in rest), rest) for rest in _tails(name)])


def render(paths: list[str]) -> str:
    """Return the tree as text, one line a path with what it is."""
    rows = []
    for path in paths:
        name = path.rstrip("/")
        depth = name.count("/")
        label = "  " * depth + name.rsplit("/", 1)[-1] + ("/" if path.endswith("/") else "")
        rows.append(f"{label:<34} {_about(name)}".rstrip())
    return "\n".join(rows) + "\n"


def parse(text: str) -> list[str]:
    """Return the paths of a tree that `render` wrote."""
    paths, folders = [], []
    for row in text.splitlines():
        label = row.split("  #")[0]
        indent = len(label) - len(label.lstrip())
        name = label.split()[0]
        folders = folders[: indent // 2]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def _tails(name: str) -> list[str]:
    """Split `a/b/c` into what remains at each depth: `a/b/c`, `b/c`, `c`."""
    parts = name.rstrip("/").split("/")
    ends = "/" if name.endswith("/") else ""
    tails = []
    for i, part in enumerate(parts):
        tails.append(part + ("/" if i + 1 < len(parts) else ends))
    return tails


def _about(name: str) -> str:
    path = ROOT / name
    if name in ABOUT:
        return ABOUT[name]
    if path.is_dir():
        path = path / "__init__.py"
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="ignore")
    if path.suffix == ".py":
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    elif path.suffix == ".csv":
        first = f"{text.count(chr(10)) - 1} rows of data."
    else:
        first = next((line for line in text.split("\n") if line.startswith("# ")), "")
    return re.split(r"(?<=[^ .]\.) ", first.lstrip("# "))[0].rstrip()


def main() -> None:
    """Rewrite the tree in architecture.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    tree = render(tree_paths(repo_files(ROOT)))
    DOCUMENT.write_text(BLOCK.sub(lambda match: tree, text), encoding="utf-8")


if __name__ == "__main__":
    main()
