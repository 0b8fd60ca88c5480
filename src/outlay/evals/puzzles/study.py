"""A model's samples at every level, with fates, tokens and traces: the data behind the curves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.evals.base import Problem
from outlay.evals.checks import check_whole
from outlay.evals.puzzles.curves import Sample
from outlay.evals.puzzles.fairness import Fate, OutputNeed, check_budget, fate, output_need
from outlay.evals.puzzles.parsing import Parsed, parse_moves, split_thinking
from outlay.evals.puzzles.play import OUT_OF_BUDGET
from outlay.evals.puzzles.prompts import example_moves
from outlay.evals.puzzles.tasks import Puzzles
from outlay.evals.puzzles.trace import Position, Trace, analyse
from outlay.models.base import Account, SamplingParams
from outlay.stack import Stack

if TYPE_CHECKING:
    from outlay.decode.base import Decoder
    from outlay.ledger import Ledger
    from outlay.models.base import Model


@dataclass
class Study:
    """Samples and traces of one model on one task.

    Args:
        samples: one per answer.
        traces: of the answers that came with thinking.
        unparsed: answers in which nothing could be read.
        first_bad_moves: index of the first illegal move, per answer that has one.
    """

    samples: list[Sample] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    unparsed: int = 0
    first_bad_moves: list[int] = field(default_factory=list)

    @property
    def parse_rate(self) -> float:
        """Share of answers that could be read.

        Raises:
            InputError: without samples.
        """
        if not self.samples:
            raise InputError("no samples in this study; run one first")
        return 1 - self.unparsed / len(self.samples)


def collect(
    model: Model,
    task: Puzzles,
    *,
    samples: int = 25,
    temperature: float = 1.0,
    max_tokens: int = 64_000,
    decode: Decoder | None = None,
    seed: int = 0,
    position: Position = "end",
    dedup: bool = True,
    hidden: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Study:
    """Ask every level `samples` times (the paper: 25 samples, temperature 1, 64k tokens).

    Args:
        model: any backend.
        task: levels and form of answer.
        samples: per level.
        temperature: of sampling.
        max_tokens: per answer or episode, thinking included.
        decode: a decoding method.
        seed: of problems and sampling.
        position, dedup: of the trace analysis.
        hidden: the provider hides its thinking or returns a summary: its tokens count as unknown,
            and no trace is analysed.
        progress: is told which problem runs.

    Raises:
        InputError: for samples < 1.
        BudgetError: if a prompt leaves no room for an answer.
    """
    from outlay.example import run_example

    check_whole("samples", samples, least=1)
    check_whole("max_tokens", max_tokens, least=1)
    study = Study()
    needs: dict[str, OutputNeed | None] = {}
    budget = Budget(tokens=max_tokens)
    for problem in task.sample(seed, samples * len(task.levels)):
        if progress is not None:
            progress(problem.id)
        prompt = task.prompt(problem, "")
        room = check_budget(max_tokens, model.count(prompt), model.context_length)
        puzzle = task.instance(problem.meta["n"], problem.meta["variant"])
        key = problem.meta["instance"]
        if key not in needs:
            listed = task.answer == "list" and puzzle.solvable()
            needs[key] = output_need(puzzle, model.count) if listed else None
        sampling = SamplingParams(temperature=temperature, max_tokens=room, seed=seed)
        if task.kind == "episode":
            account = Account.open(budget, method="puzzles")
            episode = task.play(model, problem, budget, sampling, decode=decode, account=account)
            texts, ledger = dict(episode.texts), account.ledger
            cut = "budget" if texts["ended"] == OUT_OF_BUDGET else "stop"
            right = episode.quality == 1.0
        else:
            outcome = run_example(
                model, Stack(decode=decode), task, problem, budget, seed=seed, sampling=sampling
            )
            texts, ledger = dict(outcome.texts), outcome.record.ledger
            cut, right = texts["finish"], outcome.record.quality == 1.0
        made = fate(right, cut, needs[key], room)
        trace = None if hidden else (position, dedup)
        _add(study, model, task, problem, texts, ledger, made, trace)
    return study


def _add(
    study: Study,
    model: Model,
    task: Puzzles,
    problem: Problem,
    texts: dict[str, str],
    ledger: Ledger,
    made: Fate,
    trace: tuple[Position, bool] | None,
) -> None:
    puzzle = task.instance(problem.meta["n"], problem.meta["variant"])
    answer = texts["answer"]
    inline, _ = split_thinking(answer)
    thinking = texts.get("thinking") or inline
    counted = ledger.totals(stage="think").generated
    echo = [example_moves(puzzle)]
    vote = answer.strip() or None
    if task.answer != "kth":
        parsed = parse_moves(answer, task.parser)
        vote = json.dumps(parsed.moves) if isinstance(parsed, Parsed) else None
    judged = task.judge(problem, answer)
    study.unparsed += judged.outcome == "unparsed"
    if judged.verdict is not None and judged.verdict.first_bad_move is not None:
        study.first_bad_moves.append(judged.verdict.first_bad_move)
    if thinking and trace is not None:
        position, dedup = trace
        study.traces.append(
            analyse(
                thinking,
                puzzle,
                model.count,
                position=position,
                dedup=dedup,
                exclude=echo,
                optimal_required=task.optimal_required,
            )
        )
    study.samples.append(
        Sample(
            n=problem.meta["n"],
            instance=problem.meta["instance"],
            fate=made,
            tokens=ledger.totals().generated,
            thinking=None if trace is None else counted or model.count(thinking),
            vote=vote,
            moves=puzzle.known_optimum(),
        )
    )
