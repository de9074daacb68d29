"""The folder that `prune` and `apply` leave, and how a network comes back from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import HalpError
from ..files import why_unreadable
from ..fitting import call, command
from .guarding import as_options
from .models import parse_settings
from .output import Output

if TYPE_CHECKING:
    from torch import nn

    from ..reporting.report import Report
    from ..solver import WidthProblem
    from ..types import Plan
    from .models import ModelSpec

T = TypeVar("T")

PLAN, CHECKPOINT = "plan.json", "model.safetensors"
REPORT, PAGE = "report.json", "report.html"
KINDS = ("onnx", "pt2")
_LABEL = 11
_WRITES = "there is no {}: `halp-fx prune … --out DIR` writes one{}"


def next_steps(source: ModelSpec, folder: Path) -> str:
    """What to do with a pruned network, as lines that can be copied."""
    again = [*chain.from_iterable(("--set", s) for s in source.settings)]
    again += [*chain.from_iterable(("--input", s) for s in source.shapes)]
    under = " " * _LABEL
    name = source.name.rpartition(":")[2]
    name = name if name.isidentifier() else "make"
    given = ", ".join(f"{key}={value!r}" for key, value in parse_settings(source.settings).items())
    dense = f"lambda: {name}({given})" if given else name
    what = f"{name} gives the dense model" if given else f"{name}: the dense model, or a function that gives it"
    loading = call("small = halp_fx.load", (f'"{folder / CHECKPOINT}"', dense), indent=_LABEL)
    steps = {
        "look at": f"{folder / PAGE}, in a browser",
        "time both": command(["halp-fx", "compare", source.name, str(folder), *again], indent=_LABEL),
        "fine-tune": f"{loading}\n{under}# {what}",
    }
    return "\n".join(f"{name + ':':<{_LABEL}}{step}" for name, step in steps.items())


def kinds_of(exports: Iterable[str]) -> list[str]:
    """What `--export` asks for.

    Raises:
        HalpError: there is no such kind.
    """
    kinds = [kind.removeprefix(".").lower() for kind in exports]
    for kind in kinds:
        if kind not in KINDS:
            raise HalpError(f"--export {kind} is not known: {' or '.join(KINDS)}")
    return kinds


def leave(small: nn.Module, plan: Plan, folder: Path, output: Output) -> None:
    """Write a pruned network and its plan."""
    from ..saving import save

    output.write(folder / PLAN, plan.to_json())
    save(small, folder / CHECKPOINT)
    output.wrote(folder / CHECKPOINT)


def leave_report(report: Report, folder: Path, output: Output) -> None:
    """Write a report, to be read by programs and to be looked at."""
    output.write(folder / REPORT, report.to_json())
    output.wrote(in_options(report).to_html(folder / PAGE))


def in_options(report: Report) -> Report:
    """A report whose remedies are options of the command line."""
    return replace(report, notes=tuple(map(as_options, report.notes)))


def come_back(place: Path, dense: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """The network of a folder or of a checkpoint, or what a plan alone makes of the dense one; in eval mode.

    Raises:
        HalpError: there is none, or it is another model's.
    """
    from ..api import rewrite
    from ..saving import load

    checkpoint = checkpoint_in(place)
    if checkpoint.suffix == ".json":
        return rewrite(dense, read_plan(checkpoint), inputs).eval()
    return load(checkpoint, dense).eval()


def checkpoint_in(place: Path) -> Path:
    """The checkpoint of a folder, or the file that is named.

    Raises:
        HalpError: it is not there; asked before a model is made.
    """
    path = place / CHECKPOINT if place.is_dir() else place
    if not path.exists():
        raise HalpError(_WRITES.format(path, _one_of(place, CHECKPOINT)))
    return path


def read_plan(place: Path) -> Plan:
    """A plan from a file, or from a folder that has one.

    Raises:
        HalpError: there is none.
    """
    from ..types import Plan

    return _read(Plan.from_json, place, PLAN)


def read_report(place: Path) -> Report:
    """A report from a file, from a folder that has one, or from a network that was saved with its own.

    Raises:
        HalpError: there is none.
    """
    from ..reporting.report import Report

    if place.suffix == Path(CHECKPOINT).suffix and place.is_file():
        from ..saving import checkpoint

        if (found := checkpoint.read(place).report) is None:
            raise HalpError(f"{place} has no report: the network was saved without (small.halp)")
        return found
    return _read(Report.from_json, place, REPORT)


def read_problem(path: Path) -> WidthProblem:
    """A width problem from a file.

    Raises:
        HalpError: there is none.
    """
    from ..solver import WidthProblem

    return _read(WidthProblem.from_json, path)


def _read(parse: Callable[[str], T], place: Path, name: str = "") -> T:
    """What is in a file, or in the file of that name in a folder; errors name it."""
    path = place / name if place.is_dir() else place
    try:
        return parse(_object(path.read_text(encoding="utf-8")))
    except HalpError as error:
        raise HalpError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise HalpError(_WRITES.format(path, _one_of(place, name)) if name else why_unreadable(path, error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise HalpError(why_unreadable(path, error)) from None


def _object(text: str) -> str:
    """The text, if it can be JSON of ours; what parsers say of other text is for Python, where a path may be meant."""
    if not text.lstrip().startswith("{"):
        raise HalpError("this is not JSON, as halp-fx writes it")
    return text


def _one_of(place: Path, name: str) -> str:
    """Which folders of a sweep's have such a file, where the sweep's own was named."""
    found = sorted(str(path.parent) for path in place.glob(f"*/{name}"))
    return f"; or name one of {', '.join(found)}" if found else ""
