"""Metadata, requirement files, Makefile and the installed environment agree."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

EXTRAS = ("data", "eval", "gradio", "colossalai", "dev")
# Printed by a process of its own: setuptools patches what it touches.
METADATA = """
import json
from setuptools import setup
from distutils.core import run_setup
found = run_setup("setup.py", stop_after="init")
print(json.dumps(dict(name=found.get_name(), version=found.get_version(), python=str(found.python_requires),
                      core=found.install_requires, extras=found.extras_require, packages=found.packages)))
"""


def read_pins(text: str) -> dict[str, str]:
    """Return the pinned version by package of a requirements file.

    Raises:
        ValueError: A line pins nothing.
    """
    pins = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, equals, version = line.partition("==")
            if not equals:
                raise ValueError(f"{line!r}: pin it, NAME==VERSION.")
            pins[name] = version
    return pins


def check_bounds(bounds: list[str], pins: dict[str, str]) -> list[str]:
    """Report packages that only one side names, and pins outside the bounds."""
    wanted = {Requirement(bound).name: Requirement(bound) for bound in bounds}
    wrong = [f"{name}: only in setup.py or only in requirements/" for name in wanted.keys() ^ pins.keys()]
    for name in wanted.keys() & pins.keys():
        if Version(pins[name]) not in wanted[name].specifier:
            wrong.append(f"{name}=={pins[name]} is outside {wanted[name]}")
        if not wanted[name].specifier:
            wrong.append(f"{name}: give a lower bound")
    return wrong


@pytest.fixture(scope="module")
def metadata(root) -> dict:
    command = [sys.executable, "-W", "ignore", "-c", METADATA]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pins(root) -> dict[str, dict[str, str]]:
    files = sorted((root / "requirements").glob("requirements*.txt"))
    return {path.stem.removeprefix("requirements").strip("-"): read_pins(path.read_text()) for path in files}


def test_metadata(metadata, root):
    version = re.search(r'"(.*)"', (root / "opensora/__init__.py").read_text().split("__version__")[1]).group(
        1
    )
    assert (metadata["name"], metadata["version"]) == ("opensora", version)
    assert metadata["python"] in (">=3.11,<3.13", "<3.13,>=3.11")
    assert all(name.split(".")[0] == "opensora" for name in metadata["packages"])
    assert "opensora.models" in metadata["packages"]


def test_requirements_fit_the_metadata(complain, metadata, pins):
    assert pins.keys() == {"", "no-deps", *EXTRAS}
    assert metadata["extras"].keys() == set(EXTRAS)
    complain(check_bounds(metadata["core"], pins[""]))
    for extra in EXTRAS:
        complain(check_bounds(metadata["extras"][extra], pins[extra]))


def test_documented_dependencies_are_the_requirements(root, pins):
    text = (root / "docs/dependencies.md").read_text().partition("## Used when present")[0]
    shown = set(re.findall(r"^\| ([a-z0-9-]+) \|", text, re.MULTILINE)) - {"package"}
    assert shown == {name for names in pins.values() for name in names}
    for stem, names in pins.items():
        for name in names if stem else ():
            assert f"| {name} | requirements-{stem}.txt |" in text


def test_makefile_has_its_targets(root):
    text = (root / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    assert targets == {
        "setup",
        "demo",
        "test",
        "test-slow",
        "check",
        "format",
        "golden",
        "bench",
        "help",
        "lab",
    }
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE).group(1).split()
    assert set(phony) == targets


def test_makefile_has_the_pinned_torch(root, pins):
    assert f"torch=={pins['']['torch']}" in (root / "requirements/install.sh").read_text()


def test_scripts_are_executable_and_parse(root):
    for name in (".ci/run", "requirements/install.sh"):
        assert os.access(root / name, os.X_OK), name
        subprocess.run(["bash", "-n", str(root / name)], check=True)


def test_wheel_holds_the_code_and_its_data(root, repo_files, tmp_path):
    ours = [name for name in repo_files if name.startswith("opensora/")]
    for name in [*ours, "setup.py", "pyproject.toml", "README.md", "LICENSE"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    command = [sys.executable, "-W", "ignore", "-c", build]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert set(ours) <= held
    assert not [name for name in held if not name.startswith("opensora")]


def test_second_setup_changes_nothing_and_interrupted_setup_is_no_setup(root, tmp_path):
    # The real script on a fake interpreter: what it decides, not what pip does.
    tree = tmp_path / "tree"
    shutil.copytree(root / "requirements", tree / "requirements")
    shutil.copy(root / "setup.py", tree / "setup.py")
    log = tmp_path / "log"
    fake = tmp_path / "python3.11"
    fake.write_text(FAKE_PYTHON.replace("LOG", str(log)).replace("REAL", sys.executable))
    fake.chmod(0o755)
    where = {"PATH": os.environ["PATH"], "PYTHON": str(fake), "VENV": str(tree / ".venv")}

    def setup(**changed: str) -> tuple[int, str]:
        log.write_text("")
        script = str(tree / "requirements/install.sh")
        done = subprocess.run(["bash", script], env=where | changed, capture_output=True, text=True)
        return done.returncode, log.read_text()

    code, said = setup(FAIL="--no-deps")
    assert code != 0 and "install" in said
    code, said = setup()  # the interrupted one left no stamp
    assert code == 0 and "--no-input torch==" in said and "--editable ." in said
    assert setup() == (0, "")
    code, said = setup(TORCH="torch==2.11.0 --index-url URL")
    assert code == 0 and "torch==2.11.0 --index-url URL" in said
    assert setup() == (0, "")  # the choice is remembered
    with (tree / "requirements/requirements-eval.txt").open("a") as file:
        file.write("# changed\n")
    code, said = setup()
    assert code == 0 and "requirements-eval.txt" in said and "torch==2.11.0" in said
    assert setup(PYTHON="/bin/false")[0] != 0

    foreign = tmp_path / "foreign"  # an environment of someone else stays as it is
    foreign.mkdir()
    assert setup(VENV=str(foreign)) == (1, "")
    assert foreign.is_dir()


FAKE_PYTHON = """#!/bin/bash
case "$*" in
    "-m venv"*) mkdir -p "${@: -1}/bin"; touch "${@: -1}/pyvenv.cfg"; cp "$0" "${@: -1}/bin/python" ;;
    "-m pip"*) printf '%s\\n' "$*" >> LOG; case "$*" in *"${FAIL:-nothing}"*) exit 1 ;; esac ;;
    *torch.txt) touch "${@: -1}" ;;
    *) exec REAL "$@" ;;
esac
"""


def test_bound_checker_sees():
    assert check_bounds(["a>=2"], {"a": "2.1"}) == []
    assert (
        check_bounds(["a>=2"], {"a": "1.9"}) and check_bounds(["a>=2"], {}) and check_bounds([], {"a": "1"})
    )
    assert check_bounds(["a"], {"a": "1"})
    with pytest.raises(ValueError, match="pin it"):
        read_pins("a>=2")


def test_no_torchvision_beside_a_cpu_torch(pins):
    assert "torchvision" not in {name for names in pins.values() for name in names}
    if torch.version.cuda is None and torch.version.hip is None:
        assert importlib.util.find_spec("torchvision") is None, (
            "torchvision is installed beside a CPU build of torch: parts of transformers fail to load. "
            "Nothing here needs it: pip uninstall torchvision"
        )
