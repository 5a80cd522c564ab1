"""All images in the memory of a device, where a batch is one indexing away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from etude.core.context import Context
from etude.core.processor import free_memory
from etude.core.text import file_size
from etude.data.stores.disk import Store, checked_rows

if TYPE_CHECKING:
    import torch

LARGEST_SHARE = 0.4
"""Of the free memory; the network, its gradients and the batches need the rest."""
_COPIED_AT_ONCE = 1 << 26  # bytes
_RESIZED_AT_ONCE = 1 << 28  # bytes of float32


class DeviceStore:
    """A store copied to a device: uint8 (N, S, S, C).

    At its own size it returns the rows of the store it was copied from. At smaller and larger sizes its pixels differ
    from those of a store on disk by 1 of 255 at most, by rounding.
    """

    kind = "device"

    def __init__(self, store: Store, device: torch.device | str, context: Context = Context()) -> None:
        import torch  # the rest of the data room works without

        self.disk, self.device = store, torch.device(device)
        self.size, self.channels, self.folder = store.size, store.channels, store.folder
        shape = (len(store), store.size, store.size, store.channels)
        self._images = torch.empty(shape, dtype=torch.uint8, device=self.device)
        at_once = max(1, _COPIED_AT_ONCE // int(np.prod(shape[1:])))
        with context.bar(f"copy to {self.device}", len(store)) as advance:
            for first in range(0, len(store), at_once):
                rows = np.arange(first, min(first + at_once, len(store)))
                self._images[first : first + len(rows)] = torch.from_numpy(store.gather(rows, store.size))
                advance(len(rows))

    def __len__(self) -> int:
        return len(self._images)

    def __reduce__(self) -> tuple[type[DeviceStore], tuple[Store, str]]:
        return DeviceStore, (self.disk, str(self.device))

    def source_size(self, size: int) -> int:
        """Return the side at which rows are cheapest to read: the stored one."""
        return self.size

    def gather(self, indices: np.ndarray | Sequence[int], size: int) -> np.ndarray:
        """Return rows as :meth:`Store.gather` does, on the CPU."""
        return self.gather_tensor(np.asarray(indices), size).cpu().numpy()

    def gather_tensor(self, indices: np.ndarray | Sequence[int] | torch.Tensor, size: int) -> torch.Tensor:
        """Return rows ``indices``, resized to ``size``, on the device: (B, size, size, channels) uint8, contiguous.

        Indices that are on a GPU already are not checked, which would wait for the GPU.
        """
        import torch

        if isinstance(indices, torch.Tensor) and indices.device.type != "cpu":
            rows = indices
        else:
            rows = torch.from_numpy(checked_rows(np.asarray(indices), len(self))).to(self.device, non_blocking=True)
        images = self._images[rows]
        if size == self.size or not len(images):
            return images if size == self.size else images.new_empty(0, size, size, self.channels)
        at_once = max(1, _RESIZED_AT_ONCE // (4 * self.channels * max(size, self.size) ** 2))
        return torch.cat([resized_on_device(part, size) for part in images.split(at_once)])


def resized_on_device(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize uint8 (B, S, S, C) to uint8 (B, size, size, C) as OpenCV does, within 1 of 255."""
    import torch

    from etude.functional.augment_tensor import resized_tensor

    with torch.autocast(images.device.type, enabled=False):  # bfloat16 has too few digits for pixels
        planes = resized_tensor(images.permute(0, 3, 1, 2).float(), size)
    return planes.round().clamp_(0, 255).permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def fits_on_device(store: Store, device: torch.device | str, free: int | None = None) -> tuple[bool, str]:
    """Return whether all images fit on a device with room to spare, and a sentence with the numbers.

    ``free`` are its free bytes; by default the device is asked.
    """
    needed = len(store) * store.size**2 * store.channels
    free = _free_bytes(device) if free is None else free
    if free is None:
        return False, f"the images stay on disk: {device} does not tell how much memory it has free"
    fits = needed <= LARGEST_SHARE * free
    where = "fit in" if fits else "stay on disk: they would take more than"
    return (
        fits,
        f"the images ({file_size(needed)}) {where} {LARGEST_SHARE:.0%} of the {file_size(free)} free on {device}",
    )


def _free_bytes(device: torch.device | str) -> int | None:
    """Return the free memory of a device, or None where it does not tell."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory() if device.type == "cpu" else None
