"""Prune every model of a library and compare each with its zeroed twin.

For every model, in a process of its own with a time limit: trace and couple, prune every group to half at random
places, rewrite, run forward and backward, compare with the zeroed twin in float64. Writes a table as CSV and
Markdown. A run that was stopped goes on where it was (`--resume`).

    python tools/sweep.py torchvision --csv sweep.csv --markdown docs/coverage_torchvision.md
    python tools/sweep.py timm --max-params 30 --csv timm.csv --resume
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import importlib
import json
import multiprocessing
import os
import random
import time
import traceback
import unittest.mock
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FIELDS = (
    *("model", "result", "kind", "params_m", "convs", "error", "kept", "groups", "frozen"),
    *("trace_couple_s", "rewrite_s", "total_s", "detail"),
)
ERROR_LIMIT = 1e-5
SIDE = 128  # Of images, for models that take any size.


def names(library: str) -> list[str]:
    """Every model that the library registers."""
    if library == "torchvision":
        import torchvision

        return [n for n in torchvision.models.list_models() if not n.endswith("_quantized")]
    import timm

    return timm.list_models()


def create(library: str, name: str) -> Any:
    """The model with random weights."""
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False)
    import torchvision

    options: dict[str, Any] = {"weights": None}
    module = torchvision.models.get_model_builder(name).__module__
    if "detection" in module or "segmentation" in module:
        options["weights_backbone"] = None
    if "quantization" in module:
        options["quantize"] = False
    if "detection" in module and "ssd" not in module:
        options.update(min_size=320, max_size=320)
    if "rcnn" in name:
        options.update(rpn_pre_nms_top_n_test=50, rpn_post_nms_top_n_test=20)
        options.update(box_detections_per_img=10, box_score_thresh=0.0)
    if name.startswith("vit_"):
        options["image_size"] = 4 * int(name.rpartition("_")[2])  # 16 patches
    return torchvision.models.get_model(name, **options)


def example_inputs(library: str, name: str, model: Any) -> Any:
    """A random image (or pair, or clip), small where the model takes any size."""
    import torch

    if library == "timm":
        channels, *size = model.pretrained_cfg.get("input_size") or (3, 224, 224)
        small = torch.randn(1, channels, *(min(n, SIDE) for n in size))
        if model.pretrained_cfg.get("fixed_input_size") or not runs(model, small):
            return torch.randn(1, channels, *size)
        return small
    module = type(model).__module__
    if "detection" in module:
        return ([torch.randn(3, 320, 320)],)
    if "optical_flow" in module:
        return torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
    if "video" in module or name.startswith("swin3d"):
        side = 224 if name.startswith(("mvit", "swin3d", "s3d")) else 64
        return torch.randn(1, 3, 16, side, side)
    if "segmentation" in module:
        return torch.randn(1, 3, 128, 128)
    if name.startswith("maxvit"):
        return torch.randn(1, 3, 224, 224)
    side = getattr(model, "image_size", None) or (299 if "inception" in name else SIDE)
    return torch.randn(1, 3, side, side)


def runs(model: Any, inputs: Any) -> bool:
    """Whether a model takes these inputs."""
    import torch

    try:
        with torch.no_grad():
            model.eval()(inputs)
    except Exception:
        return False
    return True


def size(library: str, name: str) -> tuple[float, int]:
    """Million parameters, and the number of convolutions, of a model without memory where it can be made so."""
    import torch

    try:
        with torch.device("meta"):
            model = create(library, name)
    except (NotImplementedError, RuntimeError):
        model = create(library, name)
    convolutions = sum(isinstance(m, torch.nn.modules.conv._ConvNd) for m in model.modules())
    return sum(p.numel() for p in model.parameters()) / 1e6, convolutions


def kind(coupling: Any, convolutions: int) -> str:
    """Whether it is a "cnn": at least 8 convolutions and no product of two activations (attention)."""
    products = {"bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu"}
    ops = {getattr(n.target, "_opname", "") for n in coupling.traced.graph.nodes}
    return "attention" if ops & products else "cnn" if convolutions >= 8 else "other"


def check(library: str, name: str, max_params: float = float("inf")) -> dict[str, Any]:
    """One model, in this process."""
    warnings.simplefilter("ignore")
    import torch

    import halp_fx

    torch.set_num_threads(1)
    torch.manual_seed(0)
    params, convolutions = size(library, name)
    row = {"model": name, "params_m": round(params, 2), "convs": convolutions}
    if params > max_params:
        return {**row, "result": "too large"}
    model = create(library, name)
    randomize(model)
    inputs = example_inputs(library, name, model)
    start = time.perf_counter()
    coupling = halp_fx.channel_groups(model, inputs)
    coupled = time.perf_counter()
    pick = random.Random(0)
    plan = {g.name: sorted(pick.sample(range(g.size), max(1, g.size // 2))) for g in coupling.prunable}
    started = time.perf_counter()
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
    rewritten = time.perf_counter()
    twin = halp_fx.zero(model, plan, inputs, coupling=coupling)
    args, error, vacuous = compare(small, twin, model, inputs, torch.float64)
    trains = backward(small.train(), args)
    kept = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    return {
        **row,
        "kind": kind(coupling, convolutions),
        "result": "pass" if error <= ERROR_LIMIT and trains == "" and not vacuous else "fail",
        "error": f"{error:.1e}",
        "kept": round(kept, 3),
        "groups": len(coupling.prunable),
        "frozen": len(coupling.frozen),
        "trace_couple_s": round(coupled - start, 2),
        "rewrite_s": round(rewritten - started, 2),
        "total_s": round(time.perf_counter() - start, 1),
        "detail": trains
        or ("the twin equals the dense network: nothing was compared" if vacuous else "")
        or "; ".join(sorted(set(coupling.frozen.values()) - {"reaches the model's output"}))[:300],
    }


def compare(small: Any, twin: Any, dense: Any, inputs: Any, dtype: Any) -> tuple[tuple[Any, ...], float, bool]:
    """Arguments in the dtype, the largest difference between small and twin, and whether the twin is the dense
    network."""
    import torch
    from torch.utils._pytree import tree_leaves, tree_map

    cast = tree_map(lambda t: t.to(dtype) if torch.is_tensor(t) and t.is_floating_point() else t, inputs)
    args = cast if isinstance(cast, tuple) else (cast,)
    models = [small.to(dtype).eval(), twin.to(dtype).eval(), copy.deepcopy(dense).to(dtype).eval()]
    # RAFT calls .float() on grids of its own: in float64 that must not narrow them.
    with torch.no_grad(), unittest.mock.patch.object(torch.Tensor, "float", lambda t: t.to(dtype)):
        got, want, full = ([t for t in tree_leaves(plain(outputs(m, args))) if torch.is_tensor(t)] for m in models)
    error = max(difference(a, b) for a, b in zip(got, want, strict=True))
    changed = max(difference(a, b) for a, b in zip(full, want, strict=False))
    return args, error, changed < ERROR_LIMIT


HEADS = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor", "roi_heads.keypoint_predictor")


def outputs(model: Any, args: tuple[Any, ...]) -> Any:
    """What the model returns; of a detector what its heads return. Behind them it picks boxes, and which of two with
    equal random scores comes first is a matter of rounding."""
    if "detection" not in type(model).__module__:
        return model(*args)
    found: list[Any] = []
    modules = dict(model.named_modules())
    handles = [modules[n].register_forward_hook(lambda *call: found.append(call[2])) for n in HEADS if n in modules]
    try:
        model(*args)
    finally:
        for handle in handles:
            handle.remove()
    return found


def difference(a: Any, b: Any) -> float:
    """Relative, in float64; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).double().norm() / b.double().norm().clamp_min(1e-12)) if a.numel() else 0.0


def randomize(model: Any) -> None:
    """No affine parameter or statistic at its initial value: a channel that is zero by luck would hide a mistake."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point() and tensor.requires_grad and not tensor.any():
                # A head that starts at zero would make every comparison hold.
                tensor.copy_(0.05 * torch.randn(tensor.shape, generator=generator))


def plain(output: Any) -> Any:
    fields = hasattr(output, "__dict__") and not hasattr(output, "shape") and not isinstance(output, dict)
    return vars(output) if fields else output


def backward(model: Any, args: tuple[Any, ...]) -> str:
    """Run a training step where the model takes plain inputs; returns what went wrong."""
    import torch
    from torch.utils._pytree import tree_leaves, tree_map

    if isinstance(args[0], list):
        model.eval()  # Detectors want targets in training: their gradients are taken in eval mode.
    doubled = tree_map(lambda t: torch.cat([t, t]) if torch.is_tensor(t) and t.dim() > 3 else t, args)
    try:
        with unittest.mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            results = [t for t in tree_leaves(plain(model(*doubled))) if torch.is_tensor(t) and t.requires_grad]
        sum(t.sum() for t in results).backward()
    except Exception as failure:
        return f"backward: {type(failure).__name__}: {failure}"[:300]
    return "" if results else "backward: no output requires a gradient"


def child(library: str, name: str, max_params: float, limit: float) -> dict[str, Any]:
    """One model in a process of its own, forked from this one, which has imported the libraries already."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, library, name, max_params))
    row: dict[str, Any] = dict.fromkeys(FIELDS, "")
    row.update(model=name, result="fail")
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            process.kill()
            return {**row, "detail": f"not done after {limit:.0f} s"}
        return {**row, **receiver.recv()}
    except EOFError:
        process.join()
        return {**row, "detail": f"exit status {process.exitcode}"}
    finally:
        process.join()
        receiver.close()


def _run(sender: Connection, library: str, name: str, max_params: float) -> None:
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        try:
            sender.send(check(library, name, max_params))
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            sender.send({"detail": f"{type(error).__name__} at {where}: {error}"[:400]})


def markdown(rows: list[dict[str, Any]], title: str) -> str:
    from tabulate import tabulate

    table = tabulate([[str(r[f])[:120] for f in FIELDS] for r in rows], headers=FIELDS, tablefmt="github")
    return f"# {title}\n\n{summary(rows)}\n\n{table}\n"


def summary(rows: list[dict[str, Any]]) -> str:
    """Pass counts: all models, those with eight convolutions or more, and how narrow the networks without attention
    got."""
    rows = [r for r in rows if r["result"] != "too large"]
    convolutional = [r for r in rows if int(r["convs"] or 0) >= 8]
    plain_ones = [r for r in rows if r["kind"] == "cnn" and r["result"] == "pass"]
    narrow = [r for r in plain_ones if float(r["kept"]) <= 0.45]
    slow = [r for r in rows if r["result"] == "pass" and float(r["trace_couple_s"]) + float(r["rewrite_s"]) > 10]
    lines = [
        f"{_passes(rows)} of {len(rows)} models pass;",
        f"{_passes(convolutional)} of {len(convolutional)} with at least 8 convolutions;",
        f"{len(narrow)} of {len(plain_ones)} networks without attention keep at most 0.45 of their parameters;",
        f"{len(slow)} take more than 10 s to trace, couple and rewrite.",
    ]
    return " ".join(lines)


def _passes(rows: list[dict[str, Any]]) -> int:
    return sum(r["result"] == "pass" for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=("torchvision", "timm"))
    parser.add_argument("--one", help="check this model in this process and print what comes out")
    parser.add_argument("--only", nargs="*", help="names to check instead of all")
    parser.add_argument("--max-params", type=float, default=float("inf"), help="millions; larger models are left out")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds a model")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--csv", type=Path, default=Path("sweep.csv"))
    parser.add_argument("--resume", action="store_true", help="keep the rows of the CSV that are there")
    parser.add_argument("--shuffle", action="store_true", help="in a random order, so that a part is a fair sample")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--table-only", action="store_true", help="check nothing, write the table of the CSV")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(check(options.library, options.one, options.max_params), indent=1))
        return
    rows = []
    if (options.resume or options.table_only) and options.csv.exists():
        with options.csv.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {r["model"] for r in rows}
    left = [] if options.table_only else [n for n in options.only or names(options.library) if n not in done]
    if options.shuffle:
        random.Random(0).shuffle(left)
    for module in ("halp_fx", options.library):
        importlib.import_module(module)
    with ThreadPoolExecutor(options.jobs) as pool, options.csv.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
        for row in pool.map(lambda n: child(options.library, n, options.max_params, options.limit), left):
            rows.append(row)
            writer.writerow(row)
            file.flush()
            print(*(row[f] for f in FIELDS), sep="  ", flush=True)
    rows.sort(key=lambda r: r["model"])
    print(summary(rows))
    if options.markdown:
        options.markdown.write_text(markdown(rows, f"Coverage of {options.library}"))


if __name__ == "__main__":
    main()
