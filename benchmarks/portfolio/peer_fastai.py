"""fastai's `fine_tune` and its TTA, as its documentation shows them: TRAIN.csv TEST.csv WEIGHTS SEED OUT.npz."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train_fastai import learner_of


def main() -> None:
    """Fine-tune, and write probabilities of the test images."""
    import numpy as np
    import pandas

    train, test, weights, seed, out = sys.argv[1:]
    learner = learner_of(pandas.read_csv(train, dtype=str), weights, int(seed))
    tests = pandas.read_csv(test, dtype=str)["image"]
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(3)
        probabilities, _ = learner.tta(dl=learner.dls.test_dl(list(tests)))
    classes = np.array(list(learner.dls.vocab))
    np.savez(out, probabilities=probabilities.numpy(), classes=classes, ids=tests.to_numpy(str))


if __name__ == "__main__":
    main()
