"""Packaging of halp_fx. Tool settings live in pyproject.toml."""

from itertools import chain
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

HERE = Path(__file__).parent

READ: dict[str, Any] = {}
for name in ("version.py", "extras.py"):
    exec((HERE / "halp_fx" / name).read_text(encoding="utf-8"), READ)

REQUIRES = [
    "torch>=2.11",
    "torchvision>=0.26",
    "networkx>=3.2",
    "scipy>=1.11",
    "numpy>=1.26",
    "tabulate>=0.9",
    "jinja2>=3.1",
    "tqdm>=4.64",
    "typer>=0.16",
    "platformdirs>=4",
    "filelock>=3.12",
    "safetensors>=0.4.3",  # Without it nothing that was pruned can be saved; it needs nothing else.
]
USERS: dict[str, tuple[str, ...]] = READ["EXTRAS"]
EXTRAS = {
    **USERS,
    "test": [
        *("pytest>=8", "hypothesis>=6.100", "timm>=1.0.9", "playwright>=1.45"),
        *chain.from_iterable(USERS[name] for name in ("demo", "recipes", "export", "hub", "triton")),
    ],
    "lint": ["ruff>=0.12", "mypy>=1.15", "pre-commit>=3", "coverage>=7.6"],
    "docs": ["sphinx>=8", "myst-parser>=4", "furo>=2024.8", "sphinx-copybutton>=0.5"],
}

setup(
    name="halp-fx",
    version=READ["__version__"],
    description="Hardware-aware latency pruning: shrink a vision network until it meets a measured budget.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["pruning", "latency", "compression", "PyTorch", "torch.fx", "HALP"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # The Triton kernels live in the top-level folder kernels/ and install as halp_fx.kernels: the name
    # `kernels` is taken on PyPI. The tracked symlink halp_fx/kernels makes both work.
    packages=find_packages(include=["halp_fx", "halp_fx.*"]),
    package_data={"halp_fx": ["py.typed", "reporting/*.jinja"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["halp-fx=halp_fx.__main__:main"],
        "torch_dynamo_backends": ["halp_fx=halp_fx.compiling.backend:BACKEND"],
    },
    zip_safe=False,
)
