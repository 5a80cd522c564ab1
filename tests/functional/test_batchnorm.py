from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from etude.core.errors import EtudeError
from etude.functional.batchnorm import recompute_batchnorm


def batches_of(data: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    edges = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 1000))
def test_the_statistics_are_those_of_the_population_whatever_the_batches(sizes: list[int], seed: int):
    generator = torch.Generator().manual_seed(seed)
    data = 5.0 + 3.0 * torch.randn(sum(sizes), 4, 3, 2, generator=generator)
    norm = nn.BatchNorm2d(4)
    recompute_batchnorm(norm, batches_of(data, sizes))
    values = data.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean.double(), values.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), values.var(1), rtol=1e-5, atol=1e-6)


def test_a_deeper_layer_sees_what_the_layers_before_it_make_of_a_batch():
    torch.manual_seed(0)
    data = torch.randn(10, 3)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2), nn.BatchNorm1d(2))
    recompute_batchnorm(model, [data[:5], data[5:]])
    inner = []
    for part in (data[:5], data[5:]):
        hidden = model[0](part)
        hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + model[1].eps).sqrt()
        inner.append(model[3](hidden.relu()))
    torch.testing.assert_close(model[4].running_mean, torch.cat(inner).mean(0))
    torch.testing.assert_close(model[4].running_var, torch.cat(inner).var(0))


def test_a_layer_that_runs_twice_pools_both_uses():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1)

        def forward(self, images: torch.Tensor) -> None:
            self.norm(images)
            self.norm(images + 10)

    model = Twice()
    recompute_batchnorm(model, [torch.tensor([[0.0], [2.0]])])
    both = torch.tensor([0.0, 2.0, 10.0, 12.0])
    assert model.norm.running_mean.item() == pytest.approx(both.mean().item())
    assert model.norm.running_var.item() == pytest.approx(both.var().item())


def test_infinite_statistics_are_replaced():
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(torch.inf)
    norm.running_var.fill_(torch.nan)
    recompute_batchnorm(norm, [torch.tensor([[1.0], [3.0]])])
    assert (norm.running_mean.item(), norm.running_var.item()) == (2.0, 2.0)


class KeepsItsNorm(nn.Module):
    """Its BatchNorm never trains, and its dropout would destroy everything."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(1.0)
        self.norm = nn.BatchNorm1d(1, momentum=None)
        self.weight = nn.Parameter(torch.ones(1))

    def train(self, mode: bool = True) -> KeepsItsNorm:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.dropout(images * self.weight))


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_momentum_stay_and_dropout_is_off(training: bool):
    model = KeepsItsNorm().train(training)
    recompute_batchnorm(model, [torch.tensor([[1.0], [3.0]])])
    assert model.norm.running_mean.item() == 2.0
    assert (model.training, model.dropout.training, model.norm.training) == (training, training, False)
    assert model.norm.momentum is None
    assert not model.norm._forward_hooks
    assert not model.norm._forward_pre_hooks


@pytest.mark.parametrize("shape_of", [lambda x: (x, "label"), lambda x: [x], lambda x: {"image": x, "target": 0}])
def test_images_are_found_in_a_batch(shape_of):
    norm = nn.BatchNorm1d(1)
    recompute_batchnorm(norm, [shape_of(torch.tensor([[1.0], [3.0]]))])
    assert norm.running_mean.item() == 2.0


def test_forward_may_be_given():
    norm = nn.BatchNorm1d(1)
    recompute_batchnorm(norm, [1.0, 2.0], forward=lambda number: norm(torch.tensor([[number], [number]])))
    assert norm.running_mean.item() == 1.5


def test_a_model_without_batchnorm_is_not_run():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.BatchNorm1d(2, track_running_stats=False))

    def fail(batch: object) -> None:
        raise AssertionError("run")

    recompute_batchnorm(model, [torch.zeros(2, 2)], forward=fail)


def test_a_layer_that_no_batch_reaches_stays_as_it_is():
    model = nn.ModuleDict({"used": nn.BatchNorm1d(1), "unused": nn.BatchNorm1d(1)})
    model["unused"].running_mean.fill_(7.0)
    recompute_batchnorm(model, [torch.tensor([[1.0], [3.0]])], forward=model["used"])
    assert model["used"].running_mean.item() == 2.0
    assert model["unused"].running_mean.item() == 7.0


@pytest.mark.parametrize(
    ("batches", "told"),
    [([], "at least one batch"), ([torch.zeros(4, 1), torch.zeros(1, 1)], "one value a channel")],
)
def test_after_a_mistake_everything_is_as_it_was(batches: list[torch.Tensor], told: str):
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=0.3)).train()
    model(torch.tensor([[1.0], [3.0]]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(EtudeError, match=told):
        recompute_batchnorm(model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].momentum == 0.3
    assert model[0].training
