"""fisher: channel groups + data -> what each group is worth at every width, by the Fisher information of what goes.

The rows of `gates`, for each group multiplied into E[s s'], and `sets.elimination` over it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..model.preserving import preserved
from ..types import Coupling
from .gates import Gates, Rows
from .sampled import Sampled
from .sets import elimination
from .values import WidthValues


def fisher_values(
    model: nn.Module, coupling: Coupling, data: Iterable[Any], loss: Sampled, batches: int
) -> tuple[dict[str, WidthValues], Rows]:
    """The value of every width of every group that may shrink, in the unit of the loss of a sample.

    Raises:
        SaliencyError: as `Gates.rows`.
    """
    with preserved(model):
        found = Gates.of(model, coupling, loss).rows(data, batches)
    values = {}
    start = 0
    for group in coupling.prunable:
        own = found.rows[:, start : start + group.size]
        gram = (own.T @ own / len(own)).double().cpu().numpy()
        values[group.name] = WidthValues.of_losses(*elimination(gram))
        start += group.size
    return values, found


def reconstruction_values(model, coupling, data, loss, batches):
    """Prototype."""
    import numpy as np
    from torch.overrides import TorchFunctionMode
    from torch.utils._pytree import tree_leaves
    from .gates import alias_of
    from ..model.preserving import uncached_autocast
    from .reconstruction import Consumer, reconstruction
    from .losses import moved
    fallback, found = fisher_values(model, coupling, data, loss, batches)
    params = dict(model.named_parameters())
    wanted = {}
    for group in coupling.prunable:
        for m in group.members:
            if m.role == "consumer" and m.axis.tensor in params and m.axis.dim == 1:
                wanted.setdefault(m.axis.tensor, []).append((group, m))
    taps = []
    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            out = func(*args, **kwargs)
            name = getattr(func, "__name__", "")
            if name in ("conv1d", "conv2d", "conv3d", "linear"):
                w = args[1] if len(args) > 1 else kwargs["weight"]
                n = names.get(id(w))
                if n in wanted and (name == "linear" or args[6] == 1 if len(args) > 6 else kwargs.get("groups", 1) == 1):
                    if not out.requires_grad:
                        out = out.detach().requires_grad_()
                    x = args[0].detach()
                    taps.append((n, name, x.clone(), out))
                    return out.clone()
            return out
    acc = {}
    with preserved(model), uncached_autocast():
        model.eval()
        total = 0
        for number, batch in enumerate(data):
            if number >= batches: break
            batch = moved(batch, next(iter(params.values())).device)
            aliases = {n: alias_of(p) for n, p in params.items()}
            names = {id(a): n for n, a in aliases.items()}
            taps.clear()
            with torch.enable_grad(), Mode():
                l = loss(model, aliases, batch, number)
            grads = torch.autograd.grad(l, [t[3] for t in taps], allow_unused=True)
            for i, ((n, kind, x, out), g) in enumerate(zip(taps, grads)):
                if g is None: continue
                if kind == "linear":
                    X = x.reshape(-1, x.shape[-1]).float(); f = g.reshape(-1, g.shape[-1]).float().square().sum(0)
                    samples = x.shape[0]
                else:
                    X = x.float().movedim(1, -1).reshape(-1, x.shape[1]); f = g.float().square().movedim(1, -1).reshape(-1, g.shape[1]).sum(0)
                    samples = x.shape[0]
                key = (n, kind, sum(1 for t in taps[:i] if t[0] == n))
                if X.shape[0] > 16384:
                    X = X[torch.randint(0, X.shape[0], (16384,))]
                a = acc.setdefault(key, [0, 0, 0, 0, 0])
                a[0] = a[0] + (X.T @ X).double() / X.shape[0]; a[1] = a[1] + X.mean(0).double(); a[2] += 1; a[3] = a[3] + f.double(); a[4] += samples
    values = dict(fallback)
    for group in coupling.prunable:
        consumers = []
        for (n, kind, _), (second, first, count, f, samples) in acc.items():
            for gr, m in wanted[n]:
                if gr is not group: continue
                mean = first / count
                cov = (second / count - torch.outer(mean, mean)).cpu().numpy()
                W = params[n].detach().double()
                W = W.reshape(W.shape[0], W.shape[1], -1) * (f / samples).sqrt()[:, None, None]
                W = W.movedim(1, -1).reshape(-1, W.shape[1]).cpu().numpy()
                slots = m.slots
                c = sum(cov[np.ix_(slots[:, k], slots[:, k])] for k in range(slots.shape[1])) / slots.shape[1]
                w = np.concatenate([W[:, slots[:, k]] for k in range(slots.shape[1])])
                if len(w) > len(c):  # same Gram
                    g2 = w.T @ w
                    ev, U = np.linalg.eigh(g2); w = (U * np.sqrt(np.maximum(ev, 0))).T
                consumers.append(Consumer(c, w))
        if consumers:
            values[group.name] = WidthValues.of_losses(*reconstruction(consumers))
    return values, found
