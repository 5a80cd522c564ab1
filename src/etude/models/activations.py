"""Activations after a frozen prefix of a network, computed once into a file that survives a kill."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import etude.compat  # noqa: F401  (before timm)

import numpy as np
import torch
from filelock import FileLock
from torch import fx, nn

from etude.core.context import Advance, Context
from etude.core.errors import EtudeError, listed, nearest
from etude.core.files import digest_of, explained_write, read_json, write_json
from etude.models.classifier import Preprocessing
from etude.models.features import Gather, outputs_of, weights_digest


class Split(NamedTuple):
    """Both halves of a network; they share its modules, and ``rest(prefix(x))`` is ``network(x)``."""

    prefix: nn.Module
    rest: nn.Module
    name: str


def prefix_of(backbone: nn.Module, until: str | float) -> Split:
    """Cut ``backbone`` after a module, given by its name or by the share of the layers that it and all before it are.

    The network's own ``forward`` is traced down to the module, everything else is taken whole, so any network works
    whose images all pass through the one output of that module. Its mode (training or evaluation) should be set before:
    what ``forward`` itself decides by it is decided here.

    Args:
        backbone: a network; timm's names of its stages are names of modules (``blocks.4``, ``layer2``, ``stages.1``).
        until: such a name; or a share in (0, 1): the last place to cut where no more than this share of the layers
            (modules with weights of their own) lies before.

    Raises:
        EtudeError: no such module, a share outside (0, 1) or too small, or a place where more than one path leads on.

    >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> prefix, rest, name = prefix_of(network, "1")
    >>> image = torch.randn(4, 2)
    >>> prefix(image).shape, bool((rest(prefix(image)) == network(image)).all())
    (torch.Size([4, 3]), True)
    """
    name = until if isinstance(until, str) else _at_share(backbone, until)
    if name not in dict(backbone.named_modules()) or not name:
        names = [each for each, _ in backbone.named_modules() if each]
        raise EtudeError(
            f"the network has no layer {name!r} to end its prefix with; it has {listed(_outermost(names))}, and more "
            f"inside them.{nearest(name, names)}"
        )
    graph = _traced(backbone, name)
    cut = _call_of(graph, name)
    before = _leading_to(cut)
    after = [node for node in graph.nodes if node not in before]
    crossing = [n for n in before if n is not cut and _follows_image(n) and any(user in after for user in n.users)]
    if crossing:
        raise EtudeError(
            f"the network cannot be cut after {name!r}, because other paths lead past it, such as from "
            f"{crossing[-1].name!r}: choose the block around it, or another one"
        )
    whole = _Whole(backbone)
    return Split(
        fx.GraphModule(whole, _prefix_graph(graph, before, cut), "Prefix"),
        fx.GraphModule(whole, _rest_graph(graph, after, cut), "Rest"),
        name,
    )


class _Whole(nn.Module):
    """Calls the network with an image alone, so that other arguments of its ``forward`` keep their defaults."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.training = network, network.training

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image)


class _Tracer(fx.Tracer):
    """Traces only the modules that hold ``inside``, and takes all others as they are."""

    def __init__(self, inside: Iterable[str], functions: tuple[Callable[..., Any], ...]) -> None:
        super().__init__(autowrap_functions=functions)
        self._inside = frozenset(inside)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._inside


def _traced(backbone: nn.Module, name: str) -> fx.Graph:
    """Return the graph of the calls that ``name`` lies among."""
    from timm.models._features_fx import get_notrace_functions

    parts = name.split(".")
    holders = ["network", *(".".join(["network", *parts[:depth]]) for depth in range(1, len(parts)))]
    try:
        return _Tracer(holders, tuple(get_notrace_functions())).trace(_Whole(backbone))
    except Exception as problem:  # a network's own code may raise anything when its image is a symbol
        raise EtudeError(
            f"the network cannot be cut at {name!r}: what it computes around it depends on the image "
            f"({type(problem).__name__}); choose a stage of it, such as {listed(_outermost(_names(backbone)))}"
        ) from problem


def _call_of(graph: fx.Graph, name: str) -> fx.Node:
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == f"network.{name}"]
    if len(calls) != 1:
        raise EtudeError(
            f"the network cannot be cut after {name!r}, which it runs {len(calls)} times for an image: "
            "choose a layer that runs once"
        )
    return calls[0]


def _leading_to(cut: fx.Node) -> set[fx.Node]:
    """Return the node and all that it depends on."""
    found, waiting = {cut}, [cut]
    while waiting:
        new = [node for node in waiting.pop().all_input_nodes if node not in found]
        found.update(new)
        waiting += new
    return found


def _follows_image(node: fx.Node) -> bool:
    """Whether the node's value depends on the image; weights do not, and both halves may read them."""
    return any(each.op == "placeholder" for each in _leading_to(node))


def _prefix_graph(graph: fx.Graph, before: set[fx.Node], cut: fx.Node) -> fx.Graph:
    made, known = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node in before or node.op == "placeholder":
            known[node] = made.node_copy(node, known.__getitem__)
    made.output(known[cut])
    return made


def _rest_graph(graph: fx.Graph, after: list[fx.Node], cut: fx.Node) -> fx.Graph:
    made = fx.Graph()
    known = {cut: made.placeholder("activations")}

    def taken(node: fx.Node) -> fx.Node:
        if node not in known:  # weights that both halves read
            known[node] = made.node_copy(node, taken)
        return known[node]

    for node in after:
        if node.op != "placeholder":
            known[node] = made.node_copy(node, taken)
    return made


def _at_share(backbone: nn.Module, share: float) -> str:
    """Return the name of the last place to cut with no more than this share of the layers before it."""
    if not 0.0 < share < 1.0:
        raise EtudeError(f"a prefix of {share:g} of the layers is asked for; give a share between 0 and 1, or a name")
    layers = [name for name, module in backbone.named_modules() if list(module.parameters(recurse=False))]
    best = ""
    for place in _places(backbone):
        whole = [name for name in layers if name == place or name.startswith(f"{place}.")]
        before = layers.index(whole[-1]) + 1 if whole else 0
        if 0 < before <= share * len(layers):
            best = place
    if not best:
        raise EtudeError(f"no whole layer of the network lies within {share:g} of it; give a larger share, or a name")
    return best


def _places(backbone: nn.Module) -> list[str]:
    """Return the names of children, and of children of sequences in turn, in the order in which they stand."""
    found: list[str] = []
    waiting = [name for name, _ in backbone.named_children()]
    while waiting:
        name = waiting.pop(0)
        module = backbone.get_submodule(name)
        if isinstance(module, nn.Sequential):
            waiting = [f"{name}.{child}" for child, _ in module.named_children()] + waiting
        else:
            found.append(name)
    return found


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_modules() if name]


def _outermost(names: Iterable[str]) -> list[str]:
    return [name for name in names if "." not in name]


_BLOCK_BYTES = 16 << 20  # a few seconds of work on a CPU, which a kill may cost


def extract_prefix(
    split: Split,
    gather: Gather,
    rows: np.ndarray,
    preprocessing: Preprocessing,
    *,
    data: str,
    context: Context,
    precision: str = "fp32",
    batch_size: int = 32,
) -> np.ndarray:
    """Return the float16 activations (N, C, H, W) after the prefix, mapped from a file in the cache; read-only.

    They are written in blocks, so memory stays flat, and an extraction that was killed goes on after its last whole
    block. The file is found again by the data, the rows, the preprocessing, the numeric mode, the prefix's name, its
    structure and its weights. Blocks that were damaged on the disk are computed anew. Of two processes that want the
    same activations, one waits for the other.

    ``data`` tells the store from every other. Activations of some networks are (N, T, D).
    """
    key = digest_of(
        f"prefix-1 {split.name} {precision}", data, weights_digest(split.prefix), str(split.prefix),
        repr(preprocessing), np.asarray(rows, np.int64).tobytes(),
    )  # fmt: skip
    if not len(rows):
        return np.empty((0, 0, 0, 0), np.float16)
    file = _Activations(context.cached("activations", f"{key}.f16"), len(rows))
    with explained_write(file.path):
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.path.with_suffix(".lock")):
            done = file.sound_rows()
            name = f"activations after {split.name}"
            with context.bar(f"{name} (resumed at {done:,})" if done else name, len(rows)) as advance:
                advance(done)
                if done < len(rows):
                    outputs = outputs_of(
                        split.prefix, lambda part: gather(rows[part], preprocessing.size), len(rows), preprocessing,
                        precision=precision, batch_size=batch_size, first=done,
                    )  # fmt: skip
                    file.append(outputs, done, advance)
            return file.mapped()


@dataclass(slots=True)
class _Activations:
    """A file of ``count`` rows and a JSON record with the CRC-32 of each block that is whole."""

    path: Path
    count: int
    shape: tuple[int, ...] = ()
    checksums: tuple[int, ...] = ()

    @property
    def record(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * 2

    @property
    def block(self) -> int:
        """Rows of a block; the last one may have fewer."""
        return max(1, _BLOCK_BYTES // self.row_bytes)

    def sound_rows(self) -> int:
        """Return how many rows from the first on are as they were written."""
        try:
            held = read_json(self.record)
            self.shape = tuple(int(extent) for extent in held["shape"])
            checksums = [int(each) for each in held["checksums"]]
            sound: list[int] = []
            with self.path.open("rb") as file:
                for checksum in checksums:
                    rows = min(self.block, self.count - len(sound) * self.block)
                    if zlib.crc32(file.read(rows * self.row_bytes)) != checksum:
                        break
                    sound.append(checksum)
        except (EtudeError, OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            self.shape, sound = (), []  # a damaged entry costs a recomputation, never an error
        self.checksums = tuple(sound)
        return min(len(sound) * self.block, self.count) if sound else 0

    def append(self, outputs: Iterable[np.ndarray], done: int, advance: Advance) -> None:
        """Write the rows that are missing after the first ``done``."""
        with self.path.open("r+b" if done else "wb") as file:
            file.seek(done * self.row_bytes if done else 0)
            file.truncate()  # a tail that no record vouches for
            checksum = 0
            for values in outputs:
                self.shape = values.shape[1:]
                while len(values):
                    start = done % self.block
                    piece, values = values[: self.block - start], values[self.block - start :]
                    content = piece.tobytes()
                    file.write(content)
                    checksum = zlib.crc32(content, checksum if start else 0)
                    done += len(piece)
                    if done % self.block == 0 or done == self.count:
                        self._vouch(file, checksum)
                    advance(len(piece))

    def _vouch(self, file: IO[bytes], checksum: int) -> None:
        """Tell that the block is whole, once it is on the disk."""
        file.flush()
        os.fsync(file.fileno())
        self.checksums = (*self.checksums, checksum)
        write_json(self.record, {"shape": list(self.shape), "checksums": list(self.checksums)})

    def mapped(self) -> np.ndarray:
        """Return the whole file, (N, ...) float16, without reading it."""
        return np.memmap(self.path, dtype=np.float16, mode="r", shape=(self.count, *self.shape))
