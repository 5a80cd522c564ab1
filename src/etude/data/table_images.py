"""Which column of a table names the images, and where their files are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from etude.core.errors import EtudeError, listed
from etude.data.walk import is_folder, is_image_name, visible_entries

_IMAGE_NAMES = ("image", "images", "img", "file", "filename", "file_name", "filepath", "file_path", "path")
_IMAGE_NAMES += ("image_path", "image_name", "image_id", "image_file", "id", "name")
_SAMPLED = 50  # cells looked at to judge a column; the survey looks at every file later


class ImageFolder:
    """A folder in which a table's names are looked up: file names, paths, or ids without a suffix."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names_by_stem: dict[str, dict[str, list[str]]] = {}

    def place(self, name: str) -> Path:
        """Return the file that ``name`` means, or where it should be when it is missing.

        Raises:
            EtudeError: an id without a suffix fits several files.
        """
        if is_image_name(name) and "\\" not in name:
            return self.root / name  # the usual case costs no look at the disk
        fitting = self.find(name)
        if len(fitting) > 1:
            names = listed(path.name for path in fitting)
            raise EtudeError(
                f"the id {name!r} fits several files in {fitting[0].parent}: {names}; write the whole file name"
            )
        return fitting[0] if fitting else self.root / name

    def find(self, name: str) -> list[Path]:
        """Return the existing files that ``name`` may mean; tables written on Windows have backslashes."""
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            path = self.root / spelling
            if os.path.isfile(path):
                return [path]
            fitting = [] if is_image_name(spelling) else self._fitting(spelling)
            if fitting:
                return [path.parent / file_name for file_name in fitting]
        return []

    def _fitting(self, name: str) -> list[str]:
        inner, stem = os.path.split(name)
        if inner not in self._names_by_stem:
            self._names_by_stem[inner] = _by_stem(self.root / inner)
        return self._names_by_stem[inner].get(stem, [])


def find_image_column(
    table: Path, columns: Mapping[str, Sequence[str | None]], taken: set[str], image_root: Path | None
) -> tuple[str, ImageFolder]:
    """Return the column that names the images and the folder its names start from.

    A column qualifies when most of its cells look like image files or are found as such. Among several, a usual
    name (``image``, ``file``, ``id``, ...) decides.

    Args:
        table: the table's path, named in errors; names start from its folder or a folder beside it.
        columns: name to cells.
        taken: columns that are known to hold something else.
        image_root: the folder that names start from, when the user gave it.

    Raises:
        EtudeError: no column, or more than one, qualifies.
    """
    fitting: dict[str, list[ImageFolder]] = {}
    for name, cells in columns.items():
        sampled = _sampled(cells)
        if name in taken or not sampled:
            continue
        folders, found = _best_folders(table, sampled, image_root)
        named = sum(is_image_name(cell) for cell in sampled)
        if named > 0.9 * len(sampled) or found > 0.5 * len(sampled):
            fitting[name] = folders
    usual = [name for name in fitting if name.strip().lower() in _IMAGE_NAMES]
    chosen = list(fitting) if len(fitting) == 1 else usual
    if len(chosen) == 1:
        return chosen[0], _only(fitting[chosen[0]], table, columns[chosen[0]])
    if fitting:
        raise EtudeError(
            f"{table} has several columns that may name the images ({listed(fitting)}); "
            f"choose one, such as --image-column {next(iter(fitting))}"
        )
    where = image_root or f"{table.parent} and the folders in it"
    raise EtudeError(
        f"no column of {table} ({listed(columns, 12)}) names image files found in {where}; "
        "name the column with --image-column, and the folder of the images with --image-root"
    )


def folder_for(table: Path, cells: Sequence[str | None], image_root: Path | None) -> ImageFolder:
    """Return the folder that the names in ``cells`` start from.

    Raises:
        EtudeError: two folders beside the table fit equally well.
    """
    return _only(_best_folders(table, _sampled(cells), image_root)[0], table, cells)


def _best_folders(table: Path, names: list[str], image_root: Path | None) -> tuple[list[ImageFolder], int]:
    """Return the folders in which most names are found, and how many are.

    The table's own folder comes first; those beside the table are looked at only when it has none of the names.
    """
    own = ImageFolder(image_root or table.parent)
    found = _count_found(own, names)
    if found or image_root is not None:
        return [own], found
    beside = [ImageFolder(Path(entry.path)) for entry in visible_entries(table.parent) if is_folder(entry)]
    counts = [_count_found(folder, names) for folder in beside]
    most = max(counts, default=0)
    best = [folder for folder, count in zip(beside, counts, strict=True) if count == most]
    return (best, most) if most else ([own], 0)


def _count_found(folder: ImageFolder, names: list[str]) -> int:
    return sum(bool(folder.find(name)) for name in names)


def _only(folders: list[ImageFolder], table: Path, cells: Sequence[str | None]) -> ImageFolder:
    if len(folders) == 1:
        return folders[0]
    places = listed(sorted(str(folder.root) for folder in folders), 3)
    example = next(cell for cell in cells if cell)
    raise EtudeError(
        f"the images that {table} names, such as {example!r}, are found in several folders ({places}); "
        "say which with --image-root"
    )


def _sampled(cells: Sequence[str | None]) -> list[str]:
    """Return some cells from all over a column; the first rows alone may not be typical."""
    step = max(1, len(cells) // _SAMPLED)
    return [cell for cell in cells[::step][:_SAMPLED] if cell]


def _by_stem(folder: Path) -> dict[str, list[str]]:
    if not folder.is_dir():
        return {}
    names: dict[str, list[str]] = {}
    for entry in visible_entries(folder):
        if is_image_name(entry.name):
            names.setdefault(os.path.splitext(entry.name)[0], []).append(entry.name)
    return {stem: sorted(fitting) for stem, fitting in names.items()}
