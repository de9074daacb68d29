"""The table of accuracies at equal cost: means, deviations, what is missing and what missed its budget."""

from __future__ import annotations

from comparing import tables


def row(method, tuned=None, network="residual", draw=0, macs=0.1, **more):
    found = {"failed": "RuntimeError: no ratio"} if tuned is None else {"tuned": tuned, "macs": macs}
    key = {"data": "glyphs", "network": network, "budget": 0.1, "method": method, "seed": 0, "draw": draw}
    return key | {"dense": 0.9} | found | more


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_line_for_each_cell_and_means_of_what_is_common():
    rows = [
        *(row("uniform", 0.7), row("halp_fx", 0.7, draw=0), row("halp_fx", 0.8, draw=1)),
        *(row("other", 0.76, "dense", macs=0.097), row("halp_fx", 0.75, "dense"), row("uniform", network="dense")),
    ]
    head, _, dense, residual, means = (cells(line) for line in tables.markdown(rows).splitlines())
    assert head == ["data", "network", "dense", "MACs", "halp_fx", "other", "uniform"]
    assert dense == ["glyphs", "dense", "90.0", "10%", "75.0", "**76.0** (9.7)", "fails"]
    assert residual == ["glyphs", "residual", "90.0", "10%", "**75.0 ± 7.1**", "", "70.0"]
    assert means == ["mean", "", "", "10%", "75.0 of 2", "76.0 / 75.0 of 1", "70.0 / 75.0 of 1"]


def test_a_row_is_there_by_its_draw(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"data": "glyphs", "network": "residual", "budget": 0.1, "method": "uniform", "seed": 0}\n'
        '{"data": "glyphs", "network": "residual", "budget": 0.1, "method": "uniform", "seed": 0, "draw": 2}\n'
    )
    key = ("glyphs", "residual", 0.1, "uniform", 0)
    assert [tables.there(path, *key, draw) for draw in range(3)] == [True, False, True]
    assert not tables.there(path, *key[:-1], 1)
