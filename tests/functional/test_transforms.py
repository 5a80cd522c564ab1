from __future__ import annotations

import random
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import etude.compat  # noqa: F401  (before torchvision)

import numpy as np
import pytest
import torch

from etude.core.errors import EtudeError
from etude.functional.transforms import UserTransform, as_batch_transform, code_digest, load_transform

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into the current folder and return its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"user_transforms_{tmp_path.name}"

    def written(code: str) -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code), encoding="utf-8")
        sys.modules.pop(name, None)
        return name

    yield written
    sys.modules.pop(name, None)


MODULE = """
    import random
    import numpy as np
    import albumentations as A
    import torch
    from torchvision.transforms import v2

    def invert(image):
        return 255 - image

    def shuffled(image):
        shift = random.randrange(16) + int(np.random.randint(16)) + int(torch.randint(0, 16, (1,)))
        return np.roll(image, shift, axis=1)

    flip = A.Compose([A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=0.8)])
    single = A.Rotate(limit=30, p=1.0)
    jitter = v2.Compose([
        v2.RandomHorizontalFlip(), v2.ColorJitter(0.5, 0.5, 0.5, 0.1), v2.RandomResizedCrop(16), v2.RandAugment(),
    ])

    class Wipe(torch.nn.Module):
        def forward(self, image):
            assert image.dtype == torch.uint8 and image.shape[0] == 3
            return image * torch.bernoulli(torch.full((1, 16, 16), 0.5)).to(torch.uint8) + (
                torch.rand_like(image.float()) * 9).to(torch.uint8)

    def made():
        return jitter

    def made_by_albumentations():
        return flip

    class Halved:
        def __call__(self, image):
            return image // 2
"""
RANDOM = pytest.mark.parametrize(
    "attribute", ["shuffled", "flip", "single", "jitter", "Wipe", "made", "made_by_albumentations"]
)


@RANDOM
def test_every_kind_is_random_by_its_seeds_alone(write: Write, attribute: str):
    change = as_batch_transform(load_transform(f"{write(MODULE)}:{attribute}"))
    before = IMAGES.copy()
    once = change(IMAGES, np.random.default_rng(3))
    random.random(), np.random.random(), torch.rand(5)
    np.testing.assert_array_equal(once, change(IMAGES, np.random.default_rng(3)))
    assert (once != change(IMAGES, np.random.default_rng(4))).any()
    assert (once.shape, once.dtype) == (IMAGES.shape, np.uint8)
    np.testing.assert_array_equal(IMAGES, before)


@RANDOM
def test_images_of_a_batch_have_seeds_of_their_own(write: Write, attribute: str):
    change = as_batch_transform(load_transform(f"{write(MODULE)}:{attribute}"))
    same = np.repeat(IMAGES[:1], 12, axis=0)
    assert len({image.tobytes() for image in change(same, np.random.default_rng(0))}) > 3


@RANDOM
def test_nobody_elses_random_numbers_are_touched(write: Write, attribute: str):
    change = as_batch_transform(load_transform(f"{write(MODULE)}:{attribute}"))

    def following(between: Callable[[], object]) -> tuple[float, float, float]:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        between()
        return random.random(), np.random.random(), float(torch.rand(1))

    assert following(lambda: None) == following(lambda: change(IMAGES, np.random.default_rng(0)))


def test_training_in_another_thread_draws_on_undisturbed():
    entered, drawn = threading.Event(), threading.Event()
    values: list[float] = []

    def waiting(image: np.ndarray) -> np.ndarray:
        entered.set()
        assert drawn.wait(10)
        torch.rand(3)
        return image

    torch.manual_seed(5)
    expected = torch.rand(1).item()
    torch.manual_seed(5)
    change = as_batch_transform(UserTransform(waiting, "waiting"))
    thread = threading.Thread(target=change, args=(IMAGES[:1], np.random.default_rng(0)))
    thread.start()
    assert entered.wait(10)
    values.append(torch.rand(1).item())
    drawn.set()
    thread.join(10)
    assert values == [expected]


def test_threads_get_what_one_thread_gets(write: Write):
    change = as_batch_transform(load_transform(f"{write(MODULE)}:flip"))
    expected = [change(IMAGES, np.random.default_rng(seed)) for seed in range(4)]
    found: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        found[seed] = change(IMAGES, np.random.default_rng(seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal([found[seed] for seed in range(4)], expected)


def test_functions_and_classes_of_the_users_own(write: Write):
    name = write(MODULE)
    np.testing.assert_array_equal(load_transform(f"{name}:invert")(IMAGES[0]), 255 - IMAGES[0])
    np.testing.assert_array_equal(load_transform(f"{name}:Halved")(IMAGES[0]), IMAGES[0] // 2)


def test_grey_images_pass_through_every_library(write: Write):
    name = write(MODULE)
    for attribute in ("invert", "single", "flip"):
        assert load_transform(f"{name}:{attribute}")(IMAGES[0][:, :, :1]).shape == (16, 16, 1)


def test_a_function_that_works_in_place_leaves_the_batch():
    def blacken(image: np.ndarray) -> np.ndarray:
        image[:] = 0
        return image

    before = IMAGES.copy()
    assert not as_batch_transform(blacken)(IMAGES, np.random.default_rng(0)).any()
    np.testing.assert_array_equal(IMAGES, before)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def t(image): return image / 255", r":t returned float64 of 16 × 16 × 3; images come back as uint8 arrays"),
        ("def t(image): return image[:8]", r":t returned uint8 of 8 × 16 × 3; .* 16 × 16 × 3: size and channels stay"),
        ("def t(image): return image[:, :, :1]", r":t returned uint8 of 16 × 16 × 1; "),
        ("def t(image): return None", r":t returned NoneType; images come back as uint8 arrays of 16 × 16 × 3"),
        ("def t(image): raise KeyError('eyes')", r":t failed on an image of 16 × 16 × 3: KeyError: 'eyes'"),
        (
            "import torch\nfrom torchvision.transforms import v2\nt = v2.ToDtype(torch.float32, scale=True)",
            r":t returned float32 of 16 × 16 × 3; ",
        ),
        ("import albumentations as A\nt = A.Resize(8, 8)", r":t returned uint8 of 8 × 8 × 3; "),
    ],
)
def test_what_comes_back_wrong_is_told_in_one_sentence(write: Write, code: str, message: str):
    name = write(code)
    with pytest.raises(EtudeError, match=f"augment.transform={name}{message}") as caught:
        as_batch_transform(load_transform(f"{name}:t"))(IMAGES, np.random.default_rng(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "attribute", "message"),
    [
        (
            "x = 1",
            "x",
            r"\.transform=.*:x is of type int; accepted are a function of one uint8 array \(H, W, C\), an albumen",
        ),
        ("def train(image): return image", "trian", r"the module has no 'trian'\. Did you mean 'train'\?"),
        ("import no_such_thing_at_all", "t", r"importing .* failed: No module named 'no_such_thing_at_all'"),
        ("1 / 0", "t", r"importing .* failed: ZeroDivisionError: division by zero"),
        ("def t(): raise ValueError('not today')", "t", r"failed when called .*: ValueError: not today"),
        ("def t(): return 3", "t", r"is of type int; accepted are"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_one_sentence(write: Write, code: str, attribute: str, message: str):
    name = write(code)
    with pytest.raises(EtudeError, match=message):
        load_transform(f"{name}:{attribute}")


@pytest.mark.parametrize("name", ["", "module", "module:", ":name"])
def test_names_have_two_parts(name: str):
    with pytest.raises(EtudeError, match="write it as module:name"):
        load_transform(name)


def test_a_missing_module_is_told_with_where_it_was_looked_for(write: Write, tmp_path: Path):
    with pytest.raises(EtudeError, match=f"there is no module 'no_such_module_here' in {tmp_path}"):
        load_transform("no_such_module_here:train")


def digest_in_a_new_process(name: str, *modules: str) -> str | None:
    """A process keeps the code that it has imported: edits show in the next one."""
    for module in modules:
        sys.modules.pop(module, None)
    return code_digest(name)


def test_the_digest_of_a_transform_follows_the_code_it_runs_and_no_other(write: Write, tmp_path: Path):
    write("")  # for the folder and the path
    fresh = ("mine:change", "mine", "parts", "parts.inner")
    (tmp_path / "parts").mkdir()
    files = {
        "mine.py": "import numpy\nimport parts\n\ndef change(image):\n    import late\n    return late.twice(image)\n",
        "late.py": "def twice(image):\n    return image * 2\n",
        "parts/__init__.py": "from . import inner\n",
        "parts/inner.py": "shift = 1\n",
        "other.py": "x = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    first = digest_in_a_new_process(*fresh)
    assert first is not None
    (tmp_path / "other.py").write_text("x = 2\n")
    assert digest_in_a_new_process(*fresh) == first
    seen = {first}
    for name in ("mine.py", "late.py", "parts/__init__.py", "parts/inner.py"):
        (tmp_path / name).write_text(files[name] + "# edited\n")
        seen.add(digest_in_a_new_process(*fresh))
    assert len(seen) == 5


def test_code_that_was_edited_after_it_was_loaded_keeps_its_digest(write: Write, tmp_path: Path):
    name = write("def change(image):\n    return image\n")
    first = code_digest(f"{name}:change")
    (tmp_path / f"{name}.py").write_text("def change(image):\n    return 255 - image\n")
    assert code_digest(f"{name}:change") == first


def test_code_without_a_source_has_no_digest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "typed_by_hand", ModuleType("typed_by_hand"))
    assert code_digest("typed_by_hand:change") is None
