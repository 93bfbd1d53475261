"""Package metadata: `pip install -e .` or `pip install -e '.[dev]'`. Exact versions: requirements/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# Read, not imported: importing the package would need torch before pip has installed it.
VERSION = re.search(
    r'^__version__ = "([^"]+)"$', (ROOT / "opensora/__init__.py").read_text(), re.MULTILINE
).group(1)

CORE = [
    "torch>=2.10",  # before it, loading with weights_only had a memory-corruption flaw
    "numpy>=1.26",
    "diffusers>=0.32",
    "einops>=0.8",
    "mmengine>=0.10.7",
    "av>=17",
    "pillow>=11",
    "pyarrow>=17",
    "safetensors>=0.5",
    "transformers>=4.51",
    "sentencepiece>=0.2",
    "ftfy>=6.3",
    "beautifulsoup4>=4.12",
    "tqdm>=4.66",
]
EXTRAS = {
    "data": ["scenedetect>=0.6.7"],
    "eval": ["scipy>=1.13", "torchmetrics>=1.6"],
    "gradio": ["gradio>=6"],
    # ColossalAI itself is installed with --no-deps (docs/dependencies.md); these are what importing it needs.
    "colossalai": ["accelerate>=1.0", "bitsandbytes>=0.45", "galore-torch>=1.0", "peft>=0.13", "psutil>=6"],
    "dev": [
        "hypothesis>=6.100",
        "playwright>=1.50",
        "pre-commit>=4",
        "pre-commit-hooks>=5",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "ruff>=0.9",
        "setuptools>=77",
        "tensorboard>=2.17",
    ],
}

setup(
    name="opensora",
    version=VERSION,
    description="Train and sample video-generation models from Python config files",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["opensora", "opensora.*"]),
    package_data={"": ["*.csv", "*.json", "*.txt"]},
    python_requires=">=3.11,<3.13",
    install_requires=CORE,
    extras_require=EXTRAS,
)
