"""The documents name only what exists, their commands fit the tree, and their examples run."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

# A line about something that is not built yet says so; when all it names exists, the mark must go.
MARK = "to come"
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]*)`")
ENDINGS = (".py", ".md", ".txt", ".toml", ".csv", ".json", ".sh", ".yaml", "/")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|\s)(?:python|torchrun|make|bash)\s")
EXAMPLES = "my_"  # my_dit.py and the like stand for a reader's own files


def missing_links(text: str, folder: Path) -> list[str]:
    """Return the targets of relative links that do not exist."""
    return [target for target in LINK.findall(text) if not (folder / target).exists()]


def named_files(line: str) -> list[str]:
    """Return the paths in backticks that look like files or folders of this repository."""
    return [name for name in FILE.findall(line) if name.endswith(ENDINGS) and EXAMPLES not in name]


def check_lines(text: str, root: Path) -> list[str]:
    """Report lines that name a missing file without the mark, or carry the mark for nothing."""
    wrong = []
    for line in FENCE.sub("", text).split("\n"):
        gone = [name for name in named_files(line) if not (root / name).exists()]
        if gone and MARK not in line:
            wrong.append(f"{', '.join(gone)} does not exist: {line.strip()}")
        if MARK in line and named_files(line) and not gone:
            wrong.append(f"everything here exists, take {MARK!r} away: {line.strip()}")
    return wrong


def missing_in_command(line: str, root: Path) -> list[str]:
    """Return what a command line names and the repository lacks: scripts, configs, modules, make targets."""
    words = line.split("#")[0].split()
    targets = set(re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    gone = [
        word
        for word in words
        if re.fullmatch(r"(?!my_)[\w./-]+\.(py|sh)", word) and not (root / word).is_file()
    ]
    if words[:1] == ["make"]:
        gone += [f"target {word}" for word in words[1:] if "=" not in word and word.strip("'\"") == word][:1]
        gone = [word for word in gone if word.removeprefix("target ") not in targets]
    for flag, module in zip(words, words[1:], strict=False):
        path = module.replace(".", "/")
        ours = path.split("/")[0] in ("opensora", "tools", "eval", "benchmarks", "scripts", "tests")
        if flag == "-m" and ours and not ((root / f"{path}.py").exists() or (root / path).is_dir()):
            gone.append(module)
    return gone


def check_commands(text: str, root: Path) -> list[str]:
    """Report commands in fenced blocks that cannot run."""
    wrong = []
    for language, block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").split("\n") if language in ("", "bash") else []:
            if not COMMAND.search(line):
                continue
            gone = missing_in_command(line, root)
            if gone and MARK not in line:
                wrong.append(f"there is no {', '.join(gone)}: {line.strip()}")
            if MARK in line and not gone:
                wrong.append(f"everything here exists, take {MARK!r} away: {line.strip()}")
    return wrong


@pytest.fixture(scope="module")
def documents(root, repo_files) -> dict[Path, str]:
    paths = [root / name for name in repo_files if name.endswith(".md")]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def test_links_exist(complain, documents):
    complain(
        [
            f"{path.name}: {name}"
            for path, text in documents.items()
            for name in missing_links(text, path.parent)
        ]
    )


def test_named_files_exist(complain, root, documents):
    complain([f"{path.name}: {line}" for path, text in documents.items() for line in check_lines(text, root)])


def test_commands_fit_the_tree(complain, root, documents):
    complain(
        [f"{path.name}: {line}" for path, text in documents.items() for line in check_commands(text, root)]
    )


def test_tree_is_the_tree_on_disk(root, repo_files):
    tree = runpy.run_path(str(root / "docs/tree.py"))
    (block,) = tree["BLOCK"].findall((root / "docs/architecture.md").read_text(encoding="utf-8"))
    shown, there = set(tree["parse"](block)), set(tree["tree_paths"](repo_files))
    wrong = sorted(f"not there: {name}" for name in shown - there) + sorted(
        f"not shown: {n}" for n in there - shown
    )
    if wrong:
        pytest.fail("docs/architecture.md is old; run `make format`.\n" + "\n".join(wrong), pytrace=False)


def test_modes_are_drawn_by_the_code_of_today(root):
    modes, text = runpy.run_path(str(root / "docs/modes.py")), (root / "docs/inference.md").read_text()
    assert modes["BLOCK"].search(text).group() == modes["table"]()
    assert modes["SHEETS"].search(text).group() == modes["sheets"]()
    assert max(path.stat().st_size for path in (root / "assets/modes").iterdir()) < 150_000


def test_tree_is_read_as_it_was_written(root):
    tree = runpy.run_path(str(root / "docs/tree.py"))
    paths = tree["tree_paths"](
        ["README.md", "b/c/d.py", "b/a.py", "b/__init__.py", "a/x.txt", "tests/data/x/a.json"]
    )
    assert paths == [
        "README.md",
        "a/",
        "a/x.txt",
        "b/",
        "b/a.py",
        "b/c/",
        "b/c/d.py",
        "tests/",
        "tests/data/",
    ]
    assert tree["parse"](tree["render"](paths)) == paths


def test_examples_of_extending_run(root, tmp_path):
    text = (root / "docs/extending.md").read_text(encoding="utf-8")
    blocks = [block for language, block in FENCE.findall(text) if language == "python"]
    script = tmp_path / "examples.py"
    script.write_text("\n\n".join(blocks), encoding="utf-8")
    where = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, str(script)], env=where, capture_output=True, text=True)
    assert blocks and done.returncode == 0, done.stderr[-2000:]


def test_link_checker_sees(root):
    assert missing_links("[a](docs/nothing.md) [b](README.md#x) [c](https://example.org)", root) == [
        "docs/nothing.md"
    ]


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("see `opensora/registry.py`", 0),
        ("see `opensora/nothing.py`", 1),
        ("see `opensora/nothing.py` (to come)", 0),
        ("see `opensora/registry.py` (to come)", 1),
        ("see `opensora/models/my_dit.py` and `STDiT3-XL/2`", 0),
        ("see `opensora/nothing/`", 1),
    ],
)
def test_line_checker(root, line, wrong):
    assert len(check_lines(line, root)) == wrong


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("make setup TORCH='torch --index-url URL'", 0),
        ("make nothing", 1),
        ("python docs/tree.py", 0),
        ("python scripts/nothing.py configs/nothing.py", 1),
        ("torchrun --nproc_per_node 8 scripts/nothing.py", 1),
        ("python -m tools.nothing.score a.csv", 1),
        ("python -m pytest -q", 0),
        ("python scripts/nothing.py  # to come", 0),
        ("make setup  # to come", 1),
    ],
)
def test_command_checker(root, line, wrong):
    assert len(check_commands(f"```bash\n{line}\n```\n", root)) == wrong
