"""Reading text files that users hand over: checked, decoded, never guessed silently.

A file is read whole or refused: too large, empty, binary, not a regular file, or in an unknown
encoding. Encodings are taken from a byte-order mark, from the coding cookie of a Python file
(PEP 263), else UTF-8; nothing is guessed from byte statistics, because a wrong guess would only
show later, as nonsense in a prompt.
"""

from __future__ import annotations

import codecs
import io
import os
import stat
import tokenize
from dataclasses import dataclass
from pathlib import Path

from outlay.errors import InputError

MAX_BYTES = 20_000_000
"""Default size limit of one file, in bytes."""

LANGUAGES = {
    ".py": "python",
    ".pyi": "python",
    ".pyw": "python",
    ".js": "javascript",
    ".jsx": "javascript",
    ".mjs": "javascript",
    ".cjs": "javascript",
    ".ts": "typescript",
    ".mts": "typescript",
    ".cts": "typescript",
    ".tsx": "tsx",
    ".java": "java",
    ".go": "go",
    ".c": "c",
    ".h": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".cxx": "cpp",
    ".hh": "cpp",
    ".hpp": "cpp",
    ".hxx": "cpp",
    ".rs": "rust",
}
"""Programming language by file extension (lower case)."""

PROSE = frozenset({".md", ".markdown", ".txt", ".rst", ".adoc", ".text"})
"""Extensions of prose."""

# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class TextFile:
    """A file that was read.

    Args:
        path: as it was given.
        text: decoded, line ends untouched.
        encoding: the codec that decoded it.
        language: from the extension; "" for prose and unknown extensions.
        size: in bytes.
    """

    path: Path
    text: str
    encoding: str
    language: str
    size: int


def language_of(path: str | os.PathLike[str]) -> str:
    """Programming language of a path by its extension, "" where it is none that we know."""
    return LANGUAGES.get(Path(path).suffix.lower(), "")


def read_text(
    path: str | os.PathLike[str],
    *,
    encoding: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> TextFile:
    """Read one text file.

    Args:
        path: a regular file (links are followed).
        encoding: codec name; None to take it from the file (mark, coding cookie, UTF-8).
        max_bytes: refuse larger files.

    Raises:
        InputError: if the file is missing, unreadable, not regular, too large, empty, binary or
            not in the encoding; the message names the file and what to do.
    """
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
        raise InputError(f"max_bytes={max_bytes!r}; give a whole number of bytes >= 1")
    place = Path(path)
    try:
        mode = place.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{place} is a folder; name a file in it")
        if not stat.S_ISREG(mode):  # a pipe or a device could block for ever
            raise InputError(f"{place} is not a regular file; name a file on disk")
        with place.open("rb") as file:
            data = file.read(max_bytes + 1)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise InputError(f"{place} does not exist; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{place} cannot be read: {reason}") from error
    if len(data) > max_bytes:
        raise InputError(
            f"{place} has {max(size, len(data))} bytes, more than max_bytes={max_bytes}; "
            "raise max_bytes= or split the file"
        )
    text, used = decode(data, str(place), encoding=encoding, python=language_of(place) == "python")
    return TextFile(place, text, used, language_of(place), len(data))


def decode(
    data: bytes, name: str, *, encoding: str | None = None, python: bool = False
) -> tuple[str, str]:
    """The text of `data` and the codec that decoded it.

    Args:
        data: a whole file's bytes.
        name: of the file, for messages ("standard input", ...).
        encoding: codec name; None for a byte-order mark, a Python coding cookie, or UTF-8.
        python: look for a PEP 263 coding cookie.

    Raises:
        InputError: if the data are empty, blank, binary, or not in the encoding.
    """
    if not data:
        raise InputError(f"{name} is empty (0 bytes); give a file with text")
    if encoding is not None:
        try:
            b"\0\0\0\0".decode(encoding)  # refuses bytes-to-bytes codecs such as "hex", too
        except UnicodeError:
            pass
        except (LookupError, ValueError):
            raise InputError(
                f"encoding={encoding!r} is no text encoding that Python knows; "
                "try 'utf-8', 'latin-1' or 'cp1252'"
            ) from None
        used = encoding
    else:
        used = _declared(data, name, python)
    if b"\x00" in data and not _wide(used):
        raise InputError(
            f"{name} is binary: NUL at byte offset {data.index(0)}; "
            "give a text file, or encoding='utf-16' if it is one without a byte-order mark"
        )
    try:
        text = data.decode(used)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not valid {used}: byte 0x{data[error.start]:02x} at byte offset "
            f"{error.start} ({error.reason}); name the encoding with encoding= "
            "(for instance 'latin-1' or 'cp1252')"
        ) from error
    if "\x00" in text:
        raise InputError(
            f"{name} is binary: NUL characters remain after decoding as {used}; "
            "give a text file or another encoding="
        )
    if not text.strip():
        raise InputError(f"{name} holds only white space; give a file with text")
    return text, used


def _wide(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


def _declared(data: bytes, name: str, python: bool) -> str:
    for mark, codec in _MARKS:
        if data.startswith(mark):
            return codec
    if python:
        try:
            return tokenize.detect_encoding(io.BytesIO(data).readline)[0]
        except SyntaxError as error:
            # Either an unknown cookie, or a first line that is not UTF-8: only the former is
            # worth its own message, the latter is reported with its offset by the decoder.
            if "unknown encoding" in str(error) or "encoding problem" in str(error):
                raise InputError(
                    f"{name} has a coding cookie at byte offset 0 that cannot be used "
                    f"({error}); name the encoding with encoding="
                ) from error
    return "utf-8"
