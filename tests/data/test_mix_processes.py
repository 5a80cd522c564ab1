"""Two processes that talk to each other (gloo): the mix is exact in both, and no image comes twice before all have."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed
import torch.multiprocessing

from data.loading import batches, mixed_rows
from etude.data.order import FixedMix, FixedMixSampler, labelled_images

PROCESSES, STEPS, LABELLED, UNLABELLED = 2, 14, 13, 9
BATCH, SHARE = 10, 0.7


def one_of_two(rank: int, folder: str) -> None:
    """Draw batches of both kinds, exchange them, and write what all processes drew."""
    os.environ["OMP_NUM_THREADS"] = "1"
    known = np.arange(LABELLED + UNLABELLED) < LABELLED
    early = FixedMixSampler(known, BATCH // 2, SHARE)  # made before the processes have met
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES
    )
    part = (torch.distributed.get_rank(), torch.distributed.get_world_size())
    loader = batches(mixed_rows(LABELLED, UNLABELLED), BATCH, STEPS, mix=FixedMix(SHARE), part=part)
    own = {
        "loader": [list(zip(batch["id"].tolist(), batch["is_labeled"].tolist(), strict=True)) for batch in loader],
        "sampler": [[(number, bool(known[number])) for number in batch] for _ in range(3) for batch in early],
    }
    drawn: list[Any] = [None] * PROCESSES
    torch.distributed.all_gather_object(drawn, own)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(drawn))
    torch.distributed.destroy_process_group()


def test_two_processes_share_an_exact_mix_without_seeing_an_image_twice(tmp_path: Path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=PROCESSES)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(PROCESSES))
    assert first == second
    for kind in ("loader", "sampler"):
        shares = [own[kind] for own in first]
        assert len(shares[0]) == len(shares[1]) >= STEPS - 2
        exact = labelled_images(BATCH // 2, SHARE)
        assert {sum(labelled for _, labelled in batch) for share in shares for batch in share} == {exact}
        assert {len(batch) for share in shares for batch in share} == {BATCH // 2}
        drawn = [image for step in zip(*shares, strict=True) for batch in step for image in batch]
        for wanted, count in ((True, LABELLED), (False, UNLABELLED)):
            stream = [number for number, labelled in drawn if labelled is wanted]
            rounds = [stream[start : start + count] for start in range(0, len(stream), count)]
            assert len(rounds) >= 3
            assert all(len(set(one)) == len(one) for one in rounds)
