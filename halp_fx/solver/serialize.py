"""Width problems as JSON: `read_problem` and `write_problem`, behind `WidthProblem.from_json` and `to_json`.

The form: `groups.<name>.{widths, value}`; `costs[]` with `in` (group names, or [name, scale]), `out` (a
group name; also null or a list like `in`), `in_widths`, `out_widths`, `table[out][in]` and optionally
`name`, `in_offset`, `out_offset`, `resource`; `budget` (of the latency) or `budgets` (resource -> number);
`latency_unit`; `branches[]` with `name`, `groups`, `costs` (names or positions) and `value`. Other keys,
such as `known`, are ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ProblemError, instead_of_path
from .problem import WidthProblem
from .tables import LATENCY, Branch, CostTable, Term, WidthGroup


def read_problem(source: str | os.PathLike[str] | Mapping[str, Any]) -> WidthProblem:
    """See `WidthProblem.from_json`."""
    data = source if isinstance(source, Mapping) else _parse(source)
    name = str(data.get("name", "problem"))
    groups = {str(key): _group(str(key), entry) for key, entry in _mapping(data, "groups", f"problem {name!r}").items()}
    costs = [_cost(index, entry) for index, entry in enumerate(_list(data, "costs", f"problem {name!r}"))]
    branches = [_branch(entry) for entry in _list(data, "branches", name)] if data.get("branches") else []
    unit = str(data.get("latency_unit", "us"))
    return WidthProblem(name, groups, tuple(costs), _budgets(data), tuple(branches), unit)


def write_problem(problem: WidthProblem) -> str:
    """See `WidthProblem.to_json`."""
    data: dict[str, Any] = {"name": problem.name, "latency_unit": problem.unit}
    data["groups"] = {
        name: {"widths": group.widths.tolist(), "value": group.value.tolist()} for name, group in problem.groups.items()
    }
    data["costs"] = [_write_cost(cost) for cost in problem.costs]
    if set(problem.budgets) == {LATENCY}:
        data["budget"] = problem.budgets[LATENCY]
    else:
        data["budgets"] = dict(problem.budgets)
    if problem.branches:
        data["branches"] = [
            {"name": b.name, "groups": list(b.groups), "costs": list(b.costs), "value": b.value}
            | ({"adds": {name: list(value) for name, value in b.adds.items()}} if b.adds else {})
            for b in problem.branches
        ]
    return json.dumps(data)


def _parse(source: str | os.PathLike[str]) -> Mapping[str, Any]:
    if not isinstance(source, str | os.PathLike):
        raise ProblemError(f"a {type(source).__name__} is no problem: pass JSON text, a pathlib.Path or a dict")
    try:
        data = json.loads(source if isinstance(source, str) else Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise ProblemError(f"{os.fspath(source)!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        told = f". To read a file, pass pathlib.Path({source!r:.80})" if instead_of_path(source) else ""
        raise ProblemError(f"not a JSON problem: {error}{told}") from error
    if not isinstance(data, dict):
        raise ProblemError(f"not a JSON problem: the top level is a {type(data).__name__}, expected an object")
    return data


def _group(name: str, entry: Any) -> WidthGroup:
    where = f"group {name!r}"
    try:
        return WidthGroup(_get(entry, "widths", where), _get(entry, "value", where))
    except ProblemError as error:
        raise ProblemError(str(error) if where in str(error) else f"{where}: {error}") from error


def _cost(index: int, entry: Any) -> CostTable:
    name = str(_get(entry, "name", f"cost {index}", f"cost{index}"))
    where = f"cost {name!r}"
    return CostTable(
        name=name,
        inputs=_terms(_get(entry, "in", where), f"{where}: in"),
        output=_terms(_get(entry, "out", where, None), f"{where}: out"),
        in_offset=_whole(_get(entry, "in_offset", where, 0), f"{where}: in_offset"),
        out_offset=_whole(_get(entry, "out_offset", where, 0), f"{where}: out_offset"),
        in_widths=_get(entry, "in_widths", where),
        out_widths=_get(entry, "out_widths", where),
        table=_get(entry, "table", where),
        resource=str(_get(entry, "resource", where, LATENCY)),
    )


def _branch(entry: Any) -> Branch:
    name = str(_get(entry, "name", "branch"))
    where = f"branch {name!r}"
    costs = _get(entry, "costs", where)
    if not isinstance(costs, list) or not all(isinstance(key, (int, str)) for key in costs):
        raise ProblemError(f"{where}: costs must be a list of names or positions, found {costs!r}")
    groups = _get(entry, "groups", where)
    if not isinstance(groups, list):
        raise ProblemError(f"{where}: groups must be a list of names, found {groups!r}")
    value = _number(_get(entry, "value", where, 0.0), where)
    adds = _mapping(entry, "adds", where) if "adds" in entry else {}
    return Branch(name, tuple(map(str, groups)), tuple(costs), value, adds)


def _terms(entry: Any, where: str) -> tuple[Term, ...]:
    if entry is None:
        return ()
    terms = []
    for part in [entry] if isinstance(entry, str) else entry:
        if isinstance(part, str):
            terms.append(Term(part))
        elif isinstance(part, (list, tuple)) and len(part) == 2 and isinstance(part[0], str):
            terms.append(Term(part[0], part[1]))
        else:
            raise ProblemError(f"{where}: {part!r} is neither a group name nor [group name, scale]")
    return tuple(terms)


def _budgets(data: Mapping[str, Any]) -> dict[str, float]:
    if "budgets" in data:
        budgets = _mapping(data, "budgets", "problem")
        return {str(key): _number(value, f"budget of {key!r}") for key, value in budgets.items()}
    return {LATENCY: _number(_get(data, "budget", "problem"), "budget")}


_REQUIRED = object()


def _get(entry: Any, key: str, where: str, default: Any = _REQUIRED) -> Any:
    if not isinstance(entry, Mapping):
        raise ProblemError(f"{where}: expected an object, found {entry!r:.60}")
    if key not in entry and default is _REQUIRED:
        raise ProblemError(f"{where}: has no {key!r}")
    return entry.get(key, default)


def _mapping(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    entry = _get(data, key, where)
    if not isinstance(entry, Mapping):
        raise ProblemError(f"{where}: {key!r} must be an object, found a {type(entry).__name__}")
    return entry


def _list(data: Mapping[str, Any], key: str, where: str) -> list[Any]:
    entry = _get(data, key, where)
    if not isinstance(entry, list):
        raise ProblemError(f"{where}: {key!r} must be a list, found a {type(entry).__name__}")
    return entry


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ProblemError(f"{where}: expected a number, found {value!r}")
    return float(value)


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProblemError(f"{where}: expected a whole number, found {value!r}")
    return value


def _write_terms(terms: tuple[Term, ...]) -> list[Any]:
    return [term.group if term.scale == 1 else [term.group, int(term.scale)] for term in terms]


def _write_cost(cost: CostTable) -> dict[str, Any]:
    out = _write_terms(cost.output)
    data: dict[str, Any] = {
        "name": cost.name,
        "in": _write_terms(cost.inputs),
        "out": out[0] if len(out) == 1 and isinstance(out[0], str) else out or None,
        "in_widths": cost.in_widths.tolist(),
        "out_widths": cost.out_widths.tolist(),
        "table": cost.table.tolist(),
    }
    extra = {"in_offset": int(cost.in_offset), "out_offset": int(cost.out_offset)}
    data |= {key: value for key, value in extra.items() if value}
    return data | ({"resource": cost.resource} if cost.resource != LATENCY else {})
