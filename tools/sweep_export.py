"""Prune, export to ONNX and compare networks of torchvision, timm and our own, and write a table of it.

Each network is pruned to half of its MACs without data, and written by `halp_fx.export`, which runs the file in
onnxruntime beside the network: at two batch sizes, where it takes several. One process, one network after the other; a
run that was stopped goes on where it was.

    OMP_NUM_THREADS=1 python tools/sweep_export.py --rows export.jsonl --markdown docs/coverage_export.md
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sweeping import own as ours
from sweeping.checking import randomize
from torch import nn

import halp_fx
from halp_fx import HalpError

TORCHVISION = (
    *("resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet0_5"),
    *("regnet_y_400mf", "efficientnet_b0", "resnet50", "resnext50_32x4d", "densenet121", "googlenet", "vgg11_bn"),
    *("convnext_tiny", "swin_t", "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"),
)
TIMM = (
    *("mobilenetv4_conv_small", "efficientnet_lite0", "ghostnet_100", "repvgg_a0", "regnetx_002", "dla46_c"),
    *("fbnetc_100", "convnext_atto", "edgenext_xx_small", "mobilevit_xxs", "efficientvit_b0", "resnet26t"),
    *("vit_tiny_patch16_224", "pit_ti_224", "poolformer_s12", "mobilevitv2_050", "fastvit_t8", "xcit_nano_12_p16_224"),
    *("coat_lite_tiny", "levit_128s", "hgnetv2_b0", "mobilenetv4_hybrid_medium"),
)
DETECTORS = ("ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn")
NAMES = (
    *(f"torchvision/{n}" for n in (*TORCHVISION, *DETECTORS)),
    *(f"timm/{n}" for n in TIMM),
    *(f"own/{n}" for n in ours.NETWORKS),
)
BUDGET, SIDE = 0.5, 64
FIXED = {f"timm/{n}": 224 for n in ("vit_tiny_patch16_224", "pit_ti_224", "coat_lite_tiny", "levit_128s")}
"""Image sides of networks that take no other."""


def made(name: str) -> tuple[nn.Module, Any]:
    """The network, with weights at random and none of them at zero, and what it takes."""
    library, _, own = name.partition("/")
    torch.manual_seed(0)
    side = FIXED.get(name, SIDE)
    if library == "own":
        model, inputs = ours.made(own)
        randomize(model)
        return model, inputs
    if library == "timm":
        import timm

        model: nn.Module = timm.create_model(own, pretrained=False)
    else:
        import torchvision

        extra = (
            {"weights_backbone": None}
            if own in DETECTORS or "lraspp" in own or "deeplab" in own or "fcn" in own
            else {}
        )
        model = torchvision.models.get_model(own, weights=None, **extra)
    randomize(model)
    generator = torch.Generator().manual_seed(0)
    if own in DETECTORS:
        return model.eval(), ([torch.rand(3, side, side, generator=generator)],)
    return model.eval(), torch.rand(1, 3, side, side, generator=generator)


def row_of(name: str, folder: Path) -> dict[str, Any]:
    """What came of one network."""
    start = time.perf_counter()
    row: dict[str, Any] = {"network": name}
    try:
        model, inputs = made(name)
        small = halp_fx.prune(model, BUDGET, inputs, latency="macs", progress=False)
        row["parameters"] = small.halp.parameters
        file = halp_fx.export(small, folder / "net.onnx", inputs)
        row |= {
            "exporter": file.exporter, "dynamic": file.dynamic, "batches": file.batches, "deviation": file.deviation,
            "megabytes": file.size / 1e6, "notes": file.notes,
        }  # fmt: skip
    except HalpError as error:
        row["failure"] = f"{type(error).__name__}: {error}"
    except Exception as error:  # A defect of ours, or of a library: the table says so, and the sweep goes on.
        row["failure"] = f"not by name: {type(error).__name__}: {error}"
    return row | {"seconds": time.perf_counter() - start}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page."""
    good = [r for r in rows if "failure" not in r]
    images = [r for r in rows if r["network"].rpartition("/")[2] not in DETECTORS]
    plain = [r for r in images if "failure" not in r]
    any_size = sum(r["dynamic"] for r in plain)
    dynamo = sum("dynamo" in r["exporter"] for r in plain)
    lines = [
        "# Coverage of export",
        "",
        f"Networks of torchvision, timm and our own (`tools/sweeping/own.py`) pruned to {BUDGET:.0%} of "
        "their MACs, written by `halp_fx.export` as ONNX and run by onnxruntime beside the network: for the example "
        "inputs, for others, and at a second batch size. "
        "Deviation is the largest difference of an output relative to its largest value. Made by "
        f"`tools/sweep_export.py` with torch {torch.__version__} on {platform.machine()}, one thread.",
        "",
        f"{len(good)} of {len(rows)} networks give the same outputs. Of all but the two detectors, "
        f"{len(plain)} of {len(images)}: {any_size} with any batch size, {dynamo} by the exporter that starts from "
        "`torch.export`.",
        "",
        "| network | parameters | exporter | batch sizes compared | deviation | MB | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        before, after = r.get("parameters", (0, 0))
        digits = 1 if before >= 1e6 else 3
        sizes = f"{before / 1e6:.{digits}f} M -> {after / 1e6:.{digits}f} M" if before else ""
        note = r.get("failure") or "; ".join(r.get("notes", ()))
        note = " ".join(note.replace("|", "/").split())[:300]
        if "failure" in r:
            lines.append(f"| {r['network']} | {sizes} | fails | | | | {note} |")
            continue
        compared = " and ".join(map(str, r["batches"])) or "no batch dimension"
        cells = [r["network"], sizes, r["exporter"].partition(", ")[2], compared, f"{r['deviation']:.1e}"]
        lines.append(f"| {' | '.join(cells)} | {r['megabytes']:.1f} | {note} |")
    return "\n".join((*lines, ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=Path("export.jsonl"), help="one line a network; read and added to")
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    parser.add_argument("--only", nargs="*", default=NAMES, help='names such as "timm/repvgg_a0"')
    given = parser.parse_args()
    lines = given.rows.read_text().splitlines() if given.rows.exists() else []
    rows = {r["network"]: r for r in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            if name in rows:
                continue
            rows[name] = row_of(name, Path(folder))
            with given.rows.open("a") as file:
                file.write(json.dumps(rows[name]) + "\n")
            print(
                name, rows[name].get("failure") or f"{rows[name]['deviation']:.1e} {rows[name]['exporter']}", flush=True
            )
    if given.markdown:
        given.markdown.write_text(markdown(list(rows.values())))


if __name__ == "__main__":
    main()
