"""A small transformer trained on move lists, and asked beyond its training: a real collapse curve.

Four layers of width 128 (a Llama from transformers, about 0.8M parameters) learn lists and single
moves (`kth`) of Tower of Hanoi up to N = 5, all six pairs of pegs, and of checker jumping up to
N = 3. Every move is three tokens. It is asked at temperature 1, like the paper's models, also one
and two sizes beyond. `kth` separates knowing the solution from writing it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from outlay.evals.puzzles import Checkers, Hanoi, Puzzle
from outlay.evals.puzzles.answers import Judgement, judge_kth, judge_moves
from outlay.evals.puzzles.curves import Sample, accuracy
from outlay.evals.puzzles.fairness import fate
from outlay.proofs.base import Check, Progress
from outlay.stats import wilson

# Targets.
EASY = 0.8  # accuracy of lists at N = 1, 2 and 3, each
GONE = 0.1  # upper end of the interval at N = 7

TRAINED = {"hanoi": 5, "checkers": 3}
ASKED = {"hanoi": 7, "checkers": 4}
_WORDS = ("<pad>", "end", "hanoi", "checkers", "list", "kth", ":", "R", "B", *"0123456789")
_ID = {word: index for index, word in enumerate(_WORDS)}
_PAD, _END = 0, 1
_BATCH = 24
_RATE = 2e-3


@dataclass(frozen=True)
class Asked:
    """One request: a puzzle, and a step for `kth` (0: the whole list)."""

    puzzle: Puzzle
    step: int = 0

    def prompt(self) -> list[str]:
        """Its tokens; of one length for one world, size and form."""
        pegs = (
            [str(self.puzzle.start), str(self.puzzle.goal)]
            if isinstance(self.puzzle, Hanoi)
            else []
        )
        step = [*f"{self.step:03d}"] if self.step else []
        form = "kth" if self.step else "list"
        return [self.puzzle.name, form, str(self.puzzle.n), *pegs, *step, ":"]

    def answer(self) -> list[str]:
        """The right tokens."""
        moves = [self.puzzle.at(self.step)[0]] if self.step else list(self.puzzle.solution())
        return [str(part) for move in moves for part in move] + ["end"]

    def judge(self, tokens: Sequence[str]) -> Judgement:
        """The verdict on generated tokens, by way of the text that they stand for."""
        rows = [tokens[at : at + 3] for at in range(0, len(tokens), 3)]
        lists = ", ".join(f"[{', '.join(row)}]" for row in rows)
        if self.step:
            return judge_kth(self.puzzle, f"move = {lists}", self.step)
        return judge_moves(self.puzzle, f"moves = [{lists}]")


def draw(random: Random) -> Asked:
    """One training request."""
    if random.random() < 0.65:
        start, goal = random.sample(range(3), 2)
        puzzle: Puzzle = Hanoi(random.randint(1, TRAINED["hanoi"]), start, goal)
    else:
        puzzle = Checkers(random.randint(1, TRAINED["checkers"]))
    if random.random() < 0.6:
        return Asked(puzzle)
    return Asked(puzzle, random.randint(1, puzzle.min_moves() or 1))


def train(steps: int, seed: int, progress: Progress) -> Any:
    """The trained model, on the CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(_WORDS),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=1024,
        pad_token_id=_PAD,
        eos_token_id=_END,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    random = Random(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
    for step in range(steps):
        rows = [draw(random) for _ in range(_BATCH)]
        prompts = [[_ID[word] for word in row.prompt()] for row in rows]
        answers = [[_ID[word] for word in row.answer()] for row in rows]
        longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids_BT = torch.full((_BATCH, longest), _PAD)
        labels_BT = torch.full((_BATCH, longest), -100)
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids_BT[index, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels_BT[index, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        loss = model(input_ids=ids_BT, labels=labels_BT).loss  # padding comes last: no mask needed
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            progress(f"training: step {step}, loss {loss.item():.3f}")
    return model.eval()


def ask(model: Any, asked: Sequence[Asked], seed: int) -> list[tuple[list[str], bool]]:
    """Sampled answers at temperature 1: tokens without "end", and whether the limit cut them.

    All requests must have prompts of one length.
    """
    import torch

    torch.manual_seed(seed)
    prompts_BT = torch.tensor([[_ID[word] for word in row.prompt()] for row in asked])
    most = max(len(row.answer()) for row in asked) * 5 // 4 + 6
    with torch.inference_mode():
        out_BT = model.generate(
            input_ids=prompts_BT,
            attention_mask=torch.ones_like(prompts_BT),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=most,
        )
    made = []
    for row_T in out_BT[:, prompts_BT.shape[1] :].tolist():
        ended = _END in row_T
        made.append(([_WORDS[i] for i in row_T[: row_T.index(_END) if ended else None]], not ended))
    return made


def study(steps: int, seed: int, progress: Progress) -> tuple[dict[str, list[Sample]], list[Check]]:
    """Train, ask every size, and check.

    Args:
        steps: of training.
        seed: of weights, data and sampling.
        progress: is told what runs.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = train(steps, seed, progress)
    samples = 60 if steps < 2_000 else 200
    ways: dict[str, list[Sample]] = {}
    judged: dict[tuple[str, int], list[Judgement]] = {}
    random = Random(seed + 1)
    for world, largest in ASKED.items():
        for form in ("list", "kth"):
            name = f"{world}, {form}"
            ways[name] = []
            for n in range(1, largest + 1):
                progress(f"asking: {name}, N={n}")
                asked = [_request(world, n, form, random) for _ in range(samples)]
                cells = judged.setdefault((name, n), [])
                for row, (tokens, cut) in zip(asked, ask(model, asked, seed + n), strict=True):
                    verdict = row.judge(tokens)
                    cells.append(verdict)
                    ways[name].append(
                        Sample(
                            n,
                            f"{row.puzzle.key}:{row.step}",
                            fate(verdict.correct, "length" if cut else "eos", None, None),
                            len(tokens) + 1,
                            0,
                            " ".join(tokens),
                            row.puzzle.known_optimum(),
                        )
                    )
    torch.set_num_threads(threads)
    return ways, _checks(ways, judged, steps)


def _request(world: str, n: int, form: str, random: Random) -> Asked:
    puzzle: Puzzle = Checkers(n)
    if world == "hanoi":
        start, goal = random.sample(range(3), 2)
        puzzle = Hanoi(n, start, goal)
    step = random.randint(1, puzzle.min_moves() or 1) if form == "kth" else 0
    return Asked(puzzle, step)


def _checks(
    ways: dict[str, list[Sample]], judged: dict[tuple[str, int], list[Judgement]], steps: int
) -> list[Check]:
    curve = {at.n: at for at in accuracy(ways["hanoi, list"])}
    single = {at.n: at for at in accuracy(ways["hanoi, kth"])}
    shown = {n: f"{at.solved}/{at.reasoned}" for n, at in curve.items()}
    easy = min(curve[n].accuracy or 0.0 for n in (1, 2, 3))
    last = curve[ASKED["hanoi"]]
    # An upper bound of nothing is no evidence: truncated samples alone prove no collapse.
    gone = last.hi if last.hi is not None else 1.0
    # Hazard of a bad move, over the moves that were reached at the largest trained size.
    edge = TRAINED["hanoi"]
    verdicts = [each.verdict for each in judged["hanoi, list", edge] if each.verdict is not None]
    bad = sum(verdict.first_bad_move is not None for verdict in verdicts)
    reached = sum(
        verdict.n_moves if verdict.first_bad_move is None else verdict.first_bad_move + 1
        for verdict in verdicts
    )
    error = bad / max(1, reached)
    predicted = (1 - error) ** (2**edge - 1)
    at_edge = curve[edge]
    checkers = {at.n: f"{at.solved}/{at.reasoned}" for at in accuracy(ways["checkers, list"])}
    beyond = [single[n] for n in (edge + 1, edge + 2)]
    solved, seen = sum(at.solved for at in beyond), sum(at.reasoned for at in beyond)
    return [
        Check(
            "trained model: lists are right at small sizes",
            "low complexity",
            easy,
            easy >= EASY,
            wilson(min(curve[n].solved for n in (1, 2, 3)), curve[1].reasoned or 1),
            f"lowest accuracy of Hanoi N = 1, 2, 3 after {steps} steps; solved by N: {shown}, "
            f"truncated apart; target: {EASY}",
        ),
        Check(
            "trained model: accuracy collapses beyond",
            "collapse to ~0 beyond a model-specific N",
            last.accuracy if last.accuracy is not None else "all truncated",
            gone <= GONE,
            None if last.lo is None or last.hi is None else (last.lo, last.hi),
            f"Hanoi N = {last.n}; checkers (trained to N = 3): {checkers}; target: upper end <= "
            f"{GONE}",
        ),
        Check(
            "trained model: per-move errors explain its accuracy at the largest trained size",
            "failure by accumulated execution errors",
            at_edge.accuracy if at_edge.accuracy is not None else "all truncated",
            None,
            None if at_edge.lo is None or at_edge.hi is None else (at_edge.lo, at_edge.hi),
            f"N = {edge}; (1 - e)^moves with e = {error:.4f} is {predicted:.3f}",
        ),
        Check(
            "trained model: single moves (kth) against lists",
            "execution and length apart",
            float(np.mean([s.solved for s in ways["hanoi, kth"] if s.n == edge])),
            None,
            None,
            f"accuracy of one move at N = {edge}, of lists {at_edge.accuracy}; one move beyond the "
            f"trained sizes: {solved}/{seen}",
        ),
    ]
