"""The plain Lightning loop of benchmarks/train.py: TRAIN.csv TRUTH.json WEIGHTS SEED POINTS.json."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()  # before the imports: they are part of what a user waits for

EPOCHS, BATCH, SIZE, LR = 5, 32, 224, 1e-3


def main() -> None:
    """Train as most tutorials do, and predict the test images after each epoch with the clock stopped."""
    import etude.compat  # noqa: F401  (mends torchvision beside a CPU torch)

    import lightning.pytorch as pl
    import numpy as np
    import pandas
    import timm
    import torch
    from PIL import Image
    from sklearn.model_selection import train_test_split
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    train, truth_file, weights, seed, points_file = sys.argv[1:]
    truth = json.loads(Path(truth_file).read_text())
    pl.seed_everything(int(seed), workers=True)
    frame = pandas.read_csv(train)
    labels = (frame["label"] == "defective").astype(int).to_numpy()
    kept, held_out = train_test_split(np.arange(len(frame)), test_size=0.2, stratify=labels, random_state=int(seed))
    model = timm.create_model("tf_efficientnet_lite0", pretrained=True, num_classes=2,
                              pretrained_cfg_overlay={"file": weights})  # fmt: skip
    config = model.default_cfg
    plain = [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
    resize = transforms.Resize((SIZE, SIZE))
    changes = [
        *(transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()),
        *(transforms.RandomAffine(10, (0.08, 0.08), (0.85, 1.15)), transforms.ColorJitter(0.1, 0.3)),
    ]

    class Images(Dataset):
        def __init__(self, paths: list[str], targets: list[int], change: list) -> None:
            self.paths, self.targets = paths, targets
            self.transform = transforms.Compose([resize, *change, *plain])

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.transform(Image.open(self.paths[index]).convert("RGB")), self.targets[index]

    def loader(rows: np.ndarray, change: list) -> DataLoader:
        paths = [frame["image"][row] for row in rows]
        images = Images(paths, [int(labels[row]) for row in rows], change)
        return DataLoader(images, BATCH, shuffle=bool(change), num_workers=2, persistent_workers=True)

    test = DataLoader(Images(list(truth), list(truth.values()), []), BATCH, num_workers=2)
    batches = loader(kept, changes)
    points: list[tuple[float, float]] = []

    class Loop(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.stopped = model, 0.0

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
            self.log("valid_accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> dict:
            optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.01)
            steps = EPOCHS * len(batches)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        def on_train_epoch_end(self) -> None:
            start = time.perf_counter()
            seconds = start - STARTED - self.stopped
            self.model.eval()
            with torch.no_grad():
                right = torch.cat([self.model(images).argmax(1) == targets for images, targets in test])
            self.model.train()
            points.append((seconds, float(right.float().mean())))
            self.stopped += time.perf_counter() - start

    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Loop(), batches, loader(held_out, []))
    Path(points_file).write_text(json.dumps(points))


if __name__ == "__main__":
    main()
