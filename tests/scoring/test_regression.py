"""Ridge regression of what a layer puts out, by the smaller of two systems."""

from __future__ import annotations

import pytest
import torch

from halp_fx.scoring.regression import FIRST, LEFT_OUT, fitted


def rows(count, inputs, outputs=3, noise=1.0, rank=None):
    draw = torch.Generator().manual_seed(count + inputs)
    x = torch.randn(count, inputs, generator=draw, dtype=torch.float64) + 1
    if rank is not None:
        x = x[:, :rank] @ torch.randn(rank, inputs, generator=draw, dtype=torch.float64)
    change = torch.randn(inputs, outputs, generator=draw, dtype=torch.float64)
    missing = x @ change + noise * torch.randn(count, outputs, generator=draw, dtype=torch.float64)
    return x, missing


def solved(x, missing, ridge, centred):
    """The least squares as they are written: the ridge is one more row for each input."""
    mean_in, mean_out = x.mean(0) * centred, missing.mean(0) * centred
    x, missing = (x - mean_in) / len(x) ** 0.5, (missing - mean_out) / len(x) ** 0.5
    more = (ridge * x.square().sum() / x.shape[1]).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
    wanted = torch.cat([missing, torch.zeros(x.shape[1], missing.shape[1], dtype=x.dtype)])
    change = torch.linalg.lstsq(torch.cat([x, more]), wanted).solution
    return change, mean_out - mean_in @ change


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize(("count", "inputs"), [(60, 20), (20, 60), (61, 60), (59, 60), (8, 200), (2, 5)])
def test_a_fit_is_that_of_least_squares_with_a_ridge(count, inputs, judged, centred):
    x, missing = rows(count, inputs)
    fit = fitted(x, missing, centred, judged)
    if fit.ridge == float("inf"):
        assert not fit.change.any()
        return
    change, shift = solved(x, missing, fit.ridge, centred)
    torch.testing.assert_close(fit.change, change, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fit.shift, shift, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("count", "inputs"), [(100, 20), (20, 100)])
def test_the_ridge_is_the_best_of_its_neighbours_on_rows_that_were_left_out(count, inputs):
    x, missing = rows(count, inputs)
    fit = fitted(x, missing)
    out = int(LEFT_OUT * count)

    def error(ridge):
        change, shift = solved(x[out:], missing[out:], ridge, True)
        return float((missing[:out] - x[:out] @ change - shift).square().mean())

    assert fit.after == pytest.approx(error(fit.ridge), rel=1e-6)
    assert fit.after < fit.before
    assert fit.after <= min(error(fit.ridge * 10), error(fit.ridge / 10), error(10.0**FIRST)) * (1 + 1e-9)


def test_few_rows_of_few_directions_are_solved():
    x, missing = rows(20, 60, noise=0.0, rank=4)
    fit = fitted(x, missing)
    assert fit.after < 1e-3 * fit.before
    assert torch.isfinite(fit.change).all()


@pytest.mark.parametrize("inputs", [3, 12])
def test_where_nothing_goes_in_nothing_is_changed(inputs):
    fit = fitted(torch.zeros(6, inputs, dtype=torch.float64), torch.ones(6, 2, dtype=torch.float64))
    assert not fit.change.any()
    torch.testing.assert_close(fit.shift, torch.ones(2, dtype=torch.float64))
