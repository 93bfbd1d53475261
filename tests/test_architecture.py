"""Floors, rooms and what may be imported where. docs/architecture.md explains them."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FLOORS = {
    "utils": 0,
    "registry": 0,
    "acceleration": 1,
    "layers": 2,
    "models": 3,
    "conditions": 3,
    "schedulers": 3,
    "datasets": 3,
    "postprocess": 3,
    "engine": 4,
}
TOP = ("scripts", "tools", "eval", "gradio", "benchmarks")
TOOLS_MAY_USE = ("utils", "registry", "datasets", "postprocess")

# The core may import these anywhere, and everything else only inside the function that needs it.
AT_THE_TOP = {
    "torch",
    "numpy",
    "einops",
    "mmengine",
    "pyarrow",
    "av",
    "PIL",
    "safetensors",
    "tqdm",
    "opensora",
}
OPTIONAL = {"flash_attn", "apex", "wandb", "timm", "torchcodec"}  # chosen by the user, never installed by us
NEVER_IN_CORE = {"torchvision", "timm", "xformers", "pandarallel"}
# Import names whose package is called otherwise, or comes with another.
DISTRIBUTIONS = {
    "bs4": "beautifulsoup4",
    "cv2": "scenedetect",
    "huggingface_hub": "transformers",
    "matplotlib": "mmengine",
    "starlette": "gradio",
    "tokenizers": "transformers",
    "yaml": "mmengine",
}
# The page's files import each other by their bare names, and so do scripts: their folders are no packages.
BARE = {
    room: {path.stem for path in (Path(__file__).parents[1] / room).glob("*.py")}
    for room in ("gradio", "scripts")
}
BOOSTER = "opensora/acceleration/booster.py"


@dataclass
class Import:
    """One imported module, and whether a function imports it when it runs."""

    line: int
    module: str
    names: list[str]
    lazy: bool


def imports_of(tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    """Yield the imports of a file; those under TYPE_CHECKING count as lazy."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, [], lazy)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield Import(node.lineno, module, [alias.name for alias in node.names], lazy)
        else:
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only
            yield from imports_of(node, lazy or inside)


def place(parts: list[str]) -> tuple[int, str] | None:
    """Return the floor and the room of a module or file, None for what is not ours."""
    if parts[0] == "opensora":
        room = parts[1] if len(parts) > 1 else "registry"
        return FLOORS.get(room, 0), room if room in FLOORS else "registry"
    return (5, parts[0]) if parts[0] in TOP else None


def check_floors(path: str, tree: ast.AST) -> list[str]:
    """Report imports that go up, cross to another room, or are relative."""
    here = place(path.removesuffix(".py").removesuffix("/__init__").split("/"))
    wrong = []
    for item in imports_of(tree):
        at = f"{path}:{item.line}: imports {item.module}"
        if item.module.startswith("."):
            wrong.append(f"{at}: write the absolute name.")
            continue
        if item.module.split(".")[0] == "tests":
            wrong.append(f"{at}: nothing imports tests; put it where both can reach it.")
        targets = [item.module]
        if item.module == "opensora":
            targets = [f"opensora.{name}" for name in item.names if name in FLOORS] or targets
        for target in targets:
            parts = target.split(".")
            there = None if parts[0] == "gradio" else place(parts)  # gradio is the installed package
            if here is None or there is None or here[1] == there[1]:
                continue
            if here[1] == "utils":
                wrong.append(f"{at}: utils imports nothing of opensora but utils.")
            elif there[0] > here[0]:
                wrong.append(f"{at}: from floor {here[0]} up to floor {there[0]}; imports only go down.")
            elif there[0] == here[0] != 0:
                wrong.append(f"{at}: rooms of one floor meet through the registry: build it by name.")
            elif here[1] == "tools" and there[1] not in TOOLS_MAY_USE:
                wrong.append(f"{at}: tools use only {', '.join(TOOLS_MAY_USE)} of opensora.")
    return wrong


def check_packages(path: str, tree: ast.AST, declared: set[str]) -> list[str]:
    """Report packages imported where they may not be, or not declared in requirements/."""
    wrong = []
    for item in imports_of(tree):
        name = item.module.split(".")[0]
        at = f"{path}:{item.line}: imports {item.module}"
        if item.module == "torch.utils.tensorboard":
            name = "tensorboard"
        if name in NEVER_IN_CORE and path.startswith("opensora/"):
            wrong.append(f"{at}: the core does without {name}.")
        elif name == "colossalai" and path != BOOSTER:
            wrong.append(f"{at}: only {BOOSTER} imports colossalai.")
        elif name in BARE.get(path.split("/")[0], ()):
            continue
        elif not name or name in AT_THE_TOP or name in TOP or name in sys.stdlib_module_names:
            if name == "gradio" and not item.lazy and path != "gradio/app.py":
                wrong.append(f"{at}: import it inside the function that needs it.")
        elif not item.lazy:
            wrong.append(f"{at}: import it inside the function that needs it, so that it stays optional.")
        elif DISTRIBUTIONS.get(name, name).replace("_", "-") not in declared and name not in OPTIONAL:
            wrong.append(f"{at}: {name} is in no file of requirements/.")
    return wrong


def find_cycles(trees: dict[str, ast.AST]) -> list[str]:
    """Report modules that import each other, directly or not, when they are loaded."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in trees}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        used = set()
        for item in imports_of(trees[path]):
            if not item.lazy:
                used |= {item.module} | {f"{item.module}.{name}" for name in item.names}
        graph[module] = used & modules.keys()
    while leaves := [module for module, used in graph.items() if not used & graph.keys() - {module}]:
        for module in leaves:
            del graph[module]
    return [f"{module} is in an import cycle" for module in sorted(graph)]


def check_package_file(path: str, tree: ast.Module) -> list[str]:
    """Report an `__init__.py` with more than a docstring."""
    if not path.endswith("__init__.py"):
        return []
    rest = tree.body[1:] if ast.get_docstring(tree) else tree.body
    if path == "opensora/__init__.py":
        rest = [
            node for node in rest if not (isinstance(node, ast.Assign) and "__version__" in ast.dump(node))
        ]
    wrong = [
        f"{path}:{node.lineno}: holds only a docstring; import from the file that defines." for node in rest
    ]
    return wrong if ast.get_docstring(tree) else [*wrong, f"{path}: has no docstring."]


@pytest.fixture(scope="module")
def trees(root: Path, repo_files: list[str]) -> dict[str, ast.AST]:
    folders = ("opensora/", "tests/", *(f"{name}/" for name in TOP))
    ours = [name for name in repo_files if name.startswith(folders) and name.endswith(".py")]
    return {name: ast.parse((root / name).read_text(encoding="utf-8"), name) for name in ours}


@pytest.fixture(scope="module")
def declared(root: Path) -> set[str]:
    lines = "\n".join(path.read_text() for path in (root / "requirements").glob("*.txt"))
    return {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", lines, re.MULTILINE)}


def test_imports_go_down(complain, trees):
    complain([line for path, tree in trees.items() for line in check_floors(path, tree)])


def test_packages_are_imported_where_they_may_be(complain, trees, declared):
    ours = {path: tree for path, tree in trees.items() if not path.startswith("tests/")}
    complain([line for path, tree in ours.items() for line in check_packages(path, tree, declared)])


def test_no_import_cycles(complain, trees):
    complain(find_cycles(trees))


def test_package_files_hold_a_docstring(complain, trees):
    complain([line for path, tree in trees.items() for line in check_package_file(path, tree)])


def test_gradio_folder_does_not_shadow_the_package(repo_files):
    assert "gradio/__init__.py" not in repo_files


def test_every_room_has_a_floor(repo_files):
    rooms = {name.split("/")[1].removesuffix(".py") for name in repo_files if name.startswith("opensora/")}
    assert rooms - {"__init__"} <= FLOORS.keys()


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("opensora/layers/rope.py", "from opensora.models.stdit3 import STDiT3", "imports only go down"),
        ("opensora/layers/rope.py", "def f():\n    import opensora.engine.trainer", "imports only go down"),
        ("opensora/layers/rope.py", "from opensora import models", "imports only go down"),
        ("opensora/models/stdit3.py", "from opensora.conditions.text import TextCondition", "meet through"),
        ("opensora/postprocess.py", "from opensora.datasets.video_io import write_video", "meet through"),
        ("opensora/utils/config.py", "from opensora.registry import MODELS", "utils imports nothing"),
        ("opensora/engine/trainer.py", "import scripts.train", "imports only go down"),
        ("opensora/models/dit.py", "from .stdit3 import STDiT3", "absolute"),
        ("tools/scoring/score.py", "from opensora.models.t5 import T5Encoder", "tools use only"),
        ("tools/scoring/score.py", "from eval.videos import main", "meet through"),
        ("scripts/train.py", "from tests.tiny import TINY", "nothing imports tests"),
        ("tests/models/test_a.py", "from tests.tiny import TINY", "nothing imports tests"),
    ],
)
def test_floor_checker_sees(path, source, said):
    assert said in "".join(check_floors(path, ast.parse(source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("opensora/registry.py", "def f():\n    from opensora.utils.weights import load_weights"),
        (
            "opensora/models/stdit3.py",
            "from opensora.layers.rope import f\nfrom opensora.models.dit import g",
        ),
        ("opensora/acceleration/engine.py", "from opensora import __version__, registry"),
        ("tools/scoring/score.py", "from opensora.datasets.video_io import read_clip"),
        ("gradio/app.py", "import gradio\nfrom opensora.engine.generation import generate"),
        ("eval/videos.py", "from eval.metrics.pixel import psnr\nfrom opensora.models.lpips import LPIPS"),
    ],
)
def test_floor_checker_lets_pass(path, source):
    assert check_floors(path, ast.parse(source)) == []


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("opensora/models/t5.py", "import transformers", "inside the function"),
        (
            "opensora/models/t5.py",
            "class A:\n    from transformers import T5EncoderModel",
            "inside the function",
        ),
        ("opensora/models/t5.py", "def f():\n    import torchvision", "does without"),
        (
            "opensora/engine/trainer.py",
            "def f():\n    import colossalai",
            "only opensora/acceleration/booster",
        ),
        ("opensora/acceleration/booster.py", "import colossalai", "inside the function"),
        ("opensora/engine/trainer.py", "def f():\n    import sklearn", "in no file of requirements"),
        ("tools/caption/caption.py", "from transformers import AutoModel", "inside the function"),
        ("opensora/utils/logging.py", "import torch.utils.tensorboard", "inside the function"),
    ],
)
def test_package_checker_sees(path, source, said):
    assert said in "".join(check_packages(path, ast.parse(source), {"transformers", "colossalai"}))


def test_package_checker_lets_pass():
    source = (
        "import os\nimport torch\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import transformers\n"
        "def f():\n    import colossalai\n    import flash_attn\n    from bs4 import BeautifulSoup"
    )
    assert check_packages(BOOSTER, ast.parse(source), {"transformers", "colossalai", "beautifulsoup4"}) == []


def test_cycle_finder_sees():
    a, b = "from opensora.layers import b", "def f():\n    pass\nfrom opensora.layers.a import x"
    trees = {"opensora/layers/a.py": ast.parse(a), "opensora/layers/b.py": ast.parse(b)}
    assert len(find_cycles(trees)) == 2
    trees["opensora/layers/b.py"] = ast.parse("def f():\n    from opensora.layers.a import x")
    assert find_cycles(trees) == []


def test_package_file_checker_sees():
    assert check_package_file("opensora/models/__init__.py", ast.parse('"""Doc."""\nfrom a import b'))
    assert check_package_file("opensora/models/__init__.py", ast.parse("")) == [
        "opensora/models/__init__.py: has no docstring."
    ]
    assert check_package_file("opensora/__init__.py", ast.parse('"""Doc."""\n__version__ = "1"')) == []
