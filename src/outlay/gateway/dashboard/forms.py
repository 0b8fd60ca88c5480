"""Bodies of HTML forms: fields, and the one file that is ever uploaded."""

from __future__ import annotations

import email.parser
import email.policy
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from outlay.gateway.problems import RequestError, invalid

LARGEST = 64_000
_MOST = 100  # fields


@dataclass(frozen=True)
class Form:
    """What was sent: text by name, files by name."""

    fields: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """A field without blanks around it; "" without it."""
        return self.fields.get(name, "").strip()


async def read_form(request: Request, most: int = LARGEST) -> Form:
    """The form in a request's body.

    Raises:
        RequestError: 413 above `most` bytes, 415 for what is no form, 400 for one that is broken.
    """
    media = request.headers.get("content-type", "")
    kind = media.partition(";")[0].strip().lower()
    if kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        raise RequestError(415, "send an HTML form")
    raw = await _body(request, most)
    try:
        return _multipart(media, raw) if kind.startswith("multipart") else _encoded(raw)
    except (ValueError, LookupError) as error:
        raise invalid("the form cannot be read") from error


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise RequestError(413, f"the form has more than {most} bytes")
    except ClientDisconnect as error:
        raise invalid("the form broke off") from error
    return bytes(body)


def _encoded(raw: bytes) -> Form:
    pairs = parse_qsl(
        raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST
    )
    return Form(dict(pairs))


def _multipart(media: str, raw: bytes) -> Form:
    head = f"MIME-Version: 1.0\r\nContent-Type: {media}\r\n\r\n".encode("latin-1")
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + raw)
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    if not message.is_multipart():
        raise ValueError("no parts")
    for part in list(message.iter_parts())[:_MOST]:
        assert isinstance(part, EmailMessage)
        name = str(part.get_param("name", "", "content-disposition"))
        content = part.get_payload(decode=True)
        if not isinstance(content, bytes):
            raise ValueError("a part within a part")
        if part.get_filename() is None:
            fields[name] = content.decode()
        else:
            files[name] = content
    return Form(fields, files)
