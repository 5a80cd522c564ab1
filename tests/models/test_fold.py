from __future__ import annotations

from collections.abc import Callable

import etude.compat  # noqa: F401  (before timm)

import pytest
import timm
import torch
from timm.layers.std_conv import StdConv2d
from torch import nn

from etude.models.backbones import TinyNet
from etude.models.optimize import fold_batchnorm, use_fast_depthwise

Lively = Callable[[nn.Module], nn.Module]


def norms_of(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def folded_and_compared(net: nn.Module, side: int = 48, channels: int = 3) -> int:
    """Fold ``net``, check that it is the same function, and return how many norms were folded."""
    image = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = net(image)
        count = fold_batchnorm(net, torch.zeros(1, channels, 64, 64))
        after = net(image)
    assert before.std() > 1e-3
    torch.testing.assert_close(after / before.abs().max(), before / before.abs().max(), rtol=0, atol=1e-4)
    return count


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050", "regnetx_002"])
def test_networks_stay_the_same_function_without_any_norm(lively: Lively, name: str):
    torch.manual_seed(0)
    net = lively(timm.create_model(name, num_classes=0))
    count = len(norms_of(net))
    assert folded_and_compared(net) == count
    assert norms_of(net) == []


def test_a_norm_after_a_pool_stays(lively: Lively):
    net = lively(TinyNet(1))
    assert folded_and_compared(net, 28, 1) == 3  # norm1 follows the pool, norm2 its convolution
    assert len(norms_of(net)) == 3


def test_a_network_with_fast_depthwise_convolutions_is_folded_too(lively: Lively):
    torch.manual_seed(0)
    net = lively(timm.create_model("tf_efficientnet_lite0", num_classes=0))
    use_fast_depthwise(net)
    assert folded_and_compared(net) == 49


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_what_was_folded_is_trained(lively: Lively, name: str):
    net = lively(timm.create_model(name, num_classes=0))
    fold_batchnorm(net, torch.zeros(1, 3, 64, 64))
    net.train()
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) >= 20
    for conv in convolutions:
        for parameter in (conv.weight, conv.bias):
            assert isinstance(parameter, nn.Parameter)
            assert parameter.requires_grad
            assert parameter.grad is not None
    registered = {id(parameter) for parameter in net.parameters()}
    assert all({id(conv.weight), id(conv.bias)} <= registered for conv in convolutions)


def test_what_was_frozen_stays_frozen(lively: Lively):
    net = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    net[0].requires_grad_(False)
    assert folded_and_compared(net) == 1
    assert not any(parameter.requires_grad for parameter in net.parameters())


class Skip(nn.Module):
    """The convolution's output is used by the norm and by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.conv(image)
        return image + self.norm(image)


class SharedConvolution(nn.Module):
    """One convolution, two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.two(self.conv(self.one(self.conv(image))))


class SharedNorm(nn.Module):
    """One norm, after a convolution and after a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.norm(self.conv(image)) + image)


class InPlace(nn.Module):
    """The convolution's output is changed in place before the norm takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.conv(image)
        image.mul_(2.0)
        return self.norm(image)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        Skip,
        SharedConvolution,
        SharedNorm,
        InPlace,
    ],
    ids=["relu", "relu in place", "pool", "own weights", "before", "no statistics", "skip", "conv twice", "norm twice",
         "in place"],
)  # fmt: skip
def test_where_folding_would_change_the_function_nothing_is_folded(lively: Lively, make: Callable[[], nn.Module]):
    torch.manual_seed(0)
    net = lively(make())
    norms = len(norms_of(net))
    assert folded_and_compared(net) == 0
    assert len(norms_of(net)) == norms


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_bias_and_affine_weights_are_optional(lively: Lively, bias: bool, affine: bool):
    net = lively(nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine), nn.ReLU()))
    assert folded_and_compared(net) == 1
    assert [type(module).__name__ for module in net] == ["Conv2d", "Identity", "ReLU"]


def test_folding_twice_changes_nothing(lively: Lively):
    net = lively(timm.create_model("resnet18", num_classes=0))
    fold_batchnorm(net, torch.zeros(1, 3, 64, 64))
    assert folded_and_compared(net) == 0


def test_no_hook_is_left_behind(lively: Lively):
    net = lively(TinyNet(3))
    fold_batchnorm(net, torch.zeros(1, 3, 64, 64))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
