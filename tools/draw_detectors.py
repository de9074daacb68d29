"""Mean average precision against cost, of runs of `train_detector.py` or `train_yolo.py`: a table, and a plot.

python tools/draw_detectors.py run_dense run_half run_quarter --plot docs/_static/detection.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

HEADS = ["run", "cost", "of dense", "mAP, overlap 0.5", "mAP, 0.5 to 0.95"]


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of runs")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args(arguments)
    found = [read(folder) for folder in given.folders]
    units = {one["unit"] for one in found}
    if len(units) > 1:
        raise SystemExit(f"the runs are of different costs: {', '.join(sorted(units))}")
    rows = []
    for folder, one in zip(given.folders, found, strict=True):
        precision = (f"{100 * one['precision'][key]:.1f}" for key in ("map_50", "map"))
        rows.append([folder.name, f"{one['cost']:.3g} {one['unit']}", f"{one['share']:.1%}", *precision])
    text = tabulate(rows, HEADS, tablefmt="github", disable_numparse=True)
    print(text)
    if given.plot:
        draw(found, given.plot)
    return text


def read(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    if not path.exists():
        raise SystemExit(f"there is no {path}: pass the folders of runs that are done")
    told: dict[str, Any] = json.loads(path.read_text())
    return told


def draw(found: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "svg.hashsalt": "halp_fx", "svg.fonttype": "none"})

    points = sorted(((100 * one["share"], one["precision"]) for one in found), key=lambda point: point[0])
    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    for key, words in (("map_50", "overlap 0.5"), ("map", "overlaps 0.5 to 0.95")):
        axes.plot([x for x, _ in points], [100 * told[key] for _, told in points], "o-", label=words)
    unit = found[0]["unit"]
    axes.set_xlabel(f"{'measured latency' if unit == 'ms' else unit}, % of the dense detector")
    axes.set_ylabel("mean average precision, %")
    axes.set_xlim(0, 105)
    axes.set_ylim(0, 100)
    axes.legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
