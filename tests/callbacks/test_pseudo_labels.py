from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import etude.compat  # noqa: F401  (before lightning)

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset, TensorDataset

from etude.callbacks import EMA, AugmentRamp, Clock, MixUp, ProgressiveResize, PseudoLabels
from etude.callbacks.batches import BatchContext, opened
from etude.core.errors import EtudeError
from etude.functional.pseudo import Confidence, align, softmatch_weight
from etude.timeline import Linear, Phase, Timeline

LABELLED = torch.tensor([True, False, True, True, False, True])
PLAIN = {"limit_val_batches": 0}


class Semi(pl.LightningModule):
    """A user's module with batches as dicts; it writes down what its steps saw, and what it said in evaluation mode."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.rate = rate
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5), torch.nn.AdaptiveMaxPool2d(1)
        )
        self.head = torch.nn.Linear(4, 3)
        self.seen: list[dict[str, torch.Tensor]] = []
        self.asked: list[torch.Tensor] = []
        self.answers: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.network(images).flatten(1))
        if not self.network.training:
            self.asked.append(images)
            self.answers.append(logits.softmax(1))
        return logits

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        assert self.network.training
        self.seen.append({name: tensor.clone() for name, tensor in batch.items()})
        losses = torch.nn.functional.cross_entropy(self(batch["image"]), batch["target"], reduction="none")
        return (losses * batch["weight"]).sum() / batch["weight"].sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Dicts(Dataset[Any]):
    """24 images, two of each six unlabelled with targets of zeros; ``more`` adds to them."""

    def __init__(self, images: TensorDataset, **more: torch.Tensor) -> None:
        labelled = LABELLED.repeat(4)
        target = torch.nn.functional.one_hot(images.tensors[1], 3).float() * labelled[:, None]
        self.parts = {"image": images.tensors[0], "target": target, "weight": torch.ones(24), "is_labeled": labelled}
        self.parts |= more

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: part[index] for name, part in self.parts.items()}


@pytest.fixture
def semi() -> type[Semi]:
    torch.manual_seed(0)
    return Semi


@pytest.fixture
def dicts(images: TensorDataset) -> Dicts:
    return Dicts(images)


def said(module: Semi, images: torch.Tensor) -> torch.Tensor:
    """Return a module's probabilities in evaluation mode."""
    with torch.no_grad():
        return deepcopy(module).eval()(images).softmax(1)


# --- targets and weights ---


def test_unlabelled_images_get_what_the_network_says_of_them(fit_images, semi, dicts):
    module = semi()
    expected = said(module, dicts.parts["image"][:6])[~LABELLED]
    fit_images(module, [PseudoLabels(2.0, weights="none", teacher="self")], steps=1, data=dicts, **PLAIN)
    batch = module.seen[0]
    assert torch.equal(batch["target"][~LABELLED].argmax(1), expected.argmax(1))
    assert batch["target"][~LABELLED].sum(1).tolist() == [1.0, 1.0]
    assert torch.equal(batch["target"][LABELLED], dicts.parts["target"][:6][LABELLED])
    # Four labelled images, two unlabelled: these together weigh twice as much.
    assert batch["weight"].tolist() == [1, 4, 1, 1, 4, 1]
    assert torch.equal(batch["image"], dicts.parts["image"][:6])


def test_soft_labels_are_sharpened_probabilities(fit_images, semi, dicts):
    module = semi()
    expected = said(module, dicts.parts["image"][:6])[~LABELLED] ** 2
    fit_images(module, [PseudoLabels(kind="soft", temperature=0.5)], steps=1, data=dicts, **PLAIN)
    torch.testing.assert_close(module.seen[0]["target"][~LABELLED], expected / expected.sum(1, keepdim=True))


def test_softmatch_weighs_aligned_predictions_by_running_confidence(fit_images, semi, dicts):
    module, prior = semi(), torch.tensor([0.6, 0.2, 0.2])
    rule = PseudoLabels(kind="soft", prior=(6, 2, 2), n=1.0, momentum=0.5)
    fit_images(module, [rule], steps=8, data=dicts, **PLAIN)
    running = Confidence.none(3)
    assert len(module.answers) == len(module.seen) == 8
    for probabilities, batch in zip(module.answers, module.seen, strict=True):
        running = running.updated(probabilities, 0.5, prior)
        aligned = align(probabilities, prior, running.shares)
        torch.testing.assert_close(batch["target"][~LABELLED], aligned)
        expected = 2.0 * softmatch_weight(aligned.amax(1), running.mean, running.variance, 1.0)
        torch.testing.assert_close(batch["weight"][~LABELLED], expected)
    assert rule.confidence is not None
    assert torch.equal(rule.confidence.shares, running.shares)


@pytest.mark.parametrize("of_each_class", [False, True])
def test_only_confident_predictions_count(of_each_class: bool, fit_images, semi, dicts):
    before = semi(rate=0.0)
    module = deepcopy(before)
    fit_images(before, [PseudoLabels()], steps=4, data=dicts, **PLAIN)
    confidence, likeliest = torch.cat(before.answers).max(1)
    often = likeliest.mode().values
    level = confidence[likeliest == often].median().item()
    levels = torch.where(torch.arange(3) == often, level, 1.0) if of_each_class else torch.full((3,), level)
    rule = PseudoLabels(weights="none", threshold=levels.tolist() if of_each_class else level)
    fit_images(module, [rule], steps=4, data=dicts, **PLAIN)
    counted = torch.cat([batch["weight"][~LABELLED] for batch in module.seen]) > 0
    assert torch.equal(counted, confidence >= levels[likeliest])
    assert 0 < int(counted.sum()) < 8


def test_the_clock_says_how_much_and_at_nothing_the_teacher_is_not_asked(fit_images, semi, images):
    strong = images.tensors[0] + 5.0
    module, data = semi(), Dicts(images, strong=strong)
    plan = Timeline((Phase("known", 0.5, unlabeled_weight=0.0), Phase("rise", 0.5, unlabeled_weight=Linear(0.0, 3.0))))
    fit_images(module, [Clock(plan), PseudoLabels(weights="none")], steps=8, data=data, **PLAIN)
    moments = [plan.at((step + 0.5) / 8).unlabeled_weight for step in range(8)]
    for step, (batch, weight) in enumerate(zip(module.seen, moments, strict=True)):
        assert weight is not None
        torch.testing.assert_close(batch["weight"][~LABELLED], torch.full((2,), 2.0 * weight))
        assert batch["weight"][LABELLED].tolist() == [1.0] * 4
        assert (float(batch["image"].max()) > 5.0) == (step >= 4)
    assert len(module.asked) == 4


def test_labels_of_minus_one_are_unlabelled_and_weights_go_into_the_targets(fit_images, image_module, images):
    labels = images.tensors[1].clone()
    labels[~LABELLED.repeat(4)] = -1
    module, data = image_module(), TensorDataset(images.tensors[0], labels)
    rule = PseudoLabels(0.5, weights="none", threshold=0.3)
    fit_images(module, [rule], data=data, **PLAIN)
    for _, targets in module.seen:
        # 6 images / 4 labelled, for a mean over the labelled; of the others 0.5 · 4 labelled / 2 unlabelled
        torch.testing.assert_close(
            targets[LABELLED], 1.5 * torch.nn.functional.one_hot(images.tensors[1][:6][LABELLED], 3)
        )
        assert targets[~LABELLED].amax(1).tolist() == [1.5, 1.5]
        assert targets[~LABELLED].sum(1).tolist() == [1.5, 1.5]


@pytest.mark.parametrize("labelled", [1, 2, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 3.0])
def test_the_mean_loss_over_a_batch_is_that_of_the_labelled_plus_alpha_times_the_rest(
    labelled: int, alpha: float, fit_images, image_module, images
):
    labels = images.tensors[1].clone().reshape(4, 6)
    labels[:, labelled:] = -1
    module = image_module()
    rule = PseudoLabels(alpha, kind="soft", teacher="self", weights="none")
    fit_images(module, [rule], steps=1, data=TensorDataset(images.tensors[0], labels.flatten()), **PLAIN)
    (pictures, targets), logits = module.seen[0], torch.randn(6, 3)
    known = torch.nn.functional.cross_entropy(logits[:labelled], labels[0, :labelled])
    soft = targets[labelled:] / targets[labelled:].sum(1, keepdim=True).clamp_min(1e-12)
    rest = torch.nn.functional.cross_entropy(logits[labelled:], soft)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, targets), known + alpha * rest)
    assert len(pictures) == 6


def test_float_targets_without_columns_for_classes_are_refused(fit_images, semi, images):
    data = Dicts(images, target=torch.rand(24))
    with pytest.raises(EtudeError, match=r"PseudoLabels got float targets \(6,\)"):
        fit_images(semi(), [PseudoLabels()], steps=1, data=data, **PLAIN)


def test_batches_of_one_kind_alone(fit_images, semi, images):
    labelled = torch.arange(24) < 6
    data = Dicts(images, is_labeled=labelled)
    module = semi()
    fit_images(module, [PseudoLabels(weights="none")], steps=2, data=data, **PLAIN)
    assert module.seen[0]["weight"].tolist() == [1.0] * 6
    assert module.seen[1]["weight"].tolist() == [0.0] * 6  # nothing to be in proportion to


def test_a_training_without_unlabelled_images_is_told(fit_images, semi, images):
    data = Dicts(images, is_labeled=torch.ones(24, dtype=torch.bool))
    with pytest.warns(UserWarning, match="saw no unlabelled image in this training: mark them"):
        fit_images(semi(), [PseudoLabels()], steps=2, data=data, **PLAIN)


# --- views ---


def test_the_teacher_sees_the_weak_view_and_the_student_the_strong_one(fit_images, semi, images):
    strong = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    module = semi()
    fit_images(module, [PseudoLabels()], steps=4, data=Dicts(images, strong=strong), **PLAIN)
    for step, batch in enumerate(module.seen):
        rows = slice(6 * step, 6 * step + 6)
        assert torch.equal(module.asked[step], images.tensors[0][rows][~LABELLED])
        assert torch.equal(batch["image"][~LABELLED], strong[rows][~LABELLED])
        assert torch.equal(batch["image"][LABELLED], images.tensors[0][rows][LABELLED])


def test_strong_views_follow_the_size_of_the_rest(fit_images, semi, images):
    strong = torch.full((24, 3, 16, 16), 0.25)
    module = semi()
    callbacks = [ProgressiveResize(multiple=8), PseudoLabels()]
    fit_images(module, callbacks, steps=8, data=Dicts(images, strong=strong), **PLAIN)
    assert [batch["image"].shape[-1] for batch in module.seen][:: len(module.seen) - 1] == [8, 16]
    for batch in module.seen:
        torch.testing.assert_close(batch["image"][~LABELLED], torch.full_like(batch["image"][~LABELLED], 0.25))
    with pytest.raises(EtudeError, match=r"strong views of a batch are \(6, 3, 8, 8\) and its images \(6, 3, 16, 16\)"):
        fit_images(semi(), [PseudoLabels()], data=Dicts(images, strong=strong[..., :8, :8]), **PLAIN)


def test_what_comes_after_changes_the_students_view_alone(fit_images, semi, dicts):
    module = semi()
    callbacks = [PseudoLabels(weights="none"), AugmentRamp("photos", rise=0.0), MixUp(0.5)]
    fit_images(module, callbacks, steps=2, data=dicts, **PLAIN)
    for step, batch in enumerate(module.seen):
        weak = dicts.parts["image"][6 * step : 6 * step + 6]
        assert torch.equal(module.asked[step], weak[~LABELLED])
        assert not torch.isclose(batch["image"], weak).flatten(1).all(1).any()
        torch.testing.assert_close(batch["target"].sum(1), torch.ones(6))
        assert batch["weight"].sum().item() == pytest.approx(8.0)


# --- the teacher ---


class Watching(pl.Callback):
    """Keeps the module's weights after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *more: Any) -> None:
        self.weights.append(deepcopy(pl_module.state_dict()))


def test_asking_leaves_weights_statistics_and_draws_alone(fit_images, semi, images):
    """Pseudo-labels that all weigh nothing are as good as none."""
    ends = []
    for callbacks, weight in (([PseudoLabels(threshold=1.0)], 1.0), ([], 0.0)):
        data = Dicts(images, weight=torch.where(LABELLED.repeat(4), 1.0, weight))
        torch.manual_seed(0)
        module = semi()
        fit_images(module, callbacks, steps=6, data=data, **PLAIN)
        ends.append(module.state_dict())
    assert ends[0]["network.1.num_batches_tracked"].item() == 6
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name


def test_every_part_keeps_the_mode_that_it_was_in(fit_images, semi, dicts):
    class Kept(semi):
        def train(self, mode: bool = True) -> Kept:
            super().train(mode)
            self.network[1].eval()
            return self

    module = Kept().train()
    fit_images(module, [PseudoLabels()], steps=4, data=dicts, **PLAIN)
    assert len(module.answers) == 4
    assert module.network[1].num_batches_tracked.item() == 0


@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_the_teacher_is_the_average_of_the_weights(decay: float, fit_images, semi, dicts):
    module, watching = semi(), Watching()
    model = deepcopy(module)
    fit_images(module, [PseudoLabels(decay=decay), watching], steps=6, data=dicts, **PLAIN)
    average = watching.weights[0]
    for step in range(1, 6):
        model.load_state_dict(average)
        torch.testing.assert_close(module.answers[step], said(model, module.asked[step]))
        share = 1.0 - min(decay, (1 + step) / (10 + step))
        new = watching.weights[step]
        average = {name: torch.lerp(old, new[name], share) if old.is_floating_point() else new[name]
                   for name, old in average.items()}  # fmt: skip


def test_the_module_itself_may_teach(fit_images, semi, dicts):
    module, watching = semi(), Watching()
    model = deepcopy(module)
    fit_images(module, [PseudoLabels(teacher="self"), watching], steps=4, data=dicts, **PLAIN)
    for step in range(1, 4):
        model.load_state_dict(watching.weights[step - 1])
        torch.testing.assert_close(module.answers[step], said(model, module.asked[step]))


@pytest.mark.parametrize("stop", [4, 6], ids=["between epochs", "within an epoch"])
def test_a_resumed_run_goes_on_exactly(stop: int, fit_images, semi, images, tmp_path: Path):
    class Sure(semi):  # Lightning does not keep the state of torch's generator
        def __init__(self) -> None:
            torch.manual_seed(0)
            super().__init__()
            self.network[2].p = 0.0

    # Lightning starts the loader anew within an epoch, so all batches are alike.
    data = Dicts(TensorDataset(images.tensors[0][:6].repeat(4, 1, 1, 1), images.tensors[1]))
    settings = {"data": data, "enable_checkpointing": True, **PLAIN}
    whole, resumed, rule = Sure(), Sure(), PseudoLabels(prior=(1, 2, 3))
    fit_images(whole, [rule], **settings)
    saving = ModelCheckpoint(tmp_path, filename="stopped", every_n_train_steps=stop)
    fit_images(Sure(), [PseudoLabels(prior=(1, 2, 3)), saving], steps=stop, **settings)
    again = PseudoLabels(prior=(1, 2, 3))
    fit_images(resumed, [again], ckpt_path=tmp_path / "stopped.ckpt", **settings)
    assert len(resumed.seen) == 8 - stop
    for one, other in zip(resumed.seen, whole.seen[stop:], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert rule.confidence is not None
    assert again.confidence is not None
    assert again.confidence.batches == rule.confidence.batches == 8
    assert torch.equal(again.confidence.variance, rule.confidence.variance)
    torch.load(tmp_path / "stopped.ckpt", weights_only=True)  # refuses anything but tensors and plain values


def test_a_callback_serves_a_second_run(fit_images, semi, dicts):
    rule, first, second = PseudoLabels(), semi(), semi()
    second.load_state_dict(first.state_dict())
    fit_images(first, [rule], steps=4, data=dicts, **PLAIN)
    expected = said(second, second_images := dicts.parts["image"][:6][~LABELLED])
    fit_images(second, [rule], steps=4, data=dicts, **PLAIN)
    torch.testing.assert_close(second.answers[0], expected)
    assert torch.equal(second.asked[0], second_images)
    assert rule.confidence is not None
    assert rule.confidence.batches == 4


def test_an_average_for_validation_may_stand_beside_it(fit_images, semi, dicts):
    module = semi()
    fit_images(module, [PseudoLabels(), EMA(0.9)], steps=6, data=dicts, **PLAIN)
    assert len(module.answers) == 6
    assert all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters())


def test_a_module_may_have_its_own_way_to_logits(fit_images, semi, dicts):
    class Own(semi):
        def logits(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.eye(3)[[2] * len(batch["image"])]

    class Named(semi):
        def __init__(self) -> None:
            super().__init__()
            self.logits = self.head  # a layer, not a way

    own, named = Own(), Named()
    fit_images(own, [PseudoLabels()], steps=1, data=dicts, **PLAIN)
    assert own.seen[0]["target"][~LABELLED].tolist() == [[0, 0, 1]] * 2
    fit_images(named, [PseudoLabels()], steps=1, data=dicts, **PLAIN)
    assert len(named.answers) == 1


def test_the_teacher_predicts_in_the_trainers_precision(fit_images, semi, dicts):
    module, kinds = semi(), []
    module.head.register_forward_hook(lambda layer, given, logits: kinds.append((layer.training, logits.dtype)))
    fit_images(module, [PseudoLabels()], steps=1, data=dicts, precision="bf16-mixed", **PLAIN)
    assert kinds == [(False, torch.bfloat16), (True, torch.bfloat16)]


# --- several processes ---


def test_a_process_without_unlabelled_images_takes_part_in_the_statistics(semi, dicts):
    others = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    theirs = iter([torch.cat([others.sum(0), torch.tensor([2.0])]), torch.tensor([1.5, 0.49 + 0.64])])
    strategy = SimpleNamespace(reduce=lambda sums, reduce_op: sums + next(theirs))
    trainer: Any = SimpleNamespace(world_size=2, strategy=strategy)
    batch = {name: part[:6] for name, part in dicts.parts.items()} | {"is_labeled": torch.ones(6, dtype=torch.bool)}
    rule = PseudoLabels()
    changed = rule.changed(opened(batch), BatchContext(trainer, semi(), 0, 0, None))
    assert rule.confidence is not None
    expected = Confidence.none(3).updated(others, 0.99)
    for name in ("mean", "variance", "shares"):
        torch.testing.assert_close(getattr(rule.confidence, name), getattr(expected, name))
    assert changed.weight is not None
    assert changed.weight.tolist() == [1.0] * 6
    assert torch.equal(changed.target, batch["target"])


# --- mistakes ---


@pytest.mark.each(
    ("settings", "told"),
    [
        ({"kind": "firm"}, "kind='firm'; it is 'soft' or 'hard'"),
        ({"weights": "all"}, "weights='all'; it is 'softmatch' or 'none'"),
        ({"teacher": "mean"}, "teacher='mean'; it is 'ema' or 'self'"),
        ({"weight": -1.0}, "weight=-1.0, n=2.0"),
        ({"n": 0.0}, "n=0.0"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"temperature": 0.0}, "the temperature is 0.0"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"threshold": [[0.5]]}, "threshold="),
        ({"prior": (1.0, -1.0)}, "prior="),
        ({"prior": (0.0, 0.0)}, "prior="),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], told: str):
    with pytest.raises(EtudeError, match=told):
        PseudoLabels(**settings)


@pytest.mark.parametrize("settings", [{"prior": (1, 1)}, {"threshold": (0.5, 0.5)}])
def test_numbers_for_other_classes_are_refused(settings: dict[str, Any], fit_images, semi, dicts):
    with pytest.raises(
        EtudeError, match="got 2 numbers as its prior or thresholds, and the network predicts 3 classes"
    ):
        fit_images(semi(), [PseudoLabels(**settings)], data=dicts, **PLAIN)


def test_another_number_of_classes_is_refused(fit_images, image_module, images):
    labels = images.tensors[1].clone()
    labels[1] = -1
    with pytest.raises(EtudeError, match="ImageModule predicts 3 classes and PseudoLabels has 5"):
        fit_images(
            image_module(), [PseudoLabels(num_classes=5)], data=TensorDataset(images.tensors[0], labels), **PLAIN
        )


def test_batches_that_do_not_say_what_is_unlabelled_are_refused(fit_images, semi, dicts):
    del dicts.parts["is_labeled"]
    with pytest.raises(
        EtudeError, match=r"targets \(6, 3\) of torch.float32, which do not tell what is unlabelled: add"
    ):
        fit_images(semi(), [PseudoLabels()], data=dicts, **PLAIN)
