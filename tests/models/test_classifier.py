from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from etude.core.errors import EtudeError
from etude.models.backbones import TinyNet, build_backbone
from etude.models.classifier import Classifier, ModelCard, Preprocessing, load_model, save_model

CLASSES = ("cat", "dog / wolf", " ünïcode 🦊")


def classifier(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    model = Classifier(TinyNet(3), TinyNet(3).num_features, len(CLASSES))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-1, 1)
    return model.eval()


@pytest.fixture
def card(preprocessing: Preprocessing) -> ModelCard:
    return ModelCard("tiny", CLASSES, preprocessing, precision="fp32", tta=2, policy="photos")


@pytest.fixture
def saved(tmp_path: Path, card: ModelCard) -> Path:
    save_model(tmp_path, classifier(), card)
    return tmp_path


def test_a_model_read_back_gives_the_same_logits(saved: Path, card: ModelCard):
    model, read_card = load_model(saved)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(model(images), classifier()(images), rtol=0, atol=0)
    assert read_card == card
    assert not model.training


def test_saving_names_the_files(tmp_path: Path, card: ModelCard):
    paths = save_model(tmp_path, classifier(), card, name="fold-1")
    assert [path.name for path in paths] == ["fold-1.safetensors", "fold-1.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold-1.json", "fold-1.safetensors"]
    assert load_model(tmp_path, "fold-1")[1] == card


def test_a_timm_model_in_channels_last_is_read_back(tmp_path: Path, preprocessing: Preprocessing):
    built = build_backbone("test_resnet", "none")
    model = Classifier(built.module, built.num_features, 2).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    save_model(tmp_path, model, ModelCard("test_resnet", ("a", "b"), preprocessing, "fp32", 1, "none"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(load_model(tmp_path)[0](images), model(images), rtol=1e-5, atol=1e-5)


def refusal(folder: Path) -> str:
    with pytest.raises(EtudeError) as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_folder_without_a_model(tmp_path: Path):
    assert refusal(tmp_path) == (
        f"{tmp_path} holds no trained model (model.json is missing); give the folder of a finished run"
    )


def test_a_damaged_description(saved: Path):
    text = (saved / "model.json").read_text(encoding="utf-8")
    (saved / "model.json").write_text(text[:50], encoding="utf-8")
    assert f"{saved / 'model.json'} is not valid JSON (" in refusal(saved)


@pytest.mark.parametrize("text", ['{"version": 99}', "{}", "[]", "3"])
def test_a_description_of_another_version(saved: Path, text: str):
    (saved / "model.json").write_text(text, encoding="utf-8")
    assert "model.json was written by another version of etude" in refusal(saved)


def test_missing_weights(saved: Path):
    (saved / "model.safetensors").unlink()
    assert "model.safetensors is missing, though model.json is there" in refusal(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_damaged_weights(saved: Path, keep: int):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert refusal(saved).startswith(f"{path} is not a readable safetensors file (")


def test_weights_of_another_model(saved: Path):
    path = saved / "model.safetensors"
    state = load_file(path)
    save_file({**state, "head.bias": torch.zeros(7)}, path)
    assert "model.safetensors does not fit model.json: " in refusal(saved)
    save_file({key: value for key, value in state.items() if not key.startswith("head.")}, path)
    assert "model.safetensors does not fit model.json: " in refusal(saved)


def test_the_description_is_plain_json(saved: Path):
    described = json.loads((saved / "model.json").read_text(encoding="utf-8"))
    assert described["classes"] == list(CLASSES)
    assert described["preprocessing"]["size"] == 16


def test_a_head_can_be_set():
    model, rng = classifier(), np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 128)), rng.normal(size=3)
    model.set_head(weight, bias)
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        expected = model.features(images).numpy() @ weight.T + bias
        np.testing.assert_allclose(model(images).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert model.head.weight.requires_grad


def test_preprocessing_normalises_by_channel(preprocessing: Preprocessing, pixels: np.ndarray):
    given = preprocessing.to_input(torch.from_numpy(pixels))
    expected = (pixels / 255.0 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    np.testing.assert_allclose(given.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert given.dtype == torch.float32
    assert given.is_contiguous(memory_format=torch.channels_last)


def test_preprocessing_repeats_grey_where_the_network_takes_colour(preprocessing: Preprocessing, pixels: np.ndarray):
    grey = torch.from_numpy(pixels[..., :1])
    as_colour = dataclasses.replace(preprocessing, channels=1)
    torch.testing.assert_close(as_colour.to_input(grey), preprocessing.to_input(grey.repeat(1, 1, 1, 3)))
    as_grey = dataclasses.replace(preprocessing, channels=1, in_channels=1, mean=(0.5,), std=(0.5,))
    assert as_grey.to_input(grey).shape == (10, 1, 16, 16)


def test_description_without_a_field_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "model.json").write_text('{"version": 1, "backbone": "tiny"}')
    with pytest.raises(EtudeError, match=r"model.json is not the description of a model"):
        load_model(tmp_path)
