"""Readers of published traces. A malformed row is an error that names its line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from gpuedu.checks import check_count

from .request import Request

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")

Row = tuple[float, int, int]  # microseconds, tokens of prompt and answer
RowReader = Callable[[dict[str, str]], Row | None]


def read_azure(source: str | Path | Iterable[str]) -> list[Request]:
    """Read a trace of Azure's LLM inference services.

    Parameters
    ----------
    source : Path or iterable of str
        A CSV file with the columns ``TIMESTAMP,ContextTokens,GeneratedTokens``, or its lines. Times may
        have a UTC offset, all of them or none; with offsets, instants are compared.

    Returns
    -------
    list of Request
        In order of arrival, the first at 0 s.

    Raises
    ------
    ValueError
        For a missing or repeated column, or a row that has more or fewer fields than the header, a date
        without a time, a UTC offset unlike the rows before it, or no positive token counts; with its line
        number.

    Examples
    --------
    >>> read_azure(["TIMESTAMP,ContextTokens,GeneratedTokens",
    ...             "2023-11-16 18:15:46.6805900,374,44",
    ...             "2023-11-16 18:15:50.9951690,396,109"])[1].arrival_s
    4.314579
    """

    offsets = set()

    def row(fields: dict[str, str]) -> Row:
        time = _time(fields["TIMESTAMP"])
        offsets.add(time.tzinfo is not None)
        if len(offsets) > 1:
            raise ValueError("TIMESTAMP: must have a UTC offset in every row or in none")
        since = time - datetime(1, 1, 1, tzinfo=UTC if time.tzinfo else None)
        microseconds = since // timedelta(microseconds=1)
        return microseconds, _count(fields, "ContextTokens"), _count(fields, "GeneratedTokens")

    return _read_csv(source, AZURE_COLUMNS, row)


def read_burstgpt(source: str | Path | Iterable[str], *, skip_failed: bool = False) -> list[Request]:
    """Read a trace of BurstGPT.

    Parameters
    ----------
    source : Path or iterable of str
        A CSV file with the columns ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log
        Type`` (seconds), or its lines.
    skip_failed : bool
        Leave out the requests that got no answer (0 response tokens), which are an error otherwise.

    Returns
    -------
    list of Request
        In order of arrival, the first at 0 s.

    Raises
    ------
    ValueError
        For a missing or repeated column, or a malformed row, also one that would be left out; with its
        line number.
    """

    def row(fields: dict[str, str]) -> Row | None:
        microseconds = _finite("Timestamp", float(fields["Timestamp"])) * 1e6
        prompt, answer = _count(fields, "Request tokens"), _count(fields, "Response tokens")
        if answer == 0 and skip_failed:
            check_count("Request tokens", prompt, 0)
            return None
        return microseconds, prompt, answer

    return _read_csv(source, BURSTGPT_COLUMNS, row)


def read_mooncake(source: str | Path | Iterable[str]) -> list[Request]:
    """Read a trace of Mooncake.

    Parameters
    ----------
    source : Path or iterable of str
        A JSON object a line, ``{"timestamp": ms, "input_length": .., "output_length": .., "hash_ids":
        [..]}``, or the lines of such a file. One hash id stands for 512 tokens of the prompt.

    Returns
    -------
    list of Request
        In order of arrival, the first at 0 s, with ``hash_ids``.

    Raises
    ------
    ValueError
        For a row that is no such object, with its line number.
    """
    rows = []
    name, lines = _lines(source)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append((*_mooncake_row(json.loads(line)), number))
        except (ValueError, KeyError, TypeError) as error:
            raise _malformed(name, number, line, error) from None
    return _requests(name, rows)


def _mooncake_row(fields: object) -> tuple[float, int, int, tuple[int, ...]]:
    if not isinstance(fields, dict):
        raise TypeError("must be a JSON object")
    time, hash_ids = fields["timestamp"], fields["hash_ids"]
    if type(time) not in (int, float):
        raise TypeError(f"timestamp={time!r}: must be a number of milliseconds")
    if type(hash_ids) is not list or not all(type(value) is int for value in hash_ids):
        raise TypeError(f"hash_ids={hash_ids!r}: must be a list of ints")
    return _finite("timestamp", time) * 1000, fields["input_length"], fields["output_length"], tuple(hash_ids)


def _time(text: str) -> datetime:
    try:
        date.fromisoformat(text.strip())
    except ValueError:
        return datetime.fromisoformat(text.strip())
    raise ValueError(f"TIMESTAMP={text!r}: must have a time, has a date alone")


def _finite(name: str, time: float) -> float:
    if not abs(time) < 1e300:
        raise ValueError(f"{name}={time}: must be finite, below 1e300")
    return time


def _count(fields: dict[str, str], column: str) -> int:
    try:
        return int(fields[column])
    except ValueError:
        raise ValueError(f"{column}={fields[column]!r}: must be a whole number") from None


def _lines(source: str | Path | Iterable[str]) -> tuple[str, list[str]]:
    if isinstance(source, str | Path):
        return str(source), Path(source).read_text(encoding="utf-8-sig").splitlines()
    return "trace", list(source)


def _malformed(name: str, number: int, line: object, error: Exception) -> ValueError:
    reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
    return ValueError(f"{name}, line {number}: {line!r}: {reason}")


def _read_csv(source: str | Path | Iterable[str], columns: tuple[str, ...], row: RowReader) -> list[Request]:
    name, lines = _lines(source)
    reader = csv.DictReader(lines, strict=True)
    rows = []
    try:
        _check_header(name, reader.fieldnames or [], columns)
        for fields in reader:
            values = _csv_row(name, lines, reader.line_num, fields, row)
            if values is not None:
                rows.append((*values, (), reader.line_num))
    except csv.Error as error:
        raise ValueError(f"{name}, line {reader.reader.line_num}: {error}") from None
    return _requests(name, rows)


def _csv_row(name: str, lines: list[str], number: int, fields: dict, row: RowReader) -> Row | None:
    try:
        if None in fields or None in fields.values():  # where DictReader puts what is over and what lacks
            raise ValueError("must have as many fields as the header")
        return row(fields)
    except ValueError as error:
        raise _malformed(name, number, lines[number - 1], error) from None


def _check_header(name: str, header: list[str], columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"{name}, line 1: {header}: has no column {', '.join(missing)}")
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise ValueError(f"{name}, line 1: {header}: has a column twice: {', '.join(repeated)}")


def _requests(name: str, rows: list[tuple]) -> list[Request]:
    """Requests in order of arrival; each row is (microseconds, prompt, output, hash ids, line number)."""
    if not rows:
        raise ValueError(f"{name}: has no requests")
    start = min(row[0] for row in rows)
    requests = []
    for microseconds, prompt, output, hash_ids, number in sorted(rows, key=lambda row: row[0]):
        try:
            arrival_s = (microseconds - start) / 1e6
            requests.append(Request(len(requests), arrival_s, prompt, output, hash_ids=hash_ids))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
    return requests
