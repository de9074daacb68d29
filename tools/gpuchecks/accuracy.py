"""`compare.py` on this device: accuracy at equal cost, one network, three budgets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .setting import Row, Setting

TOOL = Path(__file__).parents[1] / "compare.py"


def run(setting: Setting) -> Iterator[Row]:
    """The rows as `compare.py` writes them; it goes on where it was stopped."""
    folder = setting.folder / "compare"
    wanted = ["--smoke"] if setting.rehearsal else ["--data", "glyphs", "--networks", "inverted", "--seeds", "0"]
    wanted += [] if setting.rehearsal else ["--budgets", "0.1", "0.2", "0.5"]
    command = [sys.executable, str(TOOL), "--folder", str(folder), "--device", setting.device, *wanted]
    left = max(10.0, setting.until - time.monotonic() - 5)
    methods = ["--methods", "uniform"] if setting.rehearsal else []
    try:
        done = subprocess.run(
            [*command, *methods], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            timeout=left, check=False,
        )  # fmt: skip
        trouble = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        trouble = ["stopped at the time limit"]
    rows = folder / ("smoke.jsonl" if setting.rehearsal else "rows.jsonl")
    for line in rows.read_text().splitlines() if rows.exists() else ():
        row = json.loads(line)
        case = f"{row['data']} {row['network']} {row['method']} {row['budget']}"
        if case not in setting.done:
            yield {"case": case, **row}
    if trouble:
        yield {"case": "end", "failed": trouble[0]}
