"""What ``etude doctor`` says: the plan before, the report after."""

from __future__ import annotations

import json

from etude.journal.screen import Screen
from etude.study.doctor.doctor import DataReport, Report, Subject
from etude.study.doctor.machine import MachineFacts
from etude.study.run.plan import duration, in_words


def show_measures(screen: Screen, subject: Subject) -> None:
    """Say what will be measured, before any of it is."""
    recipe = subject.recipe
    pictures = "a sample of your images" if subject.images is not None else "made-up photos of 1024 × 768 px"
    screen.plan(
        "etude doctor measures, in about half a minute",
        [
            ("disk", "64 MB written to the cache's disk, read again and removed"),
            ("decoding", pictures),
            ("modes", f"{recipe.model.backbone} in every numeric mode worth trying, 10 s at most"),
            ("networks", "training and inference at several image sizes"),
        ],
    )


def show_report(screen: Screen, report: Report) -> None:
    """Show everything that was found."""
    screen.say("")
    screen.plan("This machine", machine_rows(report))
    screen.say("")
    rows = [list(row) for row in report.probe.rows()]
    columns = ["precision", "memory format", "threads", "images/s", "note"]
    if not any(row[-1] for row in rows):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    doing = "Training" if any(rate.train for rate in report.rates if rate.network == report.network) else "Running"
    screen.table(f"{doing} {report.network} at {report.size} px in each mode", columns, [
        [None if cell is None else cell if isinstance(cell, str | int) else _rate(cell) for cell in row]
        for row in rows
    ])  # fmt: skip
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
        screen.plan(f"Your images, by recipe {report.recipe}", data_rows(report.data))
    screen.say("")
    if report.complaints:
        numbered = [(f"{number}.", found.sentence) for number, found in enumerate(report.complaints, start=1)]
        screen.plan("What slows this machine down", numbered)
    else:
        screen.say("Nothing found that slows this machine down.")


def report_json(report: Report, warnings: list[str]) -> str:
    """Return the report as one JSON object."""
    return json.dumps({**report.as_dict(), "warnings": warnings}, indent=2, allow_nan=False)


def machine_rows(report: Report) -> list[tuple[str, str]]:
    """Return what the machine is, as names and values."""
    facts = report.facts
    disk = "too little room to try its speed"
    if report.disk is not None:
        disk = f"writes {report.disk.write:,.0f} MB/s, reads {report.disk.read:,.0f} MB/s"
    system = f" ({facts.cache_system})" if facts.cache_system else ""
    return [
        ("device", ", ".join(facts.gpus) or f"{facts.device.upper()}, {facts.cpu}"),
        ("cores", _cores(facts)),
        ("memory", _memory(facts)),
        ("torch", f"{facts.torch}, {facts.threads} threads, {facts.blas.upper()}, {_arithmetic(facts)}"),
        ("cache", f"{facts.cache}{system}: {facts.disk_free / 2**30:,.0f} GiB free"),
        ("disk", disk),
        ("decoding", f"{_rate(report.decode)} images/s to {report.decoded_size} px, on all cores"),
    ]


def data_rows(data: DataReport) -> list[tuple[str, str]]:
    """Return how long the data takes, as names and values."""
    rows = [("images", data.described), ("time here", in_words(data.stages))]
    if data.gpu is not None:
        least, most = (duration(seconds) for seconds in data.gpu)
        span = least if least == most else f"{least} to {most}"
        rows.append(("on a GPU", f"{span}, by published ratios (15 to 50 times two cores)"))
    return rows


def _cores(facts: MachineFacts) -> str:
    usable = f"{facts.cores_usable} usable of {facts.cores_present}"
    physical = f", {facts.cores_physical} physical" if facts.cores_physical != facts.cores_allowed else ""
    quota = "" if facts.core_quota is None else f", the container's limit is {facts.core_quota:g}"
    busy = "" if facts.busy_cores is None else f"; others keep {facts.busy_cores:.1f} busy"
    return usable + physical + quota + busy


def _memory(facts: MachineFacts) -> str:
    told = [
        f"{amount / 2**30:.1f} GiB{words}"
        for amount, words in ((facts.memory_bytes, ""), (facts.memory_free, " free"))
        if amount is not None
    ]
    return ", ".join(told) or "not told by this system"


def _arithmetic(facts: MachineFacts) -> str:
    known = [facts.capability, *(["bfloat16"] if facts.bf16 else []), *(["AMX"] if facts.amx else [])]
    return ", ".join(known)


def _doubts(report: Report) -> str:
    if report.probe.cached:
        return " (measured earlier)"
    if report.probe.disturbed:
        return " (other programs disturbed the measurement)"
    return "" if report.probe.complete else " (there was no time to try every mode)"


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if images_per_second >= 10 else f"{images_per_second:.2g}"
