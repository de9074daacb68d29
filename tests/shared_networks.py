"""Networks with branches, of which modules run twice, write in place, leak what they compute or change what they
hold."""

from __future__ import annotations

import torch
import torchvision
from torch import nn


class Block(nn.Module):
    """A residual block that writes in place where it may."""

    def __init__(self, width=8):
        super().__init__()
        self.one, self.two = nn.Conv2d(width, 6, 3, padding=1), nn.Conv2d(6, width, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.norm(self.two(self.relu(self.one(x))))
        out += x
        return self.relu(out)


class Plain(nn.Module):
    """A stem whose norm is written to in place, and two blocks."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.first, self.second, self.head = Block(), Block(), nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        return self.head(self.second(self.first(x)).mean((2, 3)))


class Concat(Plain):
    """The first block is read again behind the second."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.first(self.stem(x))
        return self.head(torch.cat([x, self.second(x)], 1).mean((2, 3)))


class Twice(Plain):
    """A module that runs twice, before and behind what goes."""

    def __init__(self):
        super().__init__()
        self.again = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.first(self.again(self.stem(x)))
        return self.head(self.again(self.second(x)).mean((2, 3)))


class Direct(Plain):
    """Parts of a module that never runs itself."""

    def __init__(self):
        super().__init__()
        self.pair = nn.Module()
        self.pair.one, self.pair.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.first(self.pair.one(self.stem(x)))
        return self.head(self.second(self.pair.two.forward(x)).mean((2, 3)))


class Leaking(nn.Module):
    """What it computes on the way is read elsewhere."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        self.seen = self.one(x)
        return self.two(self.seen)


class Aside(Plain):
    def __init__(self):
        super().__init__()
        self.leaking = Leaking()

    def forward(self, x):
        x = self.first(self.leaking(self.stem(x)))
        return self.head((self.second(x) * self.leaking.seen).mean((2, 3)))


class Writing(nn.Module):
    """Writes to what it is given."""

    def forward(self, x):
        x.mul_(0.5)
        return x.sigmoid()


class Overwritten(Plain):
    def __init__(self):
        super().__init__()
        self.writing = Writing()

    def forward(self, x):
        x = self.stem(x) + 1
        y = self.writing(x)
        return self.head((self.second(self.first(x)) * y).mean((2, 3)))


class Later(Plain):
    """Writes to a view of what a block put out, behind it."""

    def forward(self, x):
        x = self.first(self.stem(x))
        y = self.second(x)
        x[:, :, 0].mul_(0.5)
        return self.head((x + y).mean((2, 3)))


class Pairs(nn.Module):
    """Returns a tuple."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 1)

    def forward(self, x):
        return self.conv(x).chunk(2, 1)


class Tuples(Plain):
    def __init__(self):
        super().__init__()
        self.pairs = Pairs()

    def forward(self, x):
        x, y = self.pairs(self.stem(x))
        return self.head((self.second(self.first(x)) + y).mean((2, 3)))


class Lists(Tuples):
    """Takes a list apart that a module returned."""

    def __init__(self):
        super().__init__()
        self.pairs = Lister()

    def forward(self, x):
        found = self.pairs(self.stem(x))
        x = self.first(found.pop())
        return self.head((self.second(x) + found.pop()).mean((2, 3)))


class Lister(Pairs):
    def forward(self, x):
        return list(super().forward(x))


class Behind(Block):
    """A norm stays where the branch goes."""

    def forward(self, x):
        return self.relu(self.norm(x + self.two(self.relu(self.one(x)))))


class Norms(Plain):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Sequential(Behind()) for _ in range(2))


class Listed(Plain):
    """A module that is given a list, and appends to it."""

    def __init__(self):
        super().__init__()
        self.appending = Appending()

    def forward(self, x):
        seen = []
        x = self.first(self.appending(self.stem(x), seen))
        return self.head((self.second(x) + seen[0]).mean((2, 3)))


class Appending(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x, seen):
        seen.append(self.conv(x))
        return x * 2


def transformer():
    return torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=5)


CASES = {
    "plain": (Plain, 8), "concat": (Concat, 8), "twice": (Twice, 8), "direct": (Direct, 8), "aside": (Aside, 8),
    "overwritten": (Overwritten, 8), "later": (Later, 8), "tuples": (Tuples, 8), "lists": (Lists, 8),
    "listed": (Listed, 8), "norms": (Norms, 8), "transformer": (transformer, 16),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 32),
}  # fmt: skip

SAME = {
    "plain": [("stem",), ("stem", "first")],
    "concat": [("stem",), ("stem", "first")],
    "twice": [("stem",), ("stem", "first")],
    "direct": [("stem", "pair.one"), ("stem", "pair.one", "first")],
    "aside": [("stem", "leaking.one", "leaking.two"), ("stem", "leaking.one", "leaking.two", "first")],
    "overwritten": [("stem",), ("stem", "first")],
    "later": [("stem",), ("stem", "first.two")],
    "tuples": [("stem", "pairs"), ("stem", "pairs", "first")],
    "listed": [("stem", "appending.conv"), ("stem", "appending.conv", "first")],
    "resnet18": [
        ("conv1", "maxpool"), ("conv1", "maxpool", "layer1.0"), ("conv1", "maxpool", "layer1", "layer2.0"),
        ("conv1", "maxpool", "layer1", "layer2", "layer3.0"),
        ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4.0"),
    ],
}  # fmt: skip
