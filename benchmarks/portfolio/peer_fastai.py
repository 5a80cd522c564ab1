"""fastai's `fine_tune` and its TTA, as its documentation shows them, on the same tables and weights."""

from __future__ import annotations

import sys


def main() -> None:
    """TRAIN.csv TEST.csv WEIGHTS SEED OUT.npz."""
    import etude.compat  # noqa: F401  (mends torchvision beside a CPU torch; fastai imports it)

    import numpy as np
    import pandas
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, aug_transforms, set_seed, vision_learner

    train, test, weights, seed, out = sys.argv[1:]
    set_seed(int(seed), reproducible=True)
    frame, tests = pandas.read_csv(train, dtype=str), pandas.read_csv(test, dtype=str)
    loaders = ImageDataLoaders.from_df(
        frame, path="/", valid_pct=0.2, seed=int(seed), fn_col="image", label_col="label",
        item_tfms=Resize(224), batch_tfms=aug_transforms(), bs=64, num_workers=2,
    )  # fmt: skip
    learner = vision_learner(
        loaders, "tf_efficientnet_lite0", metrics=accuracy, pretrained_cfg_overlay={"file": weights}
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(3)
        probabilities, _ = learner.tta(dl=loaders.test_dl(list(tests["image"])))
    np.savez(
        out,
        probabilities=probabilities.numpy(),
        classes=np.array(list(loaders.vocab)),
        ids=tests["image"].to_numpy(str),
    )


if __name__ == "__main__":
    main()
