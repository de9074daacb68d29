"""Value, certified gap and seconds of every solver method on every problem; prints and writes Markdown.

    python tools/bench_solver.py [--output docs/benchmarks_solver.md] [--quick]

Besides the stored problems it makes ResNets with up to 32 options a group, a ResNet-50 in multiples of 8 (up to 256
options, the granularity of the HALP paper), a GoogLeNet and a DenseNet-201.
Their tables are noisy, non-monotone staircases (tiles of 32 channels, 2 % noise), not measurements. A DenseNet-201 is
also traced, with counted costs, which depend on no machine. Run on one thread:
`OMP_NUM_THREADS=1 python tools/bench_solver.py`. Seconds are CPU seconds, which a busy machine changes least.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from tabulate import tabulate

from halp_fx.errors import InfeasibleError
from halp_fx.solver import CostTable, Term, WidthGroup, WidthProblem, solve
from halp_fx.solver.halp import Items, greedy_knapsack, halp_options

STORED = Path(__file__).resolve().parent.parent / "tests" / "data" / "solver_problems"
LIMITS = {"resnet50-8": 0.3, "resnet101-32": 2.0, "densenet201": 10.0}
"""Seconds that `auto` is meant to take at most, by the start of the problem's name."""


class MadeUp:
    """Collects the groups and costs of a made-up network, with latencies in microseconds."""

    def __init__(self, name: str, options: int, seed: int = 0) -> None:
        self.name = name
        self.options = options
        self.rng = np.random.default_rng(seed)
        self.groups: dict[str, WidthGroup] = {}
        self.costs: list[CostTable] = []

    def group(self, name: str, width: int, multiple: int = 1) -> str:
        """A group with evenly spaced widths and concave value: prefix sums of sorted random saliencies."""
        count = min(self.options, width // multiple)
        widths = np.unique(np.rint(np.linspace(width / count, width, count) / multiple).astype(int) * multiple)
        saliency = np.sort(self.rng.gamma(0.5, self.rng.lognormal(0, 0.5), width))[::-1]
        self.groups[name] = WidthGroup(widths, np.cumsum(saliency)[widths - 1])
        return name

    def layer(self, name: str, inputs: Sequence[str], out: str | None, size: int, kernel: int = 1) -> None:
        """A convolution on size x size (with `out`), or a memory-bound operator on its inputs (without)."""
        highest = sum(int(self.groups[g].widths[-1]) for g in inputs) if inputs else 3
        lowest = sum(int(self.groups[g].widths[0]) for g in inputs) if inputs else 3
        x = np.unique(np.rint(np.linspace(lowest, highest, 17)).astype(int))
        y = self.groups[out].widths if out is not None else np.array([1])
        tiles = np.ceil(x / 32) * np.ceil(y / 32)[:, None] if out is not None else np.ceil(x / 32)[None] / 32
        work = size * size * kernel * kernel * tiles * 32 * 32
        table = (8 + work * 2e-6) * self.rng.normal(1, 0.02, work.shape)
        output = (Term(out),) if out is not None else ()
        terms = tuple(Term(g) for g in inputs)
        self.costs.append(CostTable(name, terms, output, in_widths=x, out_widths=y, table=table))

    def problem(self, share: float) -> WidthProblem:
        """The problem with a budget of this share of the dense latency."""
        free = WidthProblem(self.name, self.groups, tuple(self.costs), {})
        _, dense = free.evaluate({name: int(g.widths[-1]) for name, g in self.groups.items()})
        budget = share * dense["latency"]
        return replace(free, name=f"{self.name}@{share}", budgets={"latency": budget})


def resnet(blocks: Sequence[int], options: int, share: float, multiple: int = 1) -> WidthProblem:
    """A bottleneck ResNet: one group a stage, two a block; convolutions, batch norms and adds."""
    depth = 2 + 3 * sum(blocks)
    net = MadeUp(f"resnet{depth}-{options}" if multiple == 1 else f"resnet{depth}-by{multiple}", options)
    before = net.group("stem", 64, multiple)
    net.layer("conv1", [], before, 112, 7)
    for stage, count in enumerate(blocks):
        inner, size = 64 * 2**stage, 56 // 2**stage
        out = net.group(f"stage{stage + 1}", 4 * inner, multiple)
        net.layer(f"layer{stage + 1}.0.downsample", [before], out, size)
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            one, two = (net.group(f"{name}.conv{i}", inner, multiple) for i in (1, 2))
            net.layer(f"{name}.conv1", [before], one, size)
            net.layer(f"{name}.conv2", [one], two, size, 3)
            net.layer(f"{name}.conv3", [two], out, size)
            for group in (one, two, out):
                net.layer(f"{name}.norm.{group}", [group], None, size)
            net.layer(f"{name}.add", [out], None, size)
            before = out
    return net.problem(share)


def googlenet(share: float) -> WidthProblem:
    """Nine Inception modules of four joined paths, two with a reduction in front; widths are multiples of 8."""
    modules = [
        (28, 64, 96, 128, 16, 32, 32), (28, 128, 128, 192, 32, 96, 64), (14, 192, 96, 208, 16, 48, 64),
        (14, 160, 112, 224, 24, 64, 64), (14, 128, 128, 256, 24, 64, 64), (14, 112, 144, 288, 32, 64, 64),
        (14, 256, 160, 320, 32, 128, 128), (7, 256, 160, 320, 32, 128, 128), (7, 384, 192, 384, 48, 128, 128),
    ]  # fmt: skip
    net = MadeUp("googlenet-by8", 256)
    joined = [net.group("conv3", 192, 8)]
    net.layer("conv3", [], "conv3", 56, 3)
    for number, (size, one, reduce3, three, reduce5, five, pool) in enumerate(modules):
        paths = []
        for path, reduced, width in (("1", 0, one), ("3", reduce3, three), ("5", reduce5, five), ("p", 0, pool)):
            name, source = f"inception{number}.{path}", joined
            if reduced:
                source = [net.group(f"{name}.reduce", reduced, 8)]
                net.layer(f"{name}.reduce", joined, source[0], size)
            net.layer(name, source, net.group(name, width, 8), size, 3 if reduced else 1)
            net.layer(f"{name}.norm", [name], None, size)
            paths.append(name)
        joined = paths
    net.layer("pool", joined, None, 7)
    return net.problem(share)


def densenet201(options: int, share: float) -> WidthProblem:
    """Growth 32, blocks of 6, 12, 48 and 32 layers (norm, conv 1x1 to 128, norm, conv 3x3), halving transitions."""
    net = MadeUp(f"densenet201-{options}", options)
    joined = [net.group("conv0", 64)]
    net.layer("conv0", [], "conv0", 112, 7)
    for block, count in enumerate((6, 12, 48, 32)):
        size = 56 // 2**block
        for index in range(count):
            name = f"denseblock{block + 1}.denselayer{index + 1}"
            inner, grown = net.group(f"{name}.conv1", 128), net.group(f"{name}.conv2", 32)
            net.layer(f"{name}.norm1", joined, None, size)
            net.layer(f"{name}.conv1", joined, inner, size)
            net.layer(f"{name}.norm2", [inner], None, size)
            net.layer(f"{name}.conv2", [inner], grown, size, 3)
            joined = [*joined, grown]
        if block < 3:
            width = sum(int(net.groups[g].widths[-1]) for g in joined) // 2
            out = net.group(f"transition{block + 1}", width)
            net.layer(f"transition{block + 1}.norm", joined, None, size)
            net.layer(f"transition{block + 1}.conv", joined, out, size)
            joined = [out]
    net.layer("norm5", joined, None, 7)
    return net.problem(share)


def traced_table() -> str:
    """Markdown: `auto` on the problem that `prune` makes of torchvision's DenseNet-201 (224 x 224, random weights)."""
    import torch
    import torchvision

    import halp_fx
    from halp_fx.pruning.widths import build_problem, width_options

    torch.manual_seed(0)
    model = torchvision.models.densenet201(weights=None).eval()
    coupling = halp_fx.channel_groups(model, torch.randn(1, 3, 224, 224))
    scores = halp_fx.score(model, coupling).scores
    options = {group.name: width_options(group) for group in coupling.prunable}
    rows = []
    for cost in (halp_fx.MacsCost(), halp_fx.RooflineCost(flops_per_s=1e11, bytes_per_s=2e10)):
        tables, dense = cost.tables(coupling, options), cost.total(coupling)
        for share in (0.5, 0.3):
            budgets = {cost.resource: share * dense}
            problem = build_problem(coupling, scores, options, tables, budgets, cost.unit)
            s, seconds = timed(solve, problem, work_limit=300.0)
            used = f"{100 * s.costs[cost.resource] / budgets[cost.resource]:.2f} %"
            verdict = _seconds("densenet201", "auto", seconds)
            name = f"densenet201, {type(cost).__name__}"
            rows.append([name, share, len(options), len(tables), f"{100 * s.gap:.4f} %", used, verdict, s.status])
    heads = ["problem", "budget", "groups", "tables", "certified gap", "of budget", "CPU seconds", "status"]
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def scalar_knapsack(items: Items, capacity: int) -> list[int]:
    """Algorithm 1 of arXiv 2110.10811 as it is printed: a loop over capacities in plain Python, two buffers."""
    best = [0.0] * (capacity + 1)
    kept = []
    for values, weights in items:
        count = [0] * (capacity + 1)
        for rank, (value, weight) in enumerate(zip(values, weights, strict=True)):
            new_best, new_count = best[:], count[:]
            for c in range(weight, capacity + 1):
                with_item = best[c - weight] + value
                if with_item > best[c] and count[c - weight] == rank:
                    new_best[c], new_count[c] = with_item, rank + 1
            best, count = new_best, new_count
        kept.append(count)
    taken = [0] * len(items)
    for group in range(len(items) - 1, -1, -1):
        taken[group] = kept[group][capacity]
        capacity -= sum(items[group][1][: taken[group]])
    return taken


def timed(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, float]:
    """The result, and the CPU seconds of this process: wall-clock time of one thread on an idle core."""
    start = time.process_time()
    result = function(*args, **options)
    return result, time.process_time() - start


def methods_table(problems: Sequence[WidthProblem], known: dict[str, float], quick: bool) -> str:
    """Markdown: every method on every problem."""
    rows = []
    for problem in problems:
        large = problem.name not in known
        for method in ("auto", "lagrangian", "exact", "halp", "greedy", "uniform"):
            if large and (method == "greedy" or (quick and method in ("exact", "halp"))):
                continue
            try:
                s, seconds = timed(solve, problem, method, work_limit=300.0)
            except InfeasibleError as error:
                rows.append([problem.name, method, f"infeasible, minimum {error.minimum:.6g}", *[""] * 5])
                continue
            optimum = known.get(problem.name)
            share = f"{100 * s.value / optimum:.3f} %" if optimum else ""
            used = s.costs["latency"] / problem.budgets["latency"]
            row = [f"{s.value:.6g}", share, f"{100 * s.gap:.4f} %", f"{100 * used:.2f} %"]
            rows.append([problem.name, method, *row, _seconds(problem.name, method, seconds), s.status])
    heads = ["problem", "method", "value", "of optimum", "certified gap", "of budget", "CPU seconds", "status"]
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def _seconds(name: str, method: str, seconds: float) -> str:
    """Seconds, with the verdict where `LIMITS` has a limit."""
    limit = next((limit for start, limit in LIMITS.items() if name.startswith(start)), None)
    if method != "auto" or limit is None:
        return f"{seconds:.3f}"
    return f"{seconds:.3f} ({'within' if seconds <= limit else 'OVER'} {limit:g})"


def published_table(problems: Sequence[WidthProblem]) -> str:
    """Markdown: `auto` against the published DP, at the same budget and at the latency that the DP ends at."""
    rows = []
    for problem in problems:
        timings, options = [], []
        for knapsack in (greedy_knapsack, scalar_knapsack):
            chosen_options, seconds = timed(halp_options, problem, knapsack=knapsack)
            options.append(chosen_options)
            timings.append(seconds)
        assert (options[0] == options[1]).all(), "the two forms of the DP disagree"
        chosen = zip(problem.groups.items(), options[0], strict=True)
        theirs, costs = problem.evaluate({name: int(g.widths[k]) for (name, g), k in chosen})
        ours, our_seconds = timed(solve, problem)
        equal = solve(replace(problem, budgets={"latency": costs["latency"]}))
        assert equal.value >= theirs * (1 - 1e-9), problem.name
        rows.append(
            [
                problem.name,
                f"{theirs:.6g}",
                f"{100 * costs['latency'] / problem.budgets['latency']:.2f} %",
                f"{equal.value:.6g} ({100 * (equal.value / theirs - 1):+.2f} %)",
                f"{ours.value:.6g} ({100 * (ours.value / theirs - 1):+.2f} %)",
                f"{timings[1]:.1f}",
                f"{timings[0]:.2f}",
                f"{our_seconds:.3f}",
                f"{timings[1] / our_seconds:.0f}x / {timings[0] / our_seconds:.0f}x",
            ]
        )
    heads = [
        "problem", "DP value", "DP latency of budget", "auto at that latency", "auto at the budget",
        "DP s, plain Python", "DP s, numpy", "auto s", "ratio",
    ]  # fmt: skip
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--quick", action="store_true", help="leave out the slow rows")
    options = parser.parse_args()
    stored, known = [], {}
    for path in sorted(STORED.glob("*.json")):
        stored.append(WidthProblem.from_json(path))
        known[stored[-1].name] = json.loads(path.read_text(encoding="utf-8"))["known"]["optimal_value"]
    made = [
        resnet((3, 4, 6, 3), 32, 0.55),
        resnet((3, 4, 6, 3), 256, 0.55, multiple=8),
        googlenet(0.5),
        resnet((3, 4, 23, 3), 32, 0.5),
        resnet((3, 4, 23, 3), 32, 0.3),
        densenet201(8, 0.5),
        densenet201(16, 0.5),
        densenet201(32, 0.5),
    ]
    compared = [p for p in stored if p.name.startswith("resnet")] + ([] if options.quick else made[:2])
    processor = next(
        (line.split(":")[1].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    text = "\n".join(
        [
            f"{processor}, one core, one thread; Python {platform.python_version()}, numpy {np.__version__}, "
            f"scipy {scipy.__version__}; {datetime.date.today().isoformat()}.",
            "",
            methods_table([*stored, *made], known, options.quick),
            "",
            published_table(compared),
            "",
            traced_table(),
            "",
        ]
    )
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


def _read(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    main()
