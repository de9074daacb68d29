"""One model -> a row of the table: pruned to half, rewritten, compared with its zeroed twin, trained for a step."""

from __future__ import annotations

import contextlib
import random
import resource
import time
import unittest.mock
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

import halp_fx
from halp_fx.coupling.checking import check_coupling
from halp_fx.model.copying import copied
from halp_fx.model.inputs import normalize_inputs, own
from halp_fx.tracing.graph import of, op

from .libraries import LIBRARIES

ERROR_LIMIT = 1e-5
NOISE = 1e-6  # Parameters that differ by less are constant: BLIP's are drawn with a deviation of 1e-10.
HEARD = 1e-8  # At least so much do outputs differ, relatively, when the inputs do.


def check(library: str, name: str, min_params: float = 0.0, max_params: float = float("inf")) -> dict[str, Any]:
    """One model, in this process: a value for each of `tables.FIELDS`."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    row: dict[str, Any] = {"model": name}
    if min_params > 0 or max_params < float("inf"):
        row["params_m"] = round(_parameters(_without_memory(library, name)) / 1e6, 2)
        if not min_params <= row["params_m"] <= max_params:
            return {**row, "result": "other size"}
    model = LIBRARIES[library].create(name)
    row["params_m"] = round(_parameters(model) / 1e6, 2)
    row["convs"] = sum(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
    model.eval()
    randomize(model)
    inputs = LIBRARIES[library].inputs(name, model)
    enliven(model, inputs)
    began = time.perf_counter()
    coupling = halp_fx.channel_groups(model, inputs)
    row.update(trace_couple_s=round(time.perf_counter() - began, 2), kind=kind(coupling, row["convs"]))
    check_coupling(coupling)
    row.update(groups=len(coupling.prunable), frozen=len(coupling.frozen))
    reasons = "; ".join(sorted(set(coupling.frozen.values()) - {"reaches the model's output"}))[:300]
    if not coupling.prunable:
        return {**row, "result": "fail", "detail": f"nothing can be pruned: {reasons}"}
    pick = random.Random(0)
    plan = {g.name: sorted(pick.sample(range(g.size), max(1, g.size // 2))) for g in coupling.prunable}
    began = time.perf_counter()
    small = halp_fx.rewrite(model, plan, inputs, coupling=coupling)
    row["rewrite_s"] = round(time.perf_counter() - began, 2)
    row["kept"] = round(_parameters(small) / _parameters(model), 3)
    row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    twin = halp_fx.zero(model, plan, inputs, coupling=coupling)
    error, still = compare(small, twin, model, inputs, LIBRARIES[library].heads, moving(coupling, plan))
    del twin
    trains = backward(small, inputs, model)
    return {
        **row,
        "result": "pass" if error <= ERROR_LIMIT and not trains and not still else "fail",
        "error": f"{error:.1e}",
        "total_s": round(time.perf_counter() - start, 1),
        "detail": trains or still or reasons,
    }


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _without_memory(library: str, name: str) -> nn.Module:
    try:
        with torch.device("meta"):
            return LIBRARIES[library].create(name)
    except (NotImplementedError, RuntimeError):
        return LIBRARIES[library].create(name)


def kind(coupling: Any, convolutions: int) -> str:
    """Whether it is a "cnn": at least 8 convolutions and no product of two activations (attention)."""
    products = {"bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu"}
    ops = {op(n) for n in coupling.traced.graph.nodes}
    return "attention" if ops & products else "cnn" if convolutions >= 8 else "other"


def randomize(model: nn.Module) -> None:
    """No affine parameter, statistic or constant tensor at its initial value.

    A channel that is zero by luck would hide a mistake, and behind a classifier that starts at zero all networks are
    the same.
    """
    generator = torch.Generator().manual_seed(0)
    parameters = {id(p) for p in model.parameters()}
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            values = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) if tensor.dim() < 2 else None
            if tensor.dim() == 1 or (tensor.dim() == 0 and id(tensor) in parameters):
                tensor.copy_(values + 0.5)
            elif id(tensor) in parameters and tensor.max() - tensor.min() < NOISE:
                # Gains keep their size: sixty layers with a twentieth of it would put out nothing.
                value = float(tensor.flatten()[0])
                size = value if abs(value) > NOISE else 0.05
                tensor.copy_(size * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))


def enliven(model: nn.Module, inputs: Any) -> None:
    """Statistics of batch norms near those of their inputs.

    They are taken from a copy, so that the model has not run yet when it is traced: some forwards install hooks or fill
    caches in their first run.

    With variances near 1 everywhere the activations of many networks die away from layer to layer, and in the end the
    outputs are made of biases: what an early layer computes is then far below the limit of the comparison.
    """
    generator = torch.Generator().manual_seed(0)

    def follow(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        rows = args[0].detach().transpose(0, 1).flatten(1)
        if rows.shape[0] != len(module.running_mean) or not rows.numel():
            return
        mean, spread = rows.mean(1), rows.var(1, correction=0)
        noise = torch.rand(2, len(rows), generator=generator)
        # A dead channel has something of the spread of others, and one of a single element the spread of all.
        spread = spread.clamp_min(0.1 * float(spread.mean()) or float(rows.var(correction=0)) or 1.0)
        module.running_mean.copy_(mean + (noise[0] - 0.5) * spread.sqrt())
        module.running_var.copy_(spread * (noise[1] + 0.5))

    names = [n for n, m in model.named_modules() if _is_norm(m)]
    if not names:
        return
    runner = copied(model)
    for name in names:
        runner.get_submodule(name).register_forward_pre_hook(follow)
    args, kwargs = normalize_inputs(runner, own(inputs))
    with torch.no_grad():
        runner(*args, **kwargs)
        for name in names:
            for part in ("running_mean", "running_var"):
                getattr(model.get_submodule(name), part).copy_(getattr(runner.get_submodule(name), part))


def _is_norm(module: nn.Module) -> bool:
    return all(torch.is_tensor(getattr(module, f"running_{part}", None)) for part in ("mean", "var"))


def compare(
    small: nn.Module,
    twin: nn.Module,
    dense: nn.Module,
    inputs: Any,
    heads: Sequence[str] = (),
    move: Sequence[bool] = (),
) -> tuple[float, str]:
    """The largest difference between the outputs of small and twin, and why the comparison says nothing, if so.

    In float64, and in shares of what other inputs change: an output that is mostly bias hides what layers compute.
    `move` says of every output of the model whether it must differ from the dense network's. The models are converted
    in place, the dense network in a copy, and each is run and left before the next one is converted.
    """
    got, want = (outputs(widened(m), inputs, heads) for m in (small, twin))
    twin._apply(lambda t: converted(t, torch.float32))
    full = outputs(widened(copied(dense)), inputs, heads)
    other = outputs(small, disturbed(inputs), heads)
    error = max((difference(a, b) for a, b in zip(got, want, strict=True)), default=float("inf"))
    heard = max((difference(a, b) for a, b in zip(other, got, strict=False)), default=0.0)
    must = [*move] if len(move) == len(want) and not heads else [True] * len(want)
    still = [i for i, (a, b) in enumerate(zip(full, want, strict=True)) if must[i] and difference(a, b) < ERROR_LIMIT]
    why = ""
    if not any(must):
        why = "no output depends on what was pruned"
    elif still:
        why = f"outputs {still} of {len(want)} are those of the dense network: nothing was compared"
    elif heard < HEARD:
        why = f"the outputs hardly depend on the inputs ({heard:.0e})"
    return error / min(1.0, max(heard, HEARD)), why


def converted(value: Any, dtype: torch.dtype = torch.float64) -> Any:
    """A tensor of floats in this dtype, one of complex numbers in what belongs to it; anything else as it is."""
    if not torch.is_tensor(value) or not (value.is_floating_point() or value.is_complex()):
        return value
    return value.to(dtype.to_complex() if value.is_complex() else dtype)


def widened(model: nn.Module) -> nn.Module:
    """The model itself in float64: `Module.to` would drop imaginary parts."""
    return model._apply(converted)


def disturbed(inputs: Any) -> Any:
    """Other images; where there are none, other vectors; where there are none, the same tokens in another order."""
    floats = [t for t in tree_leaves(inputs) if torch.is_tensor(t) and (t.is_floating_point() or t.is_complex())]
    least = min(3, max((t.dim() for t in floats), default=0))
    noise = torch.Generator().manual_seed(1)

    def other(value: Any) -> Any:
        if not floats and torch.is_tensor(value):
            return value.flip(-1) if value.dim() else value
        chosen = any(value is t for t in floats) and value.dim() >= least
        return value + torch.randn(value.shape, generator=noise.manual_seed(1)) if chosen else value

    return tree_map(other, inputs)


def outputs(model: nn.Module, inputs: Any, heads: Sequence[str] = ()) -> list[torch.Tensor]:
    """Every floating point tensor that the model returns in eval mode, or, if it has them, that its `heads` return."""
    args, kwargs = cast(model, inputs)
    modules = dict(model.named_modules())
    found: list[Any] = []
    hooks = [m.register_forward_hook(lambda *call: found.append(call[2])) for n in heads if (m := modules.get(n))]
    try:
        with torch.no_grad():
            try:
                result = run_wide(model.eval(), args, kwargs)
            except RuntimeError:
                found.clear()
                result = run_wide(model, args, kwargs, floats=False)
    finally:
        for hook in hooks:
            hook.remove()
    results = [torch.view_as_real(t) if t.is_complex() else t for t in leaves(found if hooks else result)]
    return [t for t in results if t.is_floating_point() and t.numel()]


def run_wide(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], floats: bool = True) -> Any:
    """A forward in float64, with seeded random numbers. `floats`: `.float()` gives float64, too.

    RAFT needs that for grids of its own, and EoMT for a mask: an attention in float64 takes a float32 mask without a
    word and reads beyond it. RT-DETR must not have it, as it multiplies the result by constants of float32.
    """
    wide = unittest.mock.patch.object(torch.Tensor, "float", lambda t: t.to(torch.float64))
    torch.manual_seed(0)
    with wide if floats else contextlib.nullcontext(), default_dtype(torch.float64):
        return model(*args, **kwargs)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that a forward makes have the dtype of its parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cast(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments in float64."""
    return normalize_inputs(model, own(tree_map(converted, inputs)))


def leaves(result: Any) -> list[torch.Tensor]:
    """The tensors in a result; of an object that is no container, those in its fields."""
    found: list[torch.Tensor] = []
    for leaf in tree_leaves(result):
        if torch.is_tensor(leaf):
            found.append(leaf)
        elif hasattr(leaf, "__dict__"):
            found += [v for v in tree_leaves(vars(leaf)) if torch.is_tensor(v)]
    return found


def moving(coupling: Any, plan: Any) -> list[bool]:
    """Of every floating point output, whether the graph leads to it from a tensor that the plan cuts."""
    cut = {m.axis.tensor for g in coupling.groups if len(plan.get(g.name, range(g.size))) < g.size for m in g.members}
    reached: dict[Any, bool] = {}
    for node in coupling.traced.graph.nodes:
        itself = node.op == "get_attr" and str(node.target) in cut
        reached[node] = itself or any(reached[n] for n in node.all_input_nodes)
    (result,) = node.args
    specs = [(n, of(n).one) for n in result]
    numbers = [(n, spec) for n, spec in specs if spec.dtype.is_floating_point or spec.dtype.is_complex]
    return [reached[n] for n, spec in numbers if 0 not in spec.shape]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative, in float64; infinite where shapes differ. What is not finite must be so in both."""
    if a.shape != b.shape or not a.is_floating_point():
        return float("inf")
    a, b = a.double(), b.double()
    finite = torch.isfinite(b)
    if not finite.all():
        if not torch.equal(finite, torch.isfinite(a)) or not torch.equal(
            a[~finite].nan_to_num(), b[~finite].nan_to_num()
        ):
            return float("inf")
        a, b = a[finite], b[finite]
    return float((a - b).norm() / b.norm().clamp_min(1e-12)) if a.numel() else 0.0


def backward(model: nn.Module, inputs: Any, dense: nn.Module) -> str:
    """A training step of a model in float64, on the inputs twice; returns what went wrong. Detectors of torchvision
    want targets in training, and so does what else fails in train mode where the dense network does: their gradients
    are taken in eval mode. Where the dense network has none there, either, nothing is wrong."""
    listed = isinstance(next(iter(cast(model, inputs)[0]), None), list)
    failure = _step(model, inputs, not listed, 1 if listed else 2)
    if failure and not listed and _step(widened(dense), inputs, True, 2).startswith(failure[:60]):
        failure = _step(model, inputs, False, 2)
        if failure and _step(dense, inputs, False, 2).startswith(failure[:60]):
            return ""
    return failure


def _step(model: nn.Module, inputs: Any, training: bool, times: int) -> str:
    args, kwargs = cast(model, inputs)
    model.train(training)
    args, kwargs = tree_map(lambda t: torch.cat([t] * times) if torch.is_tensor(t) else t, (args, kwargs))
    try:
        try:
            result = run_wide(model, args, kwargs)
        except RuntimeError:
            result = run_wide(model, args, kwargs, floats=False)
        results = [t for t in leaves(result) if t.requires_grad]
        sum(t.abs().sum() if t.is_complex() else t.sum() for t in results).backward()
    except Exception as failure:
        return f"backward: {type(failure).__name__}: {failure}"[:300]
    return "" if results else "backward: no output requires a gradient"
