"""The probe's race, on networks whose speed is made up: a clock that only the steps move."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from etude.core.errors import EtudeError
from etude.models.modes import AskedMode, Mode
from etude.training import probe
from etude.training.probe import ProbeResult, candidate_formats, candidate_threads, probe_modes

CPU = torch.device("cpu")
Cost = Callable[[Mode], float]


class Clock:
    """Seconds that pass only when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Pretended(nn.Module):
    """A small network that takes ``cost(mode)`` seconds an image, by the mode it really runs in, and ``a_step``."""

    def __init__(
        self, clock: Clock, cost: Cost, *, most: int | None = None, error: float = 0.0, a_step: float = 0.0
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.clock, self.cost, self.most, self.error, self.a_step = clock, cost, most, error, a_step
        self.seen: list[tuple[Mode, int]] = []

    def __repr__(self) -> str:
        return "Pretended"

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        bf16 = torch.is_autocast_enabled("cpu")
        plain = image.is_contiguous()
        assert plain == self.conv.weight.is_contiguous()
        mode = Mode("bf16" if bf16 else "fp32", "contiguous" if plain else "channels_last", torch.get_num_threads())
        self.seen.append((mode, len(image)))
        if self.most is not None and len(image) > self.most:
            raise torch.OutOfMemoryError("made up")
        self.clock.now += self.cost(mode) * len(image) + self.a_step
        logits = self.head(self.norm(self.conv(image)).amax((2, 3)))
        return logits * (1.0 + self.error) if bf16 else logits


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A processor of four cores with bfloat16, two threads to a core; threads are counted, never started."""
    threads = [3]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
    monkeypatch.setattr(probe, "usable_cores", lambda: 4)
    monkeypatch.setattr(probe, "physical_cores", lambda: 2)
    monkeypatch.setattr("etude.models.device.native_bf16", lambda: True)
    monkeypatch.setattr("etude.models.modes.usable_cores", lambda: 4)


def favourite(best: Mode, seconds: float = 0.01) -> Cost:
    """Each thing that differs from the best mode costs a third more."""

    def cost(mode: Mode) -> float:
        names = ("precision", "memory_format", "threads")
        return seconds * 1.35 ** sum(getattr(mode, name) != getattr(best, name) for name in names)

    return cost


def probed(net: Pretended, *, batch_size: int = 16, **given) -> ProbeResult:
    given = {"others": lambda: None, "memory": lambda: None, **given}
    return probe_modes(net, 12, batch_size, 3, CPU, clock=net.clock, **given)


@pytest.mark.each("precision", ["fp32", "bf16"])
@pytest.mark.each("layout", ["channels_last", "contiguous"])
@pytest.mark.each("threads", [4, 2, 1])
def test_the_fastest_mode_is_found_whichever_it_is(precision, layout, threads):
    best, clock = Mode(precision, layout, threads), Clock()
    found = probed(Pretended(clock, favourite(best)))
    assert found.mode == best
    assert found.images_per_second == pytest.approx(100.0)
    assert found.complete
    assert found.seconds == pytest.approx(clock.now)
    assert found.table[0].mode == best


def test_slow_moments_of_the_machine_do_not_decide():
    best, calls = Mode("bf16", "contiguous", 4), [0]

    def cost(mode: Mode) -> float:
        calls[0] += 1
        return favourite(best, 0.02)(mode) * (1.0 if calls[0] % 3 else 1.6)

    assert probed(Pretended(Clock(), cost)).mode == best


@pytest.mark.parametrize(
    "asked",
    [
        AskedMode(precision="fp32"),
        AskedMode(memory_format="contiguous"),
        AskedMode(threads=3),
        AskedMode("fp32", "contiguous", 1, 4),
    ],
)
def test_what_was_asked_is_taken_and_nothing_else_tried(asked):
    net = Pretended(Clock(), favourite(Mode("bf16", "channels_last", 2)))
    found = probed(net, asked=asked)
    for name in ("precision", "memory_format", "threads", "micro_batch"):
        if (wanted := getattr(asked, name)) is not None:
            assert getattr(found.mode, name) == wanted
            assert all(getattr(each.mode, name) == wanted for each in found.table)
    if asked.micro_batch:
        assert max(count for _, count in net.seen) <= asked.micro_batch


def test_without_native_bf16_only_fp32_is_tried(monkeypatch):
    monkeypatch.setattr("etude.models.device.native_bf16", lambda: False)
    net = Pretended(Clock(), favourite(Mode("bf16", "channels_last", 4)))
    assert probed(net).mode.precision == "fp32"
    assert {mode.precision for mode, _ in net.seen} == {"fp32"}


def test_the_bar_ends_full_whatever_was_dropped():
    class Bars:
        def bar(self, name, total, unit="images"):
            bars.append([total, 0])

            @contextmanager
            def shown():
                def advance(count=1):
                    bars[-1][1] += count

                yield advance

            return shown()

    bars: list[list[int]] = []
    probed(Pretended(Clock(), favourite(Mode("bf16", "contiguous", 2))), progress=Bars())
    probed(Pretended(Clock(), lambda mode: 0.01), progress=Bars())
    assert [done for _, done in bars] == [total for total, _ in bars] == [16, 16]


def test_candidates_name_no_thread_count_twice(monkeypatch):
    assert candidate_threads(CPU, AskedMode()) == [4, 2, 1]
    assert candidate_threads(torch.device("cuda"), AskedMode()) == [4]
    monkeypatch.setattr(probe, "physical_cores", lambda: 4)
    monkeypatch.setattr(probe, "usable_cores", lambda: 1)
    assert candidate_threads(CPU, AskedMode()) == [1]
    assert candidate_formats(torch.device("mps"), AskedMode()) == [("fp32", "channels_last"), ("fp32", "contiguous")]


@pytest.mark.parametrize("error", [0.5, float("nan"), float("inf")])
def test_a_mode_that_changes_the_loss_is_left_out_and_named(error):
    found = probed(Pretended(Clock(), favourite(Mode("bf16", "channels_last", 4)), error=error))
    assert found.mode.precision == "fp32"
    left = [each for each in found.table if "left out" in each.note]
    assert {each.mode.precision for each in left} == {"bf16"}
    assert "bf16 channels_last left out: its " in found.in_words()


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

    found = probed(Turning(Clock(), favourite(Mode("bf16", "channels_last", 4))))
    assert found.mode.precision == "fp32"
    assert any("gradients point elsewhere" in each.note for each in found.table)


def test_a_precision_that_was_asked_for_is_taken_and_its_fault_told():
    net = Pretended(Clock(), favourite(Mode("bf16", "channels_last", 4)), error=0.5)
    found = probed(net, asked=AskedMode(precision="bf16"))
    assert found.mode.precision == "bf16"
    assert "taken as asked, though its loss is" in found.in_words()


def test_the_budget_ends_the_probe_with_what_there_is():
    net = Pretended(Clock(), favourite(Mode("fp32", "contiguous", 1), seconds=1.0))
    found = probed(net, budget=12.0)
    assert not found.complete
    assert found.mode == Mode("bf16", "channels_last", 4)  # the likely one, the only one that there was time for
    assert found.images_per_second is not None
    assert "time was used up" in found.in_words()
    assert any("not tried" in each.note for each in found.table)


@pytest.mark.each("seconds", [0.002, 0.02, 0.1])
@pytest.mark.each("budget", [3.0, 10.0, 1000.0])
def test_the_budget_holds_and_never_exceeds_fifteen_seconds(seconds, budget):
    clock = Clock()
    found = probed(Pretended(clock, favourite(Mode("bf16", "contiguous", 2), seconds)), budget=budget)
    assert found.seconds <= 1.3 * min(budget, 15.0) + 8 * seconds * 4  # the comparison with float32 comes on top


@pytest.mark.parametrize(
    ("a_step", "seconds", "batch"),
    [
        (0.02, 1e-4, 64),  # what each step costs is shared by ever more images
        (0.02, 0.012, 16),  # not much cheaper at 16 than at 8
        (0.0, 1e-4, 8),  # not cheaper at 8 than at 4
        (0.0, 0.1, 4),  # a step of 8 would take too long
    ],
)
def test_the_probes_batch_grows_while_that_makes_images_cheaper(a_step, seconds, batch):
    net = Pretended(Clock(), lambda mode: seconds, a_step=a_step)
    assert probed(net, batch_size=64).batch == batch


@pytest.mark.parametrize(
    ("a_step", "memory", "tried"),
    [
        (0.02, None, 32),
        (0.02, 1 << 40, 32),
        (0.0, None, 64),  # the race did not come that far, the trial did
    ],
)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(a_step, memory, tried):
    net = Pretended(Clock(), lambda mode: 1e-4, most=20, a_step=a_step)
    found = probed(net, batch_size=64, memory=lambda: memory)
    assert max(count for _, count in net.seen) == tried
    assert found.mode.micro_batch == 16
    assert found.batch <= 20


def test_a_gpus_batch_is_tried_whatever_the_processors_memory():
    net = Pretended(Clock(), lambda mode: 0.05, most=20)
    steps = probe.Steps(net, 12, 3, CPU, train=True, clock=net.clock)
    mode = Mode("fp32", "contiguous", 1)
    race = probe._Race(steps, torch.device("cuda"), AskedMode(precision="fp32"), 64, 10.0, net.clock)
    assert race._micro_batch(mode, lambda: 1 << 40) == 16
    assert steps.fits(mode, 20)
    assert not steps.fits(mode, 21)


def test_a_batch_too_large_for_the_free_memory_is_estimated_not_tried():
    net = Pretended(Clock(), lambda mode: 0.05)
    assert probed(net, batch_size=32, memory=lambda: 1 << 40).mode.micro_batch is None
    steps = probe.Steps(net, 12, 3, CPU, train=True, clock=net.clock)
    mode = Mode("fp32", "contiguous", 1)
    an_image = steps.bytes_for_backward(mode, 4) / 4
    assert an_image >= 4 * (3 * 12 * 12 + 4 * 10 * 10)  # the input and the first map, in float32
    found = probed(net, batch_size=32, asked=AskedMode("fp32", "contiguous", 1), memory=lambda: int(an_image * 9 / 0.7))
    assert found.mode.micro_batch == 8
    assert max(count for _, count in net.seen) < 32


def test_not_even_one_image_is_told_in_a_sentence():
    with pytest.raises(EtudeError, match="not even one image"):
        probed(Pretended(Clock(), lambda mode: 1e-3, most=0))


def test_another_error_of_the_network_is_not_taken_for_lack_of_memory():
    def fail(mode: Mode) -> float:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        probed(Pretended(Clock(), fail))


def test_nothing_but_the_layout_changes():
    net = Pretended(Clock(), favourite(Mode("fp32", "contiguous", 1)))
    net.norm.momentum = 0.5
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    probed(net)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in net.modules()] == flags
    assert all(weight.grad is None for weight in net.parameters())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_without_training_no_gradient_is_computed():
    net = Pretended(Clock(), favourite(Mode("bf16", "contiguous", 4)))
    grads: list[bool] = []
    net.head.register_forward_hook(lambda module, inputs, output: grads.append(output.requires_grad))
    assert probed(net, train=False).mode.memory_format == "contiguous"
    assert not any(grads)
    net.requires_grad_(False)
    assert probed(net, train=True).mode.memory_format == "contiguous"  # nothing to train: forward only


def test_a_result_is_kept_and_taken_again(tmp_path):
    net = Pretended(Clock(), favourite(Mode("bf16", "contiguous", 2)))
    first = probed(net, cache=tmp_path)
    spent = net.clock.now
    again = probed(net, cache=tmp_path)
    assert net.clock.now == spent
    assert again.cached
    assert (again.mode, again.table, again.seconds) == (first.mode, first.table, first.seconds)
    assert again.in_words() == f"{first.in_words()}; measured earlier"


@pytest.mark.parametrize(
    "change",
    [
        lambda net, given: given.update(batch_size=8),
        lambda net, given: given.update(train=False),
        lambda net, given: given.update(asked=AskedMode(threads=4)),
        lambda net, given: net.conv.requires_grad_(False),
        lambda net, given: net.eval(),
        lambda net, given: setattr(net, "head", nn.Linear(4, 6)),
    ],
)
def test_what_changes_the_speed_changes_the_key(tmp_path, change):
    net = Pretended(Clock(), favourite(Mode("bf16", "contiguous", 2)))
    probed(net, cache=tmp_path)
    given: dict = {}
    change(net, given)
    assert not probed(net, cache=tmp_path, **given).cached


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"bf16"', '"fp8"'),
        lambda text: text.replace('"batch": ', '"batch": -'),
        lambda text: json.dumps({**json.loads(text), "table": 3}),
    ],
)
def test_a_damaged_result_is_measured_again(tmp_path, damage):
    net = Pretended(Clock(), favourite(Mode("bf16", "contiguous", 2)))
    probed(net, cache=tmp_path)
    (path,) = (tmp_path / "probes").iterdir()
    path.write_text(damage(path.read_text()))
    found = probed(net, cache=tmp_path)
    assert not found.cached
    assert found.mode == Mode("bf16", "contiguous", 2)
    assert probed(net, cache=tmp_path).cached


def test_a_disturbed_or_unfinished_result_is_not_kept(tmp_path):
    net = Pretended(Clock(), favourite(Mode("bf16", "contiguous", 2)))
    found = probed(net, cache=tmp_path, others=lambda: 2.0 * net.clock.now)
    assert found.busy_cores == pytest.approx(2.0)
    assert "2.0 cores busy" in found.in_words()
    slow = Pretended(Clock(), lambda mode: 5.0)
    assert not probed(slow, cache=tmp_path).complete
    assert not (tmp_path / "probes").exists()
    assert probed(net, cache=tmp_path, others=lambda: 0.1 * net.clock.now).lasting
    assert (tmp_path / "probes").is_dir()


def test_a_result_survives_its_file():
    found = probed(Pretended(Clock(), favourite(Mode("fp32", "contiguous", 1)), error=0.5), others=lambda: 3.0)
    assert ProbeResult.from_dict(json.loads(json.dumps(found.as_dict()))) == found
