"""Latency tables as files: JSON that is checked on the way in and replaced whole on the way out.

    {"format": "halp_fx.latency_table", "version": 1, "fingerprint": {...}, "points": 2,
     "layers": {"aten::relu_([float32[1,I,56,56]])": [[32, 0, 0.011, 0.0002, 9, 1], [64, 0, 0.019, 0.0003, 9, 1]]},
     "notes": {}}

A point is [n_in, n_out, median_ms, iqr_ms, count, runs]. Files are data: nothing in them is ever executed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from os import PathLike
from typing import Any

from ..files import path_of, replacing, why_unreadable
from .errors import CorruptTableError, ForeignTableError, TableFileError, TableVersionError, TimingError
from .fingerprint import Fingerprint
from .table import LatencyTable
from .timing import Timing

FORMAT = "halp_fx.latency_table"
VERSION = 1


def dumps(table: LatencyTable) -> str:
    """The table as JSON text, one line a layer, sorted: equal tables give equal text."""
    head = {"format": FORMAT, "version": VERSION, "fingerprint": asdict(table.fingerprint), "points": len(table)}
    rows = []
    for key, points in sorted(table.entries.items()):
        row = [[*p, t.median_ms, t.iqr_ms, t.count, t.runs] for p, t in sorted(points.items())]
        rows.append(f"  {json.dumps(key)}: {json.dumps(row)}")
    layers = ",\n".join(rows)
    return (
        f'{json.dumps(head, indent=1)[:-2]},\n "layers": {{\n{layers}\n }},\n "notes": {json.dumps(table.notes)}\n}}\n'
    )


def loads(text: str, name: str = "this text") -> LatencyTable:
    """Inverse of `dumps`.

    Raises:
        CorruptTableError: truncated, not JSON, or holding what no measurement gives.
        TableVersionError: of another format or version.
    """
    try:
        data = json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise CorruptTableError(f"{name} is truncated or not JSON: {error}. {_ADVICE}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise TableVersionError(f"{name} is not a latency table (its format is not {FORMAT!r})")
    if data.get("version") != VERSION:
        raise TableVersionError(
            f"{name} has table version {data.get('version')!r}; this halp_fx reads version {VERSION}. Build it again"
        )
    try:
        table = LatencyTable(Fingerprint.from_json(data["fingerprint"]))
        for key, rows in data["layers"].items():
            for row in rows:
                _take(table, key, row)
        table.notes.update({str(k): str(v) for k, v in data["notes"].items()})
        expected = data["points"]
    except (KeyError, TypeError, ValueError, AttributeError, TimingError) as error:
        raise CorruptTableError(f"{name} holds what no measurement gives: {error}. {_ADVICE}") from error
    if len(table) != expected:
        raise CorruptTableError(f"{name} should hold {expected} points but holds {len(table)}. {_ADVICE}")
    return table


_ADVICE = "The file was left as it is: move it away, and it will be measured again"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a time")


def _take(table: LatencyTable, key: str, row: Any) -> None:
    n_in, n_out, median_ms, iqr_ms, count, runs = row
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in (n_in, n_out, count, runs)):
        raise ValueError(f"{row} of {key!r}: widths and counts must be whole numbers")
    table.put(key, (n_in, n_out), Timing(float(median_ms), float(iqr_ms), count, runs))


def read_table(path: str | PathLike[str]) -> LatencyTable:
    """Read a table file; it is not changed.

    Raises:
        CorruptTableError, TableVersionError: see `loads`.
        TableFileError: it cannot be read.
    """
    path = path_of(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptTableError(f"{path} is not text: {error}. {_ADVICE}") from error
    except OSError as error:
        raise TableFileError(why_unreadable(path, error)) from error
    return loads(text, str(path))


def write_table(table: LatencyTable, path: str | PathLike[str]) -> None:
    """Replace a file whole: a reader, or a crash, meets the old or the new table, never half of one.

    Raises:
        OSError: disk full, directory not writable …; the old file is then as before.
    """
    with replacing(path_of(path)) as temporary:
        temporary.write_text(dumps(table), encoding="utf-8")


def require_same(table: LatencyTable, here: Fingerprint, name: str) -> None:
    """Refuse a table from another device or setting.

    Raises:
        ForeignTableError: names the fields that differ.
    """
    fields = table.fingerprint.differences(here)
    if fields:
        rows = "; ".join(f"{k}: {there!r} in the table, {ours!r} here" for k, (there, ours) in fields.items())
        raise ForeignTableError(
            f"{name} was measured on another device or setting ({rows}). Build a table here, "
            "prune by the times of that device with halp_fx.latency.TableLatency, or pass allow_foreign=True if they "
            "hold here, too",
            fields,
        )
