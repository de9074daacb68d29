"""Outputs with as many tokens as classes: their shape does not tell which dimension the classes are, the loss does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import halp_fx
from halp_fx.scoring.sampled import Sampled, takes_scores

Y = torch.randint(6, (32, 6), generator=torch.Generator().manual_seed(0))


def focal(output, target):
    found = F.cross_entropy(output, target, reduction="none")
    return ((1 - (-found).exp()) ** 2 * found).mean()


FIRST = {
    "softmax": F.cross_entropy,
    "smoothed": lambda o, y: F.cross_entropy(o, y, label_smoothing=0.2),
    "weighted": lambda o, y: F.cross_entropy(o, y, torch.arange(1.0, 7)),
    "focal": focal,
    "sigmoids": lambda o, y: F.binary_cross_entropy_with_logits(o, F.one_hot(y, 6).movedim(-1, 1).to(o.dtype)),
    "log-probabilities": F.nll_loss,
    "one class is ignored": lambda o, y: F.cross_entropy(o, y, ignore_index=3),
    "all are": lambda o, y: F.cross_entropy(o, y * 0 - 100),
    "fails": lambda o, y: F.cross_entropy(o, y[:3]),
    "does not depend on them": lambda o, y: torch.zeros((), requires_grad=True),
}
LAST = {f"{name}, last": lambda o, y, loss=FIRST[name]: loss(o.mT, y) for name in ("softmax", "focal", "sigmoids")}


@pytest.mark.parametrize("name", [*FIRST, *LAST])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_a_loss_says_which_dimension_the_classes_are(name, size):
    output = size * torch.randn(32, 6, 6, generator=torch.Generator().manual_seed(0))
    assert takes_scores({**FIRST, **LAST}[name], output, Y) == (name in FIRST)
    assert takes_scores({**FIRST, **LAST}[name], output.bfloat16(), Y) == (name in FIRST)


@pytest.mark.parametrize("classes", [5, 6])
def test_classes_that_come_last_are_not_drawn_along_tokens(classes):
    """Of as many tokens as classes values are those of the caller's loss, as they are of more or fewer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, classes)).eval()
    batch = (torch.randn(32, 6, 4), Y % classes)
    sampled = Sampled(lambda o, y: F.cross_entropy(o.mT, y))
    tensors = dict(model.named_parameters())
    found = sampled(model, tensors, batch, 0)
    assert sampled.kind == "the loss of the data's labels"
    torch.testing.assert_close(found, F.cross_entropy(model(batch[0]).mT, batch[1]) * 32)
    by_first = Sampled(F.cross_entropy)
    by_first(nn.Sequential(model, nn.Flatten(), nn.Unflatten(1, (classes, 6))), {}, batch, 0)
    assert by_first.kind == "labels drawn from the network's softmax"
    coupling = halp_fx.channel_groups(model, batch[0])
    assert halp_fx.score(model, coupling, [batch] * 4, lambda o, y: F.cross_entropy(o.mT, y)).known
