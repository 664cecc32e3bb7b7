"""Shows what the images of the service say of themselves: model, class, method. Imports no torch, so it is quick."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.imaging.provenance import ClassProvenance, Provenance, read_provenance


def show_files(files: Iterable[Path], out: Console, err: Console) -> int:
    """Prints the provenance of each file.

    Returns:
        How many files have none; each is named on standard error.
    """
    without = 0
    for file in files:
        try:
            provenance = read_provenance(file)
        except OSError as error:
            without += 1
            err.print(Text(f"{file}: cannot be read: {error.strerror}."))
            continue
        if provenance is None:
            without += 1
            err.print(Text(f"{file}: this file does not say where it comes from; overlays of camserve do."))
        else:
            out.print(_table(file, provenance))
    return without


def _table(file: Path, provenance: Provenance) -> Table:
    table = Table(title=Text(str(file)), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a digest is of use only as a whole
    named = [field.name for field in fields(Provenance) if field.name not in {"layers", "classes", "omitted"}]
    rows = [(name.replace("_", " "), getattr(provenance, name)) for name in named]
    rows.insert(named.index("method") + 1, ("layer", ", ".join(provenance.layers)))
    several_images = len({shown.image for shown in provenance.classes}) > 1
    rows += [("class", _sentence(shown, several_images=several_images)) for shown in provenance.classes]
    if provenance.omitted:
        rows.append(("", f"and {provenance.omitted} more"))
    for name, value in rows:
        if value:
            table.add_row(name, Text(value))  # a text, so that nothing in a file is read as markup
    return table


def _sentence(shown: ClassProvenance, *, several_images: bool) -> str:
    place = f"image {shown.image}: " if several_images else ""
    versus = f", versus {shown.versus}" if shown.versus is not None else ""
    return f"{place}{shown.class_id} {shown.label}, {shown.probability:.1%}{versus}"
