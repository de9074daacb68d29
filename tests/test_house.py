"""The house (docs/architecture.md): folders are the stages, imports only run down, and private torch has one door."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch

import halp_fx
from halp_fx import internals

HOUSE = Path(halp_fx.__file__).parent
FILES = [p for p in sorted(HOUSE.rglob("*.py")) if p.relative_to(HOUSE).parts[0] != "kernels"]
KERNELS = sorted((HOUSE / "kernels").glob("*.py"))

# From the bottom to the top. A file imports from its own room, and from those before it.
ROOMS = (
    *(
        "errors",
        "arguments",
        "version",
        "extras",
        "lazy",
        "files",
        "fitting",
        "internals",
        "progress",
        "types",
        "kernels",
        "solver",
    ),
    *("model", "tracing", "scoring", "latency", "coupling", "rules", "rewriting", "trials"),
    *("pruning", "reporting", "training", "saving", "exporting", "api", "compiling", "passes", "__init__", "cli"),
    "__main__",
)
# They read the `meta` of a graph module, which is no node's.
GRAPHS = ("compiling/fx_pass.py",)
LONGEST = 400
LONGEST_FACE = 20
# Their faces list every public name of a documented package.
LISTS = ("coupling/rules", "latency", "solver", "types")
# Importing it takes seconds, so it is imported when something is compiled.
LAZY = {"torch._dynamo": "latency/compiling.py", "torch._inductor": "latency/compiling.py"}


def place(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).with_suffix("").parts[0]


@cache
def tree(path: Path) -> ast.Module:
    """A file as code, which stays as it is: many tests look at all files."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Modules of the package (below `halp_fx`) that a file imports, wherever in it; "__init__" is the package."""
    inside = path.relative_to(HOUSE).parts[:-1]
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*inside[: len(inside) - node.level + 1], *(node.module or "").split("."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "halp_fx":
            base = tuple((node.module or "").split("."))[1:]
        elif isinstance(node, ast.Import):
            names = [a.name.split(".") for a in node.names]
            found |= {".".join(n[1:]) or "__init__" for n in names if n[0] == "halp_fx"}
            continue
        else:
            continue
        base = tuple(filter(None, base))
        if base:
            found.add(".".join(base))
        else:  # Names of the package itself: rooms, or what its face has.
            found |= {a.name if a.name in ROOMS else "__init__" for a in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=place)
def test_imports_only_run_down(path):
    own = room_of(path)
    assert own in ROOMS, f"{own} is no room of the house: give it a place in ROOMS and in docs/architecture.md"
    up = {name for name in imported(path) if ROOMS.index(name.split(".")[0]) > ROOMS.index(own)}
    assert not up, f"{place(path)} imports from rooms above its own ({own}): {', '.join(sorted(up))}"


def test_an_import_that_runs_up_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("test_house.HOUSE", tmp_path)
    path = tmp_path / "tracing" / "some.py"
    path.parent.mkdir()
    path.write_text(
        "from ..coupling.rules import find_rule\nfrom .. import api, __version__\nfrom . import tags\n"
        "def late():\n    import halp_fx.pruning.goals\n    from halp_fx import trials\n    from .tags import active\n"
    )
    found = imported(path)
    assert found == {"coupling.rules", "api", "__init__", "tracing", "tracing.tags", "pruning.goals", "trials"}
    with pytest.raises(AssertionError, match=r"rooms above its own .*coupling\.rules.*pruning\.goals"):
        test_imports_only_run_down(path)


def test_the_kernels_and_the_solver_stand_alone():
    for path in KERNELS:
        outside = [
            n
            for n in ast.walk(tree(path))
            if isinstance(n, ast.ImportFrom) and n.level > 1 and n.module not in ("errors",)
        ]
        assert not outside, path
    for path in (HOUSE / "solver").glob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= {"solver", "errors"}, path


@pytest.mark.parametrize("path", [*FILES, *KERNELS], ids=place)
def test_no_file_is_long(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{place(path)} has {lines} lines: it does several things"


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py" and p.parent != HOUSE], ids=place)
def test_a_room_has_a_face(path):
    body = tree(path)
    assert ast.get_docstring(body), "a face says what its room takes and returns"
    rest = [n for n in body.body[1:] if not isinstance(n, ast.Import | ast.ImportFrom | ast.Assign)]
    assert not rest, "a face holds no code"
    if place(path.parent) not in LISTS:
        assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST_FACE


def test_no_room_bears_the_name_of_a_function():
    rooms = {room_of(p) for p in FILES if len(p.relative_to(HOUSE).parts) > 1} | {"rules", "kernels"}
    assert not rooms & set(halp_fx.__all__)
    for path in FILES:
        if path.name == "__init__.py":
            names = {a.asname or a.name for n in tree(path).body if isinstance(n, ast.ImportFrom) for a in n.names}
            files = {p.stem for p in path.parent.glob("*.py")} | {p.name for p in path.parent.iterdir() if p.is_dir()}
            shadowed = names & files
            # Lists that are documented so: a rule that is called like its file, `latency.layers`.
            assert place(path.parent) in LISTS or not shadowed, (path, shadowed)


SLOW = {"scipy.sparse", "scipy.optimize", "networkx", "torchvision", "matplotlib", "jinja2", "onnx", "torch._dynamo"}


def test_documented_paths_are_there_at_once_and_what_is_slow_to_import_waits():
    """In a process of its own: here other tests have imported all of it."""
    names = ("rules.pointwise", "latency.MacsCost", "solver.solve", "kernels.lookup", "types.Plan", "errors.HalpError")
    names = (*names, "prune", "Pruner")
    code = "import sys, torch; before = set(sys.modules); import halp_fx; "
    code += "; ".join(f"halp_fx.{name}" for name in names)
    code += f"; sys.exit(' '.join(sorted({SLOW!r} & (set(sys.modules) - before))) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOUSE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_documented_path_of_the_rules_stays():
    from halp_fx import rules
    from halp_fx.coupling import rules as home

    assert rules.__all__ == home.__all__
    assert all(getattr(rules, name) is getattr(home, name) for name in rules.__all__)


def own_names() -> set[str]:
    """Names that files of the package give to something."""
    found: set[str] = set()
    for node in chain.from_iterable(ast.walk(tree(p)) for p in FILES):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return found


def private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def chained(node: ast.expr) -> str:
    """`a.b.c` of such an expression; empty parts for others."""
    return f"{chained(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_private_torch_is_imported_in_one_place():
    for path in FILES:
        if place(path) == "internals.py":
            continue
        for node in ast.walk(tree(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{a.name}" for a in node.names]
            for name in names:
                if name.startswith("torch") and private(name):
                    lazy = [where for module, where in LAZY.items() if name.startswith(module)]
                    assert place(path) in lazy, f"{place(path)} imports {name}: import it in internals.py"


def test_private_attributes_of_torch_are_listed():
    known = {*internals.OPERATOR, *internals.MODULE, *internals.STORAGE, *internals.MODE, *internals.WHERE_THERE}
    own = own_names()
    for path in FILES:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Attribute) or not private(node.attr):
                continue
            whole = chained(node)
            # Operators (`aten._softmax`) are no interfaces, and `torch._C` and `sys._getframe` are modules' own.
            if whole.startswith(("torch.ops", "aten.", "_aten.", "sys._getframe", "torch._C")) or node.attr in own:
                continue
            assert node.attr in known, f"{place(path)} uses {whole}: list it in internals.py, so that it is checked"


# Of what makes tensors by itself, these have a dtype that depends on `torch.set_default_dtype`.
FLOATS = {"empty", "eye", "fft.fftfreq", "full", "linspace", "ones", "rand", "randn", "zeros"}
MAKERS = FLOATS | {"arange", "as_tensor", "asarray", "randint", "randperm", "tensor"}


@pytest.mark.parametrize("path", [*FILES, *KERNELS], ids=place)
def test_tensors_are_made_of_a_dtype_and_on_a_device_of_their_own(path):
    """What the caller sets for the whole process is for tensors of theirs: with it, ours would not meet the model's."""
    for call in (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
        name = ast.unparse(call.func).removeprefix("torch.")
        if ast.unparse(call.func).startswith("torch.") and name in MAKERS:
            given = {k.arg for k in call.keywords}
            told = None in given or {"device", *(["dtype"] if name in FLOATS else [])} <= given
            assert told, f"line {call.lineno}: {ast.unparse(call)}"


def test_what_a_node_carries_has_one_door():
    """docs/record.md: `tracing.graph` reads `meta` and names of operators, and who pickles or has no operator does."""
    doors = {
        "meta": ("tracing/graph.py", "types/pickling.py", "tracing/checking.py", *GRAPHS),
        "_opname": ("tracing/graph.py", "types/pickling.py", "tracing/opaque.py", "internals.py"),
    }
    for path in FILES:
        for node in ast.walk(tree(path)):
            attribute = node.attr if isinstance(node, ast.Attribute) else None
            named = node.value if isinstance(node, ast.Constant) and node.value == "_opname" else attribute
            known = place(path) in doors[named] if named in doors else True
            assert known, f"{place(path)} reads {named} of a node: ask tracing.graph for it"


def test_what_this_torch_lacks_is_named(monkeypatch):
    assert internals.missing() == []
    monkeypatch.delattr(torch.utils._pytree, "tree_map")
    monkeypatch.setitem(internals.NAMES, "torch._no_such_module", ("thing",))
    monkeypatch.setattr(internals, "STORAGE", ("_no_such_attribute",))
    gone = ["torch.utils._pytree.tree_map", "torch._no_such_module.thing", "UntypedStorage._no_such_attribute"]
    assert internals.missing() == gone
    with pytest.raises(ImportError, match=r"has no torch\.utils\._pytree\.tree_map, torch\._no_such_module\.thing"):
        internals._check()


def test_every_file_has_a_place_in_the_documentation():
    """In its room's row of docs/architecture.md, or on the page that stands there."""
    docs = HOUSE.parent / "docs"
    rows = {}
    for line in (docs / "architecture.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            pages = [docs / name for name in re.findall(r"\]\((\w+\.md)\)", line)]
            text = " ".join([line, *(page.read_text(encoding="utf-8") for page in pages)])
            rows |= dict.fromkeys(re.findall(r"`(\w+)/`", line.split("|")[1]), text)
    for path in (*FILES, *KERNELS):
        room, *inner = path.relative_to(HOUSE).parts
        if len(inner) == 1 and not path.name.startswith("__") and room != "cli":  # There, a file is a command.
            assert re.search(rf"\b{path.stem}\b", rows[room]), f"{place(path)} is not in docs/architecture.md"


def test_every_folder_of_tests_is_a_room():
    tests = Path(__file__).parent
    rooms = {p.name for p in tests.iterdir() if p.is_dir() and any(p.glob("test_*.py"))} - {"gpu"}
    assert rooms <= set(ROOMS)
    names = [p.name for p in tests.rglob("test_*.py")]
    assert len(names) == len(set(names)), "tests are imported by their names alone"
    assert importlib.util.find_spec("oracle") is not None
