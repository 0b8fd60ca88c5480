"""A speech as text or PDF, cut into excerpts.

Budget speeches are numbered paragraphs. A paragraph begins at a blank line or at a number such as
"12." or "(iv)" at the start of a line; page numbers on lines of their own are dropped, and words
that a line break cut are joined. Short paragraphs (headings) go with the next one, long ones are
cut between sentences. No other word is lost, and their order stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from outlay.errors import DependencyError, InputError
from outlay.evals.basir.data import Excerpt, check_date
from outlay.evals.checks import check_whole
from outlay.files import read_text

MAX_SPEECH_CHARS = 5_000_000
"""Characters of one speech."""
MAX_PAGES = 2_000
"""Pages of one PDF."""
MAX_PDF_BYTES = 100_000_000
"""Bytes of one PDF."""
MAX_WORD = 1_000
"""Characters of one word: longer ones are no text."""

_PAGE_NUMBER = re.compile(r"\s*(?:page\s+)?[-\u2013]?\s*\d{1,4}\s*[-\u2013]?\s*\Z", re.IGNORECASE)
_NUMBERED = re.compile(r"\s*(?:\d{1,3}[.)]|\([ivxlc]{1,6}\)|\([a-z]\))\s+\S")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+(?=[\"'\u201c(]?[A-Z0-9])")


def read_speech(path: str | os.PathLike[str]) -> str:
    """The text of a .pdf (through pypdf) or of any text file.

    Raises:
        InputError: if the file is missing, too large, encrypted, damaged, or a scan without text.
        DependencyError: if pypdf is missing.
    """
    if Path(path).suffix.lower() != ".pdf":
        return read_text(path, max_bytes=4 * MAX_SPEECH_CHARS).text
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise DependencyError("PDF needs pypdf; pip install 'outlay[eval]'") from error
    place = Path(path)
    if not place.is_file():
        raise InputError(f"{place} is not a file; check the path")
    if (size := place.stat().st_size) > MAX_PDF_BYTES:
        raise InputError(f"{place} has {size} bytes, more than {MAX_PDF_BYTES}; split the PDF")
    pages: list[str] = []
    length = 0
    try:
        reader = PdfReader(place)
        if reader.is_encrypted:
            raise InputError(f"{place} is encrypted; save it without a password")
        if (count := len(reader.pages)) > MAX_PAGES:
            raise InputError(f"{place} has {count} pages, more than {MAX_PAGES}; split it")
        for page in reader.pages:
            pages.append(page.extract_text())
            length += len(pages[-1])
            if length > MAX_SPEECH_CHARS:
                raise InputError(f"{place} has more than {MAX_SPEECH_CHARS} characters; split it")
    except InputError:
        raise
    except (PyPdfError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{place} is not a PDF that can be read ({error})") from error
    text = "\n\n".join(pages)
    if not text.strip():
        raise InputError(f"{place} has no text: it is a scan; run OCR on it first")
    return text


def paragraphs(text: str) -> list[str]:
    """Paragraphs in one line each."""
    found: list[list[str]] = [[]]
    for line in text.replace("\r\n", "\n").replace("\f", "\n\n").split("\n"):
        if not line.strip():
            found.append([])
        elif _PAGE_NUMBER.match(line):
            continue
        elif _NUMBERED.match(line):
            found.append([line.strip()])
        elif found[-1] and re.search(r"[a-z]-\Z", found[-1][-1]) and line.strip()[0].islower():
            found[-1][-1] = found[-1][-1][:-1] + line.strip()
        else:
            found[-1].append(line.strip())
    return [" ".join(" ".join(lines).split()) for lines in found if lines]


def segment(text: str, *, min_words: int = 20, max_words: int = 120) -> list[str]:
    """Excerpts of a speech in order.

    Args:
        text: the whole speech.
        min_words: shorter paragraphs are joined with what follows, within the same limit.
        max_words: longer paragraphs are cut between sentences, or between words where a sentence
            alone is longer.

    Raises:
        InputError: for an empty or overlong speech, or limits out of order.
    """
    check_whole("min_words", min_words, least=1)
    check_whole("max_words", max_words, least=min_words)
    if not isinstance(text, str) or not text.strip():
        raise InputError("the speech is empty; give its text")
    if len(text) > MAX_SPEECH_CHARS:
        raise InputError(f"the speech has {len(text)} characters, more than {MAX_SPEECH_CHARS}")
    units: list[list[str]] = []
    for paragraph in paragraphs(text):
        units += _cut(paragraph, max_words)
    if not units:
        raise InputError("the speech holds page numbers only; give its text")
    if (longest := max(len(word) for unit in units for word in unit)) > MAX_WORD:
        raise InputError(f"the speech has a word of {longest} characters; this is no text")
    joined: list[list[str]] = []
    for unit in units:
        short = joined and min(len(joined[-1]), len(unit)) < min_words
        # A short one at the end has no next paragraph, so it may also join the one before.
        if short and len(joined[-1]) + len(unit) <= max_words:
            joined[-1] = joined[-1] + unit
        else:
            joined.append(unit)
    return [" ".join(words) for words in joined]


def _cut(paragraph: str, max_words: int) -> list[list[str]]:
    """The words of a paragraph in pieces of at most `max_words`."""
    pieces: list[list[str]] = [[]]
    for sentence in _SENTENCE.split(paragraph):
        words = sentence.split()
        if len(pieces[-1]) + len(words) > max_words and pieces[-1]:
            pieces.append([])
        while len(words) > max_words:
            pieces[-1] = words[:max_words]
            words = words[max_words:]
            pieces.append([])
        pieces[-1] += words
    return [piece for piece in pieces if piece]


def excerpts(texts: Sequence[str], event: str, date: str = "") -> list[Excerpt]:
    """Rows without sectors, ready to be tagged; ids are `<event>-0001` and so on.

    Raises:
        InputError: for a bad date or an empty event.
    """
    if date:
        date = check_date(date, f"event {event!r}")
    return [Excerpt(event, date, f"{event}-{i:04d}", text) for i, text in enumerate(texts, 1)]
