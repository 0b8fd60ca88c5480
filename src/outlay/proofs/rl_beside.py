"""Two methods of the training grid beside each other, as checks without a target and as a peer."""

from __future__ import annotations

from outlay.proofs.base import Check, Peer
from outlay.proofs.rl_figure import Runs
from outlay.rl.grid_compare import mean, versus


def beside(runs: Runs, ours: str, theirs: str, more: str = "") -> Check:
    """One method against another, on the seeds that both have.

    Args:
        runs: by method.
        ours, theirs: names.
        more: put into the note.
    """
    greedy, sampled = versus(runs[ours], runs[theirs]), versus(runs[ours], runs[theirs], 1.0)
    return Check(
        f"{ours} against {theirs}",
        "",
        greedy.accuracy.value,
        None,
        (greedy.accuracy.lo, greedy.accuracy.hi),
        f"greedy accuracy {mean(runs[ours]).value:.3f} against {mean(runs[theirs]).value:.3f} (of "
        f"shared seeds the difference), tokens x{greedy.tokens.value:.2f} "
        f"[{greedy.tokens.lo:.2f}, {greedy.tokens.hi:.2f}]; T=1 {sampled.accuracy.value:+.3f} "
        f"[{sampled.accuracy.lo:+.3f}, {sampled.accuracy.hi:+.3f}], tokens "
        f"x{sampled.tokens.value:.2f}; {more}{greedy.seeds} seeds",
    )


def peer(runs: Runs, ours: str, plain: str) -> Peer:
    """Right answers a token, beside TRL's plain GRPO."""
    import trl

    mine, theirs = (
        1000 * mean(runs[name]).value / mean(runs[name], what="tokens").value
        for name in (ours, plain)
    )
    return Peer(
        "GRPO (TRL)",
        trl.__version__,
        "right answers per 1000 tokens, greedy, nothing cut",
        mine,
        theirs,
        mine / theirs,
    )
