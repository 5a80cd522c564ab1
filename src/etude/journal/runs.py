"""A run's folder: its lock, state, notes and tags, and ``run.json`` as it is read, whichever version wrote it."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from etude.core.errors import EtudeError, listed
from etude.core.files import digest_of, explained_write, hash_of_file, lock_descriptor, lock_file, read_json, reading

FILE_NAME = "run.json"
KILLED = "killed"  # what a run is that says ``running`` though its process is gone; no record says so of itself
LOCK_NAME = ".lock"
NOTES_NAME = "notes.jsonl"
SCHEMA_VERSION = 2
REPORT_NAME = "report.html"
REMAINS = frozenset({FILE_NAME, REPORT_NAME, "bad_files.csv", LOCK_NAME})  # of a run that made nothing
STATES = ("running", "finished", "failed", "interrupted")
ID_LENGTH = 10  # of hexadecimal digits: a clash among 10,000 runs has a chance of 1 in 20,000
IN_NO_STAGE = "other"  # what the seconds are called that no stage of a run took

_NUMBER = (int, float)
OWN: dict[str, type | tuple[type, ...]] = {  # what every record holds; no section may have such a name
    **dict.fromkeys(("id", "kind", "state", "started", "recipe"), str),
    **dict.fromkeys(("schema_version", "pid", "seed"), int),
    **dict.fromkeys(("parent", "host"), (str, type(None))),
    **dict.fromkeys(("error", "ended"), object),
    **dict.fromkeys(("tags", "notes", "resumed", "command", "stages", "warnings", "artefacts"), list),
    **dict.fromkeys(("settings", "changed", "environment"), dict),
    "seconds": _NUMBER,
}
_STAGE = {"name": str, "state": str, "started": str, "seconds": _NUMBER, "attempts": int, "scores": dict, "notes": dict}
_SECTIONS = {"data": dict, "plan": dict, "result": dict}  # written when the run gets that far
_SCORE = (*_NUMBER, type(None))
_PARTS: dict[str, dict[str, Any]] = {  # what lists and comparisons read of sections, where it is there
    "data": {"folds": list},
    "environment": {"memory_bytes": _SCORE},
    "plan": {"resolved": dict},
    "result": {"accuracy": _SCORE, "log_loss": _SCORE, "validation_images": (int, type(None))},
}
_TRIES, _PAUSE = 10, 0.05  # whoever only asks whether the lock is free holds it for a moment
_SILENCE = 600.0  # seconds; a stage writes its record twenty times as often
_TAG = re.compile(r"[\w.:/=+@-]{1,40}")


@contextmanager
def working_on(folder: Path, warn: Callable[[str], None]) -> Generator[None]:
    """Make ``folder`` and hold its lock, which the system releases when the process ends, however it ends."""
    path = folder / LOCK_NAME
    with explained_write(path):
        refuse_file(folder)
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked(path)
    if handle is None:
        warn(f"{folder} is on a file system without locks: take care that no other process works on the same run")
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()
        if handle is not None:
            os.close(handle)


def refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise EtudeError(f"{folder} is a file, and a run needs a folder: choose another --out")


def is_locked(folder: Path) -> bool | None:
    """Whether a process holds the lock of the run in ``folder``; None where that cannot be found out."""
    try:
        handle = os.open(folder / LOCK_NAME, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        return not lock_descriptor(handle, blocking=False)
    except OSError:
        return None
    finally:
        os.close(handle)


def at_work(folder: Path, pid: int | None, host: str | None) -> EtudeError:
    who = "another process" if pid is None else f"process {pid}"
    where = "" if host is None else f" (on host {host})"
    return EtudeError(f"{who} is still at work on {folder}{where}: wait for it, stop it first, or choose another --out")


def _locked(path: Path) -> int | None:
    """Return the file at ``path``, open and locked, with this process and host in it; None without locks."""
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            handle = lock_file(path)
            if handle is not None:
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps({"pid": os.getpid(), "host": platform.node()}).encode())
            return handle
        time.sleep(_PAUSE)
    holder: dict[str, object] = {}
    with suppress(OSError, ValueError):
        holder = dict(json.loads(path.read_text()))
    pid, host = holder.get("pid"), holder.get("host")
    raise at_work(path.parent, pid if isinstance(pid, int) else None, host if isinstance(host, str) else None)


def is_complete(run: Mapping[str, Any]) -> bool:
    return run["state"] == "finished" and run.get("reported") is not False  # an older etude writes no such word


def _is_at_work(folder: Path, run: Mapping[str, Any]) -> bool:
    """By its lock; without one by its process; on another host by its record, which every stage writes often."""
    here, locked = run["host"] in (None, platform.node()), is_locked(folder)
    if locked or (here and locked is False and run.get("locked") is True):
        return bool(locked)
    if here:
        return is_alive(run["pid"], run.get("process"))
    try:
        return time.time() - (folder / FILE_NAME).stat().st_mtime < _SILENCE
    except OSError:
        return False


def stopped_at(stages: Sequence[Mapping[str, Any]]) -> str:
    """Return where a run is, or was stopped, that has come through ``stages`` of its record."""
    if not stages:
        return "before its first stage"
    unfinished = [stage for stage in stages if stage["state"] != "finished"]
    if not unfinished:
        return f"after {stages[-1]['name']}"
    # A resumed run goes through its stages again: the one it was stopped in before may still stand behind it.
    last = max(unfinished, key=lambda stage: (stage["started"], stage["state"] == "running"))
    return f"in {last['name']} after {last['seconds']:.1f} s"


def process_start(pid: int) -> str | None:
    """Return what identifies the process ``pid`` among others with its number; None where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # its name may hold anything
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{fields[19].decode()}"
    except (OSError, IndexError):
        return None


def is_alive(pid: int, start: object = None) -> bool:
    """Whether the Python process runs here, and with ``start`` is the one that began then: numbers are used again."""
    if start is not None and (now := process_start(pid)) is not None:
        return now == start
    if pid == os.getpid():
        return True
    try:
        words = " ".join(psutil.Process(pid).cmdline()).lower()
    except psutil.AccessDenied:
        return True
    except (psutil.Error, OverflowError, ValueError):
        return False
    return "python" in words or "etude" in words


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def add_note(folder: Path, text: str) -> None:
    if not (text := text.strip()):
        raise EtudeError("the note is empty: give its text, in quotes, such as 'more dropout overfits less'")
    _append(folder, [{"at": now(), "note": text}])


def set_tags(folder: Path, tags: Sequence[str], *, remove: bool = False) -> None:
    """Give tags to a run, or take them off it; one that it does not have makes no difference."""
    if not tags:
        raise EtudeError(f"no tag came for {folder}: give one or more after the run, such as baseline")
    _append(folder, [{"at": now(), "untag" if remove else "tag": checked_tag(tag)} for tag in tags])


def checked_tag(tag: str) -> str:
    if not _TAG.fullmatch(tag):
        raise EtudeError(
            f"{tag!r} cannot be a tag: give one word such as baseline, "
            "of at most 40 letters, digits and the signs . : / = + @ _ -"
        )
    return tag


def read_notes(folder: Path, tags: Iterable[str] = ()) -> tuple[list[dict[str, str]], list[str]]:
    """Return the notes, ``{"at", "text"}``, and the tags of a run; a line that was cut short is passed over."""
    notes: list[dict[str, str]] = []
    kept = dict.fromkeys(tags)
    file = folder / NOTES_NAME
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        with suppress(ValueError):  # not JSON, or not UTF-8
            match json.loads(line):
                case {"at": str(at), "note": str(text)}:
                    notes.append({"at": at, "text": text})
                case {"tag": str(tag)}:
                    kept[tag] = None
                case {"untag": str(tag)}:
                    kept.pop(tag, None)
    return notes, list(kept)


def _append(folder: Path, lines: Sequence[dict[str, str]]) -> None:
    """Add all lines by one write to the end of the file: writes of several processes do not mix."""
    # The line end before it closes what a writer that was killed has left.
    text = "".join(f"\n{json.dumps(line)}\n" for line in lines)  # in ASCII: also lone surrogates of a command line
    file = folder / NOTES_NAME
    with explained_write(file):
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            written = os.write(handle, text.encode("ascii"))
        finally:
            os.close(handle)
        if written < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_run(folder: Path) -> dict[str, Any]:
    """Return a run's record in the newest schema, with its state now, and the notes and tags added since it began."""
    content = read_record(folder)
    notes, tags = read_notes(folder, content["tags"])
    state = KILLED if content["state"] == "running" and not _is_at_work(folder, content) else content["state"]
    return {**content, "state": state, "notes": [*content["notes"], *notes], "tags": tags}


def read_record(folder: Path) -> dict[str, Any]:
    """Return what the run itself has written, as :func:`read_run`, without what people have added."""
    if not folder.is_dir():
        raise EtudeError(f"{folder} is not a folder: give the folder of a run, such as runs/first")
    file = folder / FILE_NAME
    if not file.is_file():
        raise EtudeError(f"{folder} is not a run: it holds no {FILE_NAME}; give a folder that `etude fit` wrote")
    content = read_json(file)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise EtudeError(f"{file} is not the record of a run: it was damaged or written by something else")
    if version > SCHEMA_VERSION:
        raise EtudeError(
            f"{file} was written by a newer etude (schema {version}, and this one reads up to {SCHEMA_VERSION}): "
            "update etude to read it"
        )
    if version < 2:
        content = _of_schema_1(content)
    _refuse_damaged(file, content)
    return content


def verify(folder: Path, names: Sequence[str], record: Mapping[str, Any] | None = None) -> list[str]:
    """Compare files of a run with the hashes in its record; return those that an old record holds no hash of."""
    if record is None:
        record = read_record(folder) if (folder / FILE_NAME).is_file() else {}
    entries = [entry for entry in record.get("artefacts", ()) if isinstance(entry, dict)]
    known = {entry.get("name"): entry.get("blake2b") for entry in entries}
    there = [name for name in names if (folder / name).is_file()]
    for name in there:
        with reading(folder / name, "a file of a run"):
            changed = name in known and hash_of_file(folder / name) != known[name]
        if changed:
            raise EtudeError(
                f"{folder / name} is not the file that the run wrote: its hash is not the one in {FILE_NAME}. Bring "
                "that file back or train again; if it was changed on purpose, etude predict, refine and blend read it "
                "with --trust (trust=True in Python)"
            )
    return [name for name in there if name not in known]


def fold_folders(folder: Path) -> list[tuple[int, Path]]:
    found = ((place.name.removeprefix("fold-"), place) for place in folder.glob("fold-*") if place.is_dir())
    return sorted((int(number) if number.isdecimal() else 0, place) for number, place in found)


def models_of(record: Mapping[str, Any]) -> list[str]:
    return (record.get("result") or {}).get("models") or []


def weights_of(record: Mapping[str, Any]) -> list[list[float]] | None:
    """Return the weights of the models that each fold blends; None where each model is a fold of its own."""
    return (record.get("result") or {}).get("weights")


def validated(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record of a run without the models that have learned from its validation images."""
    result = record.get("result") or {}
    return {**record, "result": {**result, **(result.get("validated") or {})}}


def model_files(names: Iterable[str]) -> list[str]:
    return [Path(name, file).as_posix() for name in names for file in ("model.json", "model.safetensors")]


def failed_with_nothing(folder: Path) -> bool:
    try:
        return {path.name for path in folder.iterdir()} <= REMAINS and read_record(folder)["state"] == "failed"
    except EtudeError:
        return False


def folded(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the stages with each name once: the last attempt at it, with all attempts' seconds."""
    found: dict[str, dict[str, Any]] = {}
    for stage in stages:
        found[name] = again(found[name], stage) if (name := stage["name"]) in found else stage
    return [*found.values()]


def again(earlier: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    return {**stage, **{key: earlier[key] + stage[key] for key in ("seconds", "attempts")}}


def seconds_in_no_stage(record: Mapping[str, Any]) -> float:
    """Return the part of a run's seconds that none of its stages took: what came before, between and after them."""
    return max(0.0, record["seconds"] - sum(stage["seconds"] for stage in record["stages"]))


def was_kept(stage: Mapping[str, Any]) -> bool:
    """Whether a run went on from what a stage of its record made, as far as that is known."""
    return stage["state"] not in ("failed", "interrupted") and stage.get("kept") is not False


def _of_schema_1(content: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 had no id, kind, parent, tags and notes, and listed a stage once an attempt."""
    known = [str(content.get(key)) for key in ("started", "pid", "command", "seed")]
    added = {"id": digest_of(*known)[:ID_LENGTH], "kind": "fit", "parent": None, "tags": [], "notes": [], "host": None}
    content = {**added, **content, "schema_version": SCHEMA_VERSION}
    stages = content.get("stages")
    if isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages):
        stages = [{**stage, "seconds": stage.get("seconds") or 0.0, "attempts": 1} for stage in stages]
        content["stages"] = folded(stages) if all(not _odd(stage, _STAGE) for stage in stages) else stages
    return content


def _refuse_damaged(file: Path, content: dict[str, Any]) -> None:
    if missing := [key for key in OWN if key not in content]:
        raise EtudeError(f"{file} is damaged: it lacks {listed(missing)}")
    if content["state"] not in STATES:
        raise EtudeError(f"{file} is damaged: it lacks a known state")
    odd = _odd(content, {**OWN, **{key: kind for key, kind in _SECTIONS.items() if content.get(key) is not None}})
    if "stages" not in odd and any(not _is_stage(stage) for stage in content["stages"]):
        odd.append("stages")
    for key, kinds in _PARTS.items():
        held: dict[str, Any] = (content.get(key) or {}) if key not in odd else {}
        if _odd(held, {name: kind for name, kind in kinds.items() if name in held}):
            odd.append(key)
    if odd:
        raise EtudeError(f"{file} is damaged: what it says of {listed(odd)} is nothing that a run writes")


def _is_stage(entry: Any) -> bool:
    fits = isinstance(entry, dict) and not _odd(entry, _STAGE)
    return fits and not _odd(entry["scores"], dict.fromkeys(entry["scores"], _SCORE))


def _odd(content: Mapping[str, Any], kinds: Mapping[str, Any]) -> list[str]:
    """Return the keys that ``content`` lacks, or holds as something else."""
    return [key for key, kind in kinds.items() if key not in content or not isinstance(content[key], kind)]
