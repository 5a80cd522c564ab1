"""Ultralytics' classifier from random weights: none of its checkpoints is part of its package, nor does it read timm's.

Not on equal terms, then: its smallest network, the image size of its documentation, epochs until the time is up. A
fifth of the images validates. It leaves out images below 10 pixels, and so cannot train on digits-8x8.
"""

from __future__ import annotations

import os
from pathlib import Path

import etude.compat  # noqa: F401  (mends torchvision with a CPU torch; Ultralytics imports it)

os.environ["YOLO_CONFIG_DIR"] = os.getcwd()  # not the user's
os.environ["YOLO_OFFLINE"] = "1"

import numpy as np
from ultralytics import YOLO

from peers.contract import given

task = given()
images = Path(task.out).parent / "images"
for number, (path, label) in enumerate(zip(task.train, task.labels, strict=True)):
    file = images / label / f"{number:06}{Path(path).suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(path)
model = YOLO("yolo11n-cls.yaml")
hours = task.seconds / 3600 if task.seconds else None
model.train(data=str(images), imgsz=224, time=hours, seed=task.seed, workers=2, plots=False, project=str(images.parent))
results = model.predict(task.test, imgsz=224, batch=64, stream=True, verbose=False)
found = [result.probs.data.cpu().numpy() for result in results]
task.write(np.stack(found), [model.names[number] for number in range(len(model.names))])
