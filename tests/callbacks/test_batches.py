from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from etude.callbacks import AugmentRamp, CutMix, Distill, LabelSmoothing, MixUp, ProgressiveResize, PseudoLabels
from etude.callbacks.batches import BatchContext, BatchTransform, ImageBatch, closed, opened
from etude.callbacks.clock import Clock
from etude.core.errors import EtudeError
from etude.timeline import Phase, Timeline

HOOK = "on_after_batch_transfer"
TWO_PHASES = Timeline((Phase("first", 0.5, lr=0.1), Phase("second", 0.5, lr=0.1)))


class Add(BatchTransform):
    """Adds a number to the images and writes down the contexts."""

    def __init__(self, number: float, **settings: Any) -> None:
        super().__init__(**settings)
        self.number = number
        self.contexts: list[BatchContext] = []

    def changed(self, batch: ImageBatch, context: BatchContext) -> ImageBatch:
        self.contexts.append(context)
        return replace(batch, image=batch.image + self.number)


class Double(BatchTransform):
    def changed(self, batch: ImageBatch, context: BatchContext) -> ImageBatch:
        return replace(batch, image=batch.image * 2)


class Noise(BatchTransform):
    def changed(self, batch: ImageBatch, context: BatchContext) -> ImageBatch:
        return replace(batch, image=torch.from_numpy(context.rng(self.seed, "noise").random(batch.image.shape)))


def images_seen(module: Any) -> torch.Tensor:
    return torch.cat([images for images, _ in module.seen])


def test_training_batches_are_changed_in_the_order_of_the_callbacks(fit_images, image_module, images):
    for callbacks, expected in (
        ([Add(1.0), Double()], lambda x: (x + 1) * 2),
        ([Double(), Add(1.0)], lambda x: x * 2 + 1),
    ):
        module = image_module()
        fit_images(module, callbacks, steps=4)
        assert torch.equal(images_seen(module), expected(images.tensors[0]))


def test_validation_sees_its_batches_as_they_are(fit_images, image_module, images):
    module = image_module()
    trainer = fit_images(module, [Add(1.0)], steps=8, num_sanity_val_steps=2)
    trainer.validate(module, DataLoader(images, batch_size=6), verbose=False)
    sanity, per_validation = images.tensors[0].split(6)[:2], images.tensors[0].split(6)
    expected = torch.cat([*sanity, *per_validation * 3])  # two epochs, and the validation after training
    assert torch.equal(torch.cat([batch for batch, _ in module.validated]), expected)


def test_the_module_is_as_before_after_training(fit_images, image_module):
    module = image_module()
    fit_images(module, [Add(1.0), Double()])
    assert HOOK not in vars(module)
    before = len(module.seen)
    fit_images(module, [])
    assert all(float(batch.max()) <= 1.0 for batch, _ in module.seen[before:])


def test_the_module_is_as_before_when_training_dies(fit_images, image_module):
    class Dying(pl.Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            raise RuntimeError("the cable fell out")

    module = image_module()
    with pytest.raises(RuntimeError, match="the cable fell out"):
        fit_images(module, [Add(1.0), Double(), Dying()])
    assert float(module.seen[0][0].min()) >= 2.0
    assert HOOK not in vars(module)


def test_a_callback_serves_a_second_run(fit_images, image_module, images):
    add, module = Add(1.0), image_module()
    fit_images(module, [add], steps=4)
    fit_images(module, [add], steps=4)
    assert torch.equal(images_seen(module), torch.cat([images.tensors[0] + 1] * 2))


def test_the_users_own_hook_is_called_first_and_kept(fit_images, image_module, images):
    class Own(image_module):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] * 3, batch[1]]

    module = Own()
    fit_images(module, [Add(1.0)], steps=4)
    assert torch.equal(images_seen(module), images.tensors[0] * 3 + 1)
    assert torch.equal(module.validated[0][0], images.tensors[0][:6] * 3)
    assert HOOK not in vars(module)


def test_a_hook_on_the_instance_is_put_back(fit_images, image_module, images):
    def own(batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 3, batch[1]]

    module = image_module()
    module.on_after_batch_transfer = own
    fit_images(module, [Add(1.0)], steps=4)
    assert torch.equal(images_seen(module), images.tensors[0] * 3 + 1)
    assert module.on_after_batch_transfer is own


@pytest.mark.parametrize("overrides", [False, True])
def test_a_datamodules_batches_are_changed_too(overrides: bool, fit_images, image_module, images):
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(images, batch_size=6)

    class WithHook(Data):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] * 3, batch[1]]

    data, module = WithHook() if overrides else Data(), image_module()
    fit_images(module, [Add(1.0)], steps=4, datamodule=data)
    assert torch.equal(images_seen(module), images.tensors[0] * (3 if overrides else 1) + 1)
    assert HOOK not in vars(module)
    assert HOOK not in vars(data)


def test_steps_batches_and_moments_are_those_of_the_coming_step(fit_images, image_module):
    add, clock = Add(1.0), Clock(TWO_PHASES)
    fit_images(image_module(), [clock, add], steps=4, accumulate_grad_batches=2)
    assert [(context.step, context.batch_idx) for context in add.contexts] == [
        (0, 0), (0, 1), (1, 2), (1, 3), (2, 0), (2, 1), (3, 2), (3, 3),
    ]  # fmt: skip
    assert [context.moment.phase for context in add.contexts] == ["first"] * 4 + ["second"] * 4
    assert [context.progress for context in add.contexts[::2]] == [0.125, 0.375, 0.625, 0.875]


@pytest.mark.parametrize("phases", ["second", ("second",), ["second"]])
def test_a_transform_is_confined_to_its_phases(phases: Any, fit_images, image_module, images):
    module = image_module()
    fit_images(module, [Clock(TWO_PHASES), Add(1.0, phases=phases)], steps=8)
    originals = images.tensors[0]
    assert torch.equal(images_seen(module), torch.cat([originals, originals + 1]))


def test_draws_repeat_and_differ_between_steps_batches_and_seeds(fit_images, image_module):
    def drawn(seed: int) -> torch.Tensor:
        class Double64(image_module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return super().forward(images.float())

        module = Double64()
        fit_images(module, [Noise(seed=seed)], steps=3, accumulate_grad_batches=2)
        return torch.stack([images for images, _ in module.seen])

    once = drawn(0)
    assert torch.equal(once, drawn(0))
    assert not torch.equal(once, drawn(1))
    assert len({tuple(batch.flatten().tolist()) for batch in once}) == len(once) == 6


def test_every_process_draws_its_own(image_module):
    def drawn(rank: int) -> float:
        trainer: Any = SimpleNamespace(global_rank=rank)
        return float(BatchContext(trainer, image_module(), 3, 1, None).rng(0, "noise").random())

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


@pytest.mark.parametrize("stop", [4, 6], ids=["between epochs", "within an epoch"])
def test_a_resumed_run_draws_what_the_uninterrupted_would_have(stop: int, fit_images, image_module, tmp_path: Path):
    one_batch = torch.rand(6, 3, 16, 16).repeat(4, 1, 1, 1)  # Lightning starts the loader anew within an epoch
    data = TensorDataset(one_batch, torch.arange(24) % 3)

    class Double64(image_module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images.float())

    whole, resumed = Double64(), Double64()
    fit_images(whole, [Noise()], data=data)
    saving = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=stop)
    fit_images(Double64(), [Noise(), saving], steps=stop, data=data, enable_checkpointing=True)
    fit_images(resumed, [Noise()], data=data, ckpt_path=tmp_path / "stopped.ckpt")
    assert torch.equal(images_seen(resumed), images_seen(whole)[6 * stop :])


def test_batches_keep_their_kind_and_what_else_they_hold():
    image, target, more = torch.zeros(2, 1, 8, 8), torch.zeros(2), object()
    named = namedtuple("named", "x y more")
    for batch in ((image, target, more), [image, target, more], named(image, target, more)):
        new = closed(batch, replace(opened(batch), image=image + 1))
        assert type(new) is type(batch)
        assert (float(new[0].min()), new[1], new[2]) == (1.0, target, more)
        assert float(batch[0].max()) == 0.0
    tree = {"image": image, "target": target, "weight": torch.ones(2), "id": more}
    new = closed(tree, replace(opened(tree), image=image + 1, weight=torch.zeros(2)))
    assert list(new) == list(tree)
    assert (float(new["image"].min()), new["target"], float(new["weight"].max()), new["id"]) == (1.0, target, 0.0, more)
    assert (float(tree["image"].max()), float(tree["weight"].min())) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("shape", "channels_last", "size"),
    [((2, 3, 8, 6), False, (8, 6)), ((2, 8, 6, 3), True, (8, 6)), ((2, 12, 8, 8), False, (8, 8))],
)
def test_where_the_channels_are(shape: tuple[int, ...], channels_last: bool, size: tuple[int, int]):
    batch = ImageBatch(torch.zeros(shape), torch.zeros(2))
    assert (batch.channels_last, batch.size) == (channels_last, size)


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (torch.zeros(2, 3), r"a tensor \(2, 3\)"),
        ([torch.zeros(2, 3), torch.zeros(2)], r"a list of a tensor \(2, 3\), a tensor \(2,\)"),
        ((torch.zeros(2, 3, 8, 8),), r"a tuple of a tensor \(2, 3, 8, 8\)"),
        ({"pixels": torch.zeros(2, 3, 8, 8)}, "a dict with 'pixels'"),
        ({"image": torch.zeros(2, 3, 8, 8), "target": "cat"}, "a dict with 'image', 'target'"),
        (None, "a NoneType"),
    ],
)
def test_a_batch_of_another_kind_is_told(batch: Any, told: str):
    with pytest.raises(EtudeError, match=f"a training batch is {told}; etude's callbacks change batches that begin"):
        opened(batch)


def test_phases_need_a_clock_that_has_them(fit_images, image_module):
    with pytest.raises(EtudeError, match="Add is confined to phase 'grow', and without a Clock"):
        fit_images(image_module(), [Add(1.0, phases="grow")])
    with pytest.raises(EtudeError, match="without a Clock"):
        fit_images(image_module(), [Add(1.0, phases=[])])
    with pytest.raises(
        EtudeError, match=r"'secnd', which the timeline lacks; it has 'first', 'second'\. Did you mean 'second'\?"
    ):
        fit_images(image_module(), [Clock(TWO_PHASES), Add(1.0, phases="secnd")])


def test_only_what_follows_the_run_needs_its_end(fit_images, image_module):
    class Stopping(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
            trainer.should_stop = True

    class Following(Add):
        follows_run = True

    fit_images(image_module(), [Add(1.0), Stopping()], steps=-1)
    with pytest.raises(EtudeError, match="Following must know where the run ends: give the Trainer max_steps"):
        fit_images(image_module(), [Following(1.0), Stopping()], steps=-1)


def test_batches_that_bypass_lightning_are_refused(fit_images, image_module):
    class Drawing(image_module):
        def training_step(self, dataloader_iter: Iterator[Any]) -> torch.Tensor:
            return super().training_step(next(dataloader_iter)[0], 0)

    with pytest.raises(EtudeError, match="training_step draws from dataloader_iter itself"):
        fit_images(Drawing(), [Add(1.0)])


TRICKS = {
    "AugmentRamp": lambda: AugmentRamp(rise=0.0),
    "ProgressiveResize": lambda: ProgressiveResize(multiple=8),
    "MixUp": MixUp,
    "CutMix": CutMix,
    "LabelSmoothing": LabelSmoothing,
    "Distill": lambda: Distill([torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3))], share=0.5),
    "PseudoLabels": PseudoLabels,
}
KINDS: dict[str, Callable[..., Any]] = {
    "tuple": lambda *parts: parts,
    "list": lambda *parts: [*parts],
    "dict": lambda image, target, *more: {"image": image, "target": target} | dict(enumerate(more)),
}


class Collated(Dataset[Any]):
    """One batch after another, as they are."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return self.batch


def fit_batches(module: pl.LightningModule, callbacks: list[pl.Callback], batch: Any) -> None:
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Collated(batch), batch_size=None))


@pytest.mark.each("kind", KINDS.values(), ids=KINDS)
@pytest.mark.each("shape", [(6, 16, 16), (6, 1, 16, 16), (6, 3, 16, 16)])
@pytest.mark.each("make", TRICKS.values(), ids=TRICKS)
def test_targets_that_are_images_are_refused(make, shape: tuple[int, ...], kind, image_module):
    for dtype in (torch.long, torch.float32):
        batch = kind(torch.rand(6, 3, 16, 16), torch.zeros(shape, dtype=dtype))
        with pytest.raises(EtudeError, match=rf"targets \({shape[0]}, {shape[1]}, .* no masks or images"):
            fit_batches(image_module(), [make()], batch)


@pytest.mark.each("kind", KINDS.values(), ids=KINDS)
@pytest.mark.each("shape", [(6, 16, 16), (6, 1, 16, 16), (6, 16, 16, 1)])
@pytest.mark.each("name", TRICKS)
def test_masks_beside_labels_are_refused_where_images_change(name: str, shape: tuple[int, ...], kind, image_module):
    class Reading(image_module):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            parts = list(batch.values()) if isinstance(batch, dict) else batch
            return super().training_step(parts[:2], batch_idx)

    batch = kind(torch.rand(6, 3, 16, 16), torch.arange(6) % 3, torch.zeros(shape))
    changes = name in ("AugmentRamp", "ProgressiveResize", "MixUp", "CutMix")
    refused = pytest.raises(EtudeError, match=rf"holds \({shape[0]}, {shape[1]}, ")
    with refused if changes else nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_batches(Reading(), [TRICKS[name]()], batch)


def test_other_parts_of_a_batch_are_left_alone():
    image = torch.zeros(2, 1, 8, 8)
    for part in (torch.zeros(2, 4), torch.zeros(2, 4, 4), torch.zeros(8, 8, 2), torch.zeros(3, 8, 8), "name"):
        batch = (image, torch.zeros(2), part)
        assert closed(batch, replace(opened(batch), image=image + 1))[2] is part


LOSSES = {
    "nll": lambda logits, labels: torch.nn.functional.nll_loss(logits.log_softmax(1), labels),
    "bce": lambda logits, labels: torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float()),
    "one hot": lambda logits, labels: (logits * torch.nn.functional.one_hot(labels, 3)).sum(),
    "gather": lambda logits, labels: logits.gather(1, labels[:, None]).mean(),
    "index": lambda logits, labels: torch.eye(3)[labels].mean() + logits.mean(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("name", ["MixUp", "CutMix", "LabelSmoothing", "Distill"])
def test_a_step_that_wants_labels_is_told_who_made_them_dense(name: str, loss, fit_images, image_module):
    class Labels(image_module):
        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
            return loss(self(batch[0]), batch[1])

    module = Labels()
    with pytest.raises(EtudeError, match=f"training_step of Labels failed .* labels {name} made dense targets"):
        fit_images(module, [TRICKS[name]()])
    assert "training_step" not in vars(module)
    assert fit_images(Labels(), [AugmentRamp()]).global_step == 8


@pytest.mark.parametrize("callbacks", [[AugmentRamp], []])
def test_other_errors_of_a_step_stay_as_they_are(callbacks: list[Any], fit_images, image_module):
    class Wrong(image_module):
        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
            raise ValueError("my own mistake")

    with pytest.raises(ValueError, match="^my own mistake$"):
        fit_images(Wrong(), [kind() for kind in callbacks])
