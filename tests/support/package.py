"""The distributions as a stranger gets them: built once, installed into an empty environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

from .patience import GIVE_UP_S

__all__ = ["Distributions", "build", "install", "run"]

ROOT = Path(__file__).parents[2]
"""Bound of a build, which runs a few interpreters one after another."""
_LEFTOVERS = (
    ".git",
    ".venv*",
    ".pythons",
    ".*_cache",
    "__pycache__",
    ".env",
    "*.egg-info",
    "build",
    "dist",
    "htmlcov",
)


class Distributions(NamedTuple):
    """Where the two files lie."""

    sdist: Path
    wheel: Path


def build(folder: Path) -> Distributions:
    """Builds the sdist from a copy of the tree and the wheel from the sdist; needs no index."""
    copy = folder / "tree"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*_LEFTOVERS), symlinks=True)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, copy], folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Distributions(sdist, wheel)


def install(wheel: Path, folder: Path) -> Path:
    """Makes an environment with the wheel in it, and returns its interpreter.

    What the wheel requires is taken from this environment, so that no index is asked.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], folder
    )
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    return python


def run(command: list[str | Path], folder: Path) -> str:
    """Runs a command in a folder, and returns all that it wrote; fails unless it succeeds."""
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * GIVE_UP_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
