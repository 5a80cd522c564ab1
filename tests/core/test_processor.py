from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Event, Thread
from typing import Any

import numpy as np
import pytest
import scipy.linalg  # loads the BLAS that comes with scipy
import scipy.optimize
import threadpoolctl

from etude.core.predictions import Predictions
from etude.core.processor import blas_threads_for
from etude.health.label_errors import suspect_labels
from etude.health.shift import dataset_shift
from etude.models.head import fit_head
from etude.refine.last_layer import LastLayer
from etude.refine.stacking import Stacking

SMALL, LARGE = 1000, 10**12


def threads() -> list[int]:
    """The threads of every BLAS library in the process."""
    return [one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"]


def set_threads(count: int) -> None:
    """Set them from a thread that ends: the one that sets them is the only one that may, as long as it lives."""
    worker = Thread(target=lambda: threadpoolctl.threadpool_limits(count, user_api="blas"))
    worker.start()
    worker.join()


@pytest.fixture(autouse=True)
def two_threads():
    before = max(threads())
    set_threads(2)
    assert set(threads()) == {2}
    yield
    set_threads(before)


def test_small_products_get_one_thread_and_the_others_come_back():
    with blas_threads_for(SMALL):
        assert set(threads()) == {1}
        with blas_threads_for(SMALL):
            pass
        assert set(threads()) == {1}  # the outer block still holds
    assert set(threads()) == {2}


def test_large_products_keep_their_threads():
    with blas_threads_for(LARGE):
        assert set(threads()) == {2}


def test_the_threads_come_back_after_an_error():
    with pytest.raises(ValueError, match="singular"), blas_threads_for(SMALL):
        raise ValueError("singular")
    assert set(threads()) == {2}


def test_blocks_of_two_threads_that_overlap_leave_no_limit_behind():
    seen: list[int] = []
    both_inside, first_has_left = Barrier(2, timeout=10), Event()

    def first() -> None:
        with blas_threads_for(SMALL):
            both_inside.wait()
            seen.extend(threads())
        first_has_left.set()

    def second() -> None:
        with blas_threads_for(SMALL):
            both_inside.wait()
            assert first_has_left.wait(10)

    workers = [Thread(target=first), Thread(target=second)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(seen) == {1}
    assert set(threads()) == {2}
    with blas_threads_for(SMALL):
        assert set(threads()) == {1}


def fits() -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    x = (rng.normal(size=(60, 8)) + np.eye(3, 8)[labels]).astype(np.float32)
    ids = tuple(map(str, range(60)))
    one = Predictions(ids, ("x", "y", "z"), rng.normal(size=(1, 60, 3)), x, labels)
    return {
        "head": lambda: fit_head(x, labels, 3, candidates=(0.1, 1.0)).weight,
        "last layer": lambda: LastLayer(x[:40], labels[:40], noise=None).fit(one.take(range(40, 60)), one).gain_,
        "stacking": lambda: Stacking().fit([one, one]).gain_,
        "label errors": lambda: suspect_labels(x, labels, 3).probabilities,
        "shift": lambda: dataset_shift(x[:30], x[30:]).auc,
    }


@pytest.mark.parametrize("name", list(fits()))
def test_small_fits_run_on_one_thread_and_give_what_two_give(name: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []

    def watched(solve: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*given: Any, **named: Any) -> Any:
            seen.extend(threads())
            return solve(*given, **named)

        return wrapper

    monkeypatch.setattr(np.linalg, "eigh", watched(np.linalg.eigh))
    monkeypatch.setattr(scipy.optimize, "minimize", watched(scipy.optimize.minimize))
    monkeypatch.setattr(scipy.linalg, "solve", watched(scipy.linalg.solve))
    fit = fits()[name]
    limited = fit()
    assert set(seen) == {1}
    assert set(threads()) == {2}
    monkeypatch.setattr("etude.core.processor._WORTH_SHARING", 0)
    seen.clear()
    np.testing.assert_allclose(fit(), limited, rtol=1e-4, atol=1e-6)
    assert set(seen) == {2}
