"""The ImageNet weights that come with the pip package, proven on real photographs."""

from __future__ import annotations

import etude.compat  # noqa: F401  (before timm)

import cv2
import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_sample_images

from etude.models.backbones import build_backbone, bundled_lite, timm_name, usual_side

FLOWER = {"tf_efficientnet_lite0": 985, "tf_efficientnet_lite2": 599}  # daisy, and honeycomb: petals in rows
CHINESE_BUILDINGS = {442, 449, 483, 663, 698}  # bell cote, boathouse, castle, monastery, palace


@pytest.fixture(scope="module", params=["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def network(name: str) -> torch.nn.Module:
    net = timm.create_model(name, pretrained=False)
    matched = net.load_state_dict(bundled_lite(name), strict=True)
    assert (matched.missing_keys, matched.unexpected_keys) == ([], [])
    return net.eval()


@pytest.fixture(scope="module")
def photographs(name: str) -> dict[str, torch.Tensor]:
    """scikit-learn's two sample images at the side that the network was trained at."""
    found = load_sample_images()
    names = [str(name).rsplit("/", 1)[-1] for name in found.filenames]
    return {file: as_input(image, usual_side(name)) for file, image in zip(names, found.images, strict=True)}


def as_input(image: np.ndarray, size: int) -> torch.Tensor:
    """The middle square, mean and standard deviation 0.5."""
    side = min(image.shape[:2])
    top, left = ((extent - side) // 2 for extent in image.shape[:2])
    square = cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
    return (torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


def top(network: torch.nn.Module, image: torch.Tensor, count: int) -> list[int]:
    with torch.inference_mode():
        return network(image)[0].topk(count).indices.tolist()


def test_every_bundled_tensor_has_its_place(name: str, network: torch.nn.Module):
    bundled, own = bundled_lite(name), network.state_dict()
    assert bundled.keys() == own.keys()
    assert all(torch.equal(bundled[name], own[name]) for name in own)


def test_the_flower_is_known(name: str, network: torch.nn.Module, photographs: dict[str, torch.Tensor]):
    assert top(network, photographs["flower.jpg"], 1) == [FLOWER[name]]


def test_the_chinese_temple_is_a_building(network: torch.nn.Module, photographs: dict[str, torch.Tensor]):
    assert CHINESE_BUILDINGS & set(top(network, photographs["china.jpg"], 5))


def test_the_backbone_gives_the_features_that_the_classifier_reads(
    name: str, network: torch.nn.Module, photographs: dict[str, torch.Tensor]
):
    built = build_backbone(name, "bundled")
    state = bundled_lite(name)
    with torch.inference_mode():
        features = built.module.eval()(photographs["flower.jpg"])
        logits = features @ state["classifier.weight"].T + state["classifier.bias"]
        torch.testing.assert_close(logits, network(photographs["flower.jpg"]), rtol=1e-3, atol=1e-3)
    assert features.shape == (1, built.num_features)
    assert logits.argmax().item() == FLOWER[name]


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
