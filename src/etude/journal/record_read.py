"""``run.json`` as it is read: whole, of a known schema, with the notes and tags that people have added since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.core.errors import EtudeError, listed
from etude.core.files import digest_of, hash_of_file, read_json, reading
from etude.journal.record_lock import LOCK_NAME
from etude.journal.record_notes import read_notes
from etude.journal.record_state import FILE_NAME, state_of

SCHEMA_VERSION = 2
REPORT_NAME = "report.html"
REMAINS = frozenset({FILE_NAME, REPORT_NAME, "bad_files.csv", LOCK_NAME})
"""What stands in the folder of a run that ended before it made anything."""

STATES = ("running", "finished", "failed", "interrupted")
ID_LENGTH = 10  # of hexadecimal digits: a clash among 10,000 runs has a chance of 1 in 20,000

IN_NO_STAGE = "start-up and other"
"""What the seconds are called that a run spent in none of its stages."""

_ANY = object
_NUMBER = (int, float)
OWN: dict[str, type | tuple[type, ...]] = {
    "schema_version": int,
    "id": str,
    "kind": str,
    "parent": (str, type(None)),
    "tags": list,
    "notes": list,
    "state": str,
    "error": _ANY,
    "started": str,
    "ended": _ANY,
    "seconds": _NUMBER,
    "pid": int,
    "host": (str, type(None)),
    "resumed": list,
    "command": list,
    "recipe": str,
    "seed": int,
    "settings": dict,
    "changed": dict,
    "environment": dict,
    "stages": list,
    "warnings": list,
    "artefacts": list,
}
"""What every record holds, and as what; the names that no section may have."""

_STAGE = {"name": str, "state": str, "started": str, "seconds": _NUMBER, "attempts": int, "scores": dict, "notes": dict}
_SECTIONS = {"data": dict, "plan": dict, "result": dict}  # written when the run has come so far
_SCORE = (*_NUMBER, type(None))
_PARTS: dict[str, dict[str, Any]] = {
    "data": {"folds": list},
    "environment": {"memory_bytes": _SCORE},
    "plan": {"resolved": dict},
    "result": {"accuracy": _SCORE, "log_loss": _SCORE, "validation_images": (int, type(None))},
}
"""What lists and comparisons read of sections, where it is there."""


def read_run(folder: Path) -> dict[str, Any]:
    """Return the content of a run's ``run.json`` in the shape of the newest schema, whichever it was written in.

    ``state`` is ``killed`` where the run says that it is running and its process is gone;
    ``tags`` and ``notes`` include those added since the run began (see :mod:`etude.journal.record_notes`).

    Raises:
        EtudeError: there is no such folder, it is not a run, or its record is damaged or of a newer etude.
    """
    content = read_record(folder)
    notes, tags = read_notes(folder, content["tags"])
    state = state_of(folder, content)
    return {**content, "state": state, "notes": [*content["notes"], *notes], "tags": tags}


def read_record(folder: Path) -> dict[str, Any]:
    """Return what the run itself has written, as :func:`read_run`, without what people have added.

    Raises:
        EtudeError: as :func:`read_run`.
    """
    if not folder.is_dir():
        raise EtudeError(f"{folder} is no folder: give the folder of a run, such as runs/first")
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
    """Compare files of a run with the hashes that its record holds of them, before they are read.

    Args:
        folder: the run's folder.
        names: of the files, relative to it; those that are not there are passed over.
        record: its record, where it has been read; a folder without one holds no hashes.

    Returns:
        The names of the files that the record holds no hash of: of a run of an earlier version.

    Raises:
        EtudeError: a file is not the one that the run wrote, or the record is damaged.
    """
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


def models_of(record: Mapping[str, Any]) -> list[str]:
    """Return the folders of the models that a run kept, relative to its own; none before its end."""
    return (record.get("result") or {}).get("models") or []


def model_files(names: Iterable[str]) -> list[str]:
    """Return the files of the models in these folders of a run.

    >>> model_files(["."]), model_files(["fold-1"])
    (['model.json', 'model.safetensors'], ['fold-1/model.json', 'fold-1/model.safetensors'])
    """
    return [Path(name, file).as_posix() for name in names for file in ("model.json", "model.safetensors")]


def failed_with_nothing(folder: Path) -> bool:
    """Whether a run failed in ``folder`` before it made anything: the corrected command may use it again."""
    try:
        return {path.name for path in folder.iterdir()} <= REMAINS and read_record(folder)["state"] == "failed"
    except EtudeError:
        return False


def folded(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the stages with each name once: the last attempt at it, with all attempts' seconds.

    >>> first = {"name": "fine-tune", "state": "interrupted", "seconds": 2.0, "attempts": 1}
    >>> folded([first, {**first, "state": "finished", "seconds": 3.0}])
    [{'name': 'fine-tune', 'state': 'finished', 'seconds': 5.0, 'attempts': 2}]
    """
    found: dict[str, dict[str, Any]] = {}
    for stage in stages:
        earlier = found.get(stage["name"])
        found[stage["name"]] = stage if earlier is None else again(earlier, stage)
    return [*found.values()]


def again(earlier: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    """Return ``stage`` as one more attempt after ``earlier`` ones: their seconds and number are added."""
    return {
        **stage,
        "seconds": earlier["seconds"] + stage["seconds"],
        "attempts": earlier["attempts"] + stage["attempts"],
    }


def seconds_in_no_stage(record: Mapping[str, Any]) -> float:
    """Return the part of a run's seconds that none of its stages took: what came before, between and after them.

    >>> seconds_in_no_stage({"seconds": 3.0, "stages": [{"seconds": 2.0}, {"seconds": 0.5}]})
    0.5
    """
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
    there = {key: kind for key, kind in _SECTIONS.items() if content.get(key) is not None}
    odd = _odd(content, {**OWN, **there})
    if "stages" not in odd and any(not _is_stage(stage) for stage in content["stages"]):
        odd.append("stages")
    for key in _PARTS.keys() - {*odd}:
        held: dict[str, Any] = content.get(key) or {}
        if _odd(held, {name: kind for name, kind in _PARTS[key].items() if name in held}):
            odd.append(key)
    if odd:
        raise EtudeError(f"{file} is damaged: what it says of {listed(odd)} is nothing that a run writes")


def _is_stage(entry: Any) -> bool:
    if not isinstance(entry, dict) or _odd(entry, _STAGE):
        return False
    return not _odd(entry["scores"], dict.fromkeys(entry["scores"], _SCORE))


def _odd(content: Mapping[str, Any], kinds: Mapping[str, Any]) -> list[str]:
    """Return the keys that ``content`` lacks, or holds as something else."""
    return [key for key, kind in kinds.items() if key not in content or not isinstance(content[key], kind)]
