from __future__ import annotations

import copy

import etude.compat  # noqa: F401  (before timm)

import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from etude.models.optimize import DepthwiseConv2d, use_fast_depthwise

CHANNELS = 6
SHAPES = [
    pytest.param(
        kernel, stride, same, size, id=f"{kernel}x{kernel} stride {stride} {'same' if same else 'even'} {size}"
    )
    for kernel in (3, 5)
    for stride in (1, 2)
    for same in (False, True)
    for size in ((12, 12), (13, 13), (12, 15))
]


def plain(kernel: int, stride: int, same: bool, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    kind, padding = (Conv2dSame, 0) if same else (nn.Conv2d, kernel // 2)
    return kind(CHANNELS, CHANNELS, kernel, stride, padding, groups=CHANNELS, bias=bias)


def fast(conv: nn.Conv2d) -> DepthwiseConv2d:
    holder = nn.Sequential(copy.deepcopy(conv))
    assert use_fast_depthwise(holder) == 1
    return holder[0]


def image(size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(2, CHANNELS, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.each("bias", [True, False])
@pytest.mark.each(("kernel", "stride", "same", "size"), SHAPES)
def test_in_float32_it_is_the_same_convolution_exactly(kernel: int, stride: int, same: bool, size, bias: bool):
    conv = plain(kernel, stride, same, bias)
    given, given_fast = (image(size).requires_grad_() for _ in range(2))
    expected, found = conv(given), (quick := fast(conv))(given_fast)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    expected.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(given_fast.grad, given.grad, rtol=0, atol=0)
    torch.testing.assert_close(quick.weight.grad, conv.weight.grad, rtol=0, atol=0)


def gradients(conv: nn.Conv2d, given: torch.Tensor, precise: bool) -> dict[str, torch.Tensor | None]:
    """Gradients of x, weight and bias for one fixed upstream gradient."""
    x = given.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
        output = conv(x)
    assert output.dtype == (torch.float32 if precise else torch.bfloat16)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    output.backward(upstream.to(output.dtype))
    return {"x": x.grad, "weight": conv.weight.grad, "bias": None if conv.bias is None else conv.bias.grad}


@pytest.mark.each("bias", [True, False])
@pytest.mark.each(("kernel", "stride", "same", "size"), SHAPES)
def test_in_bfloat16_gradients_are_those_of_float32(kernel: int, stride: int, same: bool, size, bias: bool):
    conv = plain(kernel, stride, same, bias)
    exact = gradients(conv, image(size), precise=True)
    rough = gradients(fast(conv), image(size), precise=False)
    for name, expected in exact.items():
        found = rough[name]
        if expected is None:
            assert found is None
            continue
        assert found is not None
        assert found.dtype == torch.float32
        # bfloat16 keeps eight bits: each rounding is off by at most 2^-9 of its value.
        assert (found - expected).norm() <= 0.01 * expected.norm(), name


@pytest.mark.each(("kernel", "stride", "same", "size"), SHAPES)
def test_in_bfloat16_it_is_the_same_convolution_up_to_rounding(kernel: int, stride: int, same: bool, size):
    conv = plain(kernel, stride, same)
    quick = fast(conv)
    with torch.autocast("cpu", torch.bfloat16):
        trained = quick(image(size))
        with torch.inference_mode():
            torch.testing.assert_close(quick(image(size)), trained.detach(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(trained.float(), conv(image(size)), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_only_the_gradients_asked_for_are_made(wanted: str):
    quick = fast(plain(3, 2, True))
    x = image((12, 12)).requires_grad_(wanted == "x")
    quick.weight.requires_grad_(wanted == "weight")
    quick.bias.requires_grad_(wanted == "bias")
    with torch.autocast("cpu", torch.bfloat16):
        quick(x).sum().backward()
    have = {"x": x.grad, "weight": quick.weight.grad, "bias": quick.bias.grad}
    assert [name for name, gradient in have.items() if gradient is not None] == [wanted]


def test_channels_last_and_contiguous_images_give_the_same_gradients():
    quick = fast(plain(5, 2, True))
    with torch.autocast("cpu", torch.bfloat16):
        quick(image((13, 13))).square().sum().backward()
        plain_gradient, quick.weight.grad = quick.weight.grad, None
        quick(image((13, 13)).to(memory_format=torch.channels_last)).square().sum().backward()
    assert plain_gradient is not None
    torch.testing.assert_close(quick.weight.grad, plain_gradient, rtol=0.02, atol=0.02)


@pytest.mark.each(
    "conv",
    [
        nn.Conv2d(6, 6, 3),
        nn.Conv2d(6, 6, 3, groups=3),
        nn.Conv2d(6, 12, 3, groups=6),
        nn.Conv2d(1, 1, 3),
        nn.Conv2d(6, 6, (3, 5), groups=6),
        nn.Conv2d(6, 6, 3, (1, 2), groups=6),
        nn.Conv2d(6, 6, 3, padding=(0, 1), groups=6),
        nn.Conv2d(6, 6, 3, padding="same", groups=6),
        nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect", groups=6),
        nn.Conv2d(6, 6, 3, dilation=2, groups=6),
    ],
    ids=str,
)
def test_other_convolutions_stay(conv: nn.Conv2d):
    holder = nn.Sequential(conv)
    assert use_fast_depthwise(holder) == 0
    assert holder[0] is conv


def test_a_network_is_converted_once_and_keeps_its_weights():
    net = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    before, shared = copy.deepcopy(net), {id(parameter) for parameter in net.parameters()}
    assert use_fast_depthwise(net) == 16  # one a block
    assert use_fast_depthwise(net) == 0
    assert {id(parameter) for parameter in net.parameters()} == shared
    assert net.state_dict().keys() == before.state_dict().keys()
    assert not any(module.training for module in net.modules())
    given = torch.randn(1, 3, 65, 65, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(net(given), before(given), rtol=0, atol=0)
