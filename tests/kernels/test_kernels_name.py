"""The folder kernels/ of a checkout on `sys.path` must not stand in for the package of that name on PyPI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def run(code: str, *path: Path) -> str:
    """What a fresh Python prints with these folders first on `sys.path`."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    # -S: what this environment has installed under that name stays out of it.
    done = subprocess.run([sys.executable, "-S", "-c", code], env=env, cwd=os.sep, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with a package `kernels` that has a submodule, looks itself up, and imports itself in its body."""
    package = tmp_path / "site" / "kernels"
    (package / "layer").mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '9.9'\nfrom .layer import mode\nfrom kernels import layer\n")
    (package / "layer" / "__init__.py").write_text("")
    (package / "layer" / "mode.py").write_text("class Mode: pass\n")
    return tmp_path / "site"


@pytest.mark.parametrize(
    "code",
    [
        "import kernels; print(kernels.__version__, kernels.__file__)",
        "import importlib; k = importlib.import_module('kernels'); print(k.__version__, k.__file__)",
        "from kernels.layer.mode import Mode; import kernels; print(kernels.__version__, kernels.__file__)",
        "from kernels import layer, __version__, __file__; print(__version__, __file__)",
    ],
)
def test_the_installed_package_is_found_behind_the_checkout(code, installed):
    assert run(code, CHECKOUT, installed) == f"9.9 {installed / 'kernels' / '__init__.py'}"


def test_a_package_that_fails_fails_as_itself(installed):
    (installed / "kernels" / "__init__.py").write_text("raise OSError('no such driver')\n")
    code = "try:\n import kernels\nexcept OSError as e:\n print(e)\nimport sys; print('kernels' in sys.modules)"
    assert run(code, CHECKOUT, installed).split("\n") == ["no such driver", "False"]


def test_without_the_package_the_folder_is_as_empty_as_a_folder_without_python_files():
    """`transformers` takes for absent what has no file and no version; it does not expect the import to fail."""
    code = (
        "import importlib, importlib.util\n"
        "k = importlib.import_module('kernels')\n"
        "print(getattr(k, '__version__', None), getattr(k, '__file__', None))\n"
        "print([n for n in vars(k) if not n.startswith('__')], importlib.util.find_spec('kernels').origin)\n"
        "for what in ('from kernels import get_kernel', 'from kernels import naive', 'import kernels.naive'):\n"
        "    try:\n        exec(what)\n    except ImportError as error:\n        print(type(error).__name__)\n"
        "import sys; print('torch' in sys.modules)\n"
    )
    lines = run(code, CHECKOUT).split("\n")
    assert lines == ["None None", "[] None", "ImportError", "ImportError", "ModuleNotFoundError", "False"]


def test_the_kernels_of_halp_fx_are_where_they_were(installed):
    code = (
        "import sys; sys.path[:0] = {path!r}\n"
        "import kernels, halp_fx.kernels as ours\n"
        "print(kernels.__version__, ours.__name__, callable(ours.channel_scores), callable(ours.lookup))"
    )
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code.format(path=[str(CHECKOUT), str(installed)])],
        env=env,
        cwd=os.sep,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "9.9 halp_fx.kernels True True"
