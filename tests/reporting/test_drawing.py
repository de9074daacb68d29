"""The picture of a dependency graph."""

from __future__ import annotations

import pytest
import torch
from test_dependencies import IMAGE, Joined
from torch import nn

import halp_fx
from halp_fx.reporting.drawing import draw, picture


def test_a_box_for_every_axis_and_a_line_for_every_kind(tmp_path):
    pytest.importorskip("matplotlib")
    graph = halp_fx.dependency_graph(Joined(), IMAGE)
    (axes,) = picture(graph).axes
    boxes = {t.get_text().split("\n")[0]: t.get_position() for t in axes.texts if t.get_text()}
    assert set(boxes) == {str(a) for a in graph.graph if a.tensor.endswith("weight") and a.tensor != "norm.weight"}
    assert len(set(boxes.values())) == len(boxes), "no box lies on another"
    assert boxes["two.weight[0]"][1] < boxes["one.weight[0]"][1] < boxes["stem.weight[0]"][1], "the first on top"
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend == ["concat", "depthwise", "input", "residual", "layer: is computed from"]
    assert draw(graph, tmp_path / "a" / "folder" / "graph.png").stat().st_size > 10_000
    with pytest.raises(halp_fx.HalpError, match=r"graph\.txt: a picture's name ends in \.png, \.svg, \.pdf"):
        draw(graph, tmp_path / "graph.txt")
    assert not (tmp_path / "graph.txt").exists()
    graph.write_graphml(tmp_path / "another" / "graph.xml")
    assert (tmp_path / "another" / "graph.xml").read_text().startswith("<?xml")


def test_branches_lie_beside_each_other():
    pytest.importorskip("matplotlib")

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.c(self.a(x) + self.b(x))

    (axes,) = picture(halp_fx.dependency_graph(Beside(), torch.randn(1, 3, 4, 4))).axes
    boxes = {t.get_text().split("\n")[0]: t.get_position() for t in axes.texts if t.get_text()}
    assert boxes["a.weight[0]"][1] == boxes["b.weight[0]"][1]
    assert boxes["a.weight[0]"][0] != boxes["b.weight[0]"][0]
