"""Losses beside the task's own: the teacher's, and the penalty on what will go."""

from __future__ import annotations

import pytest
import torch
from oracle import half_plan
from test_rebind import X, network
from torch.nn import functional as F

import halp_fx
from halp_fx import Plan, TrainingError
from halp_fx.training.shrinking import shrink


def test_logits_of_the_teacher_are_the_optimum():
    torch.manual_seed(0)
    teacher, student = torch.randn(6, 5, 3, dtype=torch.float64), torch.randn(6, 5, 3, dtype=torch.float64)
    want = F.kl_div(
        F.log_softmax(student / 3, 1), F.log_softmax(teacher / 3, 1), log_target=True, reduction="sum"
    ) / 18 * 9  # fmt: skip
    torch.testing.assert_close(halp_fx.distill(student, teacher, 3.0), want, rtol=1e-12, atol=0)
    half = halp_fx.distill(student.bfloat16(), teacher.bfloat16(), 3.0)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), want, rtol=0.05, atol=0)
    assert halp_fx.distill(teacher, teacher).abs() < 1e-12
    student.requires_grad_()
    teacher.requires_grad_()
    halp_fx.distill(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_a_class_that_the_teacher_rules_out_counts_for_nothing():
    """A logit of -inf, as behind a mask: 0 log 0 is 0."""
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    teacher[:, 3] = -torch.inf
    want = F.kl_div(F.log_softmax(student / 2, 1), F.softmax(teacher / 2, 1), reduction="batchmean") * 4
    torch.testing.assert_close(halp_fx.distill(student, teacher), want)
    (wanted,) = torch.autograd.grad(want, student)
    (found,) = torch.autograd.grad(halp_fx.distill(student, teacher), student)
    torch.testing.assert_close(found, wanted)
    both = halp_fx.distill(student.index_fill(1, torch.tensor(3), -torch.inf), teacher)
    rest = [0, 1, 2, 4]
    torch.testing.assert_close(both, halp_fx.distill(student[:, rest], teacher[:, rest]))


def test_features_are_compared_on_the_channels_that_were_kept():
    """The teacher's own features on these channels cost nothing."""
    teacher = torch.randn(2, 8, 4, 4)
    kept = [1, 2, 6]
    assert halp_fx.distill_features(teacher[:, kept], teacher, kept) == 0
    want = ((2 * teacher[:, kept] - teacher[:, kept]) ** 2).mean() / teacher[:, kept].square().mean()
    torch.testing.assert_close(halp_fx.distill_features(2 * teacher[:, kept], teacher, kept), want)
    torch.testing.assert_close(halp_fx.distill_features(1000 * teacher, 1000 * teacher + 1000).sqrt(),
                               halp_fx.distill_features(teacher, teacher + 1).sqrt())  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: halp_fx.distill(a, b), r"student have shape \(2, 3\), of the teacher \(2, 4\)"),
        (lambda a, b: halp_fx.distill(a, a, 0.0), "temperature=0.0"),
        (lambda a, b: halp_fx.distill_features(a, b), "pass kept=plan"),
        (lambda a, b: halp_fx.distill_features(a, b, [0]), r"of the teacher \(2, 1\) with the channels kept"),
        (
            lambda a, b: halp_fx.distill_features(a, b, [True, False, True, True]),
            r"must be the numbers of the channels",
        ),
        (
            lambda a, b: halp_fx.distill_features(a, b, torch.tensor([True, False, True, True])),
            r"kept=tensor.* numbers",
        ),
        (lambda a, b: halp_fx.distill_features(a, b, [0, 0, 1]), r"each once"),
        (lambda a, b: halp_fx.distill_features(a[:, :0], b, []), r"kept=\[\] must be"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(TrainingError, match=message):
        call(torch.zeros(2, 3), torch.zeros(2, 4))


def test_a_penalty_shrinks_what_goes_and_leaves_the_rest():
    model = network().eval()
    coupling = halp_fx.channel_groups(model, X)
    plan = half_plan(coupling)
    penalty = halp_fx.SparsityPenalty(model, plan, coupling=coupling, steps=4, most=2.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    strengths = []
    for _ in range(6):
        strengths.append(penalty.strength)
        penalty().backward()
    assert strengths == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    twin = dict(halp_fx.zero(model, plan, coupling=coupling).named_parameters())
    for name, parameter in model.named_parameters():
        grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        # What makes a removed channel, not what reads it, nor the slope of what comes behind.
        rows = (
            torch.zeros(len(parameter), dtype=torch.bool)
            if name == "5.weight"
            else twin[name].reshape(len(parameter), -1).abs().sum(1) == 0
        )
        want = torch.zeros_like(parameter)
        want[rows] = 7.0 * before[name][rows]
        torch.testing.assert_close(grad, want)
    assert sum(int(p.grad is not None and p.grad.any()) for p in model.parameters()) >= 6


def test_a_penalty_on_nothing_is_refused():
    model = network()
    with pytest.raises(TrainingError, match="no channels are to be removed"):
        halp_fx.SparsityPenalty(model, Plan(), X, steps=3)
    with pytest.raises(TrainingError, match="steps=0"):
        halp_fx.SparsityPenalty(model, Plan(), X, steps=0)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"3.conv1": [99]}, "group '3.conv1' has 8 channels: index 99 is out of range"),
        ({"8": [0]}, "group '8' may not shrink"),
        ({"nothing": [0]}, "names 'nothing'"),
    ],
)
def test_a_penalty_on_what_is_not_there_is_refused(plan, message):
    """An index that there is none of penalised all channels."""
    with pytest.raises(halp_fx.PlanError, match=message):
        halp_fx.SparsityPenalty(network(), plan, X, steps=3)


def test_a_penalty_on_a_network_that_was_cut_is_refused():
    """Its channels have other places, which were penalised in their stead."""
    model = network()
    penalty = halp_fx.SparsityPenalty(model, {"3.conv1": range(2, 8)}, X, steps=3)
    penalty()
    coupling = halp_fx.channel_groups(model, X)
    shrink(model, Plan({"3.conv1": (0, 1, 2, 3, 4, 7)}), coupling)
    with pytest.raises(TrainingError, match=r"has shape \(6, 8, 3, 3\) now, and had \(8, .*beside a Pruner pass mode="):
        penalty()


def test_a_penalty_by_a_budget_is_on_what_prune_removes():
    model, data = network(), [(X, torch.arange(len(X)) % 5)]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    given = {"data": data, "loss_fn": F.cross_entropy, "latency": "macs", "round_to": 1}
    penalty = halp_fx.SparsityPenalty(model, 0.4, X[:1], steps=2, **given)
    assert penalty.plan == halp_fx.prune(model, 0.4, X[:1], branches=False, progress=False, **given).halp.plan
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    by_plan = halp_fx.SparsityPenalty(model, penalty.plan, X[:1], steps=2)
    assert by_plan() == penalty() == 0
    assert by_plan() == penalty() > 0
    assert halp_fx.SparsityPenalty(model, {"macs": "40%"}, X[:1], steps=2).plan


def test_a_penalty_by_a_budget_out_of_reach_is_refused():
    with pytest.raises(halp_fx.InfeasibleError):
        halp_fx.SparsityPenalty(network(), 0.001, X[:1], steps=2, latency="macs")
    with pytest.raises(halp_fx.BudgetError):
        halp_fx.SparsityPenalty(network(), "4 apples", X[:1], steps=2)
    with pytest.raises(TrainingError, match="no channels are to be removed"):
        halp_fx.SparsityPenalty(network(), 1.0, X[:1], steps=2, latency="macs")
