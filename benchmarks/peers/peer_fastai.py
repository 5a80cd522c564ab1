"""fastai's `fine_tune` and its TTA, as its documentation shows them."""

from __future__ import annotations

from typing import Any

from peers.contract import given


def learner_of(frame: Any, weights: str, seed: int) -> Any:
    """Return a vision learner on the images and labels of a table, as fastai's documentation builds it."""
    import etude.compat  # noqa: F401  (mends torchvision with a CPU torch; fastai imports it)

    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, aug_transforms, set_seed, vision_learner

    set_seed(seed, reproducible=True)
    batch = min(64, len(frame) * 4 // 5)  # a batch that is not full is left out, and with it a small set
    loaders = ImageDataLoaders.from_df(
        frame, path="/", valid_pct=0.2, seed=seed, fn_col="image", label_col="label",
        item_tfms=Resize(224), batch_tfms=aug_transforms(), bs=batch, num_workers=2,
    )  # fmt: skip
    return vision_learner(loaders, "tf_efficientnet_lite0", metrics=accuracy, pretrained_cfg_overlay={"file": weights})


def main() -> None:
    """Fine-tune, and write probabilities of the test images."""
    import pandas

    task = given()
    learner = learner_of(pandas.DataFrame({"image": task.train, "label": task.labels}), task.weights, task.seed)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(3)
        probabilities, _ = learner.tta(dl=learner.dls.test_dl(task.test))
    task.write(probabilities.numpy(), learner.dls.vocab)


if __name__ == "__main__":
    main()
