"""Public-domain texts of two domains: to calibrate a quantization with, and to evaluate a model on.

``README.md`` beside this file says where each comes from and under which terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Text:
    """A text that comes with the package.

    Parameters
    ----------
    title : str
        What it is, with author and year.
    domain : str
        ``"speeches"`` (State of the Union) or ``"moby_dick"``.
    use : str
        ``"evaluation"``: held out of tinylm's training; or ``"calibration"``: part of it.
    source : str
        File of the npm package that it is, byte for byte.
    """

    title: str
    domain: str
    use: str
    source: str


TEXTS = {
    "speech_2014": Text(
        "Barack Obama, State of the Union, 2014", "speeches", "evaluation", "2014_barack_obama_d.txt"
    ),
    "speech_2019": Text(
        "Donald Trump, State of the Union, 2019", "speeches", "evaluation", "2019_donald_j_trump_r.txt"
    ),
    "speech_1864": Text(
        "Abraham Lincoln, annual message, 1864", "speeches", "evaluation", "1864_abraham_lincoln_r.txt"
    ),
    "moby_dick_16": Text(
        "Herman Melville, Moby-Dick, 1851, chapter 16", "moby_dick", "evaluation", "chapter_16.txt"
    ),
    "speech_2012": Text(
        "Barack Obama, State of the Union, 2012", "speeches", "calibration", "2012_barack_obama_d.txt"
    ),
    "speech_2004": Text(
        "George W. Bush, State of the Union, 2004", "speeches", "calibration", "2004_george_w_bush_r.txt"
    ),
    "moby_dick_54": Text(
        "Herman Melville, Moby-Dick, 1851, chapter 54", "moby_dick", "calibration", "chapter_54.txt"
    ),
}
"""The texts by name."""


@cache
def text(name: str) -> str:
    """One of the texts, whole.

    Parameters
    ----------
    name : str
        A key of ``TEXTS``.

    Returns
    -------
    str
        30,000 to 46,000 characters.

    Raises
    ------
    ValueError
        If there is no such text.

    Examples
    --------
    >>> text("moby_dick_16").splitlines()[0]
    'CHAPTER 16. The Ship.'
    """
    if name not in TEXTS:
        raise ValueError(f"name={name!r}: must be one of {', '.join(TEXTS)}")
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
