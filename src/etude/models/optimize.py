"""Depthwise convolutions that train fast in bfloat16 on a CPU.

oneDNN's bfloat16 backward of depthwise convolutions falls into slow code for strided ones (gradient of the input) and
for 5x5 or strided ones (gradient of the weights); float32 is faster there. Which part is computed in which mode follows
from that; the forward pass and everything else stay in bfloat16. ``benchmarks/cpu_training.py`` measures what it buys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PLAIN = ("Conv2d", "Conv2dSame", "DepthwiseConv2d")  # others, such as StdConv2d, change their weights on the way


def fold_batchnorm(backbone: nn.Module, probe: torch.Tensor) -> int:
    """Fold every batch norm that directly follows a convolution, in place; return how many were folded.

    Which norm follows which is found in one forward pass of ``probe`` (1, C, H, W). A convolution whose output
    something else uses too stays, and so does a module that runs twice. An activation of the norm's own stays behind.
    """
    names = {module: name for name, module in backbone.named_modules()}
    pairs = _followers(backbone.eval(), probe)
    for conv, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.bias = bias.requires_grad_(conv.weight.requires_grad)  # torch leaves a new bias frozen
        parent, _, leaf = names[norm].rpartition(".")
        setattr(backbone.get_submodule(parent), leaf, _what_remains(norm))
    return len(pairs)


def _followers(backbone: nn.Module, probe: torch.Tensor) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """Return (convolution, norm) pairs in which the norm alone takes that convolution's output."""
    made_by: dict[int, nn.Conv2d] = {}
    outputs: list[torch.Tensor] = []  # kept alive, so that no two tensors share an id
    pairs: list[tuple[nn.Conv2d, _BatchNorm, int]] = []
    calls: Counter[nn.Module] = Counter()
    uses = _Uses()

    def after(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls[module] += 1
        if type(module).__name__ in _PLAIN and isinstance(module, nn.Conv2d):
            made_by[id(output)] = module
            outputs.append(output)
            uses.counts[id(output)] = 0  # the id may have been that of a tensor that is gone

    def before(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            conv = made_by.get(id(inputs[0]))
            if conv is not None:
                pairs.append((conv, module, id(inputs[0])))

    hooks = [module.register_forward_hook(after) for module in backbone.modules()]
    hooks += [module.register_forward_pre_hook(before) for module in backbone.modules()]
    try:
        with torch.inference_mode(), uses:
            backbone(probe)
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm, made in pairs if calls[conv] == calls[norm] == uses.counts[made] == 1]


class _Uses(TorchDispatchMode):
    """Counts by tensor id how many operations took it, those that change it in place included."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, having counted what it takes."""
        kwargs = kwargs or {}
        self.counts.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        return func(*args, **kwargs)


def _what_remains(norm: _BatchNorm) -> nn.Module:
    parts = [part for name in ("drop", "act") if (part := getattr(norm, name, None)) is not None]
    kept = [part for part in parts if not isinstance(part, nn.Identity)]
    return nn.Sequential(*kept) if kept else nn.Identity()


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
    """A depthwise ``nn.Conv2d`` (square kernel, no dilation) with that backward; ``same`` pads as TensorFlow does."""

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
    """Replace the depthwise convolutions below ``module`` in place, weights shared; return how many."""
    found = [each for each in module.modules() if each is not module and _is_plain_depthwise(each)]
    for conv in cast(list[Any], found):
        conv.same = type(conv).__name__ == "Conv2dSame"
        conv.__class__ = DepthwiseConv2d  # keeps weights, flags and hooks
    return len(found)


def _is_plain_depthwise(conv: nn.Module) -> bool:
    if not isinstance(conv, nn.Conv2d) or type(conv).__name__ not in ("Conv2d", "Conv2dSame"):
        return False
    square = len(set(conv.kernel_size)) == len(set(conv.stride)) == 1 and conv.padding_mode == "zeros"
    level = isinstance(conv.padding, tuple) and len(set(conv.padding)) == 1
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    return depthwise and square and level and set(conv.dilation) == {1}


def _same_padding(sides: torch.Size, kernel: int, stride: int) -> list[int]:
    """Return (left, right, top, bottom): the output has ceil(side / stride) pixels, the odd pixel goes to the end."""
    totals = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in reversed(sides)]
    return [amount for total in totals for amount in (total // 2, total - total // 2)]
