"""A user's own change of images: a function, an albumentations transform or one of torchvision's, by name.

What such a transform draws comes from seeds of its own for each image, so that runs repeat. Random numbers of Python
and NumPy are seeded for the time of the call and then put back; those of torch come from a generator of the calling
thread, so that training in another thread draws on undisturbed. One image is transformed at a time.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import random
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from etude.core.errors import EtudeError, nearest
from etude.core.files import digest_of

Transform = Callable[[np.ndarray], np.ndarray]

# What is no code of the user: Python, the installed packages, and etude.
_INSTALLED = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
_INSTALLED.append(Path(__file__).resolve().parents[1])
_DIGESTS: WeakKeyDictionary[ModuleType, str | None] = WeakKeyDictionary()

_ACCEPTED = (
    "a function of one uint8 array (H, W, C), an albumentations transform, a torchvision.transforms.v2 transform, or a "
    "function without arguments that returns one of these"
)
_ONE_AT_A_TIME = threading.RLock()  # albumentations keeps its generators in the transform, others in global state


class UserTransform:
    """A user's transform as a function of uint8 (H, W, C) arrays, its results checked."""

    def __init__(
        self, function: Callable[[np.ndarray], Any], name: str, reseed: Callable[[int], Any] | None = None
    ) -> None:
        self.function, self.name, self.reseed = function, name, reseed

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the changed image, uint8 of the same shape; ``image`` stays as it is."""
        try:
            changed = self.function(image.copy())  # a user's function may work in place
        except Exception as error:
            shape = " × ".join(map(str, image.shape))
            raise EtudeError(f"{self.name} failed on an image of {shape}: {type(error).__name__}: {error}") from error
        return self._checked(changed, image.shape)

    def seeded(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Return the changed image; it depends on the seed alone."""
        with _ONE_AT_A_TIME, _TorchGenerator(torch.Generator().manual_seed(seed)):
            kept_python, kept_numpy = random.getstate(), np.random.get_state()
            try:
                random.seed(seed)
                np.random.seed(seed % 2**32)
                if self.reseed is not None:
                    self.reseed(seed)
                return self(image)
            finally:
                random.setstate(kept_python)
                np.random.set_state(kept_numpy)

    def _checked(self, changed: Any, shape: tuple[int, ...]) -> np.ndarray:
        wanted = "uint8 arrays of {} × {} × {}".format(*shape)
        if not isinstance(changed, np.ndarray):
            raise EtudeError(f"{self.name} returned {type(changed).__name__}; images come back as {wanted}")
        if changed.ndim == 2 and shape[2] == 1:
            changed = changed[:, :, None]
        if changed.dtype != np.uint8 or changed.shape != shape:
            came = " × ".join(map(str, changed.shape))
            raise EtudeError(
                f"{self.name} returned {changed.dtype} of {came}; images come back as {wanted}: size and channels "
                "stay, and etude normalises after it"
            )
        return changed


def load_transform(name: str, context: str = "augment.transform") -> UserTransform:
    """Return the transform that ``module:name`` names; the module may lie in the current folder.

    ``context`` is the setting that it stands in, for messages.
    """
    label = f"{context}={name}"
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise EtudeError(f"{context} is {name!r}; write it as module:name, such as my_transforms:train")
    module = _module(module_name, label)
    if not hasattr(module, attribute):
        raise EtudeError(f"{label}: the module has no {attribute!r}.{nearest(attribute, vars(module))}")
    found = getattr(module, attribute)
    if inspect.isclass(found) or (inspect.isfunction(found) and not inspect.signature(found).parameters):
        try:
            found = found()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise EtudeError(f"{label} failed when called to make the transform: {problem}") from error
    return _adapted(found, label)


def code_digest(name: str) -> str | None:
    """Return a hash of the code behind a transform: its module's file, and those of the user's modules it imports.

    None where some source cannot be had: what such a transform gives must not be taken from a cache.
    """
    module = _module(name.partition(":")[0], f"augment.transform={name}")
    if module not in _DIGESTS:
        sources: dict[str, bytes | None] = {}
        _add_sources(module.__name__, sources)
        whole = {name: source for name, source in sources.items() if source is not None}
        parts = (part for name in sorted(whole) for part in (name, whole[name]))
        _DIGESTS[module] = digest_of(*parts) if len(whole) == len(sources) else None
    return _DIGESTS[module]


def _add_sources(name: str, sources: dict[str, bytes | None]) -> None:
    """Add the source of a module and of all that it imports, besides what is installed or belongs to Python."""
    file = _file_of(name)
    if name in sources or (sources and (file is None or any(map(file.is_relative_to, _INSTALLED)))):
        return
    source = file.read_bytes() if file is not None and file.suffix == ".py" else None
    sources[name] = source
    package = name if file is not None and file.name == "__init__.py" else name.rpartition(".")[0]
    for one in _imported(source or b"", package):
        _add_sources(one, sources)


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Yield every name that may be a module which this source imports, also within functions."""
    with suppress(SyntaxError, ImportError):  # of a file that is not imported yet, and cannot be
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Import(names=names):
                    yield from (alias.name for alias in names)
                case ast.ImportFrom(names=names, level=level):
                    base = importlib.util.resolve_name("." * level + (node.module or ""), package)
                    yield from (base, *(f"{base}.{alias.name}" for alias in names))
                case _:
                    pass


def _file_of(name: str) -> Path | None:
    """Return the file of a module, imported yet or not; None where it is none, or is installed."""
    top = name.partition(".")[0]
    try:
        for part in (top, name):  # the first alone tells of what is installed, and imports nothing
            spec = importlib.util.find_spec(part)
            if spec is None or spec.origin is None or not spec.has_location:
                return None
            file = Path(spec.origin).resolve()
            if part != name and any(file.is_relative_to(place) for place in _INSTALLED):
                return None
    except (ImportError, ValueError):  # a function of a module, or a module without a specification
        return None
    return file


def as_batch_transform(transform: Transform) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Return ``change(images, rng)`` for uint8 (B, S, S, C); one seed an image is drawn from ``rng``."""
    user = transform if isinstance(transform, UserTransform) else UserTransform(transform, "the transform")

    def change(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        changed = np.empty_like(images)
        for image, seed, target in zip(images, rng.integers(0, 1 << 32, len(images)).tolist(), changed, strict=True):
            target[...] = user.seeded(image, seed)
        return changed

    return change


class _TorchGenerator(TorchFunctionMode):
    """Lets torch's random functions draw from a generator of this thread, not from the one that training uses."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _LIKE and _on_cpu(args[0]):
            like = {"dtype": args[0].dtype, **kwargs}
            like.pop("memory_format", None)
            return _LIKE[name](args[0].shape, generator=self.generator, **like)
        if name in _DRAWING and kwargs.get("generator") is None and _on_cpu(*args[:1]):
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)


_LIKE = {"rand_like": torch.rand, "randn_like": torch.randn}
_DRAWING = {
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"),
    *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "geometric_", "cauchy_", "log_normal_"),
}  # fmt: skip


def _on_cpu(first: Any = None) -> bool:
    return not isinstance(first, torch.Tensor) or first.device.type == "cpu"


def _module(name: str, label: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise EtudeError(f"{label}: there is no module {name!r} in {here} or among the installed ones") from error
        raise EtudeError(f"{label}: importing {name!r} failed: {error}") from error
    except Exception as error:
        raise EtudeError(f"{label}: importing {name!r} failed: {type(error).__name__}: {error}") from error


def _adapted(found: Any, label: str) -> UserTransform:
    libraries = {kind.__module__.partition(".")[0] for kind in type(found).__mro__}
    if "albumentations" in libraries:
        # From version 2 its transforms have generators of their own; before, they drew from Python's and NumPy's.
        return UserTransform(lambda image: found(image=image)["image"], label, getattr(found, "set_random_seed", None))
    if isinstance(found, torch.nn.Module) or "torchvision" in libraries:
        return UserTransform(lambda image: _through_tensor(found, image), label)
    if callable(found):
        return UserTransform(found, label)
    raise EtudeError(f"{label} is of type {type(found).__name__}; accepted are {_ACCEPTED}")


def _through_tensor(transform: Callable[[torch.Tensor], Any], image: np.ndarray) -> Any:
    changed = transform(torch.from_numpy(image).permute(2, 0, 1))
    is_image = isinstance(changed, torch.Tensor) and changed.ndim == 3
    return changed.permute(1, 2, 0).contiguous().numpy() if is_image else changed
