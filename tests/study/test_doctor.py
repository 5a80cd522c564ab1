"""The doctor's checks, facts and measurements, on made-up machines and clocks."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from etude.core.context import Context
from etude.core.errors import EtudeError
from etude.journal.screen import Screen
from etude.models.backbones import build_backbone
from etude.models.modes import Mode
from etude.recipe import load_recipe
from etude.study.doctor import doctor
from etude.study.doctor import machine as doctor_facts
from etude.study.doctor.doctor import (
    DataReport,
    DiskSpeed,
    Rate,
    Report,
    choose_subject,
    decode_rate,
    disk_speed,
    gpu_seconds,
    made_up_pictures,
    network_rates,
    show_report,
)
from etude.study.doctor.machine import MachineFacts, read_machine
from etude.study.run.plan import Speed, measure_speed
from etude.study.run.request import Request
from etude.study.run.start import checked_sources
from picture_folders import write_classes

GOOD = MachineFacts(
    device="cpu", gpus=(), cpu="Fast One", architecture="x86_64", cores_present=8, cores_allowed=8, core_quota=None,
    cores_usable=8, cores_physical=4, load=0.2, busy_cores=0.1, memory_bytes=32 << 30, memory_free=20 << 30,
    torch="2.13.0+cpu", threads=8, interop_threads=8, thread_variables={}, capability="AVX512", blas="mkl", bf16=True,
    amx=True, governors=("performance",), cuda_build=None, cuda_available=False, gpu_driver=None, cache=Path("/cache"),
    cache_system="ext4", disk_free=200 << 30, disk_bytes=500 << 30, jpeg_turbo=True,
)  # fmt: skip
BAD = [
    ("busy", {"busy_cores": 2.5}, "about 2.5 of 8 cores (load average 0.2)"),
    ("busy", {"busy_cores": None, "load": 6.0}, "about 6.0 of 8 cores"),
    ("threads", {"thread_variables": {"OMP_NUM_THREADS": "2"}}, "unset OMP_NUM_THREADS"),
    ("threads", {"thread_variables": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "1"}}, "OMP_NUM_THREADS=2"),
    ("quota", {"core_quota": 2.0, "cores_usable": 2}, "set OMP_NUM_THREADS=2"),
    ("affinity", {"cores_allowed": 4, "cores_usable": 4}, "4 of the machine's 8 cores"),
    ("avx2", {"capability": "NO AVX", "bf16": False}, "no AVX2"),
    ("avx2", {"capability": "DEFAULT", "bf16": False}, "no AVX2"),
    ("avx512", {"capability": "AVX2", "bf16": False}, "no AVX-512"),
    ("bf16", {"bf16": False}, "no native bfloat16"),
    ("memory", {"memory_free": 1 << 30}, "only 1.0 GiB of memory"),
    ("full disk", {"disk_free": 1 << 30}, "1.0 GiB left"),
    ("full disk", {"disk_free": 9 << 30}, "9.0 GiB left"),
    ("network disk", {"cache_system": "nfs4"}, "network file system (nfs4)"),
    ("libjpeg-turbo", {"jpeg_turbo": False}, "without libjpeg-turbo"),
    ("gpu", {"gpu_driver": "535.1"}, "built for processors only"),
    ("gpu", {"gpu_driver": "470.2", "cuda_build": "12.8"}, "driver 470.2 is too old for CUDA 12.8"),
    ("power saving", {"governors": ("performance", "powersave")}, "governed by 'powersave'"),
]


def a_report(**changed) -> Report:
    mode, other = Mode("bf16", "channels_last", 8), Mode("fp32", "contiguous", 8)
    report = Report(
        facts=GOOD, recipe="default", network="tf_efficientnet_lite0", size=224,
        mode=mode, note="", modes=((mode, 123.4), (other, 61.7)), decode=321.0, decoded_size=224,
        disk=DiskSpeed(400.0, 800.0),
        rates=(Rate("tf_efficientnet_lite0", 128, 80.5, 240.0), Rate("tf_efficientnet_lite0", 224, 60.0, 9.5)),
        data=DataReport("class folders, 120 images in 2 classes", 120, (("store", 3.0), ("fine-tune", 90.0)), (5., 9.)),
    )  # fmt: skip
    return replace(report, **changed)


def complaints(**changed):
    return a_report(facts=replace(GOOD, **changed)).complaints


def test_a_good_machine_has_nothing_to_complain_of():
    assert a_report().complaints == {}


@pytest.mark.each(("about", "changed", "sentence"), BAD)
def test_each_fault_is_reported_alone_with_what_to_do(about, changed, sentence):
    found = complaints(**changed)
    assert list(found) == [about]
    assert sentence in found[about]
    assert "\n" not in found[about]


@pytest.mark.parametrize(
    ("about", "changed", "sentence"),
    [
        ("slow disk", {"disk": DiskSpeed(40.0, 900.0)}, "moves 40 MB/s"),
        ("slow disk", {"disk": DiskSpeed(500.0, 60.0)}, "moves 60 MB/s"),
        ("decoding", {"decode": 50.0}, "decode at 50 images/s and train at 60"),
    ],
)
def test_each_slow_measurement_is_reported(about, changed, sentence):
    found = a_report(**changed).complaints
    assert list(found) == [about]
    assert sentence in found[about]


@pytest.mark.each(
    "changed",
    [
        {"busy_cores": None, "memory_free": None, "governors": ()},
        {"cache_system": None},
        {"load": 7.9},  # of what has just ended
        {"thread_variables": {"OMP_NUM_THREADS": "8", "MKL_NUM_THREADS": "many"}},
        {"core_quota": 8.0},
        {"architecture": "aarch64", "capability": "SVE256", "bf16": False},
        {"architecture": "arm64", "capability": "DEFAULT", "bf16": False},
        {"device": "cuda", "gpus": ("H100",), "gpu_driver": "570", "cuda_build": "12.8", "cuda_available": True,
         "capability": "AVX2", "bf16": False},
        {"governors": ("balance_performance",)},
    ],
)  # fmt: skip
def test_what_is_not_known_or_does_no_harm_is_no_complaint(changed):
    assert complaints(**changed) == {}
    assert a_report(facts=replace(GOOD, **changed), disk=None, rates=()).complaints == {}


def test_several_faults_are_all_reported():
    changes: dict = {}
    for _, changed, _ in BAD[::-1]:
        changes |= changed
    assert len(a_report(facts=replace(GOOD, **changes), decode=1.0).complaints) >= 10


def test_facts_are_read_from_the_system(tmp_path, monkeypatch):
    cpu = "sys/devices/system/cpu/cpu0/cpufreq/"
    files = {
        "proc/cpuinfo": "model name : Made Up",
        "proc/meminfo": "MemTotal: 2048 kB\nMemAvailable: 1024 kB",
        "proc/self/mounts": f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu\n",
        "sys/fs/cgroup/cpu.max": "50000 100000",
        "sys/fs/cgroup/memory.max": "1500000",
        cpu + "scaling_governor": "powersave",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(doctor_facts, "allowed_cores", lambda: {0})
    monkeypatch.setattr(doctor_facts, "seconds_of_others", lambda: 1.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path / "proc"))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2048 * 1024, available=1024 * 1024))
    monkeypatch.setattr("psutil.getloadavg", lambda: (1.25, 0.0, 0.0))
    monkeypatch.setattr(doctor_facts, "_WATCHED_SECONDS", 0.0)
    facts = read_machine(tmp_path / "cache" / "deep", tmp_path)
    assert (facts.cpu, facts.load, facts.busy_cores) == ("Made Up", 1.25, 0.0)
    assert (facts.memory_bytes, facts.memory_free) == (1_500_000, 1024 * 1024)
    assert (facts.core_quota, facts.cores_usable) == (0.5, 1)
    assert (facts.cache_system, facts.on_network) == ("nfs4", True)
    assert (facts.gpu_driver, facts.governors) == ("535.129.03", ("powersave",))
    assert facts.thread_variables["OMP_NUM_THREADS"] == "1"
    (tmp_path / cpu / "energy_performance_preference").write_text("balance_performance")
    assert read_machine(tmp_path, tmp_path).governors == ("balance_performance",)


def test_a_machine_that_reports_nothing_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_facts, "_WATCHED_SECONDS", 0.0)
    monkeypatch.setattr("psutil.disk_partitions", lambda all: [])
    facts = read_machine(tmp_path, tmp_path / "nowhere")
    assert facts.core_quota is None
    assert (facts.cache_system, facts.gpu_driver, facts.governors) == (None, None, ())


@pytest.fixture
def ticking(monkeypatch):
    """A function that sets the clock: so many seconds pass from one reading to the next."""

    def set_step(seconds: float) -> None:
        monkeypatch.setattr(doctor, "time", SimpleNamespace(perf_counter=itertools.count(0.0, seconds).__next__))

    return set_step


def test_the_disk_is_left_as_it_was(tmp_path, ticking):
    ticking(0.5)
    found = disk_speed(tmp_path / "cache", Context())
    assert found == DiskSpeed(write=128.0, read=128.0)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EtudeError, match="cannot be written"):
        disk_speed(tmp_path / "cache", Context())


def test_decoding_counts_every_picture_and_stops_in_time(tmp_path, ticking):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    pictures = [*made_up_pictures(3), tmp_path / "bad.jpg"]
    # The clock is read once at the start, once a picture and once at the end.
    ticking(0.1)
    assert decode_rate(pictures, 32, 3, Context()) == pytest.approx(4 / 0.5)
    ticking(2.0)
    assert decode_rate(pictures, 32, 3, Context()) == pytest.approx(2 / 6.0)


def test_rates_are_the_inverse_of_seconds():
    asked: list[int] = []

    def measure(backbone, size, mode):
        asked.append(size)
        return Speed(size, infer=1 / size, train=4 / size)

    backbone = build_backbone("tiny", "none", 1)
    found = network_rates("tiny", backbone, [16, 32], Mode("fp32", "contiguous", 1), Context(), measure)
    assert found == [Rate("tiny", 16, 4.0, 16.0), Rate("tiny", 32, 8.0, 32.0)]
    assert asked == [16, 32]


def test_speed_takes_a_mode_or_a_precision_and_a_frozen_network():
    backbone = build_backbone("tiny", "none", 1)
    for mode in (Mode("fp32", "contiguous", 1), "fp32", "bf16"):
        speed = measure_speed(backbone, 16, mode, clock=itertools.count(0.0, 6.4).__next__)  # 64 small images
        assert (speed.size, speed.infer, speed.train) == (16, pytest.approx(0.1), pytest.approx(0.1))
    seen: list[bool] = []
    backbone.module.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    backbone.module.requires_grad_(False)
    measure_speed(backbone, 16, "fp32", clock=itertools.count(0.0, 0.8).__next__)
    assert seen == [False, False]


def test_only_the_networks_work_is_faster_on_a_gpu():
    stages = [("store", 60.0), ("features", 300.0), ("head", 5.0), ("fine-tune", 700.0), ("predict test", 500.0)]
    assert gpu_seconds(stages, cores=2) == (pytest.approx(65 + 1500 / 50), pytest.approx(65 + 1500 / 15))
    assert gpu_seconds(stages, cores=8)[1] == pytest.approx(65 + 1500 / 3.75)
    assert gpu_seconds(stages, cores=128)[1] == pytest.approx(65 + 1500)  # never slower than here


def test_a_subject_follows_the_images(tmp_path):
    shown = io.StringIO()
    train = write_classes(tmp_path / "train", count=4)
    (train / "round" / "bad.png").write_bytes(b"no image")
    screen = Screen(file=shown)
    sources = checked_sources(Request(train), screen)
    small = choose_subject(sources.recipe, sources.labelled, screen)
    assert small.recipe.model.backbone == "tiny"
    assert small.images is not None
    assert len(small.images) == 9
    assert "1 of 9 sampled files" in shown.getvalue()
    alone = choose_subject(load_recipe("default", ["model.backbone=resnet18"]), None, screen)
    assert (alone.recipe.model.backbone, alone.images) == ("resnet18", None)


@pytest.mark.parametrize(
    "report",
    [
        a_report(facts=replace(GOOD, busy_cores=3.0)),
        a_report(data=None, disk=None),
        *(a_report(facts=replace(GOOD, **bad)) for _, bad, _ in BAD),
    ],
)
def test_the_report_fits_80_columns_without_colour(capsys, report):
    show_report(Screen(), report)
    said = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in said.splitlines()) <= 80
    assert "\x1b" not in said
    for told in ("Fast One", "123", "bf16, channels_last, 8 threads", "tf_efficientnet_lite0"):
        assert told in said
    assert ("Nothing found" in said) == (not report.complaints)
    assert ("5 s to 9 s" in said) == (report.data is not None)


def test_json_is_one_object_with_all_of_it():
    tree = json.loads(json.dumps(a_report(facts=replace(GOOD, busy_cores=3.0)).as_dict(), allow_nan=False))
    assert tree["mode"]["precision"] == "bf16"
    assert tree["data"]["seconds"] == 93.0
    assert tree["facts"]["cache"] == "/cache"
    assert [each["about"] for each in tree["complaints"]] == ["busy"]
    assert tree["rates"][0] == {"network": "tf_efficientnet_lite0", "size": 128, "train": 80.5, "infer": 240.0}
