"""What a measurement ran on: written beside every result."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "openai")


def machine() -> dict[str, Any]:
    """Processor, cores, threads, load, Python and library versions (JSON-ready)."""
    info: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if hasattr(os, "getloadavg"):
        info["load"] = round(os.getloadavg()[0], 2)
    if "torch" in sys.modules:
        import torch

        info["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            info["gpu"] = torch.cuda.get_device_name()
    info["versions"] = versions()
    return info


def sentence() -> str:
    """The machine in a line for people."""
    info = machine()
    parts = [str(info["cpu"]), f"{info['cores']} cores", f"Python {info['python']}"]
    parts += [str(info["gpu"])] if "gpu" in info else []
    return ", ".join([*parts, str(info["system"])])


def versions() -> dict[str, str]:
    """Versions of outlay and of the libraries that results depend on."""
    found = {}
    for name in ("outlay", *_PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The source tree's commit, "+" appended where it has changes; "" outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        # A copy installed inside someone else's checkout must not report that one's commit.
        ours = git("ls-files", "--error-unmatch", Path(__file__).name)
        head = ours and git("rev-parse", "--short=12", "HEAD")
        dirty = head and git("status", "--porcelain", "--untracked-files=no")
    except OSError:
        return ""
    return head + ("+" if dirty else "")


def today() -> str:
    """The date, ISO 8601, UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
