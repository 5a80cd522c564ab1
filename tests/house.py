"""The house in figures, and its budgets: `make house` prints them, `tests/test_imports.py` holds them.

    python tests/house.py             # the counts, and each room's lines against its budget
    python tests/house.py --shrink    # lower every budget to what its room needs today

A budget that must rise is raised by hand in `house.toml`, in the commit that says why.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"
HOUSE = SRC / "etude"
BUDGETS = Path(__file__).with_name("house.toml")
FILES = sorted(HOUSE.rglob("*.py"))
HEAD = "# Lines of each room, and functions with a parameter of that name. They only shrink, unless a commit says why."
TRAVELLERS = ("progress", "warn", "cache", "seed")


def module_of(path: Path) -> str:
    """``src/etude/core/files.py`` -> ``etude.core.files``; a package is named as its folder."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(path: Path) -> str:
    """The folder, or the file directly under etude/, that ``path`` belongs to."""
    return path.relative_to(HOUSE).with_suffix("").parts[0]


def imports_of(source: str, path: Path) -> Iterator[str]:
    """Every dotted name that ``source``, standing at ``path``, imports; also in functions and by ``import_module``."""
    module = module_of(path).split(".")
    package = module if path.name == "__init__.py" else module[:-1]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                base = package[: len(package) - node.level + 1] if node.level else ()
                prefix = ".".join((*base, *((node.module,) if node.module else ())))
                yield from (f"{prefix}.{alias.name}" for alias in node.names)
            case ast.Call(func=ast.Name(id="import_module" | "__import__"), args=[ast.Constant(value=str(name)), *_]):
                yield name
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name


def graph() -> dict[str, set[str]]:
    """Module -> the modules of etude that it imports, at its top or in a function."""
    known = {module_of(path): path for path in FILES}
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        names = imports_of(path.read_text(encoding="utf-8"), path)
        targets = {name if name in known else name.rpartition(".")[0] for name in names if name.startswith("etude")}
        edges[module] = (targets & set(known)) - {module, "etude"}
    return edges


def circles(edges: dict[str, set[str]]) -> list[str]:
    """The modules that stay when all that import only settled modules are taken away: those of import circles."""
    rest = {module: set(targets) for module, targets in edges.items()}
    while settled := {module for module, targets in rest.items() if not targets & set(rest)}:
        rest = {module: targets for module, targets in rest.items() if module not in settled}
    # What merely imports a circle is no part of it.
    while free := {module for module in rest if not any(module in targets for targets in rest.values())}:
        rest = {module: targets for module, targets in rest.items() if module not in free}
    return sorted(rest)


def only_for_a_sibling(edges: dict[str, set[str]]) -> list[str]:
    """Files whose only importer is the file next to them whose name begins theirs."""
    importers: dict[str, set[str]] = defaultdict(set)
    for module, targets in edges.items():
        for target in targets:
            importers[target].add(module)
    return sorted(
        module
        for module, by in importers.items()
        if len(by) == 1 and module.startswith(f"{next(iter(by))}_") and "." in module
    )


def lines_of(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def room_lines() -> Counter[str]:
    """Room -> lines of its files."""
    lines: Counter[str] = Counter()
    for path in FILES:
        lines[room_of(path)] += lines_of(path)
    return lines


def travellers() -> dict[str, int]:
    """Name of a value that passes through many calls -> functions that take it as a parameter."""
    functions = [
        node
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    taken = Counter(
        argument.arg
        for function in functions
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    )
    return {name: taken[name] for name in TRAVELLERS}


def budgets(table: str) -> dict[str, int]:
    """Room -> the lines that it may have; or name of a parameter -> the functions that may take it."""
    return tomllib.loads(BUDGETS.read_text(encoding="utf-8"))[table]


def shrink() -> None:
    """Lower every budget to what is needed today; a room without one gets it."""
    text = HEAD
    for table, needed in (("lines", room_lines()), ("parameters", travellers())):
        old = budgets(table)
        kept = "\n".join(f"{name} = {min(count, old.get(name, count))}" for name, count in sorted(needed.items()))
        text += f"\n[{table}]\n{kept}\n"
    BUDGETS.write_text(text, encoding="utf-8")


def main() -> None:
    """Print the house in figures; with ``--shrink``, lower the budgets."""
    edges, lines = graph(), room_lines()
    longest = max(FILES, key=lines_of)
    print(f"files {len(FILES)}, lines {sum(lines.values())}, longest {longest.relative_to(SRC)} ({lines_of(longest)})")
    print(f"import circles: {', '.join(circles(edges)) or 'none'}")
    print(f"files for one sibling only: {', '.join(only_for_a_sibling(edges)) or 'none'}")
    print("functions with the parameter " + ", ".join(f"{name} {count}" for name, count in travellers().items()))
    if "--shrink" in sys.argv:
        shrink()
    allowed = budgets("lines")
    for room, count in sorted(lines.items()):
        print(f"{room:12} {count:6} of {allowed.get(room, 0):6}, {sum(room_of(path) == room for path in FILES)} files")
    sys.exit(any(count > allowed.get(room, 0) for room, count in lines.items()))


if __name__ == "__main__":
    main()
