"""The exact half of the puzzles' proof: known lengths, and validators that agree."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from outlay.evals.puzzles import Blocks, Checkers, Hanoi, Puzzle, River, shortest
from outlay.evals.puzzles.solver import random_walk
from outlay.proofs.base import Check, Peer

# Targets.
AGREEMENT = 1.0
RIVER: Mapping[int, tuple[int | None, ...]] = {
    2: (1, 5, 11, None, None, None),
    3: (1, 3, 5, 9, 11, None),
    4: (1, 1, 3, 5, 7, 9),
}


def optima() -> list[Check]:
    """Shortest lengths against search, and what has no solution."""
    wrong, seen = 0, 0
    cases: list[tuple[Puzzle, int | None, int | None]] = []
    cases += [(Hanoi(n), 2**n - 1, 1) for n in range(1, 7)]
    cases += [(Checkers(n), (n + 1) ** 2 - 1, 2) for n in range(1, 8)]
    cases += [(Blocks(n), 2 * n - 1 if n > 1 else 0, 1) for n in range(1, 7)]
    cases += [(Blocks(n, 2), n, 1) for n in range(1, 7)]
    cases += [(River(n, k), RIVER[k][n - 1], None) for k in RIVER for n in range(1, 5)]
    for puzzle, length, solutions in cases:
        found = shortest(puzzle)
        wrong += found.length != length or puzzle.min_moves() != length
        wrong += solutions is not None and found.solutions != solutions
        if length is not None:
            wrong += not puzzle.replay(puzzle.solution()).optimal
        seen += 1
    table = sum(River(n, k).min_moves() != RIVER[k][n - 1] for k in RIVER for n in range(1, 7))
    linear = sum(River(n, 4).min_moves() != 2 * n - 3 for n in range(2, 101))
    proof = River(6, 3).certificate()
    return [
        Check(
            "shortest lengths equal breadth-first search and the tables",
            "2^N - 1, (N+1)^2 - 1, ...",
            float(wrong + table),
            wrong + table == 0,
            None,
            f"disagreements over {seen} searched instances and 18 river crossings; target: 0",
        ),
        Check(
            "a boat for four carries every number of pairs in 2N - 3 moves",
            "N=100 with k=4 is solvable",
            float(linear),
            linear == 0,
            None,
            "N = 2..100 that differ, by exact search over counts; target: 0",
        ),
        Check(
            "the paper's river crossing with 6 pairs and 3 places has no solution",
            "asked in the paper, unsolvable according to its critics",
            float(proof.states),
            proof.length is None,
            None,
            "states exhausted without reaching the goal; target: no solution",
        ),
    ]


def agreement(lists: int, seed: int) -> tuple[list[Check], Peer]:
    """Random lists, judged by us, by enumeration, and by reasoning-gym's validator."""
    import reasoning_gym

    random = Random(seed)
    same = judged = theirs = ours_against = 0
    for index in range(lists):
        puzzle = random.choice([Hanoi(3), Hanoi(4), Checkers(2), Checkers(3), Blocks(4), Blocks(5)])
        moves = _damaged(puzzle, random, index)
        verdict = puzzle.replay(moves)
        judged += 1
        same += (verdict.solved, verdict.first_bad_move) == _enumerated(puzzle, moves)
        if isinstance(puzzle, Hanoi):
            theirs += 1
            score = _gym_score(reasoning_gym, puzzle, moves)
            ours_against += verdict.solved == (score > 0.05)
    peer = Peer(
        "reasoning-gym tower_of_hanoi",
        _version("reasoning-gym"),
        "share of verdicts on random lists that agree with the enumeration of legal moves",
        same / judged,
        ours_against / theirs,
        (same / judged) / max(1e-9, ours_against / theirs),
    )
    checks = [
        Check(
            "verdicts and first bad moves equal the enumeration of legal moves",
            "exact simulators",
            same / judged,
            same / judged >= AGREEMENT,
            None,
            f"{judged} random and damaged lists; target: {AGREEMENT}",
        ),
        Check(
            "reasoning-gym's validator gives the same verdicts on Hanoi",
            "a public validator",
            ours_against / theirs,
            ours_against / theirs >= AGREEMENT,
            None,
            f"{theirs} lists; target: {AGREEMENT}",
        ),
        _gap_only(Checkers(3)),
    ]
    return checks, peer


def _damaged(puzzle: Puzzle, random: Random, index: int) -> list[list[Any]]:
    moves: list[list[Any]] = [list(move) for move in puzzle.solution()]
    kind = index % 4
    at = random.randrange(len(moves))
    if kind == 1:
        moves.pop(at)
    elif kind == 2:
        moves[at][random.choice((1, 2))] = random.randrange(3)
    elif kind == 3:
        moves = [list(move) for move in random_walk(puzzle, len(moves), index)]
        if random.random() < 0.5 and moves:
            moves[-1] = [moves[-1][0], moves[-1][2], moves[-1][1]]
    return moves


def _enumerated(puzzle: Puzzle, moves: list[list[Any]]) -> tuple[bool, int | None]:
    state = puzzle.start_state()
    for index, move in enumerate(moves):
        if tuple(move) not in set(puzzle.moves_from(state)):
            return False, index
        state = puzzle.apply(state, tuple(move))
    return puzzle.is_goal(state), None


def _gym_score(gym: Any, puzzle: Hanoi, moves: list[list[Any]]) -> float:
    data = gym.create_dataset("tower_of_hanoi", size=1, seed=0)
    entry = {
        "metadata": {
            "num_disks": puzzle.n,
            "num_pegs": 3,
            "start_peg": puzzle.start + 1,
            "target_peg": puzzle.goal + 1,
            "solution_length": puzzle.min_moves(),
        }
    }
    lines = [f"Move disk {d} from Peg {s + 1} to Peg {t + 1}" for d, s, t in moves]
    return float(data.score_answer("\n".join(lines), entry))


def _gap_only(puzzle: Checkers) -> Check:
    """What a validator lets pass that asks only for the right colour and the empty place."""
    accepted = illegal = 0
    seen, frontier = {puzzle.start_state()}, [puzzle.start_state()]
    while frontier:
        row = frontier.pop()
        legal = set(puzzle.moves_from(row))
        for place, colour in enumerate(row):
            if colour != "_":
                accepted += 1
                illegal += (colour, place, row.index("_")) not in legal
        for move in legal:
            after = puzzle.apply(row, move)
            if after not in seen:
                seen.add(after)
                frontier.append(after)
    return Check(
        "a validator that asks only for the colour and the gap lets illegal moves pass",
        "a public re-implementation does",
        illegal / accepted,
        None,
        None,
        f"share of the {accepted} moves that it accepts in the {len(seen)} states of checkers "
        f"N={puzzle.n}",
    )


def _version(name: str) -> str:
    from importlib import metadata

    return metadata.version(name)
