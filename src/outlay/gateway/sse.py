"""Server-sent events: cutting a byte stream into events, whatever the pieces are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

DONE = b"[DONE]"


class EventTooLong(ValueError):  # noqa: N818 - a condition of the parser, turned into a 502 by its user
    """An event that is longer than allowed."""


@dataclass
class Splitter:
    """Feeds on bytes, gives the data of whole events.

    Args:
        most: bytes that one event may have.
    """

    most: int = 4_000_000
    _held: bytearray = field(default_factory=bytearray)
    _data: list[bytes] = field(default_factory=list)
    _size: int = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of the events that `piece` completes; comments and other fields are dropped.

        Raises:
            EventTooLong: if an event grows beyond `most`.
        """
        self._held += piece
        start = 0
        while True:
            end, width = self._line(start)
            if end < 0:
                break
            line = bytes(self._held[start:end])
            start = end + width
            if line:
                self._field(line)
            elif self._data:
                yield b"\n".join(self._data)
                self._data, self._size = [], 0
        del self._held[:start]
        if len(self._held) + self._size > self.most:
            raise EventTooLong(f"an event of more than {self.most} bytes")

    def _line(self, start: int) -> tuple[int, int]:
        """End of the line from `start`, and the width of its line end; -1 while it is open."""
        lf, cr = self._held.find(b"\n", start), self._held.find(b"\r", start)
        if cr < 0 or (0 <= lf < cr):
            return lf, 1
        if cr + 1 == len(self._held):
            return -1, 0  # a line feed may follow
        return cr, 2 if self._held[cr + 1] == 10 else 1

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)

    @property
    def open(self) -> bool:
        """True if the stream ends in the middle of an event."""
        return bool(self._held) or bool(self._data)


def event(data: bytes, name: bytes = b"") -> bytes:
    """One event on the wire."""
    head = b"event: " + name + b"\n" if name else b""
    return head + b"data: " + data + b"\n\n"
