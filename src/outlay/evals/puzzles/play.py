"""Answers over several turns: some moves a turn from the shown state, or moves through a tool.

`stepwise` is the set-up of the replication (arXiv 2507.01231): every turn shows the rules and the
state and asks for the next few moves; an illegal one ends the episode. `tool` answers every call
`move(...)` with the new state or the reason why it was refused (arXiv 2507.17699); a refused move
changes nothing. Both keep the context short: the state says all that the past has to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outlay.errors import BudgetError
from outlay.evals.base import Episode
from outlay.evals.puzzles.answers import Judgement, of_verdict
from outlay.evals.puzzles.base import Puzzle
from outlay.evals.puzzles.fairness import CUT
from outlay.evals.puzzles.parsing import (
    Failure,
    Parser,
    claims_impossible,
    parse_moves,
    print_moves,
    read_list,
    split_thinking,
)
from outlay.evals.puzzles.prompts import system_prompt, user_prompt

if TYPE_CHECKING:
    from outlay.budget import Budget
    from outlay.decode.base import Decoder
    from outlay.models.base import Account, Message, Model, Prompt, SamplingParams

_CALL = re.compile(r"\bmove\s*\(\s*([^()\n]*|\([^()\n]*\)\s*)\)")
OUT_OF_BUDGET = "out of budget"
_KEPT = 4  # exchanges of a tool episode that stay in the context


@dataclass
class Speaker:
    """One model under one budget: every turn is one call.

    Args:
        model, budget, sampling, decode, account: as `Interactive.play` gets them.
        thinking: of all turns so far.
        cut: the last reply ran into a limit.
    """

    model: Model
    budget: Budget
    sampling: SamplingParams
    decode: Decoder | None
    account: Account
    thinking: list[str] = field(default_factory=list)
    cut: bool = False

    def say(self, messages: list[Message]) -> str | None:
        """The reply to a chat; None if the budget is spent."""
        prompt: Prompt = messages
        if not self.model.takes_chat:
            prompt = "\n\n".join(message["content"] for message in messages) + "\n"
        speaker: Any = self.model if self.decode is None else self.decode
        target = () if self.decode is None else (self.model,)
        try:
            made = speaker.generate(
                *target, prompt, self.budget, self.sampling, account=self.account
            )
        except BudgetError:
            return None
        if thinking := getattr(made, "thinking", ""):
            self.thinking.append(thinking)
        self.cut = made.finish_reason in CUT
        return str(made.text)


@dataclass
class _Game:
    puzzle: Puzzle
    state: Any
    moves: list[Any] = field(default_factory=list)
    transcript: list[str] = field(default_factory=list)
    ended: str = ""
    refused: int = 0

    def episode(self, optimal_required: bool, speaker: Speaker) -> Episode:
        verdict = self.puzzle.replay(self.moves)
        judged: Judgement = of_verdict(verdict, optimal_required)
        right = judged.correct or self.ended == "impossible"
        texts = {
            "answer": "impossible" if self.ended == "impossible" else print_moves(self.moves),
            "transcript": "\n\n".join(self.transcript),
            "ended": self.ended or judged.reason,
            "refused moves": str(self.refused),
        }
        if speaker.thinking:
            texts["thinking"] = "\n\n".join(speaker.thinking)
        return Episode(float(right), texts)

    def gives_up(self, reply: str) -> bool:
        """True if the reply says that there is no solution; right where that is so."""
        if not claims_impossible(reply):
            return False
        self.ended = "it says that there is no solution, but there is one"
        if not self.puzzle.solvable():
            self.ended = "impossible"
        return True


def play_stepwise(
    puzzle: Puzzle,
    speaker: Speaker,
    *,
    moves_per_turn: int,
    turns: int,
    parser: Parser,
    optimal_required: bool,
    may_be_impossible: bool = False,
) -> Episode:
    """Ask for the next moves until the goal, an illegal move, or the end of turns."""
    game = _Game(puzzle, puzzle.start_state())
    while not puzzle.is_goal(game.state):
        if turns == 0:
            game.ended = "out of turns"
            break
        turns -= 1
        asked = user_prompt(
            puzzle,
            "stepwise",
            goal="optimal" if optimal_required else "any",
            state=puzzle.describe(game.state),
            made=len(game.moves),
            moves_per_turn=moves_per_turn,
            may_be_impossible=may_be_impossible,
        )
        system = system_prompt(puzzle, "stepwise")
        reply = speaker.say(
            [{"role": "system", "content": system}, {"role": "user", "content": asked}]
        )
        if reply is None:
            game.ended = OUT_OF_BUDGET
            break
        game.transcript.append(f"state: {puzzle.describe(game.state)}\nreply: {reply}")
        if game.gives_up(reply):
            break
        parsed = parse_moves(reply, parser)
        if isinstance(parsed, Failure):
            game.ended = OUT_OF_BUDGET if speaker.cut else parsed.reason
            break
        taken = parsed.moves[:moves_per_turn]
        if not taken:
            game.ended = "the list of moves is empty"
            break
        game.state, done, reason = puzzle.run(taken, game.state)
        game.moves += taken if reason else taken[:done]
        if reason:
            game.ended = f"move {len(game.moves) - len(taken) + done}: {reason}"
            break
    return game.episode(optimal_required, speaker)


def play_tool(
    puzzle: Puzzle,
    speaker: Speaker,
    *,
    turns: int,
    optimal_required: bool,
    may_be_impossible: bool = False,
) -> Episode:
    """Let the model call `move(...)` until the goal or the end of turns; refused moves do not count
    as moves."""
    game = _Game(puzzle, puzzle.start_state())
    exchanges: list[Message] = []
    while not puzzle.is_goal(game.state):
        if turns == 0:
            game.ended = "out of turns"
            break
        turns -= 1
        opening = user_prompt(
            puzzle,
            "tool",
            goal="optimal" if optimal_required else "any",
            state="see below" if exchanges else puzzle.describe(game.state),
            may_be_impossible=may_be_impossible,
        )
        head: list[Message] = [
            {"role": "system", "content": system_prompt(puzzle, "tool")},
            {"role": "user", "content": opening},
        ]
        reply = speaker.say(head + exchanges)
        if reply is None:
            game.ended = OUT_OF_BUDGET
            break
        game.transcript.append(f"reply: {reply}")
        if game.gives_up(reply):
            break
        before = len(game.moves)
        result = _call(game, reply)
        if speaker.cut and len(game.moves) == before:
            game.ended = OUT_OF_BUDGET
            break
        game.transcript.append(f"tool: {result}")
        exchanges += [
            {"role": "assistant", "content": reply},
            {"role": "user", "content": result},
        ]
        exchanges = exchanges[-2 * _KEPT :]
    return game.episode(optimal_required, speaker)


def _call(game: _Game, reply: str) -> str:
    """Carry out the first call of a reply; what the tool answers."""
    puzzle = game.puzzle
    shown = puzzle.describe(game.state)
    call = _CALL.search(split_thinking(reply)[1])
    if call is None:
        game.refused += 1
        return f"There is no call; write one line move(MOVE). The state is still: {shown}"
    inner = call[1].strip()
    if not inner.startswith("["):
        inner = f"[{inner.removeprefix('(').removesuffix(')')}]"
    found = read_list(inner, 0, depth=1)
    raw = found.moves if not isinstance(found, Failure) else inner
    state, _, reason = puzzle.run([raw], game.state)
    if reason:
        game.refused += 1
        return f"Refused: {reason}. The state is still: {shown}"
    game.state = state
    game.moves.append(raw)
    return f"The state is now: {puzzle.describe(state)}"
