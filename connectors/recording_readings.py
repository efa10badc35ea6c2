"""The readings of a recording: Parquet, checked, in canonical order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from connectors.recording_problems import Problems
from pm.domain import EARLIEST, LATEST, History, to_us
from pm.errors import RecordingError

RESERVED = ("time", "asset")
"""Names that no point can have."""
_TIME = pa.timestamp("us", tz="UTC")


def read_readings(folder: Path, points: Sequence[str], assets: Collection[str], problems: Problems) -> pd.DataFrame:
    """readings.parquet, or every .parquet file under readings/, as `History.readings` lays them out."""
    files = _files(folder, problems)
    tables = [(path, table) for path in files if (table := _table(path, points, problems)) is not None]
    if len(tables) < len(files):
        problems.stop()
    for path, table in tables:
        _check_rows(path, table, points, assets, problems)
    problems.stop()
    joined = pa.concat_tables([table for _, table in tables])
    frame = pd.DataFrame(
        {
            "time": joined["time"].to_pandas().astype("datetime64[us, UTC]"),
            "asset": pd.Series(joined["asset"].to_pandas(), dtype="str"),
            **{point: joined[point].to_numpy().astype(np.float64) for point in points},
        }
    )
    order = _order(frame)
    _check_doubles(tables, frame, order, problems)
    problems.stop()
    return frame if np.array_equal(order, np.arange(len(order))) else frame.take(order).reset_index(drop=True)


def write_readings(readings: pd.DataFrame, points: Sequence[str], path: Path) -> None:
    """Writes rows in canonical order, points as the narrowest float that holds them exactly, NaN as null."""
    expected = [*RESERVED, *points]
    if set(readings.columns) != set(expected):
        odd = sorted(set(readings.columns).symmetric_difference(expected))
        raise RecordingError(f"{path.name}: columns and points differ in {', '.join(odd)}; name exactly the points")
    order = _order(readings)
    frame = readings if np.array_equal(order, np.arange(len(order))) else readings.take(order)
    arrays = [
        pa.array(frame["time"].dt.tz_convert("UTC").astype("datetime64[us, UTC]"), type=_TIME),
        pa.array(frame["asset"], type=pa.string()),
        *(_narrow(frame[point].to_numpy(dtype=np.float64)) for point in points),
    ]
    pq.write_table(pa.table(arrays, names=expected), path, compression="zstd")


def fingerprint(history: History) -> str:
    """SHA-256 over a history's content, whatever the order of its parts and the width of its floats."""
    digest = hashlib.sha256()
    about = {
        "interval": history.interval.total_seconds(),
        "points": sorted([p.name, p.unit, _number(p.low), _number(p.high), p.description] for p in history.points),
        "failure_modes": sorted([m.code, m.about] for m in history.failure_modes),
        "assets": sorted(
            [a.name, a.model, sorted([k, v if isinstance(v, str) else _number(v)] for k, v in a.static.items())]
            for a in history.assets
        ),
    }
    digest.update(json.dumps(about, ensure_ascii=True, sort_keys=True).encode())
    readings = history.readings.take(_order(history.readings))
    digest.update(_times(readings["time"]).tobytes())
    _update_texts(digest, readings["asset"])
    for point in sorted(p.name for p in history.points):
        values = readings[point].to_numpy(dtype=np.float64) + 0.0  # one zero
        digest.update(np.where(np.isnan(values), np.nan, values).tobytes())
    events = history.events.sort_values(["time", "asset", "kind", "code"], kind="stable")
    digest.update(_times(events["time"]).tobytes())
    for column in ("asset", "kind", "code"):
        _update_texts(digest, events[column])
    return digest.hexdigest()


def _update_texts(digest: hashlib._Hash, texts: pd.Series) -> None:
    codes, names = pd.factorize(texts, sort=True)
    digest.update(json.dumps(list(names)).encode())
    digest.update(codes.astype(np.int64).tobytes())


def _number(value: float | None) -> list[str]:
    """A form that sorts beside text and None, the same for 1 and 1.0."""
    return [] if value is None else [repr(float(value))]


def _files(folder: Path, problems: Problems) -> list[Path]:
    single, many = folder / "readings.parquet", folder / "readings"
    if single.exists() and many.exists():
        problems.fatal(many, "stands beside readings.parquet; keep one of the two")
    if many.is_dir():
        files = sorted(many.glob("*.parquet"))
        if not files:
            problems.fatal(many, "holds no .parquet file; write the readings there")
        return files
    if not single.is_file():
        problems.fatal(single, "is missing; write the readings there, or as several files under readings/")
    return [single]


def _table(path: Path, points: Sequence[str], problems: Problems) -> pa.Table | None:
    """One file with the columns time, asset and the points, in their own types; None when its columns are wrong."""
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        if not _check_columns(path, schema, points, problems):
            return None
        table = file.read(columns=[*RESERVED, *points])
        table.validate(full=True)  # names of assets that are no UTF-8 are read all the same
    except (pa.ArrowException, OSError, UnicodeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        problems.add(path, f"is not whole Parquet ({reason}); it may be cut off, copy it again")
        return None
    try:
        time = table["time"].cast(_TIME)
    except pa.ArrowInvalid:
        problems.add(path, "time is finer than microseconds or beyond all time; round it to microseconds")
        return None
    columns = [time, table["asset"].cast(pa.string()), *(table[point].cast(pa.float64()) for point in points)]
    return pa.table(columns, names=[*RESERVED, *points])


def _check_columns(path: Path, schema: pa.Schema, points: Sequence[str], problems: Problems) -> bool:
    wrong = []
    for name in (*RESERVED, *points):
        count = schema.names.count(name)
        if count == 0:
            mend = "add it" if name in RESERVED else f'add the column or remove [points."{name}"] from recording.toml'
            wrong.append(f"column {name} is missing; {mend}")
        elif count > 1:
            wrong.append(f"column {name} is there {count} times; keep one")
    for field in schema:
        kind = field.type
        if field.name == "time":
            if not pa.types.is_timestamp(kind):
                wrong.append(f"time is {kind}; write it as timestamp[us, UTC]")
            elif kind.tz is None:
                wrong.append("time has no zone; write it as timestamp[us, UTC]")
        elif field.name == "asset":
            inner = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
                wrong.append(f"asset is {kind}; write it as text")
        elif field.name not in points:
            wrong.append(f'column {field.name} has no [points."{field.name}"] in recording.toml; add that or remove it')
        elif not pa.types.is_floating(kind):
            wrong.append(f"point {field.name} is {kind}; write it as float, null where nothing was read")
    for message in wrong:
        problems.add(path, message)
    return not wrong


def _check_rows(
    path: Path, table: pa.Table, points: Sequence[str], assets: Collection[str], problems: Problems
) -> None:
    for column in RESERVED:
        problems.add_rows(path, _flags(table[column].is_null()), f"{column} is empty; fill it or remove the row")
    time = pc.fill_null(table["time"].cast(pa.int64()), 0).to_numpy()
    beyond = (time < to_us(EARLIEST)) | (time > to_us(LATEST))
    problems.add_rows(path, beyond, f"time lies outside {EARLIEST:%Y} to {LATEST:%Y}; mend it")
    known = pc.is_in(table["asset"], value_set=pa.array(sorted(assets), type=pa.string()))
    strange = ~_flags(known) & ~_flags(table["asset"].is_null())
    if strange.any():
        name = table["asset"][int(np.flatnonzero(strange)[0])].as_py()
        problems.add_rows(path, strange, f"asset {name!r} is not in assets.csv; add it there or mend its name")
    for point in points:
        infinite = np.isinf(table[point].to_numpy())
        problems.add_rows(path, infinite, f"{point} is infinite; write null where nothing was read")


def _check_doubles(
    tables: Sequence[tuple[Path, pa.Table]], frame: pd.DataFrame, order: NDArray[np.int64], problems: Problems
) -> None:
    time, asset = _times(frame["time"])[order], pd.factorize(frame["asset"])[0][order]
    same = (time[1:] == time[:-1]) & (asset[1:] == asset[:-1])
    doubled = np.zeros(len(frame), dtype=bool)
    doubled[np.maximum(order[1:], order[:-1])[same]] = True
    first = 0
    for path, table in tables:
        here = doubled[first : first + len(table)]
        if here.any():
            row = frame.iloc[first + int(np.flatnonzero(here)[0])]
            message = (
                f"{row['asset']} at {row['time'].isoformat()} was read before; keep one row for each asset and time"
            )
            problems.add_rows(path, here, message)
        first += len(table)


def _order(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Positions of the rows by asset, then time."""
    codes, _ = pd.factorize(frame["asset"], sort=True)
    return np.lexsort((_times(frame["time"]), codes)).astype(np.int64)


def _times(times: pd.Series) -> NDArray[np.int64]:
    """Microseconds since the epoch."""
    return np.asarray(times.astype("datetime64[us, UTC]").astype("int64"), dtype=np.int64)


def _narrow(values: NDArray[np.float64]) -> pa.Array:
    missing = np.isnan(values)
    with np.errstate(over="ignore"):
        short = values.astype(np.float32)
    exact = bool(np.all((short == values) | missing))
    return pa.array(short if exact else values, mask=missing)


def _flags(flags: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(
        flags.to_numpy(zero_copy_only=False) if isinstance(flags, pa.Array) else flags.to_numpy(), dtype=bool
    )
