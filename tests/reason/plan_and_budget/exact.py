"""A reasoner that writes exact traces in the short format: no weights, no errors, no patience.

It stands where a trained model stands, so that claims about budgets can be tested without a model's
own mistakes. A chain that was cut counts as the value that it had reached, as in the testbed's
training.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from outlay.models.base import (
    Account,
    Branch,
    Capabilities,
    Prompt,
    SamplingParams,
)
from outlay.testbeds.reasoner.chains import Chain, ChainProblem, parse_question
from outlay.testbeds.reasoner.tokenizer import build_tokenizer

END = "</think><answer>"
_RESULT = re.compile(r"=(\d+)")


def trace(chain: Chain) -> str:
    values = chain.values
    return "".join(
        f"{values[i]}{sign}{operand}={values[i + 1]};"
        for i, (sign, operand) in enumerate(chain.operations)
    )


def stated(body: str, start: int) -> int:
    found = _RESULT.findall(body)
    return int(found[-1]) if found else start


def following(problem: ChainProblem, text: str) -> str:
    """What the exact reasoner writes after `text`, to the end of its block."""
    if END in text:
        return "" if text.rsplit(END, 1)[1] else f"{final(problem, text)}<eos>"
    joined = len(problem.chains) > 1
    if not text.startswith("<short>"):
        return "<short>" + "[1]" * joined
    if joined and text == "<short>":
        return "[1]"
    blocks = re.findall(r"(?:\[([1-5+])\]|<short>)([^\[<]*)", text.removeprefix("<short>" * joined))
    heading, body = blocks[-1] if blocks else ("1", "")
    if heading == "+":
        whole, then = trace(total(problem, text)), END
    else:
        at = int(heading or 1)
        whole = trace(problem.chains[at - 1])
        then = (f"[{at + 1}]" if at < len(problem.chains) else "[+]") if joined else END
    return (whole[len(body) :] if whole.startswith(body) else "") + then


def total(problem: ChainProblem, text: str) -> Chain:
    bodies = dict(re.findall(r"\[([1-5])\]([^\[<]*)", text))
    values = [
        stated(bodies.get(str(i), ""), chain.start) for i, chain in enumerate(problem.chains, 1)
    ]
    return problem.join(values)


def final(problem: ChainProblem, text: str) -> int:
    if len(problem.chains) == 1:
        return stated(text, problem.chains[0].start)
    sums = re.findall(r"\[\+\]([^\[<]*)", text)
    return stated(sums[-1] if sums else "", total(problem, text).start)


def left(problem: ChainProblem, text: str) -> int:
    """Operations that the last block of `text` has not done."""
    blocks = re.findall(r"\[([1-5+])\]([^\[<]*)", text)
    heading, body = blocks[-1] if blocks else ("1", "")
    chain = total(problem, text) if heading == "+" else problem.chains[int(heading) - 1]
    return len(chain.operations) - body.count(";")


class ExactReasoner:
    """Behind the `Model` protocol.

    Args:
        stubborn: never ends a step.
        candid: the surprisal of what it writes grows with the operations left in the block.
        append: can be continued from forced text.
    """

    def __init__(
        self, *, stubborn: bool = False, candid: bool = False, append: bool = True
    ) -> None:
        self.candid = candid
        self.name = "exact"
        self.context_length = 640
        self.capabilities = Capabilities(append=append, stop=True, logprobs=True)
        self.takes_chat = False
        self.tokenizer = build_tokenizer()
        self.stubborn = stubborn
        self.eos_ids = frozenset({int(self.tokenizer.eos_token_id)})
        self._ids = itertools.count()

    def count(self, text: str) -> int:
        return len(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def open(
        self, prompt: Prompt, assistant_prefix: str = "", *, account: Account | None = None
    ) -> Branch:
        assert isinstance(prompt, str)
        ids = tuple(self._encode(prompt + assistant_prefix))
        root = Branch(f"x{next(self._ids)}", None, ids, "", "open", handle=prompt)
        account = account or Account()
        account.ledger.record(
            account.stage, account.role, prompt_new=len(ids), branch=root.id, method=account.method
        )
        return root

    def append(self, branch: Branch, tokens: Any, *, account: Account | None = None) -> Branch:
        account = account or Account()
        ids = tuple(self._encode(tokens))
        child = Branch(f"x{next(self._ids)}", branch, ids, tokens, "forced", depth=branch.depth + 1)
        account.ledger.record(account.stage, account.role, forced=len(ids), branch=child.id)
        return child

    def extend(
        self,
        branches: Sequence[Branch],
        sampling: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        *,
        account: Account | None = None,
    ) -> list[list[Branch]]:
        account = account or Account()
        each = [sampling] * len(branches) if isinstance(sampling, SamplingParams) else sampling
        hold = account.hold([want.max_tokens for want in each for _ in range(n)])
        rows, spent = [], 0
        for at, (branch, want) in enumerate(zip(branches, each, strict=True)):
            row = []
            for copy in range(n):
                child, sampled = self._grow(branch, want, hold.limits[at * n + copy])
                spent += sampled
                account.ledger.record(
                    account.stage,
                    account.role,
                    generated=sampled,
                    branch=child.id,
                    method=account.method,
                )
                row.append(child)
            rows.append(row)
        account.settle(hold, spent)
        return rows

    def _grow(self, branch: Branch, want: SamplingParams, limit: int) -> tuple[Branch, int]:
        question = re.search(r"<user>(.*?)<assistant>", branch.lineage()[0].handle)
        assert question is not None
        problem = parse_question(question[1])
        before = branch.completion()
        tokens: list[int] = []
        text, finish = "", "length"
        while len(tokens) < limit:
            ahead = "1+1=2;" if self.stubborn else following(problem, before + text)
            if not ahead:
                break
            for token in self._encode(ahead)[: limit - len(tokens)]:
                tokens.append(token)
                text += self.tokenizer.decode([token])
                if token in self.eos_ids:
                    finish = "stop" if token in want.stop_token_ids else "eos"
                elif any(stop in text for stop in want.stop):
                    finish = "stop"
                if finish != "length":
                    break
            if finish != "length":
                break
        sampled = len(tokens)
        if finish == "stop" and not want.include_stop:
            cut = [text.find(stop) for stop in want.stop if stop in text]
            text = text[: min(cut)] if cut else text.removesuffix("<eos>")
            tokens = self._encode(text)
        text = text.removesuffix("<eos>") if finish == "eos" else text
        surprisal = 0.1 + (left(problem, before) if self.candid else 0)
        logprobs = (-surprisal,) * len(tokens) if want.logprobs else None
        child = Branch(
            f"x{next(self._ids)}",
            branch,
            tuple(tokens),
            text,
            finish,  # type: ignore[arg-type]
            logprobs,
            branch.depth + 1,
        )
        return child, sampled

    def release(self, branch: Branch) -> None:
        pass
