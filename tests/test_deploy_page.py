"""What docs/deploy.md shows runs as it stands."""

from __future__ import annotations

from pathlib import Path

from doc_blocks import blocks, run

PAGE = Path(__file__).parents[1] / "docs" / "deploy.md"


def test_the_blocks_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(list(blocks(PAGE))) >= 6
    assert run(PAGE) == []
    assert {"small.safetensors", "small.onnx", "small.int8.onnx", "small.pt2"} <= {p.name for p in tmp_path.iterdir()}
