"""`import halp_fx` and `halp-fx --help` import little; what they leave out is there when it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import halp_fx

HEAVY = ("torch", "torchvision", "scipy", "numpy", "networkx", "matplotlib", "jinja2", "tqdm")
ROOT = Path(halp_fx.__file__).parents[1]


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a process of its own has imported after `code`."""
    tail = "import sys; print('\\nLOADED ' + ' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{tail}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED ")[2].split())


def test_import_reads_nothing_heavy():
    assert not loaded_after("import halp_fx; halp_fx.__version__; dir(halp_fx)") & set(HEAVY)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["prune", "--help"], ["table", "--help"]], ids=" ".join
)
def test_help_reads_nothing_heavy(arguments):
    code = f"""
import sys
sys.argv = ["halp-fx", *{arguments!r}]
from halp_fx.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""
    assert not loaded_after(code) & set(HEAVY)


def test_a_name_is_imported_when_it_is_used():
    assert "torch" in loaded_after("import halp_fx; halp_fx.prune")


def test_lists_agree():
    """The names for type checkers, those for Python, and `__all__`."""
    seen = {}
    for node in ast.walk(ast.parse(Path(halp_fx.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            seen |= {name.name: node.module for name in node.names if name.name != "__version__"}
    assert seen == halp_fx._HOME
    assert list(halp_fx.__all__) == sorted(seen)
    assert all(getattr(halp_fx, name) is not None for name in halp_fx.__all__)
    assert set(halp_fx.__all__) <= set(dir(halp_fx))
    namespace: dict[str, object] = {}
    exec("from halp_fx import *", namespace)
    assert set(halp_fx.__all__) <= set(namespace)


def test_rooms_are_there():
    for room in halp_fx._ROOMS:
        assert getattr(halp_fx, room).__name__ == f"halp_fx.{room}"


def test_what_is_not_there_is_said():
    with pytest.raises(AttributeError, match=r"module 'halp_fx' has no attribute 'prunee'"):
        halp_fx.prunee  # noqa: B018
