"""What the page's worker unpacks computes what the package computes, and is small."""

import ast
import json
import subprocess
import sys

import pytest

from gpuedu.explorer import load
from gpuedu_book import assets

EXPLORERS = (
    "gpuedu.continuous_batching.plot:slots",
    "gpuedu.continuous_batching.plot:frontier",
    "gpuedu.pipeline_parallel.plot:explorer",
)
ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from gpuedu.explorer import load
import gpuedu
assert sys.argv[1] in gpuedu.__file__
for reference in sys.argv[2:]:
    print(load(reference).show_json(load(reference).defaults))
"""


def test_the_archive_shows_what_the_package_shows(tmp_path):
    path = tmp_path / "archive.zip"
    path.write_bytes(assets.archive())
    command = [sys.executable, "-I", "-c", ASK, str(path), *EXPLORERS]
    answers = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for reference, answer in zip(EXPLORERS, answers, strict=True):
        explorer = load(reference)
        assert json.loads(answer) == json.loads(explorer.show_json(explorer.defaults))


@pytest.mark.parametrize("module", assets.page_modules(), ids=str)
def test_only_words_are_left_out(module):
    """The code itself is the same, and no docstring is left."""
    source = (assets.ROOT / module).read_text(encoding="utf-8")
    short = assets.without_words(source)
    assert '"""' not in short
    assert ast.dump(ast.parse(short)) == ast.dump(ast.parse(assets.without_words(short)))
    names = {node.name for node in ast.walk(ast.parse(source)) if hasattr(node, "name")}
    assert names == {node.name for node in ast.walk(ast.parse(short)) if hasattr(node, "name")}
