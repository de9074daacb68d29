"""Loops as others write them: what steps, averages, or runs twice beside the pruner."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from test_pruner import CALL, adam, batches, masked_slots, sgd, train
from test_rebind import X, network
from torch import nn
from torch.nn import functional as F
from torch.optim import swa_utils

import halp_fx
from halp_fx import TrainingError


class Sharp(torch.optim.Optimizer):
    """Sharpness-aware (arXiv 2010.01412), as it is usually written: two backward passes, and the step of an optimizer
    that it holds, whose state is its own."""

    def __init__(self, parameters):
        super().__init__(parameters, {"rho": 0.05})
        self.base_optimizer = torch.optim.SGD(self.param_groups, 0.05, momentum=0.9)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def climb(self):
        for parameter in (p for group in self.param_groups for p in group["params"]):
            self.state[parameter]["old"] = parameter.data.clone()
            parameter.add_(parameter.grad, alpha=0.05)

    @torch.no_grad()
    def descend(self):
        for parameter in (p for group in self.param_groups for p in group["params"]):
            parameter.data = self.state[parameter]["old"]
        self.base_optimizer.step()


class Slow(torch.optim.Optimizer):
    """Lookahead (arXiv 1907.08610): its weights lie in the state of the optimizer that it holds. It runs no hooks."""

    def __init__(self, base):
        self.base, self.param_groups, self.state, self.steps = base, base.param_groups, {}, 0

    @torch.no_grad()
    def step(self):
        self.base.step()
        self.steps += 1
        for parameter in (p for group in self.param_groups for p in group["params"]) if self.steps % 3 == 0 else ():
            slow = self.base.state[parameter].setdefault("slow", parameter.detach().clone())
            parameter.copy_(slow.lerp_(parameter, 0.5))


def two(model):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return [torch.optim.Muon(matrices, 0.01), torch.optim.AdamW([p for p in model.parameters() if p.ndim != 2], 0.01)]


OPTIMIZERS = {
    "SGD": sgd,
    "Adam, fused": lambda m: torch.optim.Adam(m.parameters(), 0.01, fused=True, amsgrad=True),
    "Muon and AdamW": two,
    "Lookahead": lambda m: Slow(sgd(m)),
    "SAM": lambda m: Sharp(m.parameters()),
}


def run(make, mode):
    """A network, its average, and its pruner, after training, and before `finish`."""
    model = network().train()
    made = make(model)
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=made, averages=[average], mode=mode, **CALL)
    for number, (x, y) in enumerate(batches(14)):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if isinstance(made, Sharp):
            made.climb()
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
        pruner.step()
        for optimizer in made if isinstance(made, list) else [made]:
            optimizer.descend() if isinstance(optimizer, Sharp) else optimizer.step()
        average.update_parameters(model)
        if mode == "mask" and number in (8, 13):
            for held in (model, average.module):
                gone = masked_slots(held, pruner.plan)
                assert not any(p.reshape(-1)[gone[name]].any() for name, p in held.named_parameters())
    return model, average.module, pruner


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_masks_and_cuts_come_to_one_network(kind):
    """Two mechanisms that share nothing but the plan; the averages, too, which are what they are before the cut."""
    found = []
    for mode in ("shrink", "mask"):
        model, average, pruner = run(OPTIMIZERS[kind], mode)
        before = average.eval()(X)
        pruner.finish()
        torch.testing.assert_close(average(X), before, rtol=1e-9, atol=1e-12)
        found.append((pruner.plan, {**model.state_dict(), **average.state_dict(prefix="average.")}))
    (plan, shrunk), (same, masked) = found
    assert plan == same
    assert len(plan["3.conv1"]) < 8
    for name, tensor in shrunk.items():
        torch.testing.assert_close(masked[name], tensor, rtol=1e-7, atol=1e-9)


def test_prune_and_rewrite_take_several_optimizers_along():
    model = network().train()
    optimizers = two(model)
    F.cross_entropy(model(X), torch.arange(4)).backward()
    for optimizer in optimizers:
        optimizer.step()
    small = halp_fx.prune(model, 0.5, X[:1], optimizer=optimizers, latency="macs", progress=False, round_to=1)
    small = halp_fx.rewrite(small, halp_fx.Plan({"4": range(2)}), X[:1], optimizer=optimizers)
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            assert all(t.shape == parameter.shape for t in state.values() if t.numel() > 1)
    with pytest.raises(TrainingError, match=r"str is no torch\.optim\.Optimizer"):
        halp_fx.rewrite(small, halp_fx.Plan(), X[:1], optimizer=[optimizers[1], "Muon"])


@pytest.mark.parametrize("mode", ["shrink", "mask"])
def test_a_closure_may_hold_the_pruner(mode):
    plans = []
    for inside in (False, True):
        model = network().train()
        optimizer = adam(model)
        pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, mode=mode, **CALL)
        for x, y in batches(14):

            def closure(model=model, pruner=pruner, optimizer=optimizer, x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                pruner.step()
                return loss

            optimizer.step(closure) if inside else (closure(), optimizer.step())
        plans.append((pruner.plan, pruner.finish().state_dict()))
    assert plans[0][0] == plans[1][0]
    assert all(torch.equal(t, plans[1][1][n]) for n, t in plans[0][1].items())


def test_soft_masks_refuse_a_closure():
    """The forward in it would run without masks."""
    model = network().train()
    optimizer = sgd(model)
    halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, mode="mask", regrow=True, **CALL)
    with pytest.raises(TrainingError, match="regrow=True needs the forward before"):
        optimizer.step(lambda: F.cross_entropy(model(X), torch.arange(4)))


def started():
    model = network().float().train()
    optimizers = two(model)
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    pruner = halp_fx.Pruner(model, 0.4, X[:1].float(), optimizer=optimizers, averages=[average], **CALL)
    return model, optimizers, average, pruner


def trained(parts, start, end):
    model, optimizers, average, pruner = parts
    for x, y in list(batches(14))[start:end]:
        model.zero_grad()
        F.cross_entropy(model(x.float()), y).backward()
        pruner.step()
        for optimizer in optimizers:
            optimizer.step()
        average.update_parameters(model)


def begun(path):
    """For a process of its own: the first seven steps."""
    torch.set_num_threads(1)
    model, optimizers, average, pruner = parts = started()
    trained(parts, 0, 7)
    torch.save([part.state_dict() for part in (pruner, model, average, *optimizers)], path)


def test_a_run_goes_on_in_another_process(tmp_path):
    """Whose hashes of strings are others."""
    code = f"import test_loops; test_loops.begun({str(tmp_path / 'run.pt')!r})"
    around = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], env=around, check=True, capture_output=True)
    whole = started()
    trained(whole, 0, 14)
    model, optimizers, average, pruner = resumed = started()
    for part, state in zip((pruner, model, average, *optimizers), torch.load(tmp_path / "run.pt"), strict=True):
        part.load_state_dict(state)
    trained(resumed, 7, 14)
    assert pruner.plan == whole[3].plan
    for one, other in ((model, whole[0]), (average, whole[2])):
        assert all(torch.equal(t, other.state_dict()[n]) for n, t in one.state_dict().items())


class Rows(torch.optim.Optimizer):
    """Keeps one number a row of each matrix, as one of several Adafactors does, from its first step on."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["row"] = torch.ones(parameter.shape[:-1] + parameter.shape[-1:] * 2)


@pytest.mark.parametrize("mode", ["shrink", "mask"])
def test_a_state_that_cannot_be_cut_is_said_at_the_first_step_of_pruning(mode):
    """Not after all of the training, where masks are cut."""
    model = network().train()
    optimizer = Rows(model.parameters())
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, mode=mode, **CALL)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        model.zero_grad()
        model.eval()(X).sum().backward()
        pruner.step()
        optimizer.step()
    for further in (pruner.step, pruner.finish):
        with pytest.raises(TrainingError, match=r"Rows keeps 'row' \(shape .*\) of 0.weight"):
            further()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_gradients_with_a_graph_are_refused():
    model = network().train()
    pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL)
    with pytest.warns(UserWarning, match="create_graph=True"):
        F.cross_entropy(model(X), torch.arange(4)).backward(create_graph=True)
    with pytest.raises(TrainingError, match="gradients have a graph"):
        pruner.step()
    model.zero_grad()


def test_a_model_that_is_compiled_in_place_is_pruned():
    """`Module.compile` changes the module itself: copies are not compiled, and the module goes on to be."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model = network().train()
    optimizer = sgd(model)
    model.compile(backend=backend)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL | {"steps": 1, "interval": 2})
    assert not graphs
    counts = []
    for x, y in batches(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        pruner.step()
        optimizer.step()
        counts.append(len(graphs))
    assert counts[0] == counts[1] < counts[2] == counts[3]
    assert pruner.finish().halp.met


@pytest.mark.parametrize("regrow", [False, True])
def test_frozen_layers_stay_frozen_and_norms_in_eval_mode(regrow):
    model = network()
    frozen = [*model[0].parameters(), *model[1].parameters(), *model[3].bn1.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    model.train()
    model[1].eval()
    optimizer = sgd(nn.ModuleList([model[3], model[4], model[8]]))
    mode = {"mode": "mask", "regrow": True} if regrow else {}
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL | mode)
    for x, y in batches(13):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        pruner.step()
        optimizer.step()
    assert pruner.finish().halp.met
    assert not any(p.requires_grad or p.grad is not None for p in frozen)
    assert not model[1].training
    assert model[3].bn2.training


class Counting(nn.Sequential):
    """Keeps something beside tensors in its state dict."""

    calls = 3

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_what_is_no_tensor_in_a_state_dict_has_no_shape():
    model = Counting(*network()).train()
    optimizer, average = sgd(model), swa_utils.AveragedModel(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, averages=[average], **CALL)
    state = pruner.state_dict()
    for x, y in batches(14):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        pruner.step()
        optimizer.step()
    pruner.finish()
    assert [p.shape for p in average.module.parameters()] == [p.shape for p in model.parameters()]
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in network().parameters())
    other = Counting(*network())
    halp_fx.Pruner(other, 0.4, X[:1], optimizer=sgd(other), **CALL).load_state_dict(state)


class Frequencies(nn.Module):
    """A layer over frequencies, as in a Fourier neural operator, with complex weights or with pairs of numbers."""

    def __init__(self, pairs):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
        weight = torch.randn(8, 12, 8, 5, dtype=torch.complex128) / 8
        self.weight = nn.Parameter(torch.view_as_real(weight).clone() if pairs else weight)
        self.more = nn.Conv2d(12, 8, 1)

    def forward(self, x):
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        modes = torch.einsum("bihw,iohw->bohw", torch.fft.rfft2(self.first(x)), weight)
        return self.last(self.more(torch.fft.irfft2(modes, s=x.shape[2:])).relu()).mean((2, 3))


@pytest.mark.parametrize("mode", ["shrink", "mask"])
def test_complex_weights_are_valued_as_pairs_of_numbers(mode):
    plans = []
    for pairs in (False, True):
        model = Frequencies(pairs).double().train()
        optimizer = sgd(model)
        pruner = halp_fx.Pruner(model, 0.6, X[:1], optimizer=optimizer, mode=mode, **CALL)
        train(model, optimizer, pruner, batches(14))
        pruner.finish()
        plans.append(dict(pruner.plan))
        assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in Frequencies(pairs).parameters())
    assert plans[0] == plans[1]
