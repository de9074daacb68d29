"""Table files under faults: truncated, corrupt, foreign, read-only, full, killed, and two builders at once."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from halp_fx.latency import (
    CorruptTableError,
    ForeignTableError,
    LatencyTable,
    TableFileError,
    TableVersionError,
    files,
    read_table,
    store,
    write_table,
)
from halp_fx.latency.fingerprint import Fingerprint
from halp_fx.latency.store import open_store
from halp_fx.latency.timing import Timing

HERE = Fingerprint("some CPU", "AVX2", "2.15.0", "", "eager", 1, "clock")


def small_table(points=((8, 0), (16, 0)), key="aten::relu(float32[1,I])"):
    table = LatencyTable(HERE)
    for n, point in enumerate(points):
        table.put(key, point, Timing(0.5 + n, 0.01, 9))
    return table


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "table.json"


def test_round_trip(path):
    table = small_table()
    table.notes["aten::relu(float32[1,I])"] = "spread 30%"
    write_table(table, path)
    found = read_table(path)
    assert found == table
    assert files.dumps(found) == path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda text: text[: len(text) // 2], CorruptTableError),
        (lambda text: "", CorruptTableError),
        (lambda text: "\x00" * 100, CorruptTableError),
        (lambda text: text.replace("0.5", "NaN"), CorruptTableError),
        (lambda text: text.replace("0.5", "-0.5"), CorruptTableError),
        (lambda text: text.replace("0.5", "0"), CorruptTableError),
        (lambda text: text.replace("0.5", '"fast"'), CorruptTableError),
        (lambda text: text.replace("[8, 0,", "[8.5, 0,"), CorruptTableError),
        (lambda text: text.replace("[8, 0,", "[true, 0,"), CorruptTableError),
        (lambda text: text.replace("[8, 0,", "[8,"), CorruptTableError),
        (lambda text: text.replace('"points": 2', '"points": 3'), CorruptTableError),
        (lambda text: text.replace('"threads": 1', '"threads": "1"'), CorruptTableError),
        (lambda text: text.replace('"device"', '"devise"'), CorruptTableError),
        (lambda text: text.replace('"version": 1', '"version": 99'), TableVersionError),
        (lambda text: text.replace("halp_fx.latency_table", "something"), TableVersionError),
        (lambda text: "[1, 2]", TableVersionError),
    ],
    ids=lambda value: None if callable(value) and not isinstance(value, type) else value.__name__,
)
def test_damaged_file_is_refused_and_left_alone(path, damage, error):
    write_table(small_table(), path)
    path.write_text(damage(path.read_text()))
    before = path.read_bytes()
    for use in (read_table, lambda p: open_store(p, HERE)):
        with pytest.raises(error, match=r"table\.json"):
            use(path)
    assert path.read_bytes() == before


def test_binary_and_missing_files(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x80\x04\x95pickle")
    with pytest.raises(CorruptTableError, match="not text"):
        read_table(path)
    with pytest.raises(TableFileError, match="there is no file"):
        read_table(path.parent / "nothing.json")


def test_foreign_table_is_refused_with_the_differing_fields(path, caplog):
    write_table(small_table(), path)
    other = replace(HERE, device="another CPU", threads=8)
    with pytest.raises(ForeignTableError, match=r"another CPU.*threads: 1 in the table, 8 here") as caught:
        open_store(path, other)
    assert caught.value.fields == {"device": ("some CPU", "another CPU"), "threads": (1, 8)}
    allowed = open_store(path, other, allow_foreign=True)
    assert len(allowed.table) == 2
    assert "measured elsewhere" in caplog.text
    before = path.read_bytes()
    with allowed.saving():
        allowed.put("x", (1, 0), Timing(1.0, 0.0, 1))
    assert path.read_bytes() == before


def test_a_folder_holds_one_file_per_fingerprint(tmp_path):
    for threads in (1, 2):
        here = replace(HERE, threads=threads)
        opened = open_store(tmp_path, here)
        with opened.saving():
            opened.put("x", (1, 0), Timing(1.0, 0.0, 1))
        assert open_store(tmp_path, here).table.fingerprint == here
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_the_default_is_the_cache_and_a_damaged_cache_warns_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HALP_FX_CACHE_DIR", str(tmp_path))
    opened = open_store(None, HERE)
    with opened.saving():
        opened.put("x", (1, 0), Timing(1.0, 0.0, 1))
    assert opened.path is not None
    assert len(open_store(None, HERE).table) == 1
    opened.path.write_text("{")
    again = open_store(None, HERE)
    assert len(again.table) == 0
    assert "truncated" in caplog.text
    aside = opened.path.with_name(f"{opened.path.name}.corrupt")
    assert str(aside) in caplog.text
    assert aside.read_text() == "{"
    caplog.clear()
    with again.saving():
        again.put("y", (2, 0), Timing(1.0, 0.0, 1))
    assert len(open_store(None, HERE).table) == 1
    assert not caplog.text


def test_a_damaged_cache_that_cannot_be_moved_is_left_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HALP_FX_CACHE_DIR", str(tmp_path))
    opened = open_store(None, HERE)
    opened.path.parent.mkdir(parents=True, exist_ok=True)
    opened.path.write_text("{")

    def refuse(*_):
        raise OSError("read-only file system")

    monkeypatch.setattr(store.os, "replace", refuse)
    again = open_store(None, HERE)
    assert again.path is None
    assert "in memory" in caplog.text
    assert opened.path.read_text() == "{"


def test_a_killed_build_resumes_where_it_last_saved(path, monkeypatch):
    monkeypatch.setattr(store, "SAVE_EVERY_S", -1.0)
    opened = open_store(path, HERE)

    def build():
        with opened.saving():
            opened.put("x", (1, 0), Timing(1.0, 0.0, 1))
            # Not even `finally` runs in a killed process: what is there now was saved along the way.
            assert len(read_table(path)) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert open_store(path, HERE).table.get("x", (1, 0)) == Timing(1.0, 0.0, 1)


def test_crash_while_writing_leaves_the_old_file(path, monkeypatch):
    write_table(small_table(), path)
    before = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_table(small_table(((8, 0),)), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_full_disk_and_read_only_cache_fall_back_to_memory(path, monkeypatch, caplog, error):
    opened = open_store(path, HERE)

    def fail(*_):
        raise error

    monkeypatch.setattr(store, "write_table", fail)
    with opened.saving():
        opened.put("x", (1, 0), Timing(1.0, 0.0, 1))
    assert "stays in memory" in caplog.text
    assert error.strerror in caplog.text
    caplog.clear()
    with opened.saving():
        opened.put("x", (2, 0), Timing(2.0, 0.0, 1))
    assert len(opened.table) == 2
    assert not caplog.records
    assert not path.exists()


def test_unwritable_folder(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    opened = open_store(blocked / "table.json", HERE)
    with opened.saving():
        opened.put("x", (1, 0), Timing(1.0, 0.0, 1))
    assert "stays in memory" in caplog.text


def test_file_spoilt_between_two_saves_is_not_overwritten(path, caplog):
    opened = open_store(path, HERE)
    with opened.saving():
        opened.put("x", (1, 0), Timing(1.0, 0.0, 1))
    path.write_text("spoilt")
    with opened.saving():
        opened.put("x", (2, 0), Timing(1.0, 0.0, 1))
    assert path.read_text() == "spoilt"
    assert "stays in memory" in caplog.text


def test_locked_file_is_saved_later(path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(store, "_LOCK_TIMEOUT_S", 0.01)
    opened = open_store(path, HERE)
    path.parent.mkdir(parents=True)
    with store.FileLock(f"{path}.lock"), opened.saving():
        opened.put("x", (1, 0), Timing(1.0, 0.0, 1))
        opened.save()
    assert "saved later" in caplog.text
    opened.save()
    assert len(read_table(path)) == 1


def _build_some(path: str, start: int) -> None:
    store.SAVE_EVERY_S = -1.0
    opened = open_store(path, HERE)
    with opened.saving():
        for n in range(start, start + 25):
            opened.put(f"layer {n % 3}", (n, 0), Timing(1.0 + n, 0.0, 1))


def test_two_builders_lose_nothing(path):
    path.parent.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build_some, args=(str(path), start)) for start in (0, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert {p for _, p, _ in read_table(path)} == {(n, 0) for n in range(45)}


def test_two_open_stores_share_what_they_find(path):
    first, second = open_store(path, HERE), open_store(path, HERE)
    for n, opened in enumerate((first, second)):
        with opened.saving():
            opened.put("x", (n, 0), Timing(1.0, 0.0, 1))
    assert len(second.table) == 2
    assert len(read_table(path)) == 2


def test_merge_keeps_what_was_measured_more_often():
    mine, other = small_table(((8, 0),)), small_table(((8, 0), (24, 0)))
    key = "aten::relu(float32[1,I])"
    other.put(key, (8, 0), Timing(0.4, 0.01, 5, runs=3))
    assert mine.merge(other) == 2
    assert mine.get(key, (8, 0)).runs == 3
    assert other.merge(small_table(((8, 0),))) == 0


def test_notes_are_saved_without_times(path):
    found = open_store(path, HERE)
    with found.saving():
        found.note("key", "cannot be timed")
    assert read_table(str(path)).notes == {"key": "cannot be timed"}


def test_what_rounds_products_is_in_the_fingerprint():
    """Under both of PyTorch's names: where a caller has set one, the other cannot be read."""
    code = """
import torch
from halp_fx.latency import Fingerprint
assert Fingerprint.of("cpu").settings == ""
torch.set_float32_matmul_precision("medium")
assert Fingerprint.of("cpu").settings == "matmul bf16"
torch.backends.fp32_precision = "tf32"
assert "conv tf32" in Fingerprint.of("cpu").settings
torch.cuda.get_device_properties = lambda device: type("Card", (), {"name": "card", "total_memory": 1 << 30})
torch.backends.cuda.matmul.fp32_precision = "ieee"
assert Fingerprint.of("cuda:0").settings == "tf32"
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert Fingerprint.of("cuda:0").settings == "tf32, matmul tf32"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_fingerprint_of_this_machine():
    one, two = (Fingerprint.of("cpu", threads=n) for n in (2, 3))
    assert one.differences(two) == {"threads": (2, 3)}
    assert one.file_name != two.file_name
    assert Path(one.file_name).name == one.file_name
    assert Fingerprint.from_json(json.loads(json.dumps({n: getattr(one, n) for n in one.__slots__}))) == one
