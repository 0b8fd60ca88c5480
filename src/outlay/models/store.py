"""A cache folder of converted models: built once, verified, rebuilt when damaged.

Each model is a folder with safetensors, a tokenizer and a `manifest.json` that names every file's
size and SHA-256. A folder is built under a lock beside its final place and renamed when complete,
so that a killed build leaves nothing half done and two processes do not build twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from outlay.errors import ModelError

MANIFEST = "manifest.json"


def cache_dir() -> Path:
    """Where models live: $OUTLAY_CACHE, else the user's cache folder."""
    if root := os.environ.get("OUTLAY_CACHE"):
        return Path(root).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "outlay"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        yield


def verify(folder: Path) -> str | None:
    """Why `folder` cannot be used, or None if it is whole.

    Files whose size and modification time are those of the manifest count as whole; others are
    hashed again. So a touched file costs one hash, an untouched one nothing.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {
            name: (int(want["bytes"]), int(want["mtime_ns"]), str(want["sha256"]))
            for name, want in manifest["files"].items()
        }
    except FileNotFoundError:
        return "it was never completed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest is damaged ({error})"
    if not files:
        return "its manifest names no files"
    for name, (size, mtime_ns, digest) in files.items():
        path = folder / name
        try:
            stat = path.stat()
            if stat.st_size != size:
                return f"{name} has {stat.st_size} bytes, not {size}"
            if stat.st_mtime_ns != mtime_ns and sha256(path) != digest:
                return f"{name} does not match its checksum"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def build(
    name: str, make: Callable[[Path], dict[str, Any]], *, force: bool = False
) -> tuple[Path, str | None]:
    """The verified folder of model `name`, built by `make(folder)` where it is not whole.

    Args:
        name: folder name inside the cache.
        make: writes the model's files into an empty folder and returns facts for the manifest.
        force: build even if the present folder is whole.

    Returns:
        The folder, and why it was (re)built: None if it was whole already.
    """
    folder = cache_dir() / name
    if not force and verify(folder) is None:
        return folder, None
    try:
        with _locked(folder):
            reason = verify(folder)
            if reason is None and not force:
                return folder, None
            for left in folder.parent.glob(f".{name}-*"):  # by a build that was killed
                shutil.rmtree(left, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
            try:
                facts = make(work)
                _seal(work, facts)
                if folder.exists():
                    shutil.rmtree(folder)
                work.rename(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {folder.parent} ({error}); "
            "set OUTLAY_CACHE to a folder with room"
        ) from error
    return folder, reason or "it was asked for"


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        stat = path.stat()
        files[path.name] = {
            "bytes": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256": sha256(path),
        }
    text = json.dumps({**facts, "files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
