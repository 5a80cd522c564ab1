"""AutoGluon MultiModal, as its quick start for images has it, from a local timm checkpoint with the given weights."""

from __future__ import annotations

import json
from pathlib import Path

import etude.compat  # noqa: F401  (mends torchvision with a CPU torch; AutoGluon imports it)

import pandas
import torch
from autogluon.multimodal import MultiModalPredictor
from safetensors.torch import load_file
from timm import create_model

from peers.contract import given


def checkpoint(weights: str, folder: Path) -> str:
    """Write the weights without their head as AutoGluon reads a local checkpoint of timm."""
    folder.mkdir()
    model = create_model("tf_efficientnet_lite0")
    headless = {name: tensor for name, tensor in load_file(weights).items() if not name.startswith("classifier.")}
    torch.save(headless, folder / "pytorch_model.bin")
    names = ("input_size", "mean", "std", "crop_pct", "interpolation", "num_classes")
    config = {name: model.pretrained_cfg[name] for name in names}
    described = {"architecture": "tf_efficientnet_lite0", "num_features": model.num_features, "pretrained_cfg": config}
    (folder / "config.json").write_text(json.dumps(described))
    return str(folder)


if __name__ == "__main__":
    task = given()
    place = Path(task.out).parent
    predictor = MultiModalPredictor(
        label="label", problem_type="multiclass" if len(task.classes) > 2 else "binary", path=str(place / "autogluon")
    )
    predictor.fit(
        pandas.DataFrame({"image": task.train, "label": task.labels}),
        time_limit=task.seconds,
        seed=task.seed,
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": checkpoint(task.weights, place / "lite0"),
        },
    )
    found = predictor.predict_proba(pandas.DataFrame({"image": task.test}), as_pandas=False)
    task.write(found, predictor.class_labels)
