"""What ``etude doctor`` shows: the plan before, the report after."""

from __future__ import annotations

from etude.core.text import rough_duration
from etude.journal.screen import Screen
from etude.study.doctor.doctor import DataReport, Report, Subject
from etude.study.doctor.machine import MachineFacts
from etude.study.run.plan import in_words


def show_measures(screen: Screen, subject: Subject) -> None:
    """Show what will be measured, before any of it is."""
    screen.plan(
        "etude doctor measures, in about half a minute",
        [
            ("disk", "64 MB written to the cache's disk, read again and removed"),
            ("decoding", "generated photos of 1024 × 768 px" if subject.images is None else "a sample of your images"),
            ("modes", f"{subject.recipe.model.backbone}: each precision, memory format and threads, 10 s at most"),
            ("networks", "training and inference at several image sizes"),
        ],
    )


def show_report(screen: Screen, report: Report) -> None:
    """Show everything that was found."""
    screen.say("")
    screen.plan("This machine", _machine(report))
    screen.say("")
    timed = [(one.mode, None if (rate := one.images_per_second) is None else _rate(rate), one.note)
             for one in report.probe.table]  # fmt: skip
    rows = [[mode.precision, mode.memory_format, mode.threads, rate, note] for mode, rate, note in timed]
    columns = ["precision", "memory format", "threads", "images/s", "note"]
    if not any(row[-1] for row in rows):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    doing = "Training" if any(rate.train for rate in report.rates if rate.network == report.network) else "Running"
    screen.table(f"{doing} {report.network} at {report.size} px in each mode", columns, rows)
    screen.plan("", [("chosen", report.probe.mode.in_words() + _doubts(report))])
    screen.say("")
    screen.table("Images a second", ["network", "size", "training", "inference"], [
        [rate.network, f"{rate.size} px", None if rate.train is None else _rate(rate.train), _rate(rate.infer)]
        for rate in report.rates
    ])  # fmt: skip
    screen.say("")
    if report.data is None:
        screen.say("how long your images take: etude doctor TRAIN")
    else:
        screen.plan(f"Your images, by recipe {report.recipe}", _data(report.data))
    screen.say("")
    if report.complaints:
        numbered = [(f"{number}.", sentence) for number, sentence in enumerate(report.complaints.values(), start=1)]
        screen.plan("What slows this machine down", numbered)
    else:
        screen.say("Nothing found that slows this machine down.")


def _machine(report: Report) -> list[tuple[str, str]]:
    facts, disk = report.facts, report.disk
    speed = "" if disk is None else f"writes {disk.write:,.0f} MB/s, reads {disk.read:,.0f} MB/s"
    system = f" ({facts.cache_system})" if facts.cache_system else ""
    free = "" if facts.memory_free is None else f", {facts.memory_free / 2**30:.1f} GiB free"
    arithmetic = [facts.capability, *(["bfloat16"] if facts.bf16 else []), *(["AMX"] if facts.amx else [])]
    return [
        ("device", ", ".join(facts.gpus) or f"{facts.device.upper()}, {facts.cpu}"),
        ("cores", _cores(facts)),
        ("memory", f"{facts.memory_bytes / 2**30:.1f} GiB{free}"),
        ("torch", f"{facts.torch}, {facts.threads} threads, {facts.blas.upper()}, {', '.join(arithmetic)}"),
        ("cache", f"{facts.cache}{system}: {facts.disk_free / 2**30:,.0f} GiB free"),
        ("disk", speed or "too little room to measure its speed"),
        ("decoding", f"{_rate(report.decode)} images/s to {report.decoded_size} px, on all cores"),
    ]


def _data(data: DataReport) -> list[tuple[str, str]]:
    rows = [("images", data.described), ("time here", in_words(data.stages))]
    if data.gpu is not None:
        times = dict.fromkeys(rough_duration(seconds) for seconds in data.gpu)
        rows.append(("on a GPU", f"{' to '.join(times)}, by published ratios (15 to 50 times two cores)"))
    return rows


def _cores(facts: MachineFacts) -> str:
    usable = f"{facts.cores_usable} usable of {facts.cores_present}"
    physical = f", {facts.cores_physical} physical" if facts.cores_physical != facts.cores_allowed else ""
    quota = "" if facts.core_quota is None else f", the container's limit is {facts.core_quota:g}"
    busy = "" if facts.busy_cores is None else f"; other programs use {facts.busy_cores:.1f}"
    return usable + physical + quota + busy


def _doubts(report: Report) -> str:
    if report.probe.cached:
        return " (measured earlier)"
    if report.probe.disturbed:
        return " (other programs disturbed the measurement)"
    return "" if report.probe.complete else " (there was no time to try every mode)"


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.2g}"
