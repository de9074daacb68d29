"""What a Pruner refuses, before anything is cut."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import pytest
import torch
from test_pruner import CALL, batches, sgd, train
from test_rebind import X, network
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks

import halp_fx
from halp_fx import BudgetError, InfeasibleError, TrainingError
from halp_fx.latency import MacsCost

CASES = ["network", "arguments", "ignored", "processes", "used", "no state", "no mapping", "not whole"]
CASES += ["tolerance", "examples", "schedule"]


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_another_run_is_refused(case):
    model = network().train()
    pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL)
    state, message = pruner.state_dict(), ""
    if case == "network":
        model[4] = nn.Conv2d(8, 11, 1).double()
        model[5], model[8] = nn.PReLU(11).double(), nn.Linear(11, 5).double()
        pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL)
        message = r"of another network: 4.weight is \(12, 8, 1, 1\) there and \(11, 8, 1, 1\) here"
    elif case == "arguments":
        pruner, message = (
            halp_fx.Pruner(model, 0.5, X[:1], **CALL),
            "written with budget=0.4, this Pruner has budget=0.5",
        )
    elif case == "processes":
        state["processes"], message = 4, "written by 4 processes, and there are 1"
    elif case == "used":
        F.cross_entropy(model(X), torch.arange(4)).backward()
        pruner.step()
        message = "has been used"
    elif case == "ignored":
        pruner = halp_fx.Pruner(model, 0.4, X[:1], ignore=["0"], **CALL)
        message = r"with ignore=\(\), this Pruner"
    elif case == "tolerance":
        pruner, message = halp_fx.Pruner(model, 0.4, X[:1], tolerance=0.1, **CALL), "with tolerance=0.02, this Pruner"
    elif case == "examples":
        pruner = halp_fx.Pruner(model, 0.4, X[:2], **CALL)
        message = r"with example_inputs=\[\(1, 3, 8, 8\)\], this Pruner has .*\(2, 3"
    elif case == "schedule":
        state, pruner = (
            p if shape == 1 else p.state_dict()
            for shape in (2, 1)
            for p in [halp_fx.Pruner(model, 0.4, X[:1], schedule=lambda s, shape=shape: s**shape, **CALL)]
        )
        message = r"with stops=\[0\.1.*, this Pruner has stops=\[0\.3"
    elif case == "not whole":
        state.pop("rows")
        message = "the checkpoint is not whole: rows are missing"
    elif case == "no mapping":
        state, message = [state], "no state of a Pruner: its format is 'list'"
    else:
        state, message = {"model": 1}, "no state of a Pruner"
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(TrainingError, match=message):
        pruner.load_state_dict(state)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def bad_optimizer(model):
    return {"optimizer": sgd(network())}


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"steps": 0}, BudgetError, "steps=0"),
        ({"interval": 1.5}, BudgetError, "interval=1.5"),
        ({"schedule": "cosine"}, BudgetError, "schedule='cosine'"),
        ({"schedule": lambda share: 1 - share}, BudgetError, "must rise from 0 to 1"),
        ({"mode": "hide"}, TrainingError, "mode='hide' is not one of shrink, mask"),
        ({"regrow": True}, TrainingError, "regrow=True needs mode='mask'"),
        ({"mode": "mask"}, TrainingError, "needs the optimizer"),
        ({"solver": "mdp"}, TrainingError, "solver='mdp' takes one step"),
        (bad_optimizer, TrainingError, "parameter 0 of group 0"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_runs(asked, error, message):
    model = network()
    with pytest.raises(error, match=message):
        halp_fx.Pruner(model, 0.4, X[:1], **CALL | (asked(model) if callable(asked) else asked))


@pytest.mark.parametrize("mode", ["shrink", "mask"])
@pytest.mark.parametrize("case", ["not passed", "made later", "one of two"])
def test_an_optimizer_that_was_not_passed_is_said_before_anything_is_cut(case, mode):
    """Its momentum would keep shapes that are gone: PyTorch's words for that name no cause."""
    model = network().train()
    unknown = sgd(model) if case != "one of two" else sgd(model[3])
    known = {"optimizer": sgd(model[0])} if case == "one of two" or mode == "mask" else {}
    pruner = halp_fx.Pruner(model, 0.4, X[:1], mode=mode, **known, **CALL)
    unknown = sgd(model) if case == "made later" else unknown
    shapes = [p.shape for p in model.parameters()]
    with pytest.raises(TrainingError, match=r"SGD steps .* the Pruner was not told of it: .*optimizer=optimizer"):
        train(model, unknown, pruner, batches(8))
    assert [p.shape for p in model.parameters()] == shapes
    assert not pruner.plan


def test_optimizers_of_other_networks_and_those_without_a_state_need_not_be_passed():
    model, other = network().train(), network().train()
    plain, beside = torch.optim.SGD(model.parameters(), 0.01), sgd(other)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL)
    for x, y in batches(12):
        for net, optimizer in ((other, beside), (model, plain)):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            if net is model:
                pruner.step()
            optimizer.step()
    assert pruner.done


def test_a_copy_that_is_trained_in_place_of_the_model_is_said():
    """The gradients of the last batch before the copy stay in the model: it was pruned by them alone, in silence."""
    model = network().train()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    train(model, optimizer, pruner, batches(4))
    other = copy.deepcopy(model)
    plan, shapes = pruner.plan, [p.shape for p in model.parameters()]
    with pytest.raises(TrainingError, match="were the same in the last 4 batches: what the loop trains is another"):
        train(other, sgd(other), pruner, batches(8))
    assert pruner.plan == plan
    assert [p.shape for p in model.parameters()] == shapes


def test_a_pruner_that_is_over_or_gone_listens_to_no_optimizer():
    gc.collect()  # Pruners of other tests.
    hooks = _global_optimizer_post_hooks
    before = len(hooks)
    model = network().train()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    assert len(hooks) == before + 1
    train(model, optimizer, pruner, batches(12))
    pruner.finish()
    assert len(hooks) == before
    pruner = halp_fx.Pruner(network(), 0.4, X[:1], **CALL)
    del pruner
    gc.collect()
    assert len(hooks) == before


def test_a_loss_that_diverged_is_said():
    model = network().train()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    train(model, optimizer, pruner, batches(4))
    nn.init.constant_(model[8].bias, torch.nan)
    shapes = [p.shape for p in model.parameters()]
    with pytest.raises(TrainingError, match="no gradient was finite in the last 4 batches: the loss has diverged"):
        train(model, optimizer, pruner, batches(8))
    assert [p.shape for p in model.parameters()] == shapes


def test_a_step_without_gradients_is_said():
    pruner = halp_fx.Pruner(network(), 0.4, X[:1], **CALL)
    with pytest.raises(TrainingError, match=r"call pruner\.step\(\) after loss\.backward"):
        pruner.step()


@pytest.mark.parametrize("scale", [0.0, -1, None, float("nan"), "2", True, torch.ones(2), torch.amp.GradScaler("cpu")])
def test_a_scale_that_is_none_is_said(scale):
    model = network().train()
    pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL)
    F.cross_entropy(model(X), torch.arange(4)).backward()
    with pytest.raises(TrainingError, match=r"scale=.* must be a positive number.*scaler\.get_scale\(\)"):
        pruner.step(scale)
    pruner.step(torch.tensor(2.0))
    assert len(pruner._gathered.rows) == 1


def test_gradients_that_came_to_zero_are_said():
    """Not taken for those of a copy, which stay what they are."""
    model = network().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    train(model, optimizer, pruner, batches(4))
    with torch.no_grad():
        model[8].weight.zero_()
    with pytest.raises(TrainingError, match="every gradient was zero in the last 4 batches: the loss does not depend"):
        train(model, optimizer, pruner, batches(4))


def test_lbfgs_that_was_not_passed_is_not_to_be_passed():
    model = network().train()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.01, max_iter=2)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), torch.arange(4))
        loss.backward()
        return loss

    optimizer.step(closure)
    for _ in range(3):
        pruner.step()
    with pytest.raises(TrainingError, match="LBFGS keeps its state for all parameters at once"):
        pruner.step()


def test_finish_before_any_step_says_what_is_missing():
    model = network().train()
    pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL)
    with pytest.raises(TrainingError, match=r"pruner\.step\(\) was not called yet: .*after loss\.backward") as caught:
        pruner.finish()
    assert "diverged" not in str(caught.value)
    assert model[0].out_channels == 8
    # Magnitudes need no gradients.
    assert halp_fx.Pruner(model, 0.4, X[:1], importance="magnitude", **CALL).finish().halp.met


def test_gradients_that_were_zeroed_before_the_step_are_said():
    model = network().train()
    pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL | {"interval": 2})
    for _ in range(2):
        F.cross_entropy(model(X), torch.arange(4)).backward()
        model.zero_grad(set_to_none=False)
        if pruner._calls:
            with pytest.raises(TrainingError, match=r"every gradient was zero in the last 2 batches: call pruner.step"):
                pruner.step()
        else:
            pruner.step()
    assert model[0].out_channels == 8
    assert not pruner.plan


def test_an_optimizer_that_is_loaded_before_the_pruner_is_said():
    model = network().train()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    train(model, optimizer, pruner, batches(6))
    again = network().train()
    other = sgd(again)
    resumed = halp_fx.Pruner(again, 0.4, X[:1], optimizer=other, **CALL)
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(TrainingError, match=r"keeps 'momentum_buffer' .*load the pruner's state before"):
        resumed.load_state_dict(pruner.state_dict())
    assert again[0].out_channels == 8
    assert not resumed.plan


@pytest.mark.parametrize("cost", ["macs", "params", "memory", None])
def test_a_budget_out_of_reach_is_said_before_anything_is_trained(cost):
    """In counted costs, and in time: the smallest network is the least, and takes what the message says."""
    model = network().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(InfeasibleError, match=r"cannot be reached: the smallest .* takes .* of dense") as told:
        halp_fx.Pruner(model, 0.001, X[:1], **CALL | {"latency": cost})
    assert told.value.minimum > 0
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    if cost is not None:  # The amount that it names is in reach.
        pruner = halp_fx.Pruner(model, 0.9, X[:1], **CALL | {"latency": cost, "steps": 1, "interval": 1})
        share = told.value.minimum / pruner._lead.session.yardstick.dense
        pruner = halp_fx.Pruner(model, share * 1.0001, X[:1], **CALL | {"latency": cost, "steps": 1, "interval": 1})
        F.cross_entropy(model(X), torch.arange(4)).backward()
        pruner.step()
        assert pruner.done


def test_a_further_budget_out_of_reach_is_said_before_anything_is_trained():
    with pytest.raises(InfeasibleError, match="params"):
        halp_fx.Pruner(network(), {"macs": 0.5, "params": 0.001}, X[:1], **CALL)


def test_a_time_that_only_the_clock_says_is_out_of_reach_is_said_before_anything_is_trained():
    """Tables are good for sums of layers; what lies between the layers shows when the smallest network is timed."""

    class Slow(MacsCost):
        timed = True

        def measure(self, networks, inputs):
            found = super().measure(networks, inputs)
            return replace(found, costs=[0.6 * found.costs[0] + 0.4 * cost for cost in found.costs])

    with pytest.raises(
        InfeasibleError, match=r"budget of .* \(40% of dense\) cannot be reached: .* takes .*, measured"
    ):
        halp_fx.Pruner(network(), 0.4, X[:1], **CALL | {"latency": Slow()})
    assert not halp_fx.Pruner(network(), 0.8, X[:1], **CALL | {"latency": Slow()}).done


def test_wrapped_and_compiled_models_are_told_from_the_bare_one():
    with pytest.raises(halp_fx.ModelError, match=r"pass model\.module"):
        halp_fx.Pruner(nn.DataParallel(network()), 0.4, X[:1], **CALL)


def test_what_is_attached_needs_an_optimizer():
    with pytest.raises(TrainingError, match="attach needs the optimizer"):
        halp_fx.Pruner(network(), 0.4, X[:1], **CALL).attach()


def test_a_step_that_makes_its_gradients_itself_is_refused():
    model = network().train()
    optimizer = sgd(model)
    halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL).attach()
    with pytest.raises(TrainingError, match="given a closure"):
        optimizer.step(lambda: F.cross_entropy(model(X), torch.arange(4)))


@pytest.mark.parametrize("mode", ["shrink", "mask"])
def test_two_pruners_of_one_network_are_told(mode):
    """Also one that would only report what the other has made of the network; one after the other may be."""
    model = network().train()
    optimizer = sgd(model)
    one, other = (halp_fx.Pruner(model, b, X[:1], optimizer=optimizer, mode=mode, **CALL) for b in (0.7, 0.4))
    train(model, optimizer, one, batches(12))
    one.finish()
    message = r"weight has shape \(\d, .* now, and had \(8, .* something else has cut the network.*One network"
    with pytest.raises(TrainingError, match=message):
        train(model, optimizer, other, batches(1))
    with pytest.raises(TrainingError, match=message):
        other.finish()
    assert one.finish().halp.met, "once more changes nothing"
    after = halp_fx.Pruner(model, 0.7, X[:1], optimizer=optimizer, mode=mode, **CALL)
    train(model, optimizer, after, batches(12))
    assert after.finish().halp.met
    with pytest.raises(TrainingError, match="something else has cut the network"):
        one.finish()


CHANGES = {
    "a layer": (lambda m: m.__setitem__(8, nn.Linear(12, 5).double()), r"8\.weight is another parameter than"),
    "loaded": (lambda m: m.load_state_dict(copy.deepcopy(m.state_dict()), assign=True), r"0\.weight is another"),
    "a layer less": (lambda m: m.__setitem__(1, nn.Identity()), r"1\.weight is no longer there"),
    "a layer more": (lambda m: m.append(nn.Linear(5, 5).double()), r"9\.weight is new"),
    "a type": (lambda m: m.float(), r"0\.weight is torch\.float32 on cpu now, and was torch\.float64 on cpu"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_network_that_was_changed_meanwhile_is_told(case):
    change, message = CHANGES[case]
    model = network().train()
    pruner = halp_fx.Pruner(model, 0.4, X[:1], **CALL)  # Nothing is cut yet.
    train(model, torch.optim.SGD(model.parameters(), 0.1), pruner, batches(3))
    change(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(TrainingError, match=message):
        pruner.step()
    with pytest.raises(TrainingError, match=message):
        pruner.finish()


def test_a_backbone_that_is_frozen_has_no_gradients_and_goes_by_magnitude():
    model = network().train()
    for parameter in model[:6].parameters():
        parameter.requires_grad_(False)
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, **CALL)
    with pytest.raises(TrainingError, match=r"requires_grad=False.*importance='magnitude'"):
        train(model, optimizer, pruner, batches(12))
    again = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, importance="magnitude", **CALL)
    train(model, optimizer, again, batches(12))
    assert again.finish().halp.met


@pytest.mark.parametrize("regrow", [False, True])
def test_weights_of_before_that_were_loaded_behind_masks_are_told(regrow):
    """The best checkpoint of a run is often one of before pruning: cut, it would be a network that nobody trained."""
    model = network().train()
    optimizer = sgd(model)
    pruner = halp_fx.Pruner(model, 0.4, X[:1], optimizer=optimizer, mode="mask", regrow=regrow, **CALL)
    train(model, optimizer, pruner, batches(14))
    trained = copy.deepcopy(model.state_dict())
    model.load_state_dict(network().state_dict())
    with pytest.raises(TrainingError, match=r"weight is not zero where .* masked.*best checkpoint"):
        pruner.finish()
    assert model[0].out_channels == 8
    model.load_state_dict(trained)
    assert pruner.finish().halp.met
