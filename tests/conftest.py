"""What all tests share: hypothesis settings, and the command line run inside the test's own process."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# First: pytest-xdist's main process imports Lightning by itself, to show a warning that a worker has caught.
import etude.compat

import pytest
from hypothesis import settings

from each_case import cases_of, check_all
from etude.cli.main import main

# On a busy machine the first example of a property may take long; that is no fault of the code.
# More examples of every property: ETUDE_EXAMPLES=200 in the environment, or pytest --hypothesis-profile=slow.
settings.register_profile("etude", deadline=None, max_examples=int(os.environ.get("ETUDE_EXAMPLES", "25")))
settings.register_profile("slow", deadline=None, max_examples=200)
settings.load_profile("etude")

# A shell without job control lets its background jobs ignore Ctrl-C, and processes of tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Etude = Callable[..., Ended]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage among modules and tests, which all stay: a quarter of the time of collecting them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one item of all the cases of ``@pytest.mark.each``."""
    if marks := [*metafunc.definition.iter_markers("each")]:
        cases = cases_of(marks)
        names, values = zip(*cases[0][1].items(), strict=True)
        metafunc.parametrize(names, [values], ids=[f"{len(cases)} cases"])


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Check every case of such an item."""
    if not (marks := [*pyfuncitem.iter_markers("each")]):
        return None
    fixtures = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    check_all(pyfuncitem.obj, cases_of(marks), fixtures)
    return True


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Train on one thread where a test asks for no other number: the threads of several workers wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("etude.models.modes.usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="session")
def figures() -> dict[str, bytes]:
    """The files of figures by what they show."""
    return {}


@pytest.fixture
def schedules_drawn_once(monkeypatch: pytest.MonkeyPatch, figures: dict[str, bytes]) -> None:
    """Copy the figure of a schedule that an earlier run drew, since the same schedule gives the same file."""
    from etude.study.run import job

    def drawn(*given: Any, **options: Any) -> tuple[str, Callable[[], Any]]:
        return repr((given, options)), lambda: own_drawn(*given, **options)

    def saved(figure: tuple[str, Callable[[], Any]], path: Path) -> None:
        if figure[0] in figures:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(figures[figure[0]])
            return
        own_saved(figure[1](), path)
        figures[figure[0]] = path.read_bytes()

    own_drawn, own_saved = job.timeline_figure, job.save_figure
    for user in ("etude.study.run.job", "etude.study.unlabelled.rounds"):
        monkeypatch.setattr(f"{user}.timeline_figure", drawn)
        monkeypatch.setattr(f"{user}.save_figure", saved)


@pytest.fixture
def etude(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, schedules_drawn_once: None
) -> Etude:
    """Return a function that runs ``etude WORDS`` in ``tmp_path`` with a cache of its own."""
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["etude", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run
