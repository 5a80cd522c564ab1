from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from etude.callbacks.batches import BatchContext, ImageBatch
from etude.callbacks.clock import Clock
from etude.callbacks.mixup import CutMix, MixUp, dense_targets
from etude.core.errors import EtudeError
from etude.functional.mix import one_hot
from etude.timeline import Linear, Phase, Timeline

BOTH = pytest.mark.parametrize("kind", [MixUp, CutMix])


class Numbered(Dataset[Any]):
    """24 images in whose pixels the image's class stands as 0 or 1 of its channel: what is mixed can be read off."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.eye(3)[index % 3][:, None, None].expand(3, 12, 12), index % 3


class AsDict(Dataset[Any]):
    """The same, uint8 (H, W, C), dense targets and weights, as etude's own batches are."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = (torch.eye(3)[index % 3] * 255).to(torch.uint8).expand(12, 12, 3)
        return {"image": image, "target": torch.eye(3)[index % 3], "weight": torch.tensor(1.0 + index), "id": index}


@BOTH
def test_dense_targets_say_just_what_the_images_show(kind: type[MixUp], fit_images, image_module):
    module = image_module()
    fit_images(module, [kind(alpha=1.0)], steps=8, data=Numbered())
    for images, targets in module.seen:
        assert targets.shape == (6, 3)
        assert torch.allclose(images.mean((2, 3)), targets, atol=1e-5)
    shares = torch.cat([targets for _, targets in module.seen])
    assert ((shares > 0.05) & (shares < 0.95)).any()
    assert all(labels.dtype == torch.int64 for _, labels in module.validated)


def test_mixup_blends_and_cutmix_pastes(fit_images, image_module):
    for kind, levels in ((MixUp, False), (CutMix, True)):
        module = image_module()
        fit_images(module, [kind(alpha=1.0)], steps=4, data=Numbered())
        pixels = torch.cat([images for images, _ in module.seen])
        assert bool(((pixels == 0) | (pixels == 1)).all()) is levels


@BOTH
def test_dict_batches_of_uint8_with_weights(kind: type[MixUp], fit_images, image_module):
    class Dicts(image_module):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
            self.seen.append(batch)  # type: ignore[arg-type]
            images = batch["image"].permute(0, 3, 1, 2).float() / 255
            return torch.nn.functional.cross_entropy(self(images), batch["target"])

        validation_step = None  # type: ignore[assignment]

    module = Dicts()
    fit_images(module, [kind(alpha=1.0)], steps=4, data=AsDict())
    for number, batch in enumerate(module.seen):
        assert (batch["image"].dtype, batch["image"].shape[1:]) == (torch.uint8, (12, 12, 3))  # type: ignore[index]
        shown = batch["image"].float().mean((1, 2)) / 255  # type: ignore[index]
        weights = torch.arange(1.0, 7.0) + 6 * number
        own = one_hot(torch.arange(6) % 3, 3)
        # Where both images are of one class the target is that class; elsewhere it leans to the heavier image.
        pure = shown.amax(1) > 0.999
        assert torch.allclose(batch["target"][pure], own[pure], atol=1e-5)  # type: ignore[index]
        assert torch.allclose(batch["target"].sum(1), torch.ones(6))  # type: ignore[index]
        assert weights.min() <= batch["weight"].min() <= batch["weight"].max() <= weights.max()  # type: ignore[index]
        assert batch["id"].tolist() == list(range(6 * number, 6 * number + 6))  # type: ignore[index]


def plan(**quantities: Any) -> Timeline:
    return Timeline((Phase("first", 0.5, **quantities), Phase("second", 0.5, mixup=0.0, cutmix=0.0)))


def is_mixed(module: Any) -> list[bool]:
    return [targets.is_floating_point() for _, targets in module.seen]


@BOTH
@pytest.mark.parametrize("scheduled", [{"mixup": 0.4, "cutmix": 0.4}, {}], ids=["scheduled", "own alpha"])
def test_the_clocks_alpha_takes_precedence(kind: type[MixUp], scheduled: dict[str, float], fit_images, image_module):
    module = image_module()
    fit_images(module, [Clock(plan(**scheduled)), kind()], data=Numbered())
    assert is_mixed(module) == [True] * 4 + [False] * 4  # off, batches keep their integer labels


@BOTH
def test_an_alpha_of_the_clock_is_the_one_drawn_from(kind: type[MixUp], fit_images, image_module):
    def seen(callbacks: list[Any]) -> torch.Tensor:
        module = image_module()
        fit_images(module, callbacks, data=Numbered(), steps=4)
        return torch.stack([targets for _, targets in module.seen])

    scheduled = Timeline((Phase("all", 1.0, mixup=Linear(3.0, 3.0), cutmix=3.0),))
    assert torch.equal(seen([Clock(scheduled), kind(alpha=0.1)]), seen([kind(alpha=3.0)]))
    assert not torch.equal(seen([kind(alpha=0.1)]), seen([kind(alpha=3.0)]))


@BOTH
def test_a_trick_is_confined_to_phases(kind: type[MixUp], fit_images, image_module):
    module = image_module()
    clock = Clock(Timeline((Phase("first", 0.5), Phase("second", 0.5))))
    fit_images(module, [clock, kind(phases="first")], data=Numbered())
    assert is_mixed(module) == [True] * 4 + [False] * 4


def test_beside_each_other_each_batch_is_mixed_by_one(fit_images, image_module):
    module = image_module()
    fit_images(module, [MixUp(alpha=1.0), CutMix(alpha=1.0)], steps=40, data=Numbered())
    pasted = [bool(((images == 0) | (images == 1)).all()) for images, _ in module.seen]
    assert 8 <= sum(pasted) <= 32
    for images, targets in module.seen:
        assert torch.allclose(images.mean((2, 3)), targets, atol=1e-5)
        # A batch mixed twice would show three different parts somewhere; once, an image has at most two parts.
        assert all(len(part.flatten(1).T.unique(dim=0)) <= 2 for part in images)


def test_beside_each_other_the_one_that_is_on_works_alone(fit_images, image_module):
    module = image_module()
    clock = Clock(Timeline((Phase("first", 0.5, mixup=0.0), Phase("second", 0.5, cutmix=0.0))))
    fit_images(module, [clock, MixUp(alpha=1.0), CutMix(alpha=1.0)], data=Numbered())
    assert is_mixed(module) == [True] * 8
    pasted = [bool(((images == 0) | (images == 1)).all()) for images, _ in module.seen]
    assert pasted == [True] * 4 + [False] * 4


def test_a_timeline_that_keeps_the_trick_off_is_told(fit_images, image_module):
    clock = Clock(Timeline((Phase("all", 1.0, cutmix=0.0),)))
    with pytest.raises(EtudeError, match="keeps cutmix at 0 throughout, so CutMix would do nothing: schedule cutmix"):
        fit_images(image_module(), [clock, CutMix()])


def test_classes_come_from_the_argument_or_the_module(image_module):
    labels = torch.tensor([2, 0])
    assert dense_targets(labels, None, image_module(), "MixUp").tolist() == [[0, 0, 1], [1, 0, 0]]
    assert dense_targets(labels, 4, image_module(), "MixUp").shape == (2, 4)
    for floats in (torch.tensor([0.5, 1.0]), torch.eye(2)):
        assert dense_targets(floats, None, image_module(), "MixUp") is floats


@pytest.mark.parametrize(
    ("targets", "classes", "sentence"),
    [
        (torch.tensor([0, 3]), None, "labels from 0 to 3, and MixUp has 3 classes: labels run from 0 to 2"),
        (torch.tensor([-1, 1]), 5, "labels from -1 to 1, and MixUp has 5 classes"),
        (torch.zeros(2, 8, 8), None, r"targets \(2, 8, 8\) of torch.float32; it mixes labels"),
        (torch.zeros(2, 3, dtype=torch.int64), None, r"targets \(2, 3\) of torch.int64"),
    ],
)
def test_targets_that_cannot_be_mixed_are_told(targets: torch.Tensor, classes: int | None, sentence: str, image_module):
    with pytest.raises(EtudeError, match=sentence):
        dense_targets(targets, classes, image_module(), "MixUp")


def test_an_unknown_number_of_classes_ends_in_one_sentence(fit_images, image_module):
    module = image_module()
    del module.num_classes
    with pytest.raises(EtudeError, match=r"write MixUp\(num_classes=\.\.\.\), or give ImageModule an attribute"):
        fit_images(module, [MixUp()])
    fit_images(module, [MixUp(num_classes=3)])
    assert module.seen[0][1].shape == (6, 3)


@BOTH
def test_a_negative_alpha_is_refused_at_once(kind: type[MixUp]):
    with pytest.raises(EtudeError, match="alpha is -1"):
        kind(alpha=-1)


def test_regression_targets_are_mixed_as_they_are(fit_images, image_module):
    class Regression(image_module):
        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
            self.seen.append(batch)
            return (self(batch[0])[:, 0] - batch[1]).square().mean()

        validation_step = None  # type: ignore[assignment]

    module = Regression()
    data = TensorDataset(torch.arange(24.0)[:, None, None, None].expand(24, 3, 12, 12), torch.arange(24.0))
    fit_images(module, [MixUp(alpha=1.0)], data=data, steps=4)
    for images, targets in module.seen:
        assert torch.allclose(images.mean((1, 2, 3)), targets, atol=1e-4)
    assert ImageBatch(*module.seen[0]).target.shape == (6,)


@BOTH
def test_float_targets_are_mixed_with_weights_and_teachers(kind: type[MixUp], image_module):
    """Once (B,) targets times (B, 1) weights silently became (B, B)."""
    module, trainer = image_module(), SimpleNamespace(global_rank=0, callbacks=[])
    trick = kind(alpha=1.0, seed=3)
    trainer.callbacks.append(trick)
    context = BatchContext(trainer, module, 5, 1, None)  # type: ignore[arg-type]
    images, values = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8), torch.arange(4.0)
    plain = trick.changed(ImageBatch(images, values), context)
    torch.testing.assert_close(plain.target, plain.image.mean((1, 2, 3)))
    even = trick.changed(ImageBatch(images, values, torch.full((4,), 2.0)), context)
    assert even.weight is not None
    torch.testing.assert_close(even.target, plain.target)
    assert even.weight.tolist() == [2.0] * 4
    teacher = torch.eye(4)
    taught = trick.changed(ImageBatch(images, values, teacher=teacher), context)
    column = trick.changed(ImageBatch(images, values[:, None], teacher=teacher), context)
    torch.testing.assert_close(taught.target, plain.target)
    torch.testing.assert_close(column.target, plain.target[:, None])
    assert taught.teacher is not None
    torch.testing.assert_close(taught.teacher @ values, plain.target)
