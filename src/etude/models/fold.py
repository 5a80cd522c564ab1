"""Batch norm folded into the convolutions before it.

With its statistics kept, batch norm is an affine map per channel. Folding it into the convolution's weights gives the
same function, trains the same family of functions, and spares both passes over every activation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PLAIN = ("Conv2d", "Conv2dSame", "DepthwiseConv2d")  # others, such as StdConv2d, change their weights on the way


def fold_batchnorm(backbone: nn.Module, probe: torch.Tensor) -> int:
    """Fold every batch norm that directly follows a convolution, in place; return how many were folded.

    Which norm follows which convolution is seen in one forward pass, so any network works, whatever its modules are
    called. A convolution whose output something else uses too stays as it is, and so does a module that runs twice.
    A norm with an activation of its own (timm's ``BatchNormAct2d``) leaves that activation behind.

    Args:
        backbone: in evaluation mode afterwards.
        probe: any input (1, C, H, W) that the network takes.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    >>> fold_batchnorm(net, torch.zeros(1, 1, 8, 8)), type(net[1]).__name__
    (1, 'Identity')
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
