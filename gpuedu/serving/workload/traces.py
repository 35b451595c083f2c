"""Readers of published traces. A malformed row is an error that names its line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from math import inf
from pathlib import Path

from .request import Request

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def read_azure(source: str | Path | Iterable[str]) -> list[Request]:
    """Read a trace of Azure's LLM inference services.

    Parameters
    ----------
    source : Path or iterable of str
        A CSV file with the columns ``TIMESTAMP,ContextTokens,GeneratedTokens``, or its lines.

    Returns
    -------
    list of Request
        In order of arrival, the first at 0 s.

    Raises
    ------
    ValueError
        For a missing column, or a row that has no time or no positive token counts; with its line number.

    Examples
    --------
    >>> read_azure(["TIMESTAMP,ContextTokens,GeneratedTokens",
    ...             "2023-11-16 18:15:46.6805900,374,44",
    ...             "2023-11-16 18:15:50.9951690,396,109"])[1].arrival_s
    4.314579
    """

    def row(fields: dict[str, str]) -> tuple[float, int, int]:
        time = datetime.fromisoformat(fields["TIMESTAMP"].strip())
        since = time - datetime.min.replace(tzinfo=time.tzinfo)
        microseconds = since // timedelta(microseconds=1)
        return microseconds, int(fields["ContextTokens"]), int(fields["GeneratedTokens"])

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
        For a missing column or a malformed row, with its line number.
    """

    def row(fields: dict[str, str]) -> tuple[float, int, int] | None:
        answer = int(fields["Response tokens"])
        if answer == 0 and skip_failed:
            return None
        return float(fields["Timestamp"]) * 1e6, int(fields["Request tokens"]), answer

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
        For a malformed row, with its line number.
    """
    rows = []
    name, lines = _lines(source)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            hash_ids = tuple(fields["hash_ids"])
            if not all(isinstance(value, int) for value in hash_ids):
                raise ValueError("hash_ids must be ints")
            rows.append(
                (
                    fields["timestamp"] * 1000,
                    fields["input_length"],
                    fields["output_length"],
                    number,
                    hash_ids,
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            raise _malformed(name, number, line, error) from None
    return _requests(name, rows)


def _lines(source: str | Path | Iterable[str]) -> tuple[str, list[str]]:
    if isinstance(source, str | Path):
        return str(source), Path(source).read_text(encoding="utf-8-sig").splitlines()
    return "trace", list(source)


def _malformed(name: str, number: int, line: object, error: Exception) -> ValueError:
    reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
    return ValueError(f"{name}, line {number}: {line!r}: {reason}")


def _read_csv(
    source: str | Path | Iterable[str],
    columns: tuple[str, ...],
    row: Callable[[dict[str, str]], tuple[float, int, int] | None],
) -> list[Request]:
    name, lines = _lines(source)
    reader = csv.DictReader(lines)
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{name}, line 1: {lines[:1]}: has no column {', '.join(missing)}")
    rows = []
    for fields in reader:
        try:
            values = row(fields)
        except (ValueError, TypeError, AttributeError) as error:
            raise _malformed(name, reader.line_num, list(fields.values()), error) from None
        if values is not None:
            rows.append((*values, reader.line_num, ()))
    return _requests(name, rows)


def _requests(name: str, rows: list[tuple]) -> list[Request]:
    """Requests in order of arrival; each row is (microseconds, prompt, output, line number, hash ids)."""
    if not rows:
        raise ValueError(f"{name}: has no requests")
    for microseconds, *_, number, _ids in rows:
        if not abs(microseconds) < inf:
            raise ValueError(f"{name}, line {number}: timestamp: must be finite")
    start = min(row[0] for row in rows)
    requests = []
    for microseconds, prompt, output, number, hash_ids in sorted(rows, key=lambda row: row[0]):
        try:
            arrival_s = (microseconds - start) / 1e6
            requests.append(Request(len(requests), arrival_s, prompt, output, hash_ids=hash_ids))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
    return requests
