"""Run every lab with the versions that Colab has: ``python tests/colab/run.py``.

The labs run outside the repository, in an environment of their own, and get ``gpuedu`` as they do in
Colab: by their own first cell, from the wheel of the built site. That cell's address of the site is the
only thing changed: it is this machine's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import Distribution, distribution, version
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv-colab"
PYTHON = ENVIRONMENT / "bin" / "python"
PINS = [HERE / "requirements.txt", HERE / "constraints.txt"]
SUITABLE = "import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))"

sys.path.append(str(ROOT / "book"))
import serve  # noqa: E402  (it lies in the book's folder)


def suitable_python() -> str | None:
    """A Python of one of Colab's versions: this one if it is."""
    for name in (sys.executable, "python3.12", "python3.11"):
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", SUITABLE], stderr=subprocess.DEVNULL).returncode == 0:
            return path
    return None


def run(*command: str | Path) -> str:
    """Run a command and return what it printed."""
    return subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True).stdout


def set_up(python: str) -> None:
    """Make the environment, unless it is there and made from the same pins."""
    words = [python, version("torch"), *(path.read_text() for path in PINS)]
    made_from = hashlib.sha256(repr(words).encode()).hexdigest()
    stamp = ENVIRONMENT / "made-from"
    if stamp.is_file() and stamp.read_text() == made_from:
        return
    print(f"{ENVIRONMENT}: installing Colab's versions", flush=True)
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    run(python, "-m", "venv", ENVIRONMENT)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-r", PINS[0], "-c", PINS[1])
    packages = Path(run(PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    if run(PYTHON, "-c", "import sys; print(sys.version_info[:2])").strip() == str(sys.version_info[:2]):
        link(distribution("torch"), packages)
    else:
        run(*pip, f"torch=={version('torch').split('+')[0]}", "-c", PINS[1])
    stamp.write_text(made_from)


def link(package: Distribution, packages: Path) -> None:
    """Link ``package`` of this environment, and what it needs, into the folder ``packages``: torch is big."""
    tops = {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}
    for top in tops:
        if not (packages / top).exists():
            (packages / top).symlink_to(package.locate_file(top))
    for requirement in map(Requirement, package.requires or []):
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if needed and not list(packages.glob(f"{requirement.name.replace('-', '_')}-*.dist-info")):
            link(distribution(requirement.name), packages)


def execute(lab: Path, site: str, address: str, folder: Path) -> None:
    """Run ``lab``, with the site at ``address`` in place of ``site``; CalledProcessError if a cell raises."""
    copy = folder / lab.name
    copy.write_text(lab.read_text().replace(site, address))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(ENVIRONMENT),
        "PIP_NO_INDEX": "1",  # nothing but the wheel may be installed
    }
    command = [
        PYTHON,
        "-m",
        "nbconvert",
        "--to",
        "notebook",
        "--execute",
        "--inplace",
        "--log-level=ERROR",
        copy,
    ]
    subprocess.run([*map(str, command)], env=environment, cwd=folder, check=True)
    installed = run(PYTHON, "-I", "-c", "import gpuedu; print(gpuedu.__file__)").strip()
    if not Path(installed).is_relative_to(ENVIRONMENT):
        raise RuntimeError(f"{lab.name} did not install the wheel: gpuedu is {installed}")


def main() -> int:
    """Set up and run all labs; 0 if every cell of every lab ran."""
    python = suitable_python()
    if python is None:
        print("test-colab needs Python 3.11 or 3.12, as Colab has: install one", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    set_up(python)
    site = yaml.safe_load((ROOT / "_config.yml").read_text())["html"]["baseurl"]
    with serve.server() as host, tempfile.TemporaryDirectory() as folder:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        for lab in sorted((ROOT / "labs").glob("*.ipynb")):
            run(PYTHON, "-m", "pip", "uninstall", "--quiet", "--yes", "--disable-pip-version-check", "gpuedu")
            start = time.monotonic()
            try:
                execute(lab, site, f"http://127.0.0.1:{host.server_port}/", Path(folder))
            except (subprocess.CalledProcessError, RuntimeError) as error:
                print(f"{lab.name}: {error}", file=sys.stderr)
                return 1
            print(f"{lab.name}: {time.monotonic() - start:.0f} s with Colab's versions", flush=True)
        host.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
