"""The twenty lines of a practitioner: timm's pooled features, scikit-learn's logistic regression."""

from __future__ import annotations

import sys

import etude.compat  # noqa: F401  (mends torchvision beside a CPU torch; timm imports it)

import numpy as np
import pandas
import timm
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

train_file, test_file, weights, seed, out = sys.argv[1:]
train, test = pandas.read_csv(train_file, dtype=str), pandas.read_csv(test_file, dtype=str)
overlay = {"file": weights}
model = timm.create_model("tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
model.eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))


def features(paths: list[str]) -> np.ndarray:
    """Pooled features of the network, in batches of 64."""
    made = []
    for start in range(0, len(paths), 64):
        batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[start : start + 64]])
        with torch.inference_mode():
            made.append(model(batch).numpy())
    return np.concatenate(made)


classifier = make_pipeline(
    StandardScaler(), LogisticRegressionCV(Cs=[1e-3, 1e-2, 1e-1, 1.0], cv=3, scoring="neg_log_loss")
)
classifier.fit(features(list(train["image"])), train["label"])
np.savez(
    out,
    probabilities=classifier.predict_proba(features(list(test["image"]))),
    classes=classifier.classes_.astype(str),
    ids=np.array(test["image"], dtype=str),
)
