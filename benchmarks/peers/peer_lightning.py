"""A plain LightningModule, as Lightning's own example of fine-tuning has it (`computer_vision_fine_tuning.py`).

A head of three layers on a frozen backbone, whose last five layers join at epoch 5 and whose others join at epoch 10.
Adam at 1e-3, a tenth of it from either milestone, 15 epochs, batches of 8, flips. Batch norm stays frozen, and in
evaluation mode, as on Lightning's page about transfer learning; the example leaves it to the statistics of 8 images.
"""

from __future__ import annotations

import etude.compat  # noqa: F401  (mends torchvision with a CPU torch; Lightning imports it)

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import RandomHorizontalFlip

from peers.contract import given
from peers.lite0 import Images, network, squashed

MILESTONES = (5, 10)


class Milestones(BaseFinetuning):
    """Thaws the backbone in two steps."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.layers, train_bn=False)

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch in MILESTONES:
            part = pl_module.layers[-5:] if epoch == MILESTONES[0] else pl_module.layers[:-5]
            self.unfreeze_and_add_param_group(part, optimizer, train_bn=False)


class Classifier(pl.LightningModule):
    """The backbone's layers in a row, and the head."""

    def __init__(self, backbone: nn.Module, classes: int) -> None:
        super().__init__()
        stem = nn.Sequential(backbone.conv_stem, backbone.bn1)
        top = nn.Sequential(backbone.conv_head, backbone.bn2, backbone.global_pool)
        self.layers = nn.Sequential(stem, *backbone.blocks, top).eval()
        self.head = nn.Sequential(
            nn.Linear(backbone.num_features, 256), nn.ReLU(), nn.Linear(256, 32), nn.Linear(32, classes)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def predict_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self(batch[0]).softmax(1)

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.Adam([one for one in self.parameters() if one.requires_grad], lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, MILESTONES, gamma=0.1)]


task = given()
pl.seed_everything(task.seed, workers=True)
backbone = network(task.weights)
train = Images(task.train, task.targets, squashed(backbone, RandomHorizontalFlip()))
test = Images(task.test, (), squashed(backbone))
trainer = pl.Trainer(max_epochs=15, callbacks=[Milestones()], logger=False, enable_checkpointing=False)
model = Classifier(backbone, len(task.classes))
trainer.fit(model, DataLoader(train, 8, shuffle=True, num_workers=2))
task.write(torch.cat(trainer.predict(model, DataLoader(test, 8, num_workers=2))).numpy())
