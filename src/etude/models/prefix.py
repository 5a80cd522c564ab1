"""A network cut in two: a frozen prefix, whose output is computed once, and the rest that works on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import etude.compat  # noqa: F401  (before timm)

import torch
from torch import fx, nn

from etude.core.errors import EtudeError, listed, nearest


class Split(NamedTuple):
    """Both halves of a network; they share its modules, and ``rest(prefix(x))`` is ``network(x)``.

    Args:
        prefix: maps images (B, C, H, W) to the activations after ``name``; later layers are not run.
        rest: maps these activations to the network's output.
        name: of the module that the prefix ends with.
    """

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
        """Whether ``m`` is called as a whole."""
        return module_qualified_name not in self._inside


def _traced(backbone: nn.Module, name: str) -> fx.Graph:
    """Return the graph of the calls that ``name`` lies among."""
    from timm.models._features_fx import get_notrace_functions

    parts = name.split(".")
    holders = ["network", *(".".join(["network", *parts[:depth]]) for depth in range(1, len(parts)))]
    try:
        return _Tracer(holders, tuple(get_notrace_functions())).trace(_Whole(backbone))
    except Exception as problem:  # whatever a network's own code raises when it is shown a symbol for an image
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
    """Return the name of the last place to cut with no more than this share of the layers before it.

    Places are the calls of the network itself, and those inside its sequences of blocks, through which all images
    pass one after the other.
    """
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
