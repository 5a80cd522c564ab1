"""timm's training script in short, which its package leaves out ("not currently packaged in the pip release").

Made of timm's own loaders, transforms, optimizer, schedule and loss, with the script's defaults (cosine, five epochs of
warmup, label smoothing 0.1) and what its documentation's example of fine-tuning sets: batches of 32, 30 epochs, AdamW
at 1e-4, weight decay 0.01. Predictions are those of the last epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import etude.compat  # noqa: F401  (mends torchvision with a CPU torch; timm imports it)

import numpy as np
import torch
from timm.data import create_loader, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed

from peers.contract import given
from peers.lite0 import Images, network

task = given()
random_seed(task.seed)
model = network(task.weights, len(task.classes))
config = resolve_model_data_config(model)


def batches(paths: Sequence[str], targets: Sequence[int], training: bool) -> torch.utils.data.DataLoader:
    """Return timm's loader; in training the last batch is left out, so that a batch is never larger than the set."""
    return create_loader(
        Images(paths, targets), config["input_size"], min(32, len(paths)), is_training=training, num_workers=2,
        interpolation="random" if training else config["interpolation"], mean=config["mean"], std=config["std"],
        crop_pct=config["crop_pct"], device=torch.device("cpu"),
    )  # fmt: skip


loader = batches(task.train, task.targets, training=True)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.01)
scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=30, warmup_epochs=5)
loss_of = LabelSmoothingCrossEntropy(0.1)
for epoch in range(epochs):
    model.train()
    for images, targets in loader:
        loss = loss_of(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step(epoch + 1)
model.eval()
with torch.inference_mode():
    found = [model(images).softmax(1).numpy() for images, _ in batches(task.test, (), training=False)]
task.write(np.concatenate(found))
