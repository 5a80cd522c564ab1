"""fastai's part of benchmarks/train.py: TRAIN.csv TRUTH.json WEIGHTS SEED POINTS.json."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()  # before the imports: they are part of what a user waits for


def main() -> None:
    """Fine-tune as fastai's docs do, and predict the test images after each epoch with the clock stopped."""
    import etude.compat  # noqa: F401  (mends torchvision with a CPU torch; fastai imports it)

    import numpy as np
    import pandas
    import torch
    from fastai.vision.all import Callback

    from peers.peer_fastai import learner_of

    train, truth_file, weights, seed, points_file = sys.argv[1:]
    truth = json.loads(Path(truth_file).read_text())
    learner = learner_of(pandas.read_csv(train)[["image", "label"]], weights, int(seed))
    loaders = learner.dls
    names = {"functional": 0, "defective": 1}
    expected = np.array(list(truth.values()))
    points: list[tuple[float, float]] = []
    stopped = 0.0

    class Test(Callback):
        order = 90

        def after_epoch(self) -> None:
            nonlocal stopped
            start = time.perf_counter()
            seconds = start - STARTED - stopped
            # Not learner.get_preds, which would run this callback within itself.
            learner.model.eval()
            order = [list(loaders.vocab).index(name) for name in names]
            with torch.no_grad():
                found = [learner.model(batch[0])[:, order].argmax(1) for batch in loaders.test_dl(list(truth))]
            learner.model.train()
            points.append((seconds, float((torch.cat(found).numpy() == expected).mean())))
            stopped += time.perf_counter() - start

    learner.add_cb(Test())
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(5)
    Path(points_file).write_text(json.dumps(points))


if __name__ == "__main__":
    main()
