"""Validators of puzzle moves: moves per second in one process, against public and plain ones.

The peer is reasoning-gym's `tower_of_hanoi`, which scores a text; ours is timed on moves and on a
text, too. The plain reference applies the rules move by move with immutable states. Targets: at
least one million moves a second for Hanoi and for checker jumping, and 2^20 streamed moves in less
than 10 seconds.

    python benchmarks/puzzles.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib import metadata

from common import Row, turns, warn_if_busy, write
from outlay.evals.puzzles import Blocks, Checkers, Hanoi, Puzzle, River, parse_moves, print_moves
from outlay.evals.puzzles.parsing import Parsed

TARGET = 1e6  # moves per second
DISKS = 15
REPEATS = 5


def main() -> None:
    warn_if_busy()
    rows = [_against_plain(puzzle) for puzzle in (Hanoi(DISKS), Checkers(180))]
    rows += [_against_gym(), _streamed()]
    rows += [_alone(puzzle) for puzzle in (River(100, 4), Blocks(26))]
    write("puzzles", rows)


def _alone(puzzle: Puzzle) -> Row:
    moves = [list(move) for move in puzzle.solution()]
    rounds = 20_000 // len(moves)

    def ours() -> None:
        for _ in range(rounds):
            assert puzzle.replay(moves).solved

    seconds = statistics.median(turns({"ours": ours}, REPEATS, clock="cpu")["ours"])
    return Row(
        f"{puzzle.key}: {len(moves)} moves as a list",
        "moves/s",
        rounds * len(moves) / seconds,
        note="no target: solutions are short",
    )


def _rate(
    case: str, moves: int, sides: dict[str, Callable[[], object]], peer: str, note: str
) -> Row:
    seconds = turns(sides, REPEATS, clock="cpu")
    ours, theirs = seconds["ours"], seconds["theirs"]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return Row(
        case,
        "moves/s",
        moves / statistics.median(ours),
        moves / statistics.median(theirs),
        peer,
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        note,
    )


def _against_plain(puzzle: Puzzle) -> Row:
    moves = [list(move) for move in puzzle.solution()]
    start = puzzle.start_state()

    def ours() -> None:
        assert puzzle.replay(moves).solved

    def plain() -> None:
        state, done, _ = puzzle.run_plainly(moves, start)
        assert puzzle.is_goal(state)
        assert done == len(moves)

    return _rate(
        f"{puzzle.name}, N={puzzle.n}: {len(moves)} moves as a list",
        len(moves),
        {"ours": ours, "theirs": plain},
        "plain reference (immutable states)",
        f"target: {TARGET:.0f} moves/s",
    )


def _against_gym() -> Row:
    import reasoning_gym

    puzzle = Hanoi(DISKS)
    moves = [list(move) for move in puzzle.solution()]
    text = print_moves(moves)
    lines = "\n".join(f"Move disk {d} from Peg {s + 1} to Peg {t + 1}" for d, s, t in moves)
    data = reasoning_gym.create_dataset("tower_of_hanoi", size=1, seed=0)
    entry = {
        "metadata": {
            "num_disks": DISKS,
            "num_pegs": 3,
            "start_peg": 1,
            "target_peg": 3,
            "solution_length": len(moves),
        }
    }

    def ours() -> None:
        parsed = parse_moves(text)
        assert isinstance(parsed, Parsed)
        assert puzzle.replay(parsed.moves).optimal

    def theirs() -> None:
        assert data.score_answer(lines, entry) == 1.0

    return _rate(
        f"hanoi, N={DISKS}: reading and judging a text",
        len(moves),
        {"ours": ours, "theirs": theirs},
        f"reasoning-gym {metadata.version('reasoning-gym')} tower_of_hanoi",
        "both parse their own text format and replay it",
    )


def _streamed() -> Row:
    puzzle = Hanoi(20)

    def stream() -> None:
        assert puzzle.replay(puzzle.solution()).n_moves == 2**20 - 1

    seconds = turns({"ours": stream}, 3, clock="cpu")["ours"]
    return Row(
        "hanoi, N=20: 2^20 - 1 moves generated, streamed and judged",
        "seconds",
        statistics.median(seconds),
        note="target: < 10 s, constant memory",
    )


if __name__ == "__main__":
    main()
