"""``etude resume``."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etude.cli.common import Quiet, screen_for
from etude.core.errors import EtudeError, listed
from etude.core.files import reading
from etude.study.run.request import Request


def resume(run: str, *, quiet: Quiet = False) -> None:
    """Go on with a run or an ablation that was stopped or killed; it ends as if it had not been.

    What it was begun with is in its record: images, recipe, settings, folds, budget and all else. The images must be
    where they were, and as they were.

    Parameters
    ----------
    run
        Its folder, name or id.
    """
    began = time.monotonic()
    from etude.journal.index import find_run
    from etude.journal.runs import REPORT_NAME, at_work, is_complete, read_run

    folder = find_run(Path("runs"), run)
    record, screen = read_run(folder), screen_for(quiet=quiet)
    if is_complete(record):
        screen.say(f"{folder} is finished, and nothing is left to do: {folder / REPORT_NAME} is its report")
        return
    if record["state"] == "running":
        raise at_work(folder, record["pid"], record["host"])
    from etude.cli.fit import show_files
    from etude.study.run.start import checked_sources, fit

    request = _request_of(folder, record)
    if record["kind"] == "ablate":
        sources = checked_sources(request, screen)
        from etude.study.ablation.ablate import ablate  # and torch with it

        ablate(sources, screen)
    else:
        show_files(screen, fit(request, screen, began))


def _request_of(folder: Path, record: Mapping[str, Any]) -> Request:
    """Return the request to resume a run by, in the working folder that it was begun in, where that is still there."""
    again, command = f"--resume --out {shlex.quote(str(folder))}", shlex.join(map(str, record["command"]))
    if "request" not in record:
        raise EtudeError(
            f"{folder} was begun by an earlier version of etude, whose record does not hold all that is needed: give "
            f"its command again with {again} ({command})"
        )
    with reading(folder / "run.json", "the record of a run that can be resumed"):
        kept = dict(record["request"])
        begun_in = Path(kept.pop("cwd"))
        if begun_in.is_dir() and not begun_in.samefile(Path.cwd()):
            folder = folder.resolve()
            os.chdir(begun_in)
        own = {"command": record["command"], "parent": record["parent"]}
        request = Request(**kept, **own, out=folder, resume=True)
    paths = (request.train, request.valid, request.test, request.unlabeled, request.sample_submission)
    given = (path for path in (*paths, request.image_root, *request.teachers) if path is not None)
    if gone := [str(path.absolute()) for path in given if not os.path.exists(path)]:
        raise EtudeError(
            f"{folder} was begun with {listed(gone, 3, str)}, which is gone: bring it back, or give the command again "
            f"with the new place and {again} ({command})"
        )
    return request
