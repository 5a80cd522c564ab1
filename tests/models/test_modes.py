"""Modes, and what the processor is told to be able to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from etude.core import processor
from etude.core.processor import core_quota, cpu_model, free_memory, physical_cores, seconds_of_others, usable_cores
from etude.models import device
from etude.models.modes import AskedMode, Mode, applied, candidate_modes, lay_out, lay_out_images, likely_mode

CPU = torch.device("cpu")


def written(root: Path, files: dict[str, str]) -> Path:
    """Write a small copy of /proc and /sys."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_words_name_everything_that_is_set():
    assert Mode("fp32", "contiguous", 1).in_words() == "fp32, contiguous, 1 thread"
    assert Mode("bf16", "channels_last", 4, 16).in_words() == "bf16, channels_last, 4 threads, 16 images at a time"


@pytest.mark.parametrize(
    "changed",
    [
        {"precision": "fp16"},
        {"memory_format": "strided"},
        {"threads": 0},
        {"threads": "2"},
        {"threads": True},
        {"micro_batch": 0},
        {"surprise": 1},
    ],
)
def test_a_damaged_description_is_refused(changed):
    mode = Mode("bf16", "channels_last", 2, 8)
    assert Mode.from_dict(mode.as_dict()) == mode
    with pytest.raises(ValueError, match="1 validation error for Mode"):
        Mode.from_dict({**mode.as_dict(), **changed})


def test_a_description_without_a_field_is_refused():
    with pytest.raises(ValueError, match="validation errors for Mode"):
        Mode.from_dict({"precision": "fp32"})


def test_applied_sets_the_threads_and_puts_them_back_even_after_an_error():
    before = torch.get_num_threads()

    def fail() -> None:
        with applied(Mode("fp32", "contiguous", before + 1)):
            assert torch.get_num_threads() == before + 1
            assert torch.backends.cuda.matmul.allow_tf32
            raise RuntimeError("stop")

    tf32 = torch.backends.cuda.matmul.allow_tf32
    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.get_num_threads() == before
    assert torch.backends.cuda.matmul.allow_tf32 == tf32


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_network_and_images_are_laid_out_alike_and_keep_their_values(layout):
    net, images = nn.Conv2d(3, 8, 3), torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    expected = net(images)
    mode = Mode("fp32", layout, 1)
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    other = torch.contiguous_format if layout == "channels_last" else torch.channels_last
    net.to(memory_format=other)
    lay_out(net, mode)
    laid = lay_out_images(images.contiguous(memory_format=other), mode)
    assert net.weight.is_contiguous(memory_format=wanted)
    assert laid.is_contiguous(memory_format=wanted)
    torch.testing.assert_close(net(laid), expected)


def test_settings_left_on_auto_ask_nothing():
    assert AskedMode.of() == AskedMode(None, None, None, None)
    assert AskedMode.of("fp32", "contiguous", 2, 8) == AskedMode("fp32", "contiguous", 2, 8)


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_likely_mode_follows_the_processor_and_what_was_asked(monkeypatch, native, precision):
    monkeypatch.setattr("etude.models.device.native_bf16", lambda: native)
    monkeypatch.setattr("etude.models.modes.usable_cores", lambda: 5)
    assert likely_mode(CPU) == Mode(precision, "channels_last", 5)
    assert likely_mode(CPU, AskedMode("fp32", "contiguous", 2, 8)) == Mode("fp32", "contiguous", 2, 8)


def test_native_bf16_needs_one_of_the_two_instruction_sets(monkeypatch):
    for avx, amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        assert device.native_bf16() is (avx or amx)


def test_the_processors_name_is_read(tmp_path):
    assert cpu_model(written(tmp_path, {"proc/cpuinfo": "processor: 0\nmodel name\t: Fast One\n"})) == "Fast One"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/box/inner\n",
                "sys/fs/cgroup/box/inner/cpu.max": "max 100000",
                "sys/fs/cgroup/box/cpu.max": "50000 100000",
                "sys/fs/cgroup/cpu.max": "400000 100000",
            },
            0.5,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 2.0),
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, None),
    ],
)
def test_a_containers_limit_is_found_at_every_level(tmp_path, files, quota):
    assert core_quota(written(tmp_path, files)) == quota


def test_usable_cores_are_bounded_by_the_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "allowed_cores", lambda: {0, 1, 2, 3})
    assert usable_cores(tmp_path) == 4
    assert usable_cores(written(tmp_path, {"sys/fs/cgroup/cpu.max": "150000 100000"})) == 2
    assert usable_cores(written(tmp_path, {"sys/fs/cgroup/cpu.max": "10000 100000"})) == 1


def test_two_threads_of_one_core_count_once(tmp_path):
    pairs = {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    root = written(tmp_path, {topology.format(core): pair for core, pair in pairs.items()})
    assert physical_cores({0, 1, 4, 5}, root) == 2
    assert physical_cores({0, 1, 7}, root) == 3  # of core 7 nothing is told


def test_free_memory_minds_the_container(monkeypatch, tmp_path):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=40 * 1024))
    assert free_memory(tmp_path) == 40 * 1024
    root = written(tmp_path, {"sys/fs/cgroup/memory.max": "9000", "sys/fs/cgroup/memory.current": "1000"})
    assert free_memory(root) == 8000
    written(root, {"sys/fs/cgroup/memory.max": "max"})
    assert free_memory(root) == 40 * 1024


def test_the_time_of_others_leaves_out_idle_time_other_cores_and_this_process(monkeypatch):
    monkeypatch.setattr(processor, "allowed_cores", lambda: {0})
    monkeypatch.setattr(processor.time, "process_time", lambda: 2.0)
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    cores = [dict(zip(names, seconds, strict=True)) for seconds in ((3, 0.5, 1, 90, 8, 0.2, 0.1, 0.2), range(8))]
    monkeypatch.setattr("psutil.cpu_times", lambda percpu: [SimpleNamespace(**core) for core in cores])
    assert seconds_of_others() == pytest.approx(5.0 - 2.0)
    cores[0] = {"user": 3.0, "system": 1.0, "idle": 9.0}  # as systems other than Linux have it
    assert seconds_of_others() == pytest.approx(4.0 - 2.0)


def test_candidates_begin_with_the_likely_mode_and_name_none_twice(monkeypatch):
    monkeypatch.setattr("etude.models.modes.usable_cores", lambda: 4)
    monkeypatch.setattr("etude.models.modes.physical_cores", lambda: 2)
    monkeypatch.setattr("etude.models.device.native_bf16", lambda: True)
    found = candidate_modes(CPU)
    assert found[0] == likely_mode(CPU)
    assert len(found) == len(set(found)) == 2 * 2 * 3  # precisions, formats, and 4, 2 or 1 threads
    assert {mode.threads for mode in candidate_modes(torch.device("cuda"))} == {4}
    assert candidate_modes(CPU, AskedMode("fp32", "contiguous", 3)) == [Mode("fp32", "contiguous", 3)]
    monkeypatch.setattr("etude.models.device.native_bf16", lambda: False)
    assert {mode.precision for mode in candidate_modes(CPU)} == {"fp32"}
