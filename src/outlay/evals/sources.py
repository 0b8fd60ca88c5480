"""Source trees on this machine: which files a task may use, and why the others are left out.

Tests, generated and minified code, binary and undecodable files are skipped, each with a reason, so
that a task can say what it was built from. The order is that of the relative paths, on every
machine.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from outlay.errors import InputError
from outlay.files import language_of, read_text

_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "node_modules", "vendor", "third_party", "_vendor"}
    | {"__pycache__", "build", "dist", "_bundled"}
)
_TEST_FOLDERS = re.compile(r"^(tests?|testing|.*_tests?|__tests__|spec)$", re.IGNORECASE)
_TEST_FILES = re.compile(r"^(tests?|conftest|test_.*|.*_tests?|.*Tests?|.*[.\-](test|spec))\.\w+$")
_GENERATED = re.compile(
    r"(auto-?\s?generated|generated (by|from|automatically)|@generated|do not (edit|modify))",
    re.IGNORECASE,
)
_DATA = frozenset("'\"([{0123456789-")  # first characters of the lines of a literal table
_LONG_LINE = 1000  # characters; longer lines are minified code or data tables


@dataclass(frozen=True)
class SourceFile:
    """One usable file: its path below the root with "/", and its text with "\\n" line ends."""

    path: str
    text: str
    language: str


@dataclass(frozen=True)
class SourceTree:
    """The files of a folder (or one file), and those skipped with the reason.

    Args:
        root: where it was read from.
        files: usable files, sorted by path.
        skipped: reason by relative path.
    """

    root: Path
    files: tuple[SourceFile, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    def reasons(self, most: int = 6) -> str:
        """The skip reasons with their counts, most frequent first, for messages."""
        return count_reasons(self.skipped.values(), most)


def count_reasons(reasons: Iterable[str], most: int = 6) -> str:
    """ "12 x too short, 3 x a test": reasons with their counts, most frequent first."""
    counts = Counter(reason.split(":")[0] for reason in reasons).most_common()
    text = ", ".join(f"{count} x {reason}" for reason, count in counts[:most])
    more = len(counts) - most
    return (text + (f", {more} more reasons" if more > 0 else "")) or "none found"


def stdlib_path() -> Path:
    """The folder of the Python standard library that is running.

    Raises:
        InputError: where it is not a folder of source files (some embedded Pythons).
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    if not folder.is_dir():
        raise InputError(
            f"this Python has its standard library in {folder}, which is no folder; give path="
        )
    return folder


def read_tree(
    path: str | os.PathLike[str] | None,
    *,
    languages: Iterable[str],
    max_files: int,
    max_file_bytes: int,
    skip_tests: bool = True,
) -> SourceTree:
    """Read the source files below `path`.

    Args:
        path: a folder, one file, or None for the Python standard library.
        languages: those wanted ("python", ...; "" for prose); other files are skipped.
        max_files: read at most this many files, in the order of their paths.
        max_file_bytes: skip larger files.
        skip_tests: skip files and folders that are named like tests.

    Raises:
        InputError: if the path does not exist or holds no usable file (with the reasons).
    """
    root = stdlib_path() if path is None else Path(path).expanduser()
    wanted = frozenset(languages)
    if root.is_file():
        file = read_text(root, max_bytes=max_file_bytes)
        if file.language not in wanted:
            raise InputError(
                f"{root} is {file.language or 'not a known programming language'}; "
                f"this task reads {_names(wanted)}"
            )
        return SourceTree(root, (SourceFile(root.name, unix(file.text), file.language),))
    if not root.is_dir():
        raise InputError(f"path={str(root)!r} does not exist; give a folder or a source file")
    files: list[SourceFile] = []
    skipped: dict[str, str] = {}
    for place in _walk(root, skipped, skip_tests):
        relative = place.relative_to(root).as_posix()
        language = language_of(place)
        if language not in wanted:
            skipped[relative] = "another language"
        elif skip_tests and _TEST_FILES.match(place.name):
            skipped[relative] = "a test"
        elif len(files) >= max_files:
            skipped[relative] = f"beyond max_files={max_files}"
        else:
            try:
                text = unix(read_text(place, max_bytes=max_file_bytes).text)
            except InputError as error:
                skipped[relative] = _reason(str(error))
                continue
            if reason := _machine_made(text):
                skipped[relative] = reason
            else:
                files.append(SourceFile(relative, text, language))
    tree = SourceTree(root, tuple(files), skipped)
    if not files:
        raise InputError(
            f"path={str(root)!r} holds no usable source file in {_names(wanted)}; "
            f"skipped: {tree.reasons()}"
        )
    return tree


def unix(text: str) -> str:
    """`text` with "\\n" line ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _names(languages: frozenset[str]) -> str:
    return ", ".join(sorted(language or "prose" for language in languages))


def _walk(root: Path, skipped: dict[str, str], skip_tests: bool) -> list[Path]:
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        place = Path(error.filename) if error.filename else root
        skipped[place.relative_to(root).as_posix()] = f"unreadable folder: {error.strerror}"

    for folder, below, names in os.walk(root, onerror=refuse):
        kept = []
        for name in sorted(below):
            relative = (Path(folder) / name).relative_to(root).as_posix()
            if name.startswith(".") or name in _SKIPPED_FOLDERS:
                skipped[relative] = "a folder of others' or built files"
            elif skip_tests and _TEST_FOLDERS.match(name):
                skipped[relative] = "a test folder"
            else:
                kept.append(name)
        below[:] = kept
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(found, key=lambda place: place.relative_to(root).as_posix())


def _reason(message: str) -> str:
    for sign, reason in (
        ("is binary", "binary"),
        ("max_bytes", "larger than max_file_bytes"),
        ("is empty", "empty"),
        ("only white space", "empty"),
        ("is not valid", "undecodable"),
        ("coding cookie", "undecodable"),
    ):
        if sign in message:
            return f"{reason}: {message}"
    return f"unreadable: {message}"


def _machine_made(text: str) -> str | None:
    head = "\n".join(text.split("\n", 12)[:12])
    comments = "\n".join(re.findall(r"(?:#|//|/\*|\*|\"\"\"|''')[^\n]*", head))
    if _GENERATED.search(comments):
        return "generated code"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if any(len(line) > _LONG_LINE for line in lines):
        return "minified code or data"
    if sum(line[0] in _DATA for line in lines) > len(lines) / 2 and len(lines) > 50:
        return "mostly data"
    return None
