"""The tests that need a GPU, and the kernels' own suite."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from .setting import Row, Setting

ROOT = Path(__file__).parents[2]
SUITES = {"tests/gpu/test_kernels_gpu.py": True, "tests/kernels": True, "tests/gpu/test_networks_gpu.py": False}
"""Whether its tests may run beside each other: those that time something may not."""
LEAST_S = 30.0
"""That a suite gets, however little is left."""


def run(setting: Setting) -> Iterator[Row]:
    # A rehearsal needs no more than a few tests of whole networks: the others run on any machine with the rest.
    cases = ("tests/gpu/test_networks_gpu.py",) if setting.rehearsal else tuple(SUITES)
    for case in setting.due(*cases):
        parallel = ["-n", "8"] if SUITES[case] and find_spec("xdist") else []
        wanted = ["-k", "optimizer or clock or saved"] if setting.rehearsal else []
        start, name = time.perf_counter(), Path(case).stem
        found, log = setting.folder / f"{name}.xml", setting.folder / f"{name}.log"
        words = ["-v", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={found}", *parallel, *wanted]
        with log.open("w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", case, *words],
                cwd=ROOT,
                env=os.environ | ({"HALP_FX_TEST_DEVICE": "cpu"} if setting.rehearsal else {}),
                stdout=said,
                stderr=subprocess.STDOUT,
            )
            try:
                row: Row = {"case": case, "exit": process.wait(max(LEAST_S, setting.until - time.monotonic()))}
            except subprocess.TimeoutExpired:
                process.kill()
                row = {"case": case, "exit": None} | _of_log(log.read_text())
        row["seconds"] = time.perf_counter() - start
        if found.exists():
            row |= _counts(ElementTree.parse(found).getroot())
        if row["exit"]:
            row.setdefault("failures", log.read_text().splitlines()[-3:])
        yield row


def _of_log(text: str) -> Row:
    """What a run that was stopped had said: how many tests ended, and which one was running."""
    ends = [sum(f" {word}" in line for line in text.splitlines()) for word in ("PASSED", "FAILED", "SKIPPED")]
    counts = dict(zip(("passed", "failed_tests", "skipped"), ends, strict=True))
    last = (text.splitlines() or [""])[-1]
    return counts | {"failures": [f"stopped at its time limit; the last line: {last.strip()[-200:]}"]}


def _counts(root: ElementTree.Element) -> Row:
    """How many passed, failed and were skipped, and the first line of what failed."""
    cases = list(root.iter("testcase"))
    failed = [(c, found) for c in cases for found in (*c.findall("failure"), *c.findall("error"))]
    skipped = sum(c.find("skipped") is not None for c in cases)
    row: Row = {"passed": len(cases) - len(failed) - skipped, "failed_tests": len(failed), "skipped": skipped}
    if failed:
        row["failures"] = [f"{c.get('name')}: {(f.get('message') or '')[:600]}" for c, f in failed]
    return row
