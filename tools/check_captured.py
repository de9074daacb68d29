"""Networks captured by other tools, pruned, and compared: float64, random weights, half of all channels.

    python tools/check_captured.py backend            # torch.compile(backend="halp_fx") with an eager plan
    python tools/check_captured.py fx export          # the captured graph beside its zeroed twin
    python tools/check_captured.py backend --library timm

One row a network: relative deviation; groups that the captured graph freezes and the eager network does not; graphs
that Dynamo compiled for three batch sizes. The inner backend is "eager", so nothing is fused and 1e-10 is the limit.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
import warnings
from typing import Any

import torch
import torchvision
from sweeping.checking import randomize
from torch import fx, nn

import halp_fx
from halp_fx.compiling import BACKEND

LIMIT = 1e-10
SIDE = {"inception_v3": 96, "alexnet": 80, "swin_t": 64, "vit_b_16": 224, "maxvit_t": 224, "googlenet": 64}
NETWORKS = (
    *("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2", "mobilenet_v3_small"),
    *("mobilenet_v3_large", "vgg11_bn", "densenet121", "squeezenet1_1", "efficientnet_b0", "efficientnet_v2_s"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "regnet_y_400mf", "mnasnet0_5", "convnext_tiny", "googlenet"),
    *("alexnet", "vit_b_16", "swin_t"),
)

TIMM: dict[str, dict[str, Any]] = {
    "mobilenetv3_small_050": {},
    "ghostnet_050": {},
    "regnety_002": {},
    "resnext26ts": {},
    "convnext_atto": {},
    "efficientnet_lite0": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "mobilevit_xxs": {},
    "levit_128s": {"img_size": 224},
    "poolformer_s12": {},
    "edgenext_xx_small": {},
    "repvgg_a0": {},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (2, 2)},
    "xcit_nano_12_p16_224": {"depth": 2},
    "densenetblur121d": {"growth_rate": 16, "block_config": (2, 4, 4, 2)},
    "coat_lite_tiny": {"img_size": 64},
}
"""Of timm, with what makes them smaller."""


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name in TIMM:
        import timm

        model = timm.create_model(name, num_classes=7, **TIMM[name]).double().eval()
        randomize(model)
        side = TIMM[name].get("img_size", 64)
        return model, torch.randn(2, 3, side, side, dtype=torch.float64)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **extra).double().eval()
    randomize(model)
    side = SIDE.get(name, 64)
    return model, torch.randn(2, 3, side, side, dtype=torch.float64)


def half(coupling: halp_fx.Coupling) -> halp_fx.Plan:
    pick = random.Random(0)
    kept = {g.name: sorted(pick.sample(range(g.size), max(1, g.size // 2))) for g in coupling.prunable}
    return coupling.planned(kept)


def difference(a: Any, b: Any) -> float:
    return float((a - b).norm() / b.norm())


def by_backend(model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """The compiled network beside the eager pruned one with the same plan, at three batch sizes."""
    torch._dynamo.reset()
    coupling = halp_fx.channel_groups(model, x)
    plan = half(coupling)
    small = halp_fx.rewrite(model, plan, x, coupling=coupling)
    made = []

    def counting(graph: fx.GraphModule, inputs: Any, **options: Any) -> Any:
        made.append(graph)
        return BACKEND(graph, inputs, **options)

    options = {"plan": plan, "inner": "eager"}
    fast = torch.compile(model, backend=counting, fullgraph=True, options=options)
    worst = 0.0
    with torch.no_grad():
        for batch in (x, torch.cat([x, x]), torch.cat([x, x, x])):
            worst = max(worst, difference(fast(batch), small(batch)))
    return {"deviation": worst, "graphs": len(made), "more frozen": 0}


def captured(model: nn.Module, x: torch.Tensor, how: str) -> dict[str, Any]:
    """The captured graph, pruned, beside its zeroed twin."""
    graph = fx.symbolic_trace(model) if how == "fx" else torch.export.export(model, (x,)).module()
    coupling = halp_fx.channel_groups(graph, x)
    plan = half(coupling)
    small = halp_fx.rewrite(graph, plan, x, coupling=coupling)
    twin = halp_fx.zero(graph, plan, x, coupling=coupling)
    with torch.no_grad():
        found = difference(small(x), twin(x))
    more = len(coupling.frozen) - len(halp_fx.channel_groups(model, x).frozen)
    return {"deviation": found, "graphs": 1, "more frozen": more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="+", choices=("backend", "fx", "export"))
    parser.add_argument("--library", choices=("torchvision", "timm"), default="torchvision")
    parser.add_argument("--networks", nargs="+", help="by name; default: all that are listed here")
    args = parser.parse_args()
    names = args.networks or (NETWORKS if args.library == "torchvision" else TIMM)
    warnings.simplefilter("ignore")
    logging.getLogger("halp_fx").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}\n{'network':22}{'way':9}{'deviation':>11}{'graphs':>8}{'frozen':>8}{'s':>7}")
    bad = 0
    for name in names:
        for way in args.ways:
            model, x = network(name)
            begun = time.perf_counter()
            try:
                row = by_backend(model, x) if way == "backend" else captured(model, x, way)
            except Exception as error:
                lines = [line for line in str(error).splitlines() if line]
                print(f"{name:22}{way:9} {type(error).__name__}: {' '.join(lines[:2])[:160]}", flush=True)
                bad += 1
                continue
            bad += not row["deviation"] <= LIMIT
            took = time.perf_counter() - begun
            print(
                f"{name:22}{way:9}{row['deviation']:11.1e}{row['graphs']:8}{row['more frozen']:+8}{took:7.1f}",
                flush=True,
            )
    print(f"{bad} failed" if bad else "all equal")


if __name__ == "__main__":
    main()
