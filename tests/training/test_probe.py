"""The probe, on networks whose memory and numerics are made up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from etude.core.errors import EtudeError
from etude.models.modes import AskedMode, Mode
from etude.training.probe import Steps, probe_mode

CPU = torch.device("cpu")
LIKELY = Mode("bf16", "channels_last", 4)
PLAIN = Mode("fp32", "contiguous", 1)


class Pretended(nn.Module):
    """A small network that takes no more than ``most`` images at once; in bf16 its logits are off by ``error``."""

    def __init__(self, *, most: int | None = None, error: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.most, self.error = most, error
        self.seen: list[tuple[Mode, int]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        bf16 = torch.is_autocast_enabled("cpu")
        plain = image.is_contiguous()
        assert plain == self.conv.weight.is_contiguous()
        mode = Mode("bf16" if bf16 else "fp32", "contiguous" if plain else "channels_last", torch.get_num_threads())
        self.seen.append((mode, len(image)))
        if self.most is not None and len(image) > self.most:
            raise torch.OutOfMemoryError("made up")
        logits = self.head(self.norm(self.conv(image)).amax((2, 3)))
        return logits * (1.0 + self.error) if bf16 else logits


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A processor of four cores with bfloat16; threads are counted, never started."""
    threads = [3]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    monkeypatch.setattr("etude.models.device.native_bf16", lambda: True)
    monkeypatch.setattr("etude.models.modes.usable_cores", lambda: 4)


def probed(net: nn.Module, *, batch_size: int = 16, memory: int | None = None, **given) -> tuple[Mode, str]:
    return probe_mode(net, 12, batch_size, 3, CPU, memory=lambda: memory, **given)


def test_the_likely_mode_is_kept_where_it_keeps_the_loss():
    assert probed(Pretended()) == (LIKELY, "")


@pytest.mark.parametrize(
    "asked",
    [
        AskedMode(precision="fp32"),
        AskedMode(memory_format="contiguous"),
        AskedMode(threads=3),
        AskedMode("fp32", "contiguous", 1, 4),
    ],
)
def test_what_was_asked_is_taken(asked):
    mode, note = probed(Pretended(), asked=asked)
    for name in ("precision", "memory_format", "threads", "micro_batch"):
        assert getattr(mode, name) == (getattr(asked, name) or getattr(LIKELY, name))
    assert not note


def test_without_native_bf16_only_fp32_is_tried(monkeypatch):
    monkeypatch.setattr("etude.models.device.native_bf16", lambda: False)
    net = Pretended()
    assert probed(net)[0].precision == "fp32"
    assert {mode.precision for mode, _ in net.seen} == {"fp32"}


@pytest.mark.parametrize("error", [0.5, float("nan"), float("inf")])
def test_a_mode_that_changes_the_loss_is_left_out_and_named(error):
    mode, note = probed(Pretended(error=error))
    assert mode == Mode("fp32", "channels_last", 4)
    assert "bf16 left out: its " in note


def test_a_mode_whose_gradients_turn_round_is_left_out():
    class Turned(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *gradients):
            return -gradients[0]

    class Turning(Pretended):
        def forward(self, image):
            logits = super().forward(image)
            return Turned.apply(logits) if torch.is_autocast_enabled("cpu") else logits

    mode, note = probed(Turning())
    assert mode.precision == "fp32"
    assert "gradients point elsewhere" in note


def test_a_precision_that_was_asked_for_is_taken_and_its_fault_named():
    mode, note = probed(Pretended(error=0.5), asked=AskedMode(precision="bf16"))
    assert mode.precision == "bf16"
    assert "taken as asked, though its loss is" in note


@pytest.mark.parametrize(("memory", "tried"), [(None, 64), (1 << 40, 4)])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(memory, tried):
    net = Pretended(most=20)
    mode, _ = probed(net, batch_size=64, memory=memory)
    assert max(count for _, count in net.seen) == tried  # where the memory is known, it is estimated
    assert mode.micro_batch == (16 if memory is None else None)


def test_what_fits_is_tried_to_the_image():
    steps = Steps(Pretended(most=20), 12, 3, CPU)
    assert steps.fits(PLAIN, 20)
    assert not steps.fits(PLAIN, 21)


def test_a_batch_too_large_for_the_free_memory_is_estimated_not_tried():
    net = Pretended()
    assert probed(net, batch_size=32, memory=1 << 40)[0].micro_batch is None
    an_image = Steps(net, 12, 3, CPU).bytes_for_backward(PLAIN, 4) / 4
    assert an_image >= 4 * (3 * 12 * 12 + 4 * 10 * 10)  # the input and the first map, in float32
    asked = AskedMode("fp32", "contiguous", 1)
    assert probed(net, batch_size=32, asked=asked, memory=int(an_image * 9 / 0.7))[0].micro_batch == 8
    assert max(count for _, count in net.seen) < 32


def test_not_even_one_image_is_reported_in_a_sentence():
    with pytest.raises(EtudeError, match="not even one image"):
        probed(Pretended(most=0), asked=AskedMode("fp32"))


def test_another_error_of_the_network_is_not_taken_for_lack_of_memory():
    class Failing(Pretended):
        def forward(self, image):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        probed(Failing())


def test_nothing_but_the_layout_changes():
    net = Pretended()
    net.norm.momentum = 0.5
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    probed(net)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == flags
    assert all(weight.grad is None for weight in net.parameters())
    assert not net.conv.weight.is_contiguous()  # laid out as the mode says
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_of_a_frozen_network_no_gradient_is_computed():
    net = Pretended().requires_grad_(False)
    grads: list[bool] = []
    net.head.register_forward_hook(lambda module, inputs, output: grads.append(output.requires_grad))
    assert probed(net) == (LIKELY, "")
    assert not any(grads)


@pytest.mark.each("asked", [AskedMode(), AskedMode("bf16"), AskedMode("fp32")])
@pytest.mark.each("most", [0, 1, 2, 3])
def test_few_images_fit(asked, most):
    if not most:
        with pytest.raises(EtudeError, match="not even one image"):
            probed(Pretended(most=0), asked=asked)
        return
    net = Pretended(most=most)
    assert probed(net, asked=asked)[0].micro_batch == {1: 1, 2: 2, 3: 2}[most]


def test_no_more_images_than_the_user_allows_are_held():
    net = Pretended(most=2)
    assert probed(net, asked=AskedMode(micro_batch=2)) == (Mode("bf16", "channels_last", 4, 2), "")
    assert max(count for _, count in net.seen) == 2
