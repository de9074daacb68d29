"""PyTorch's functions that sum, compare and multiply, between two convolutions, as in `test_functions`."""

from __future__ import annotations

import pytest
import torch
from test_functions import assert_equals_twin_or_is_frozen, between, call, positions, rows
from torch import nn
from torch.nn import functional as F

REDUCTIONS = {
    "cummax": call(lambda x: x.cummax(2)[0]),
    "cummin": call(lambda x: x.cummin(3)[0]),
    "cummax of channels": call(lambda x: x.cummax(1)[0]),
    "cumprod": call(lambda x: x.cos().cumprod(3)),
    "logcumsumexp": call(lambda x: x.logcumsumexp(2)),
    "diff": call(lambda x: x.diff(dim=2)),
    "diff of channels": call(lambda x: x.diff(dim=1), 7),
    "logsumexp": call(lambda x: x * x.logsumexp((1, 2), True)),
    "var, correction": call(lambda x: x * x.var((2, 3), correction=0, keepdim=True)),
    "var, all": call(lambda x: x * x.var()),
    "std": call(lambda x: x * x.std((1, 2), keepdim=True)),
    "std_mean": call(lambda x: (x - torch.std_mean(x, 1, keepdim=True)[1]) / torch.std_mean(x, 1, keepdim=True)[0]),
    "var_mean": call(lambda x: torch.var_mean(x, (2, 3), keepdim=True)[0] * x),
    "var_mean, all": call(lambda x: torch.var_mean(x)[0] * x),
    "aminmax": call(lambda x: (x - x.aminmax(dim=2, keepdim=True)[0]) / 3),
    "aminmax, all": call(lambda x: x / (x.aminmax()[1] - x.aminmax()[0])),
    "nansum, nanmean": call(lambda x: x * x.nansum(1, True) + x.nanmean((2, 3), True)),
    "count_nonzero": call(lambda x: x * (x > 0).count_nonzero(2)[:, :, None].to(x)),
    "count_nonzero, all": call(lambda x: x * (x > 0).count_nonzero().to(x)),
    "any, all": call(lambda x: x * (x > 0).any(2, True).to(x) + x * (x > -9).all(1, True).to(x)),
    "median of space": call(lambda x: x * x.median(2, True)[0]),
    "quantile": call(lambda x: x * x.quantile(0.4, 2, True)),
    "kthvalue": call(lambda x: x * x.kthvalue(2, 2, True)[0]),
    "mode": call(lambda x: x * x.round().mode(2, True)[0]),
    "argmax of space": call(lambda x: x * x.argmax(2, True).to(x)),
    "argsort of space": call(lambda x: x * x.argsort(2).to(x)),
    "msort": rows(lambda x: x.transpose(0, 1).msort().transpose(0, 1)),
    "max, all": call(lambda x: x / x.max()),
    "mean, all": call(lambda x: x - x.mean()),
    "sum, all": call(lambda x: x / x.abs().sum()),
    "prod": call(lambda x: x * x.cos().prod(2, True)),
    "trace": call(lambda x: x * torch.einsum("nchh->nc", x)[:, :, None, None]),
    "renorm": call(lambda x: x.renorm(2, 0, 1.0)),
    "trapezoid": call(lambda x: x * torch.trapezoid(x, dim=2)[:, :, None]),
    "cov": rows(lambda x: x + torch.cov(x[0].T).sum() / 100),
    "dist": call(lambda x: x / torch.dist(x, x.cos())),
}


def turned_by_channel(x):
    """Every channel as an image of its own, turned by a transform of its own."""
    images = x.flatten(0, 1)[:, None]
    grid = F.affine_grid(x[:, :, :2, :3].flatten(0, 1), images.shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).reshape(x.shape)


LENGTHS = {
    f"norm, {p}": call(lambda x, p=p: x / (1 + x.norm(p, dim=1, keepdim=True)))
    for p in (0, 0.5, 1, 2, 3, float("inf"), float("-inf"), "fro")
}
LENGTHS |= {
    "norm, all": call(lambda x: x / x.norm()),
    "norm, all, p": call(lambda x: x / x.norm(p=1)),
    "norm, nuc": call(lambda x: x / x[0, 0].norm("nuc")),
    "norm, nuc of channels": call(lambda x: x / x.flatten(2).norm("nuc", dim=(1, 2))[:, None, None, None]),
    "norm, fro, dims": call(lambda x: x / x.norm("fro", dim=(2, 3), keepdim=True)),
    "vector_norm": call(lambda x: x / torch.linalg.vector_norm(x)),
    "vector_norm, keepdim": call(lambda x: x / torch.linalg.vector_norm(x, keepdim=True)),
    "vector_norm, dims": call(lambda x: x / torch.linalg.vector_norm(x, 3, (1, 3), True)),
    "vector_norm, negative": call(lambda x: x / torch.linalg.vector_norm(x, float("inf"), (-1, -3), True)),
    "vector_norm, dim by name": call(lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True)),
    "linalg.norm": call(lambda x: x / torch.linalg.norm(x)),
    "linalg.norm, dim": call(lambda x: x / torch.linalg.norm(x, dim=1, keepdim=True)),
    "linalg.norm, dims": call(lambda x: x / torch.linalg.norm(x, dim=(1, 2), keepdim=True)),
    **{
        f"matrix_norm, {o}": call(lambda x, o=o: x / (1 + torch.linalg.matrix_norm(x, o, (2, 3), True)))
        for o in ("fro", "nuc", 1, -1, 2, -2, float("inf"))
    },
    **{
        f"matrix_norm of channels, {o}": call(lambda x, o=o: x / (1 + torch.linalg.matrix_norm(x, o, (1, 2), True)))
        for o in ("fro", "nuc", 1, 2, float("inf"))
    },
    "pairwise_distance": rows(lambda x: x * F.pairwise_distance(x, x.cos(), keepdim=True)),
    "cosine_similarity": call(lambda x: x * F.cosine_similarity(x, x.cos())[:, None]),
    "cdist": rows(lambda x: x * torch.cdist(x, x.cos()).mean(-1, keepdim=True)),
    "cdist, p": rows(lambda x: x * torch.cdist(x, x.cos(), p=1.0).mean(-1, keepdim=True)),
    "cdist, matmul": rows(
        lambda x: x * torch.cdist(x, x.cos(), compute_mode="use_mm_for_euclid_dist").mean(-1, keepdim=True)
    ),
    "pdist": rows(lambda x: x * F.pdist(x[0]).mean()),
    "svd of space": call(lambda x: x / torch.linalg.svdvals(x)[..., :1, None]),
    "inverse of space": call(lambda x: x * torch.linalg.inv(x + 9 * torch.eye(6).to(x))),
    "det": call(lambda x: x * torch.linalg.det(x)[..., None, None]),
    "triangular solve": call(
        lambda x: torch.linalg.solve_triangular(x.tril() + 9 * torch.eye(6).to(x), x.cos(), upper=False)
    ),
    "cholesky solve": call(lambda x: torch.cholesky_solve(x.cos(), x.tril() + 9 * torch.eye(6).to(x))),
    "eig": call(lambda x: x * torch.linalg.eig(x)[0].abs()[..., None]),
    "lu": call(lambda x: x * torch.linalg.lu(x)[2]),
    "affine grid": call(turned_by_channel),
    "cholesky": rows(lambda x: x + torch.linalg.cholesky(x @ x.mT + 9 * torch.eye(36).to(x)).sum(-1, True)),
}

PRODUCTS = {
    "einsum, outer": call(lambda x: x * torch.einsum("nchw,nchv->nch", x, x)[..., None]),
    "einsum, gram": rows(lambda x: torch.einsum("ntc,nsc,nsd->ntd", x, x, x) / 36),
    "einsum, three": call(lambda x: torch.einsum("nchw,nhw,nc->nchw", x, x.mean(1), x.mean((2, 3)))),
    "einsum, transposed": call(lambda x: torch.einsum("nchw->ncwh", x)),
    "einsum, sum": call(lambda x: x * torch.einsum("nchw->nhw", x)[:, None]),
    "tensordot": call(lambda x: x * torch.tensordot(x, x, ([1, 2, 3], [1, 2, 3])).sum() / 1000),
    "cross": rows(lambda x: torch.cross(x.unflatten(1, (12, 3)), x.cos().unflatten(1, (12, 3)), 2).flatten(1, 2)),
    "linalg.cross of channels": rows(lambda x: x + torch.linalg.cross(x[..., :3], x[..., 3:6]).sum(-1, True)),
    "outer": call(lambda x: x * torch.outer(x[0, 0, 0], x[0, 0, 1])),
    "matmul": rows(lambda x: (x @ x.mT).softmax(-1) @ x),
    "addbmm": rows(lambda x: torch.baddbmm(x, x @ x.mT, x) / 99),
    "addmm": rows(lambda x: torch.stack([torch.addmm(x[0], x[0] @ x[0].T, x[0])] * 2) / 99),
    "chain_matmul": rows(lambda x: torch.stack([torch.linalg.multi_dot([x[0], x[0].T, x[0]])] * 2) / 99),
    "mv": rows(lambda x: x * torch.mv(x[0], x[0, 0])[:, None]),
    "dot": call(lambda x: x * torch.dot(x[0, :, 0, 0], x[0, :, 1, 1])),
    "inner": rows(lambda x: x * torch.inner(x, x[0, :1]) / 9),
    "kron": call(lambda x: x * torch.kron(x[0, 0, :2, :2], x[0, 0, :3, :3])),
    "bilinear": lambda: between(
        lambda s, x: s.b(x.movedim(1, -1).contiguous(), x.movedim(1, -1).cos()).movedim(-1, 1), b=nn.Bilinear(8, 8, 8)
    ),
    "scaled_dot_product": rows(lambda x: F.scaled_dot_product_attention(x, x, x)),
    "sdpa, causal": rows(lambda x: F.scaled_dot_product_attention(x, x.cos(), x, is_causal=True)),
    "sdpa, mask": rows(
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(36, 36, dtype=torch.bool).tril())
    ),
}

TABLES = {
    "one_hot": call(lambda x: x * F.one_hot(positions(x, 6), 6)[:1].to(x)),
    "Embedding": lambda: between(lambda s, x: x + s.e(positions(x, 6)).T[:, :, None].to(x), e=nn.Embedding(6, 8)),
    "Embedding, padding": lambda: between(
        lambda s, x: x + s.e(positions(x, 6)).T[:, :, None], e=nn.Embedding(6, 8, padding_idx=0)
    ),
    **{
        f"EmbeddingBag, {mode}": lambda mode=mode: between(
            lambda s, x: x + s.e(positions(x, 6, 2)).T[:, :, None], e=nn.EmbeddingBag(6, 8, mode=mode)
        )
        for mode in ("sum", "mean", "max")
    },
}

LOSSES = {
    name: call(lambda x, f=f: x * f(x, x.cos().detach()))
    for name, f in {
        "mse_loss": F.mse_loss,
        "l1_loss": F.l1_loss,
        "smooth_l1_loss": F.smooth_l1_loss,
        "huber_loss": F.huber_loss,
        "soft_margin_loss": F.soft_margin_loss,
        "poisson_nll_loss": F.poisson_nll_loss,
        "kl_div": lambda x, y: F.kl_div(x, y.softmax(1), reduction="batchmean"),
        "bce": lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid()),
        "bce with logits": lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
        "gaussian_nll_loss": lambda x, y: F.gaussian_nll_loss(x, y, y.abs() + 0.1),
        "cross_entropy, soft": lambda x, y: F.cross_entropy(x, y.softmax(1)),
        "triplet": lambda x, y: F.triplet_margin_loss(x, y, y + 1),
        "hinge": lambda x, y: F.hinge_embedding_loss(x, y.sign()),
        "margin": lambda x, y: F.margin_ranking_loss(x, y, y.sign()),
    }.items()
}
LOSSES |= {
    "nll_loss": call(lambda x: x * F.nll_loss(x.log_softmax(1), torch.ones(2, 6, 6, dtype=torch.int64))),
    "multi_margin": rows(lambda x: x * F.multi_margin_loss(x[0], torch.ones(36, dtype=torch.int64))),
    "cosine_embedding": rows(lambda x: x * F.cosine_embedding_loss(x[0], x[0].cos(), torch.ones(36).to(x))),
    "ctc": rows(
        lambda x: (
            x
            * F.ctc_loss(
                x.transpose(0, 1).log_softmax(-1),
                torch.ones(2, 3, dtype=torch.int64),
                torch.tensor([36, 36]),
                torch.tensor([3, 3]),
            )
        )
    ),
}

FOURIER = {
    "fft2": call(lambda x: torch.fft.fft2(x).real),
    "rfft2": call(lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2)),
    "fftn of channels": call(lambda x: torch.fft.fft(x, dim=1).abs()),
    "fftshift": call(lambda x: torch.fft.fftshift(torch.fft.fft2(x), (2, 3)).abs()),
    "polar": call(lambda x: torch.polar(x.abs(), x).real),
    "angle, conj": call(lambda x: torch.fft.fft2(x).conj().angle()),
    "view_as_real": call(lambda x: torch.view_as_real(torch.fft.rfft2(x)).sum(-1)),
}

GROUPS = {
    "reduce": REDUCTIONS,
    "length": LENGTHS,
    "product": PRODUCTS,
    "table": TABLES,
    "loss": LOSSES,
    "fourier": FOURIER,
}
TABLE = {f"{kind}: {name}": build for kind, rows_ in GROUPS.items() for name, build in rows_.items()}

# What cannot shrink, and words of the reason.
FROZEN = {
    "diff of channels": "at a constant position",
    "norm, nuc": "at a constant position",
    "norm, nuc of channels": "_linalg_svd",
    "matrix_norm of channels, nuc": "_linalg_svd",
    "matrix_norm of channels, 2": "_linalg_svd",
    "linalg.cross of channels": "mixes what lies along",
    "outer": "at a constant position",
    "kron": "at a constant position",
    "nll_loss": "no rule for operator",
    "multi_margin": "no rule for operator",
    "ctc": "no rule for operator",
    "fftn of channels": "mixes what lies along",
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore")
def test_formula_equals_its_twin_or_is_frozen(name):
    assert_equals_twin_or_is_frozen(TABLE[name], reason=FROZEN.get(name.partition(": ")[2]))
