"""Where a number came from: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).parents[1]
WATCHED = ("policyopt", "torch", "tensordict", "transformers", "gymnasium", "numpy", "scipy")


def provenance() -> dict[str, Any]:
    """``versions`` of what computes, ``machine`` without its name, ``commit`` of the sources (None where unknown)."""
    return {"versions": _versions(), "machine": _machine(), "commit": _commit()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in WATCHED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, str | int]:
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
    }


def _commit() -> str | None:
    """The commit's hash, with ``+changes`` where the sources differ from it; None where the sources aren't tracked."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = _git("rev-parse", "HEAD")
    return f"{head}+changes" if head and _git("status", "--porcelain", ".") else head


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
