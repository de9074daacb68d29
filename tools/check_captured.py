"""Networks captured by other tools, pruned, and compared: float64, random weights, half of all channels.

    python tools/check_captured.py backend            # torch.compile(backend="halp_fx") with an eager plan
    python tools/check_captured.py fx export          # the captured graph beside its zeroed twin
    python tools/check_captured.py backend --library timm
    python tools/check_captured.py pass-fx pass-manager pass-module pass-program --networks resnet18 ghostnet_050

The `pass-` ways put PruneChannels with the plan of `halp_fx.prune` (half of the MACs) on a graph of `symbolic_trace`,
on the same in a PassManager between other passes, on the module of an exported program, and on the program, and
compare with the network that `prune` returned.

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
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager

import halp_fx
from halp_fx.compiling import BACKEND
from halp_fx.passes import PruneChannels

LIMIT = 1e-10
WAYS = ("backend", "fx", "export", "pass-fx", "pass-manager", "pass-module", "pass-program")
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
    "mobilenetv4_conv_small": {},
    "mobilenetv4_hybrid_medium": {},
    "fastvit_t8": {},
    "hgnet_tiny": {},
    "hgnetv2_b0": {},
    "convnextv2_atto": {},
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


class WithoutIdentities(PassBase):
    """Another pass of the manager's, that changes a graph in place and no output."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        silent = [n for n in graph_module.graph.nodes if n.op == "call_module" and _silent(graph_module, n)]
        for node in silent:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
        graph_module.recompile()
        return PassResult(graph_module, bool(silent))


def _silent(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    return isinstance(graph_module.get_submodule(str(node.target)), nn.Identity | nn.Dropout)


def by_pass(model: nn.Module, x: torch.Tensor, where: str) -> dict[str, Any]:
    """A captured graph after PruneChannels beside the network that `prune` returned, with its plan."""
    small = halp_fx.prune(model, 0.5, x, latency="macs", progress=False)
    prunes = PruneChannels(small.halp.plan, x)
    if where in ("fx", "manager"):
        graph = fx.symbolic_trace(model)
        beside = [WithoutIdentities(), prunes, WithoutIdentities()]
        one = PassManager(passes=beside, steps=2, run_checks_after_each_pass=True) if where == "manager" else prunes
        after = one(graph).graph_module
    else:
        program = torch.export.export(model, (x,))
        after = prunes(program.module()).graph_module if where == "module" else prunes.on_exported(program).module()
    sizes = [sum(p.numel() for p in net.parameters()) for net in (after, small, model)]
    assert sizes[1] < sizes[2], "nothing was pruned"
    assert sizes[0] == sizes[1], f"the graph has {sizes[0]:,} parameters, the network {sizes[1]:,}"
    with torch.no_grad():
        return {"deviation": difference(after(x), small(x)), "graphs": 1, "more frozen": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="+", choices=WAYS)
    parser.add_argument("--library", choices=("torchvision", "timm"), default="torchvision")
    parser.add_argument("--networks", nargs="+", help="by name; default: all that are listed here")
    args = parser.parse_args()
    names = args.networks or (NETWORKS if args.library == "torchvision" else TIMM)
    warnings.simplefilter("ignore")
    logging.getLogger("halp_fx").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}\n{'network':32}{'way':13}{'deviation':>11}{'graphs':>8}{'frozen':>8}{'s':>7}")
    bad = 0
    for name in names:
        for way in args.ways:
            model, x = network(name)
            begun = time.perf_counter()
            try:
                if way.startswith("pass-"):
                    row = by_pass(model, x, way.removeprefix("pass-"))
                else:
                    row = by_backend(model, x) if way == "backend" else captured(model, x, way)
            except Exception as error:
                lines = [line for line in str(error).splitlines() if line]
                print(f"{name:32}{way:13} {type(error).__name__}: {' '.join(lines[:2])[:160]}", flush=True)
                bad += 1
                continue
            bad += not row["deviation"] <= LIMIT
            took = time.perf_counter() - begun
            print(
                f"{name:32}{way:13}{row['deviation']:11.1e}{row['graphs']:8}{row['more frozen']:+8}{took:7.1f}",
                flush=True,
            )
    print(f"{bad} failed" if bad else "all equal")


if __name__ == "__main__":
    main()
