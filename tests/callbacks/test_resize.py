from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from etude.callbacks.clock import Clock
from etude.callbacks.resize import ProgressiveResize
from etude.core.errors import EtudeError
from etude.functional.augment_tensor import shrink
from etude.timeline import Linear, Phase, Timeline

BATCH = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))


def data_of(height: int, width: int) -> TensorDataset:
    return TensorDataset(torch.rand(24, 3, height, width), torch.arange(24) % 3)


def sizes_seen(module: Any) -> list[tuple[int, ...]]:
    return [tuple(images.shape[2:]) for images, _ in module.seen]


def test_without_a_clock_sizes_are_held_grow_and_end_at_the_loaders(fit_images, image_module):
    module = image_module()
    fit_images(module, [ProgressiveResize(multiple=4)], steps=20, data=data_of(32, 32))
    sizes = [height for height, _ in sizes_seen(module)]
    # Middles of 20 steps, by hand: half for ten steps, 16 + 16 p of the growth rounded half up to 4, full for four.
    assert sizes == [16] * 10 + [16, 20, 24, 24, 28, 32] + [32] * 4
    assert {tuple(images.shape[2:]) for images, _ in module.validated} == {(32, 32)}


def test_the_clocks_sizes_take_precedence(fit_images, image_module):
    module = image_module()
    timeline = Timeline((Phase("a", 0.5, image_size=Linear(8, 16)), Phase("b", 0.5, image_size=24)), size_multiple=8)
    fit_images(module, [Clock(timeline), ProgressiveResize()], steps=8, data=data_of(24, 24))
    assert sizes_seen(module) == [(8, 8)] * 2 + [(16, 16)] * 2 + [(24, 24)] * 4


def test_beside_a_clock_without_sizes_it_follows_the_clocks_progress(fit_images, image_module):
    module = image_module()
    clock = Clock(Timeline((Phase("all", 1.0, lr=0.1),)), steps=8)
    fit_images(module, [clock, ProgressiveResize(hold=0.5, finish=0.5, multiple=8)], steps=4, data=data_of(16, 16))
    assert sizes_seen(module) == [(8, 8)] * 4  # the first half of the clock's eight steps


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [(16, 16, 64, (16, 16)), (30, 30, 28, (28, 28)), (32, 16, 16, (16, 8)), (16, 40, 20, (8, 20)), (32, 8, 8, (8, 4))],
)
def test_proportions_are_kept_and_nothing_is_enlarged(
    height: int, width: int, size: int, expected: tuple[int, int], fit_images, image_module
):
    module = image_module()
    clock = Clock(Timeline((Phase("all", 1.0, image_size=size),), size_multiple=4))
    fit_images(module, [clock, ProgressiveResize()], steps=1, data=data_of(height, width))
    assert sizes_seen(module) == [expected]


def test_the_last_phase_has_the_loaders_size_though_it_is_no_multiple(fit_images, image_module):
    module = image_module()
    fit_images(module, [ProgressiveResize(hold=0.5, finish=0.5, multiple=8)], steps=4, data=data_of(30, 30))
    assert sizes_seen(module) == [(16, 16)] * 2 + [(30, 30)] * 2


def test_images_smaller_than_the_multiple_stay_as_they_are(fit_images, image_module):
    module = image_module()
    fit_images(module, [ProgressiveResize()], steps=2, data=data_of(16, 16))
    assert sizes_seen(module) == [(16, 16)] * 2


def test_dict_batches_of_uint8():
    images = (BATCH * 255).to(torch.uint8)
    last = images.permute(0, 2, 3, 1).contiguous()
    small = shrink(last, 8, 6, channels_last=True)
    assert (small.dtype, small.shape) == (torch.uint8, (2, 8, 6, 3))
    expected = shrink(images.float(), 8, 6).permute(0, 2, 3, 1)
    assert float((small.float() - expected).abs().max()) <= 0.5


def test_shrinking_is_antialiased_and_keeps_dtype_and_mean():
    stripes = torch.tensor([0.0, 1.0]).repeat(8).expand(1, 1, 16, 16)
    small = shrink(stripes, 4, 4)
    assert torch.allclose(small, torch.full((1, 1, 4, 4), 0.5), atol=0.05)  # plain sampling would show stripes
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        changed = shrink(BATCH.to(dtype), 8, 6)
        assert (changed.dtype, changed.shape) == (dtype, (2, 3, 8, 6))
        assert torch.allclose(changed.double().mean((2, 3)), BATCH.double().mean((2, 3)), atol=0.05)


def test_shrinking_to_the_same_or_a_larger_size_is_the_identity():
    for height, width in ((16, 12), (64, 64)):
        assert shrink(BATCH, height, width) is BATCH
    assert shrink(BATCH, 8, 64).shape == (2, 3, 8, 12)


@pytest.mark.parametrize(
    "settings", [{"start": 0}, {"start": 1.5}, {"hold": 0.9, "finish": 0.2}, {"finish": -0.1}, {"multiple": 0}]
)
def test_settings_that_fit_no_run_are_refused(settings: dict[str, float]):
    with pytest.raises(EtudeError, match=r"ProgressiveResize got start=.*; start lies above 0 and at most at 1"):
        ProgressiveResize(**settings)  # type: ignore[arg-type]
