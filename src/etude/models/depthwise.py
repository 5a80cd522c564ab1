"""Depthwise convolutions that train fast in bfloat16 on a CPU.

oneDNN's bfloat16 backward of depthwise convolutions falls into slow code for strided ones (gradient of the input) and
for 5x5 or strided ones (gradient of the weights); float32 is faster there. Which part is computed in which mode follows
from that; the forward pass and everything else stay in bfloat16. ``benchmarks/cpu_training.py`` measures what it buys.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn


class _MixedBackward(torch.autograd.Function):
    """A depthwise convolution whose backward chooses the numeric mode of each part."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, padding: int):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        cast_bias = None if bias is None else bias.to(x.dtype)
        return F.conv2d(x, weight.to(x.dtype), cast_bias, stride, padding, 1, weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor):
        x, weight = ctx.saved_tensors
        output = gradients[0].contiguous(memory_format=torch.channels_last)
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        strided, large = ctx.stride > 1, weight.shape[-1] > 3

        def part(dtype: torch.dtype, mask: list[bool]) -> tuple[torch.Tensor, ...]:
            return torch.ops.aten.convolution_backward(
                output.to(dtype), x.to(dtype), weight.to(dtype), [weight.shape[0]], [ctx.stride] * 2,
                [ctx.padding] * 2, [1, 1], False, [0, 0], weight.shape[0], mask,
            )  # fmt: skip

        of_x = of_weight = of_bias = None
        if wants_x:
            of_x = part(torch.float32 if strided else x.dtype, [True, False, False])[0].to(x.dtype)
        if wants_weight:
            mode = torch.float32 if strided or large else x.dtype
            of_weight = part(mode, [False, True, False])[1].to(weight.dtype)
        if wants_bias:
            of_bias = output.sum((0, 2, 3), dtype=torch.float32)
        return of_x, of_weight, of_bias, None, None


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise ``nn.Conv2d`` (square kernel, no dilation) with that backward; the same function otherwise.

    Args:
        same: pad as TensorFlow does, by the input's size, instead of by ``padding``.
    """

    same: bool = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolved (B, C, H, W) images."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding = 0 if self.same else cast(int, self.padding[0])
        if self.same:
            input = F.pad(input, _same_padding(input.shape[-2:], kernel, stride))
        mixed = input.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        if not mixed or torch.get_autocast_dtype("cpu") != torch.bfloat16:
            return F.conv2d(input, self.weight, self.bias, stride, padding, 1, self.groups)
        with torch.autocast("cpu", enabled=False):
            return cast(
                torch.Tensor, _MixedBackward.apply(input.to(torch.bfloat16), self.weight, self.bias, stride, padding)
            )


def use_fast_depthwise(module: nn.Module) -> int:
    """Replace the depthwise convolutions below ``module`` in place, weights shared; return how many.

    >>> use_fast_depthwise(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, padding=1)))
    1
    """
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and not isinstance(child, DepthwiseConv2d) and _is_plain_depthwise(child):
                setattr(parent, name, _converted(child))
                count += 1
    return count


def _is_plain_depthwise(conv: nn.Conv2d) -> bool:
    square = len(set(conv.kernel_size)) == len(set(conv.stride)) == 1 and conv.padding_mode == "zeros"
    level = isinstance(conv.padding, tuple) and len(set(conv.padding)) == 1
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    return (
        depthwise and square and level and set(conv.dilation) == {1} and type(conv).__name__ in ("Conv2d", "Conv2dSame")
    )


def _converted(conv: nn.Conv2d) -> DepthwiseConv2d:
    fast = DepthwiseConv2d(
        conv.in_channels,
        conv.out_channels,
        cast(Any, conv.kernel_size),
        cast(Any, conv.stride),
        cast(Any, conv.padding),
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    fast.weight, fast.bias = conv.weight, conv.bias
    fast.same = type(conv).__name__ == "Conv2dSame"
    return fast.train(conv.training)


def _same_padding(sides: torch.Size, kernel: int, stride: int) -> list[int]:
    """Return (left, right, top, bottom): the output has ceil(side / stride) pixels, the odd pixel goes to the end."""
    totals = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in reversed(sides)]
    return [amount for total in totals for amount in (total // 2, total - total // 2)]
