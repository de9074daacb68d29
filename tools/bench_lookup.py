"""What pricing a population of plans at once saves, against pricing them one by one.

    OMP_NUM_THREADS=1 python tools/bench_lookup.py [--plans 10000] [--device cuda]

ResNet-50 with its counted MACs, or with `--measured` its latency table of this machine. Costs must agree before a
figure is reported. One by one: `WidthProblem.evaluate`, on a part of the plans, scaled up.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
import torchvision

import halp_fx
from halp_fx.latency import Cost, MacsCost, MeasuredLatency
from halp_fx.latency.pricing import PriceList
from halp_fx.pruning.widths import build_problem, width_options
from halp_fx.scoring.values import WidthValues
from halp_fx.solver import WidthProblem


def problem_of(cost: Cost) -> WidthProblem:
    coupling = halp_fx.channel_groups(torchvision.models.resnet50(), torch.randn(1, 3, 224, 224))
    options = {g.name: width_options(g) for g in coupling.prunable}
    values = {g.name: WidthValues.of_scores(np.ones(g.size)) for g in coupling.prunable}
    return build_problem(coupling, values, options, cost.tables(coupling, options), {cost.resource: 1e12}, cost.unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=200, help="plans that are priced one by one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measured", action="store_true")
    given = parser.parse_args()
    problem = problem_of(MeasuredLatency() if given.measured else MacsCost())
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.choice(g.widths, given.plans) for g in problem.groups.values()], 1)
    choices = [dict(zip(problem.groups, row, strict=True)) for row in drawn[: given.sample].tolist()]
    start = time.perf_counter()
    expected = [sum(problem.evaluate(choice)[1].values()) for choice in choices]
    alone = (time.perf_counter() - start) / len(choices) * given.plans

    start = time.perf_counter()
    prices = PriceList.of(problem, given.device)
    packed = time.perf_counter() - start
    widths = torch.from_numpy(drawn).to(given.device)
    found = prices.totals(widths)
    np.testing.assert_allclose(found.sum(1).cpu().numpy()[: len(expected)], expected, rtol=1e-9)
    best = []
    for _ in range(7):
        start = time.perf_counter()
        prices.totals(widths)
        if given.device == "cuda":
            torch.cuda.synchronize()
        best.append(time.perf_counter() - start)
    once = float(np.median(best))
    print(
        f"{given.plans:,} plans, {len(problem.groups)} groups, {len(problem.costs)} tables, {given.device}: one by one "
        f"{alone:.2f} s, at once {once * 1e3:.1f} ms ({alone / once:,.0f} times faster); packing the tables once "
        f"{packed * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
