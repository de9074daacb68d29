"""Images that are drawn where there is no data."""

from __future__ import annotations

import pytest
import torch

from halp_fx.model.images import are_images, drawn_images


@pytest.mark.parametrize("places", [(32, 32), (48, 24), (8, 16, 16)], ids=str)
def test_amplitudes_fall_as_one_over_the_frequency(places):
    """The slope of log amplitude over log frequency, between the lowest and the highest ones."""
    (images,), _ = drawn_images(((torch.rand(1, 3, *places),), {}))
    dims = tuple(range(2, images.ndim))
    amplitudes = torch.fft.fftn(images.double(), dim=dims).abs().square().mean((0, 1)).sqrt().flatten()
    axes = torch.meshgrid(*[torch.fft.fftfreq(n) for n in places], indexing="ij")
    frequency = torch.stack(axes).square().sum(0).sqrt().flatten()
    inside = (frequency > 0.08) & (frequency < 0.45)
    x, y = frequency[inside].log().double(), amplitudes[inside].log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope == pytest.approx(-1, abs=0.1)
    torch.testing.assert_close(images.mean((0, *dims)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.square().mean((0, *dims)), torch.ones(3), atol=1e-3, rtol=0)


def test_as_many_as_the_size_asks_for_and_memory_allows():
    def count(side, **options):
        return len(drawn_images(((torch.rand(2, 1, side, side),), {}), **options)[0][0])

    assert [count(8), count(64), count(512), count(8, most=10)] == [512, 128, 32, 10]


def test_other_arguments_are_repeated_and_the_form_is_kept():
    image, number = torch.rand(2, 3, 16, 16, dtype=torch.float64), torch.tensor([4, 7])
    (found,), named = drawn_images((({"image": image},), {"time": number, "scale": 0.5}), most=5)
    assert found["image"].shape == (5, 3, 16, 16)
    assert found["image"].dtype == torch.float64
    assert named["time"].tolist() == [4, 7, 4, 7, 4]
    assert named["scale"] == 0.5


def test_the_same_images_every_time_and_the_random_state_as_it_was():
    example = ((torch.rand(1, 3, 8, 8),), {})
    before = torch.get_rng_state()
    one, other = (drawn_images(example)[0][0] for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("inputs", "known"),
    [
        (((torch.rand(1, 3, 8, 8),), {}), True),
        (((torch.rand(1, 3, 4, 8, 8),), {"mask": torch.ones(1, 8)}), True),
        (((torch.rand(2, 9),), {}), False),
        (((torch.zeros(1, 3, 8, 8, dtype=torch.int64),), {}), False),
        ((([torch.rand(3, 8, 8), torch.rand(3, 8, 8)],), {}), False),
        (((torch.rand(1, 3, 8, 8), torch.rand(9)), {}), False),
        (((torch.rand(1, 3, 8, 8), torch.tensor(0.5)), {}), False),
    ],
    ids=["image", "volume and mask", "features", "whole numbers", "list of images", "no samples", "a number"],
)
def test_what_images_are(inputs, known):
    assert are_images(inputs) is known
