"""Challenges, openings and whole cases as JSON."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from outlay.audit.commitment import Challenge, Commitment, Opening
from outlay.audit.fingerprints import Vectors
from outlay.errors import InputError

_LONGEST = 65_536  # numbers of a vector
_MOST = 1_000_000  # openings of one answer


def challenge_json(challenge: Challenge) -> dict[str, Any]:
    """A challenge, JSON-ready."""
    return {
        "digest": challenge.digest.hex(),
        "nonce": challenge.nonce.hex(),
        "indices": list(challenge.indices),
    }


def read_challenge(data: Any) -> Challenge:
    """The inverse of `challenge_json`.

    Raises:
        InputError: for anything else.
    """
    try:
        indices = data["indices"]
        if not isinstance(indices, list) or any(type(index) is not int for index in indices):
            raise InputError("indices must be a list of whole numbers")
        if not 1 <= len(set(indices)) == len(indices) <= _MOST:
            raise InputError("a challenge names at least one index, each once")
        return Challenge(
            bytes.fromhex(data["digest"]), bytes.fromhex(data["nonce"]), tuple(indices)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"no challenge can be read ({error})") from error


def opening_json(opening: Opening) -> dict[str, Any]:
    """An opened leaf, JSON-ready; vectors are base64 of little-endian float32."""
    return {
        "index": opening.index,
        "block": opening.block,
        "block_vector": _pack(opening.block_D),
        "token_vector": _pack(opening.token_D),
        "path": [each.hex() for each in opening.path],
    }


def read_openings(data: Any) -> list[Opening]:
    """The openings of a JSON list.

    Raises:
        InputError: for anything else; it names the place in the list.
    """
    if not isinstance(data, list) or len(data) > _MOST:
        raise InputError("openings must be a list")
    found = []
    for place, row in enumerate(data):
        try:
            if type(row["index"]) is not int or type(row["block"]) is not int:
                raise InputError("index and block must be whole numbers")
            found.append(
                Opening(
                    row["index"],
                    row["block"],
                    _unpack(row["block_vector"]),
                    _unpack(row["token_vector"]),
                    tuple(bytes.fromhex(each) for each in row["path"]),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"opening {place} cannot be read ({error})") from error
    return found


def _pack(vector_D: Vectors) -> str:
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()


def _unpack(text: str) -> Vectors:
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InputError(f"a vector is no base64 ({error})") from error
    if len(raw) % 4 or not 4 <= len(raw) <= 4 * _LONGEST:
        raise InputError(f"a vector of {len(raw)} bytes is no list of float32 numbers")
    return np.frombuffer(raw, dtype="<f4").astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One bill to audit.

    Args:
        billed: hidden tokens on the bill.
        answer: what the user saw.
        commitment: that came with the bill; None where the live provider is asked for it.
        openings: answers to the auditor's challenge; none yet before it was sent.
        name: of the bill; the id under which a live provider knows it.
    """

    billed: int
    answer: str
    commitment: Commitment | None = None
    openings: tuple[Opening, ...] = field(default=(), repr=False)
    name: str = ""


def read_case(data: Any, name: str = "") -> Case:
    """A case from `{"bill": {"reasoning_tokens": N, "id": ...}, "answer": ..., ...}`.

    The bill may also be a whole OpenAI-style response's `usage`.

    Raises:
        InputError: for anything else.
    """
    if not isinstance(data, dict) or not isinstance(data.get("bill"), dict):
        raise InputError('a case needs "bill", an object with "reasoning_tokens"')
    bill = data["bill"]
    details = bill.get("completion_tokens_details")
    nested = details.get("reasoning_tokens") if isinstance(details, dict) else None
    billed = bill.get("reasoning_tokens", nested)
    if type(billed) is not int or billed < 0:
        raise InputError(f"reasoning_tokens={billed!r}; must be a whole number, 0 or more")
    answer = data.get("answer", "")
    if not isinstance(answer, str):
        raise InputError('"answer" must be a text')
    held = data.get("commitment")
    return Case(
        billed,
        answer,
        None if held is None else Commitment.from_dict(held),
        tuple(read_openings(data.get("openings", []))),
        str(bill.get("id", name)),
    )


def answers(openings: Sequence[Opening]) -> dict[int, Opening]:
    """Openings by index.

    Raises:
        InputError: if one index was opened twice.
    """
    found = {opening.index: opening for opening in openings}
    if len(found) < len(openings):
        raise InputError("one token is opened twice; give one opening a token")
    return found
