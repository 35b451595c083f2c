"""A schedule written by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .schedule import Action, Kind, Placement, Schedule

_WORD = re.compile(r"([FIWB])(\d+)(?:\.(\d+))?")


def from_text(ranks: Sequence[str], placement: Placement = Placement.LOOP) -> Schedule:
    """The schedule that lines such as ``"F0 F1 B0 B1"`` describe, one line a rank.

    Parameters
    ----------
    ranks : sequence of str
        Per rank, its passes in order, separated by blanks: F, B, I or W and the microbatch, and
        behind a point the chunk where a rank has several (``"F0.1"``).
    placement : Placement
        Which part of the model each chunk is.

    Returns
    -------
    Schedule
        Named "by hand", with as many microbatches and chunks as occur. It need not be valid:
        :func:`validate` says what is wrong with it.

    Raises
    ------
    TypeError
        If ``ranks`` are not lines of text.
    ValueError
        If there is no rank or no pass, or a word is not a pass.

    Examples
    --------
    >>> from gpuedu.pipeline_parallel.plan import gpipe
    >>> from_text(["F0 F1 B0 B1", "F0 F1 B0 B1"]).actions == gpipe(2, 2).actions
    True
    """
    if isinstance(ranks, str) or not all(isinstance(line, str) for line in ranks):
        raise TypeError(f"ranks={ranks!r}: must be a list of lines of text, one a rank")
    actions = tuple(tuple(_action(rank, word) for word in line.split()) for rank, line in enumerate(ranks))
    passes = [action for one in actions for action in one]
    if not passes:
        raise ValueError(f"ranks={ranks!r}: must hold at least one pass, such as 'F0'")
    microbatches = 1 + max(action.microbatch for action in passes)
    chunks = 1 + max(action.chunk for action in passes)
    return Schedule("by hand", len(actions), microbatches, chunks, placement, actions)


def _action(rank: int, word: str) -> Action:
    match = _WORD.fullmatch(word)
    if match is None:
        raise ValueError(
            f"{word!r} on rank {rank}: must be F, B, I or W and a microbatch, such as 'F0' or 'F0.1'"
        )
    letter, microbatch, chunk = match.groups()
    return Action(rank, Kind(letter), int(microbatch), int(chunk or 0))
