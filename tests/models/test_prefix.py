from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before timm)

import numpy as np
import pytest
import timm
import torch
from torch import nn

from etude.core.context import Context, Silent
from etude.core.errors import EtudeError
from etude.models import activations as activations_module
from etude.models.activations import Split, extract_prefix, prefix_of
from etude.models.backbones import TinyNet
from etude.models.classifier import Preprocessing

Gather = Callable[[np.ndarray, int], np.ndarray]


@cache
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=0).eval()


CUTS = [
    *(("tf_efficientnet_lite0", cut, 64) for cut in ("conv_stem", "blocks.0", "blocks.4.1", "blocks.4", "blocks", 0.5)),
    *(("resnet18", cut, 64) for cut in ("maxpool", "layer1", "layer2.0", "layer4", 0.3)),
    *(("convnext_atto", cut, 64) for cut in ("stem", "stages.1", "stages.2.blocks.3", 0.4)),
    *(("vit_tiny_patch16_224", cut, 224) for cut in ("patch_embed", "blocks.3", "norm", 0.5)),
]


@pytest.mark.each(("name", "cut", "size"), CUTS)
def test_the_rest_of_the_prefix_is_the_network(name: str, cut: str | float, size: int):
    whole, images = network(name), torch.randn(2, 3, size, size)
    split = prefix_of(whole, cut)
    with torch.inference_mode():
        assert torch.equal(split.rest(split.prefix(images)), whole(images))
    assert cut in (split.name, cut if isinstance(cut, float) else None)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_timm_s_own_stages_are_places_to_cut(name: str):
    whole, images = network(name), torch.randn(1, 3, 64, 64)
    _, maps = whole.forward_intermediates(images)  # type: ignore[operator]
    for info, expected in zip(whole.feature_info, maps, strict=True):  # type: ignore[arg-type]
        if info["module"].startswith(("blocks", "layer", "stages")):
            assert torch.equal(prefix_of(whole, info["module"]).prefix(images), expected)


def test_later_layers_are_not_run_and_earlier_ones_not_again():
    whole = TinyNet(3, widths=(4, 8, 16)).eval()
    run: list[int] = []
    for number, block in enumerate(whole.blocks):
        block.register_forward_hook(lambda *_, number=number: run.append(number))
    split = prefix_of(whole, "blocks.1")
    maps = split.prefix(torch.randn(1, 3, 16, 16))
    assert (run, maps.shape) == ([0, 1], (1, 8, 4, 4))
    split.rest(maps)
    assert run == [0, 1, 2]


def test_both_halves_share_the_weights_of_the_network():
    whole = network("resnet18")
    split = prefix_of(whole, "layer2")
    counts = [sum(parameter.numel() for parameter in half.parameters()) for half in (split.prefix, split.rest, whole)]
    assert counts[0] + counts[1] == counts[2]
    own = {id(parameter) for parameter in whole.parameters()}
    assert {id(parameter) for half in split[:2] for parameter in half.parameters()} == own


def test_gradients_flow_through_the_rest():
    whole = TinyNet(3, widths=(4, 8, 16)).eval()
    split = prefix_of(whole, "blocks.0")
    maps = split.prefix(torch.randn(2, 3, 16, 16)).detach()
    split.rest(maps).sum().backward()
    assert [block.conv1.weight.grad is not None for block in whole.blocks] == [False, True, True]


def test_a_larger_share_never_cuts_earlier():
    whole = network("tf_efficientnet_lite0")
    sizes = [sum(p.numel() for p in prefix_of(whole, share / 10).prefix.parameters()) for share in range(1, 10)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 5


@pytest.mark.parametrize(
    ("cut", "told"),
    [
        ("blocks.9", r"no layer 'blocks\.9' to end.* 'conv_stem'.* Did you mean 'blocks\.\d'\?"),
        ("conv_sten", r"Did you mean 'conv_stem'\?"),
        ("", "no layer ''"),
        ("blocks.4.1.conv_pw", r"after 'blocks\.4\.1\.conv_pw', because other paths lead past it.*: choose the block"),
        (0.0, "a prefix of 0 of the layers"),
        (1.5, "a prefix of 1.5 of the layers"),
        (0.001, "no whole layer of the network lies within 0.001"),
    ],
)
def test_a_place_that_is_none_is_told_in_one_sentence(cut: str | float, told: str):
    with pytest.raises(EtudeError, match=told) as raised:
        prefix_of(network("tf_efficientnet_lite0"), cut)
    assert "\n" not in str(raised.value)


class Odd(nn.Module):
    """Runs one layer twice and another only for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.bright = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.twice(self.twice(image))
        return self.bright(image) if image.mean() > 0 else image


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(2, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.twice(self.twice(image))


def test_networks_that_cannot_be_cut_say_so():
    with pytest.raises(EtudeError, match="depends on the image"):
        prefix_of(Odd(), "bright")
    with pytest.raises(EtudeError, match="runs 2 times"):
        prefix_of(Repeated(), "twice")


@pytest.fixture
def split() -> Split:
    torch.manual_seed(0)
    return prefix_of(TinyNet(3, widths=(4, 8, 16)).eval(), "blocks.0")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows of (4, 8, 8) float16 a block."""
    monkeypatch.setattr(activations_module, "_BLOCK_BYTES", 7 * 4 * 8 * 8 * 2 + 5)


class Counting:
    """A store's ``gather`` of noise that counts rows and can break."""

    def __init__(self, break_after: int | None = None) -> None:
        self.rows: list[int] = []
        self.break_after = break_after

    def __call__(self, rows: np.ndarray, size: int) -> np.ndarray:
        if self.break_after is not None and len(self.rows) >= self.break_after:
            raise KeyboardInterrupt
        self.rows += rows.tolist()
        return np.stack([np.random.default_rng(row).integers(0, 256, (size, size, 3), dtype=np.uint8) for row in rows])


def extract(split: Split, preprocessing: Preprocessing, place: Path, gather: Gather, **options: Any) -> np.ndarray:
    context = Context(options.pop("progress", Silent()), cache=place)
    settings = {"data": "noise", "context": context, "batch_size": 4, **options}
    return extract_prefix(split, gather, ROWS, preprocessing, **settings)


ROWS = np.random.default_rng(0).permutation(40)[:30]


def test_activations_are_those_of_the_prefix(split: Split, preprocessing: Preprocessing, tmp_path: Path):
    found = extract(split, preprocessing, tmp_path / "cache", Counting())
    assert (found.shape, found.dtype) == ((30, 4, 8, 8), np.float16)
    assert isinstance(found, np.memmap)
    with torch.inference_mode():
        expected = split.prefix(preprocessing.to_input(torch.from_numpy(Counting()(ROWS, 16)))).half().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_activations_are_computed_once(split: Split, preprocessing: Preprocessing, tmp_path: Path):
    first, again = Counting(), Counting()
    known = extract(split, preprocessing, tmp_path, first)
    np.testing.assert_array_equal(extract(split, preprocessing, tmp_path, again), known)
    assert (len(first.rows), again.rows) == (30, [])


def test_other_data_networks_and_settings_are_other_activations(
    split: Split, preprocessing: Preprocessing, tmp_path: Path
):
    extract(split, preprocessing, tmp_path, Counting())
    torch.manual_seed(1)
    other = prefix_of(TinyNet(3, widths=(4, 8, 16)).eval(), "blocks.0")
    later = prefix_of(TinyNet(3, widths=(4, 8, 16)).eval(), "blocks.1")
    for given, options in ((split, {"data": "x"}), (split, {"precision": "bf16"}), (other, {}), (later, {})):
        gather = Counting()
        extract(given, preprocessing, tmp_path, gather, **options)
        assert len(gather.rows) == 30


@pytest.mark.parametrize("broken_after", [4, 12, 20, 28])
@pytest.mark.parametrize("tail", [b"", b"garbage of a block that no record vouches for"])
def test_a_killed_extraction_goes_on_after_its_last_whole_block(
    split: Split, preprocessing: Preprocessing, tmp_path: Path, broken_after: int, tail: bytes
):
    known = np.array(extract(split, preprocessing, tmp_path / "whole", Counting()))
    with pytest.raises(KeyboardInterrupt):
        extract(split, preprocessing, tmp_path, Counting(broken_after))
    (values,) = tmp_path.glob("activations/*.f16")
    values.write_bytes(values.read_bytes() + tail)
    bars: list[tuple[str, int]] = []

    class Bars:
        @contextmanager
        def bar(self, name: str, total: int, unit: str = "images"):
            bars.append((name, total))
            yield lambda count=1: bars.append(("", count))

    gather = Counting()
    resumed = extract(split, preprocessing, tmp_path, gather, progress=Bars())
    np.testing.assert_allclose(resumed, known, rtol=2e-3, atol=1e-3)
    assert values.stat().st_size == known.nbytes
    kept = 30 - len(gather.rows)
    assert kept % 7 == 0
    assert kept >= broken_after - 4 - 7  # a batch is in the making, and a block may be begun
    told = f"activations after blocks.0 (resumed at {kept})" if kept else "activations after blocks.0"
    assert bars[0] == (told, 30)
    assert sum(count for name, count in bars[1:]) == 30


@pytest.mark.parametrize("damage", ["a bit in the third block", "cut short", "no values", "no record", "odd record"])
def test_damaged_blocks_are_computed_again(split: Split, preprocessing: Preprocessing, tmp_path: Path, damage: str):
    known = np.array(extract(split, preprocessing, tmp_path, Counting()))
    (values,), (record,) = tmp_path.glob("activations/*.f16"), tmp_path.glob("activations/*.json")
    whole = bytearray(values.read_bytes())
    row = 4 * 8 * 8 * 2
    sound = {"a bit in the third block": 14, "cut short": 21}.get(damage, 0)
    if damage == "a bit in the third block":
        whole[15 * row] ^= 1
        values.write_bytes(whole)
    elif damage == "cut short":
        values.write_bytes(whole[: 25 * row])
    elif damage == "odd record":
        record.write_text(json.dumps({"shape": [], "checksums": [1]}))
    else:
        (values if damage == "no values" else record).unlink()
    gather = Counting()
    np.testing.assert_allclose(extract(split, preprocessing, tmp_path, gather), known, rtol=2e-3, atol=1e-3)
    assert len(gather.rows) == 30 - sound
    assert sorted(gather.rows) == sorted(ROWS[sound:].tolist())


def test_two_at_once_compute_once(split: Split, preprocessing: Preprocessing, tmp_path: Path):
    gather, found = Counting(), list[np.ndarray]()
    work = [
        threading.Thread(target=lambda: found.append(extract(split, preprocessing, tmp_path, gather))) for _ in range(2)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(gather.rows) == 30
    np.testing.assert_array_equal(found[0], found[1])


def test_no_rows_give_no_activations(split: Split, preprocessing: Preprocessing, tmp_path: Path):
    nothing = extract_prefix(
        split, Counting(), np.arange(0), preprocessing, data="noise", context=Context(cache=tmp_path)
    )
    assert len(nothing) == 0
