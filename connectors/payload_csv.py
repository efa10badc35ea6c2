"""CSV as a payload: lines of cells to samples. Pure."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from connectors.values import MAX_SAMPLES, PayloadError, decoded, short


def rows(payload: bytes, columns: Sequence[str], delimiter: str) -> list[dict[str, str]]:
    """Each line's cells by column.

    columns: their names, "" for one to pass over; none where the first line names them. Raises PayloadError.
    """
    text = decoded(payload).removeprefix("\ufeff")
    if "\0" in text:
        raise PayloadError("not CSV: it has a NUL")
    reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
    found: list[dict[str, str]] = []
    names = list(columns)
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                if doubled := sorted({name for name in names if name and names.count(name) > 1}):
                    raise PayloadError(f"column {short(doubled[0])} stands twice")
                continue
            if len(cells) != len(names):
                raise PayloadError(f"line {reader.line_num} has {len(cells)} columns, not {len(names)}")
            if len(found) == MAX_SAMPLES:
                raise PayloadError(f"more than {MAX_SAMPLES} lines, the most that are read")
            found.append({name: cell.strip() for name, cell in zip(names, cells, strict=True) if name})
    except csv.Error as error:
        raise PayloadError(f"not CSV: line {reader.line_num}: {error}") from None
    if not found:
        raise PayloadError("no lines of values")
    return found
