"""The command line. Each command lives in a file of its own, imported when it is called."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from cyclopts import App, CycloptsError, CycloptsPanel

import etude
from etude.core.errors import EtudeError, Terminated
from etude.core.stops import handled_by
from etude.core.text import visible

_LESS = "lower train.batch_size or the image size, or free some memory, and run again"
# What libraries say when the system gives them no memory, besides Python's own MemoryError.
_NO_MEMORY = ("allocate memory", "out of memory", "failed to map segment", "start new thread", "bad_alloc")

app = App(
    name="etude",
    error_formatter=lambda problem: CycloptsPanel("\n".join(map(visible, _explained(problem).splitlines()))),
    suppress_keyboard_interrupt=False,  # main says what is kept and how to go on
    help_format="plaintext",  # the list of commands has no markup, and a reader of Markdown takes 0.1 s to load
    version=etude.__version__,
    help="Turn a folder of labelled images into an accurate classifier, and write down what each step contributed.",
)
_HELP = {
    "demo": "Train on 5,000 MNIST digits from a pip package, in about a minute.",
    "fit": "Train on class folders or a table, and predict a test set.",
    "resume": "Go on with a run that was stopped or killed.",
    "predict": "Predict images with a finished run.",
    "evaluate": "Score a finished run on labelled images.",
    "refine": "Improve predictions without training; keep only what helps.",
    "blend": "Blend the predictions of several models.",
    "settings": "List the settings of a recipe, with values, limits and descriptions.",
    "recipe": "List the named recipes, show one, or what differs between two.",
    "timeline": "Show and draw what a recipe schedules, phase by phase.",
    "journal": "List, show, compare and annotate the runs that were made.",
    "ablate": "Train with and without each trick, and compare.",
    "doctor": "Show what this machine can do, how long TRAIN will take on it, and what slows it down.",
    "lr-find": "Search the peak learning rate by a range test.",
}
for _name, _help in _HELP.items():
    _file = _name.replace("-", "_")
    if _name in ("journal", "recipe"):
        app.command(f"etude.cli.{_name}:app", name=_name, help=_help)
    else:
        app.command(f"etude.cli.{_file}:{_file}", name=_name, help=_help, help_format="markdown")


def _explained(problem: CycloptsError) -> str:
    from etude.cli.unknown import explained

    return explained(problem)


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2, a stop in one and 130 or 143."""
    # Before torch loads OpenMP: threads that spin long while they wait take the processor from all else that runs. With
    # one other busy process on two cores, fine-tuning is about twice as fast this way, and as fast with none.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        with _stoppable():
            app(sys.argv[1:])
    except EtudeError as error:
        _stop(f"etude: {error}", 2)
    except MemoryError as error:
        _stop(f"etude: there is not enough memory ({error or 'none is left'}): {_LESS}", 2)
    except KeyboardInterrupt as stop:
        kept = [*getattr(stop, "__notes__", ()), "what was finished before is kept"][0]
        how, code = ("by SIGTERM", 143) if isinstance(stop, Terminated) else ("by hand", 130)
        _stop(f"etude: stopped {how}; {kept}", code)
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _stop(f"etude: {error}: the system refused it; what was finished before is kept", 2)
    except Exception as error:
        if any(words in str(error) for words in _NO_MEMORY):
            _stop(f"etude: there is not enough memory ({type(error).__name__}): {_LESS}", 2)
        error.add_note("etude: this is a fault of etude, not of yours: please report it with the lines above")
        raise
    finally:
        # Libraries take a second or more to unload, in which a stop would only hide how the command ended.
        atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)])


@contextmanager
def _stoppable() -> Generator[None]:
    """Let SIGTERM stop a command as Ctrl-C does, also where a library turns the stop into an error of its own."""
    received: list[type[KeyboardInterrupt]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        raise received[-1]

    with handled_by(stop):
        try:
            yield
        except Exception as problem:
            if received:
                raise received[0] from problem
            raise


def _stop(sentence: str, code: int) -> None:
    print(visible(sentence), file=sys.stderr)
    sys.exit(code)
