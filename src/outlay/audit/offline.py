"""Audits of files: the bill, the commitment and the openings, as JSON.

The auditor draws its challenge from a seed that it keeps to itself until it holds the commitment. A
file cannot show that order: a provider that knew the seed could have lied about all the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outlay.audit.coin import CoIn, Report
from outlay.audit.commitment import Challenge, Opening
from outlay.audit.serving import LiveProvider
from outlay.audit.wire import Case, answers, read_case
from outlay.errors import InputError

_LARGEST = 500_000_000  # bytes of a file


def load_case(path: Path) -> Case:
    """The case of a file.

    Raises:
        InputError: for a file that cannot be read or holds no case.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is larger than {_LARGEST} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error
    try:
        return read_case(data, path.stem)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def wanted(coin: CoIn, case: Case) -> list[int]:
    """The tokens that the provider must open for this case, given the auditor's seed.

    Raises:
        InputError: without a seed or a commitment.
    """
    if coin.seed is None:
        raise InputError("a challenge for a file needs the auditor's seed; give --seed")
    if case.commitment is None:
        raise InputError("the case has no commitment; without one there is nothing to challenge")
    return coin.plan(case.commitment).tokens


def audit_case(coin: CoIn, case: Case) -> Report:
    """Audit a case whose openings lie in its file.

    Raises:
        InputError: without a seed, a commitment or openings.
    """
    needed, commitment = wanted(coin, case), case.commitment
    if commitment is None or (needed and not case.openings):
        raise InputError("the case has no openings; get them with --challenge, or use --url")
    held = answers(case.openings)

    def ask(challenge: Challenge) -> Sequence[Opening]:
        return [held[index] for index in challenge.indices if index in held]

    return coin.audit(commitment, case.billed, case.answer, ask)


def audit_live(coin: CoIn, case: Case, url: str, *, key: str = "") -> Report:
    """Audit a case against a live provider.

    A commitment of the file must be the one that the provider stands by.

    Raises:
        EndpointError: if the provider cannot be reached.
        InputError: if it commits to something else than the file.
    """
    provider = LiveProvider(url, case.name, key=key)
    try:
        live = provider.commit()
        if case.commitment is not None and live != case.commitment:
            raise InputError(
                "the live provider's commitment is not the one that came with the bill"
            )
        return coin.audit(live, case.billed, case.answer, provider.open)
    finally:
        provider.close()


def report_json(report: Report) -> dict[str, Any]:
    """A report, JSON-ready."""
    from dataclasses import asdict

    from outlay.audit.coin import SAID

    return {**asdict(report), "says": SAID[report.verdict]}
