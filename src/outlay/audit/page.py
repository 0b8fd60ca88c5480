"""A report that a person can read: as lines, and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from outlay.audit.coin import SAID, Report
from outlay.html import template

OFFLINE = (
    "a file cannot show that the challenge was drawn after the commitment: that is yours to know"
)
DISCLOSED = "every opened token embedding discloses its token; that is part of the price"
LIMITS = (
    "no audit of this kind tells a cheaper model's reasoning, a paraphrase or retrieved near text "
    "from honest work"
)


def lines(report: Report, *, live: bool) -> list[str]:
    """The report in sentences, the verdict first."""
    said = [f"{SAID[report.verdict]} ({report.billed} hidden tokens billed)"]
    said += report.reasons
    if report.tokens_opened:
        said.append(
            f"opened {report.tokens_opened} tokens ({report.token_share:.1%}) of "
            f"{report.blocks_opened} blocks ({report.block_share:.0%}) in {report.rounds} rounds; "
            f"{report.hashes} hashes, {report.bytes} bytes"
        )
        said.append(
            f"a tenth of false leaves would have been met with probability {report.noticed:.2f} "
            "by the count check alone"
        )
    if report.evidence is not None and report.p_value is not None:
        bad = sum(block.bad for block in report.blocks)
        said.append(
            f"{bad} of {len(report.blocks)} judged blocks are bad; evidence {report.evidence:+.2f} "
            f"(log-odds of inflation), p {report.p_value:.3g} were blocks independent"
        )
    said += [f"note: {warning}" for warning in report.warnings]
    if not live:
        said.append(f"note: {OFFLINE}")
    return said


def write_page(path: Path, reports: Mapping[str, Report], *, live: bool) -> None:
    """Write one page about all reports."""
    page = template("audit.html.j2").render(
        reports=[(name, report, lines(report, live=live)) for name, report in reports.items()],
        limits=[DISCLOSED, LIMITS],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
