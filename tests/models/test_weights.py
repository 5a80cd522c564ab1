"""The ImageNet weights that come with the pip package, proven on real photographs."""

from __future__ import annotations

import etude.compat  # noqa: F401  (before timm)

import cv2
import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_sample_images

from etude.models.backbones import BUNDLED_BACKBONE, build_backbone, bundled_lite0, timm_name

DAISY = 985
CHINESE_BUILDINGS = {442, 449, 483, 663, 698}  # bell cote, boathouse, castle, monastery, palace


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    net = timm.create_model(BUNDLED_BACKBONE, pretrained=False)
    matched = net.load_state_dict(bundled_lite0(), strict=True)
    assert (matched.missing_keys, matched.unexpected_keys) == ([], [])
    return net.eval()


@pytest.fixture(scope="module")
def photographs() -> dict[str, torch.Tensor]:
    """scikit-learn's two sample images at 224 px, as the network expects them."""
    found = load_sample_images()
    names = [str(name).rsplit("/", 1)[-1] for name in found.filenames]
    return {name: as_input(image) for name, image in zip(names, found.images, strict=True)}


def as_input(image: np.ndarray) -> torch.Tensor:
    """The middle square at 224 px, mean and standard deviation 0.5."""
    side = min(image.shape[:2])
    top, left = ((extent - side) // 2 for extent in image.shape[:2])
    square = cv2.resize(image[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
    return (torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


def top(network: torch.nn.Module, image: torch.Tensor, count: int) -> list[int]:
    with torch.inference_mode():
        return network(image)[0].topk(count).indices.tolist()


def test_every_bundled_tensor_has_its_place(network: torch.nn.Module):
    bundled, own = bundled_lite0(), network.state_dict()
    assert bundled.keys() == own.keys()
    assert all(torch.equal(bundled[name], own[name]) for name in own)


def test_the_flower_is_a_daisy(network: torch.nn.Module, photographs: dict[str, torch.Tensor]):
    assert top(network, photographs["flower.jpg"], 1) == [DAISY]


def test_the_chinese_temple_is_a_building(network: torch.nn.Module, photographs: dict[str, torch.Tensor]):
    assert CHINESE_BUILDINGS & set(top(network, photographs["china.jpg"], 5))


def test_the_backbone_gives_the_features_that_the_classifier_reads(
    network: torch.nn.Module, photographs: dict[str, torch.Tensor]
):
    built = build_backbone(BUNDLED_BACKBONE, "bundled")
    state = bundled_lite0()
    with torch.inference_mode():
        features = built.module.eval()(photographs["flower.jpg"])
        logits = features @ state["classifier.weight"].T + state["classifier.bias"]
        torch.testing.assert_close(logits, network(photographs["flower.jpg"]), rtol=1e-3, atol=1e-3)
    assert features.shape == (1, built.num_features)
    assert logits.argmax().item() == DAISY


@pytest.mark.parametrize(
    ("bundled", "timms"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn0.running_var", "bn1.running_var"),
        ("_blocks.0._bn2.bias", "blocks.0.0.bn2.bias"),
        ("_blocks.1._expand_conv.weight", "blocks.1.0.conv_pw.weight"),
        ("_blocks.2._bn2.weight", "blocks.1.1.bn3.weight"),
        ("_blocks.15._project_conv.weight", "blocks.6.0.conv_pwl.weight"),
        ("_fc.bias", "classifier.bias"),
    ],
)
def test_names_are_translated(bundled: str, timms: str):
    assert timm_name(bundled) == timms


def test_a_block_too_many_is_refused():
    with pytest.raises(ValueError, match="has 16 blocks"):
        timm_name("_blocks.16._bn0.weight")
