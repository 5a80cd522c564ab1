"""Damaged files of every kind: each reader returns what was written, or refuses in one sentence."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import etude.compat  # noqa: F401  (before torch)

import numpy as np
import polars as pl
import pytest
import torch

from etude.core.arrays import load_arrays, save_arrays
from etude.core.errors import EtudeError
from etude.core.files import read_checked_json, read_json, write_checked_json, write_json
from etude.core.predictions import Predictions
from etude.core.submission import check_sample
from etude.core.tables import read_table
from etude.models.backbones import build_backbone, read_safetensors
from etude.models.classifier import Classifier, ModelCard, Preprocessing, load_model, save_model
from etude.models.features import cached
from etude.recipe import load_recipe
from etude.refine.calibration import Temperature
from etude.refine.chain import Chain
from etude.refine.prior.correction import parse_prior
from etude.timeline import Phase, Timeline
from etude.training.resume import Finished, ResumeFolder, RunPlan

CHECKED, FREE = 300, 150  # mutations of a kind of file with checksums of ours, and of one without


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Flip a bit, overwrite, insert, repeat or remove bytes, or cut the file."""
    data = bytearray(content)
    at, span = rng.randrange(len(data)), rng.choice((1, 2, 4, 16, 300))
    match rng.randrange(7):
        case 0 | 1:
            data[at] ^= 1 << rng.randrange(8)
        case 2:
            data[at : at + span] = rng.randbytes(span)
        case 3:
            data[at:at] = rng.randbytes(span)
        case 4:
            data[at:at] = data[:span]
        case 5:
            del data[at : at + span]
        case _:
            data[at] = rng.choice(b'0123456789{}[]",.:-eE\x00\xff')
    return bytes(data)


def outcomes(path: Path, read: Callable[[], Any], count: int) -> list[Any]:
    """Return what is read of mutations of a file; anything but a value or a refusal in one sentence passes on."""
    content, found, refusals = path.read_bytes(), list[Any](), list[str]()
    for number in range(count):
        path.write_bytes(mutated(content, random.Random(number)))
        try:
            found.append(read())
        except EtudeError as refused:
            refusals.append(str(refused))
    path.write_bytes(content)
    assert not any("\n" in sentence for sentence in refusals)
    return found


def made() -> Predictions:
    logits = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    features = np.ones((5, 4), np.float16)
    return Predictions(tuple("abcde"), ("ant", "bee", "cat"), logits, features, np.array([0, 1, 2, 0, -1]))


def fields(one: Predictions) -> str:
    return repr([one.ids, one.classes, one.logits.tolist(), np.asarray(one.features).tolist(), one.labels])


def test_predictions(tmp_path: Path):
    path, whole = tmp_path / "p.npz", made()
    whole.save(path)
    found = outcomes(path, lambda: fields(Predictions.load(path)), 2 * CHECKED)
    assert set(found) == {fields(whole)}


def test_cached_features_are_read_or_computed_anew(tmp_path: Path):
    path, whole = tmp_path / "f.npz", np.random.default_rng(0).normal(size=(6, 4)).astype(np.float16)
    save_arrays(path, {"features": whole})
    found = outcomes(path, lambda: cached(path, whole.copy, 6)[0], CHECKED)
    assert all(np.array_equal(one, whole) for one in found)
    assert len(found) == CHECKED


def test_arrays_of_any_kind(tmp_path: Path):
    path = tmp_path / "a.npz"
    whole = {"n": np.array(["x", "yy"]), "f": np.eye(3).T, "e": np.zeros((0, 2), np.uint8), "s": np.array(2.5)}
    save_arrays(path, whole)
    said = {name: (array.dtype.str, array.tolist()) for name, array in whole.items()}

    def read() -> Any:
        return {name: (array.dtype.str, array.tolist()) for name, array in load_arrays(path, "a", (), None).items()}

    assert all(one == said for one in outcomes(path, read, CHECKED))


@pytest.mark.parametrize("name", ["refine.json", "refine.npz"])
def test_fitted_steps(tmp_path: Path, name: str):
    path, given = tmp_path / "refine.json", made()
    Chain([("temperature", Temperature())], metric="log_loss", folds=2).fit(given).save(path)
    before = Chain.load(path).transform(given).logits
    for one in outcomes(tmp_path / name, lambda: Chain.load(path).transform(given).logits, 100):
        np.testing.assert_array_equal(one, before)


def test_tables_of_json_with_a_checksum(tmp_path: Path):
    path, whole = tmp_path / "t.json", {"steps": 120, "rate": 1.5e-3, "names": ["ü", None], "deep": {"x": [True, -0.5]}}
    write_checked_json(path, whole)
    found = outcomes(path, lambda: read_checked_json(path), CHECKED)
    assert all({key: one[key] for key in whole} == whole for one in found)  # the checksum's own key may be damaged


TIMELINE = Timeline((Phase("a", 0.4, lr=0.1, image_size=64), Phase("b", 0.6, lr=0.01, image_size=64)))


def network() -> Classifier:
    torch.manual_seed(0)
    backbone = build_backbone("tiny", "none", 1)
    return Classifier(backbone.module, backbone.num_features, 3)


def test_plans_and_finished_trainings(tmp_path: Path):
    kept, plan = ResumeFolder(tmp_path), RunPlan(TIMELINE, 120, 10, 12.5)
    kept.save_plan(plan)
    assert all(one == plan for one in outcomes(kept.folder / "plan.json", kept.load_plan, FREE))
    done, model = Finished(120, TIMELINE, [{"step": 1, "loss": 0.25}], [{"step": 2}]), network()
    kept.save_finished(model, done)
    assert all(
        one == done for one in outcomes(kept.folder / "finished.json", lambda: kept.load_finished(network()), FREE)
    )
    assert outcomes(kept.folder / "finished.safetensors", lambda: kept.load_finished(network()), 20) == []


@pytest.mark.parametrize(
    "fields", [{"steps": 0}, {"steps": 1}, {"steps": 64_000_000_000}, {"steps": None}, {"timeline": 3}]
)
def test_a_plan_that_was_edited_is_refused(tmp_path: Path, fields: dict[str, Any]):
    kept = ResumeFolder(tmp_path)
    kept.save_plan(RunPlan(TIMELINE, 120, 10, 12.5))
    path = kept.folder / "plan.json"
    write_json(path, {**read_json(path), **fields})
    with pytest.raises(EtudeError, match=r"plan\.json"):
        kept.load_plan()


def checkpoint_of(model: torch.nn.Module, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": model.state_dict(), "global_step": 7}, path)


def test_checkpoints(tmp_path: Path):
    kept, model = ResumeFolder(tmp_path), torch.nn.Linear(40, 30)
    path = kept.folder / "last.ckpt"
    checkpoint_of(model, path)
    assert kept.step_for(model) == 7
    assert set(outcomes(path, lambda: kept.step_for(model), 100)) <= {7}
    checkpoint_of(torch.nn.Linear(40, 31), path)
    with pytest.raises(EtudeError, match=r"last\.ckpt"):
        kept.step_for(model)


CARD = ModelCard(
    "tiny", ("ant", "bee", "cat"), Preprocessing(24, 24, "squash", 1, 1, (0.5,), (0.5,)), "fp32", 1, "none"
)


def test_models(tmp_path: Path):
    save_model(tmp_path, network(), CARD)
    for name in ("model.json", "model.safetensors"):
        outcomes(tmp_path / name, lambda: load_model(tmp_path), 60)


@pytest.mark.each(
    "changes",
    [
        *({"preprocessing": {"size": value}} for value in (-1, 0, 1_000_000, 24.5, "24", True, None)),
        *({"preprocessing": {"stored_size": value}} for value in (-1, 1_000_000)),
        *({"preprocessing": {"mean": value}} for value in ([], [0.5, 0.5], [1e400], ["a"], None)),
        *({"preprocessing": {"std": value}} for value in ([0.0], [-1.0], [1e400])),
        *({"preprocessing": {"channels": value}} for value in (0, 2, 4, "1")),
        *({"classes": value} for value in ([], ["a"], ["a", "a", "b"], ["a", "", "b"], ["a", 1, "b"], "abc" * 2)),
        *({"tta": 0}, {"levels": -1}, {"precision": "fp8"}, {"folded": 1}, {"backbone": None}, {"policy": 3}),
    ],
)
def test_descriptions_of_no_model_are_refused(tmp_path: Path, changes: dict[str, Any]):
    save_model(tmp_path, network(), CARD)
    card = json.loads((tmp_path / "model.json").read_text())
    inner = changes.pop("preprocessing", {})
    (tmp_path / "model.json").write_text(
        json.dumps({**card, **changes, "preprocessing": card["preprocessing"] | inner})
    )
    with pytest.raises(EtudeError, match=r"model\.json"):
        load_model(tmp_path)


TEXTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "t.csv": ("id,ant,bee\na,0.25,0.75\nb,0.5,0.5\n", read_table),
    "i.csv": ('image,label\n"a.png",ant\nb.png,bee\n', read_table),
    "s.csv": ("id,label\na,ant\nb,bee\n", lambda path: check_sample(path, ["a", "b"], ["ant", "bee"], warn=len)),
    "p.csv": ("class,share\nant,0.25\nbee,0.75\n", lambda path: parse_prior(path, ("ant", "bee"))),
    "p.json": ('{"ant": 0.25, "bee": 0.75}', lambda path: parse_prior(path, ("ant", "bee"))),
    "r.toml": ('base = "quick"\n[train]\nlr = 0.001\n', lambda path: load_recipe(str(path))),
    "v.json": ('{"a": [1, 2.5, {"b": null}]}', read_json),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(tmp_path: Path, name: str):
    text, read = TEXTS[name]
    (tmp_path / name).write_text(text)
    read(tmp_path / name)
    outcomes(tmp_path / name, lambda: read(tmp_path / name), FREE)


def test_parquet(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"id": ["a", "b", "c"], "ant": [0.25, 0.5, None]}).write_parquet(path)
    outcomes(path, lambda: read_table(path), FREE)


def test_weights(tmp_path: Path):
    save_model(tmp_path, network(), CARD)
    path = tmp_path / "model.safetensors"
    outcomes(path, lambda: read_safetensors(path), FREE)


READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": read_table,
    ".parquet": read_table,
    ".tsv": read_table,
    ".npz": Predictions.load,
    ".json": read_json,
    ".toml": lambda path: load_recipe(str(path)),
    ".safetensors": read_safetensors,
}


@pytest.mark.parametrize("ending", READERS)
def test_pipes_devices_and_folders_are_refused_and_not_waited_for(tmp_path: Path, ending: str):
    pipe, folder, device = (tmp_path / f"{name}{ending}" for name in ("pipe", "folder", "device"))
    os.mkfifo(pipe)
    folder.mkdir()
    device.symlink_to("/dev/zero")
    for path in (pipe, folder, device):
        with pytest.raises(EtudeError, match=path.name):
            READERS[ending](path)


@pytest.mark.parametrize("ending", READERS)
def test_paths_that_are_no_text(tmp_path: Path, ending: str):
    """A name with NUL cannot exist; one that is not UTF-8 can, and is read as any other."""
    for name in (f"a\0b{ending}", f"absent\udcff{ending}"):
        with pytest.raises(EtudeError):
            READERS[ending](tmp_path / name)
    path = tmp_path / f"there\udcff{ending}"
    match ending:
        case ".npz":
            made().save(path)
        case ".parquet":
            pl.DataFrame({"id": ["a"], "x": [1.0]}).write_parquet(tmp_path / "plain")
            (tmp_path / "plain").rename(path)
        case ".safetensors":
            save_model(tmp_path, network(), CARD)
            (tmp_path / "model.safetensors").rename(path)
        case ".toml":
            path.write_text('base = "quick"\n')
        case ".json":
            path.write_text("[1]")
        case _:
            path.write_text("id\tx\na\t1\n" if ending == ".tsv" else "id,x\na,1\n")
    READERS[ending](path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\ud800".encode("utf-8", "surrogatepass")]
)
def test_json_without_end(tmp_path: Path, text: str | bytes):
    path = tmp_path / "v.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EtudeError, match=r"v\.json"):
        read_json(path)
