"""The average of a module's tensors, whichever way its steps are weighed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from etude.core.errors import EtudeError

Tensors = dict[str, torch.Tensor]


class TensorAverage:
    """The average of a module's tensors, by name, held beside the module.

    Torch's AveragedModel deep-copies the module with all it refers to (the data too) and walks through it each step.

    Args:
        steps: training steps that the average has taken in.
        averaged: floating-point tensors, in single precision or better.
        copied: those that are not averaged, as they were at the last update.
    """

    def __init__(self, steps: int = 0, averaged: Tensors | None = None, copied: Tensors | None = None) -> None:
        self.steps, self.averaged, self.copied = steps, averaged or {}, copied or {}
        self._places: dict[str, tuple[dict[str, Any], str]] = {}  # looked up each time: buffers may be replaced
        self._first_name: dict[str, str] = {}  # of the tensor that a name stands for: weights may be tied
        self._waiting: list[str] = []

    @torch.no_grad()
    def update(self, module: torch.nn.Module, share: float, steps: int = 1) -> None:
        """Move the average by ``share`` of the way to the module's present tensors, which stand for ``steps`` steps."""
        self._bind(module)
        self._take_in()
        if averages := list(self.averaged.values()):
            pairs = zip(self._live(self.averaged), averages, strict=True)  # .to alone would cost as much as the rest
            live = [tensor if tensor.dtype == average.dtype else tensor.to(average.dtype) for tensor, average in pairs]
            torch._foreach_lerp_(averages, live, share)
        if self.copied:
            torch._foreach_copy_(list(self.copied.values()), self._live(self.copied))
        self.steps += steps

    @torch.no_grad()
    def put_in(self, module: torch.nn.Module) -> Tensors:
        """Write the average into the module; return what stood there."""
        self._bind(module)
        average = self.averaged | self.copied
        before = {name: self._live([name])[0].clone() for name in average}
        self.put_back(average)
        return before

    @torch.no_grad()
    def put_back(self, before: Tensors) -> None:
        """Write what ``put_in`` returned into the module."""
        torch._foreach_copy_(self._live(before), list(before.values()))

    def replaced(self, module: torch.nn.Module, state: Tensors, tensors: Tensors) -> Tensors:
        """Return the module's ``state`` with ``tensors`` in the place of its own."""
        self._bind(module)
        chosen = {name: tensors[first] for name, first in self._first_name.items() if first in tensors}
        return {name: chosen[name].to(own.dtype) if name in chosen else own for name, own in state.items()}

    def _live(self, names: Iterable[str]) -> list[torch.Tensor]:
        return [table[key] for table, key in map(self._places.__getitem__, names)]

    def _bind(self, module: torch.nn.Module) -> None:
        if self._places:
            return
        first_of: dict[int, str] = {}
        for prefix, part in module.named_modules(remove_duplicate=False):
            for table in (part._parameters, part._buffers):
                for key, tensor in table.items():
                    if tensor is not None:
                        name = f"{prefix}.{key}" if prefix else key
                        self._first_name[name] = first_of.setdefault(id(tensor), name)
                        self._places[name] = (table, key)
        self._lay_out()
        self._waiting = [name for name in first_of.values() if name not in self.averaged and name not in self.copied]

    def _lay_out(self) -> None:
        """Lay tensors of a checkpoint out as the module's are, on its device."""
        for tensors in (self.averaged, self.copied):
            for name, tensor in tensors.items():
                own = self._live([name])[0] if name in self._places else None
                if own is None or own.shape != tensor.shape:
                    raise EtudeError(
                        f"the checkpoint's average holds {name!r} with shape {tuple(tensor.shape)}, and the model "
                        f"{'lacks it' if own is None else f'has {tuple(own.shape)}'}; resume with the model of that run"
                    )
                tensors[name] = torch.empty_like(own, dtype=tensor.dtype, requires_grad=False).copy_(tensor)

    def _take_in(self) -> None:
        """Start the average of tensors that have none, with the value they have; frozen parameters wait."""
        waiting, self._waiting = self._waiting, []
        for name, tensor in zip(waiting, self._live(waiting), strict=True):
            if isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad:
                self._waiting.append(name)
            elif not tensor.is_floating_point() or not bool(tensor.isfinite().all()):  # such as -inf in a mask
                self.copied[name] = tensor.detach().clone()
            else:  # in half precision, small steps of the average would be rounded away
                wide = torch.promote_types(tensor.dtype, torch.float32)
                self.averaged[name] = tensor.detach().to(wide, copy=True)
