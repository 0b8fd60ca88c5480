"""A learned process reward model of chains: a verifier that reads the steps and knows no truth.

It reads a solution with the reasoner's own network and judges every step by how expected its tokens
were: a logistic head on these features, trained on sampled chains with exact labels (see
`prm_train`), says how likely all is right so far. Make another one with
`python -m outlay.testbeds.reasoner.prm --out DIR`.

All unknown steps of a path are scored in one pass, and paths of many questions share a batch. What
was read for one question's books is kept, so that a successor costs its own step: `prompt_new`
counts the tokens that were computed, `prompt_cached` those before them. Memory is bounded; what was
dropped is read again, and charged again. A score depends on the text alone: not on the scores that
the caller knows, nor on what else is judged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outlay.errors import BudgetError, DependencyError, InputError
from outlay.models.base import Account, Hold, elapsed
from outlay.reason.base import Question
from outlay.testbeds.command import prepare
from outlay.testbeds.reasoner.tokenizer import USER, render_prompt

if TYPE_CHECKING:
    from outlay.testbeds.reasoner.prm_reader import Books, Job, Key, Reader

SHIPPED = Path(__file__).parent / "prm"


@dataclass
class _Lazy:
    """The reader, made on first use."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    reader: Reader | None = None


@dataclass(frozen=True)
class _Bill:
    """What one path costs."""

    at: int
    books: Books
    key: Key
    new: int
    cached: int
    flops: float
    hold: Hold


@dataclass(frozen=True)
class ChainPRM:
    """A learned process reward model of chain problems.

    Args:
        folder: that the training command wrote; "" takes the one that comes with the package.
        batch_tokens: padded tokens of one pass.
        keep_tokens: tokens whose keys and values are kept from one call to the next; with 0 every
            call reads its paths from their beginning.

    Raises:
        InputError: for sizes out of range.
    """

    folder: str = ""
    batch_tokens: int = 16_384
    keep_tokens: int = 100_000
    _lazy: _Lazy = field(default_factory=_Lazy, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.batch_tokens < 1 or self.keep_tokens < 0:
            raise InputError(
                f"batch_tokens={self.batch_tokens}, keep_tokens={self.keep_tokens}; "
                "must be at least 1 and 0"
            )

    def score(
        self,
        questions: Sequence[Question],
        paths: Sequence[Sequence[str]],
        known: Sequence[Sequence[float]],
        *,
        accounts: Sequence[Account],
    ) -> list[list[float]]:
        """P(all right so far) after every step; what is known is given back without a pass.

        An account whose budget has no room for reading leaves the remaining steps at 0.5.

        Raises:
            InputError: for text that is not the reasoner's, or longer than its window.
            DependencyError: without torch and transformers.
        """
        rows = [list(scores) for scores in known]
        with self._lazy.lock:
            reader = self._reader()
            start = time.perf_counter()
            roots: dict[tuple[int, Key], Job] = {}
            jobs: dict[tuple[int, Key], Job] = {}
            bills = []
            asked = zip(questions, paths, known, accounts, strict=True)
            for at, (question, path, scores, account) in enumerate(asked):
                if len(scores) < len(path):
                    bill = _bill(reader, at, question, path, account, roots, jobs, self.keep_tokens)
                    if bill is None:
                        rows[at] += [0.5] * (len(path) - len(scores))
                    else:
                        bills.append(bill)
            reader.read(list(roots.values()), self.batch_tokens)
            reader.read(list(jobs.values()), self.batch_tokens)
            seconds = elapsed(start) / (sum(bill.new for bill in bills) or 1)
            for bill in bills:
                rows[bill.at] += bill.books.reads[bill.key].scores[len(rows[bill.at]) :]
                account = accounts[bill.at]
                account.settle(bill.hold, 0, flops=bill.flops)
                account.ledger.record(
                    account.stage,
                    "verifier",
                    prompt_new=bill.new,
                    prompt_cached=bill.cached,
                    method=account.method,
                    seconds=seconds * bill.new,
                    flops=bill.flops,
                )
            reader.forget(self.keep_tokens)
        return rows

    def _reader(self) -> Reader:
        if self._lazy.reader is None:
            try:
                from outlay.testbeds.reasoner.prm_reader import Reader
            except ImportError as error:
                raise DependencyError(
                    "the verifier needs torch: pip install 'outlay[local]'"
                ) from error
            self._lazy.reader = Reader(Path(self.folder) if self.folder else SHIPPED)
        return self._lazy.reader


def _bill(
    reader: Reader,
    at: int,
    question: Question,
    path: Sequence[str],
    account: Account,
    roots: dict[tuple[int, Key], Job],
    jobs: dict[tuple[int, Key], Job],
    keep_tokens: int,
) -> _Bill | None:
    """What one path costs; its passes are added to `roots` and `jobs`. None without room."""
    from outlay.testbeds.reasoner.prm_reader import Job

    books, prompt = reader.books(account.ledger), _prompt(question)
    key = (prompt, *path)
    if (job := jobs.get((id(books), key))) is not None or key in books.reads:
        pieces = () if job is None else job.pieces
        behind = len(key) if job is None else job.behind
        total = _tokens(books, key[:behind], roots) + sum(map(len, pieces))
        try:
            return _Bill(at, books, key, 0, total, 0.0, account.hold([]))
        except BudgetError:  # nothing new to read, but no call is left to ask with
            return None
    behind, read = books.deepest(key)
    root: Job | None = None
    if read is None:
        behind = 1
        if (id(books), key[:1]) not in roots:
            root = Job(books, key[:1], 0, (reader.encode(prompt),), keep=True)
    pieces = tuple(reader.encode(step) for step in key[behind:])
    before = len(root.ids) if root else _tokens(books, key[:behind], roots)
    step_tokens = sum(map(len, pieces))
    new = step_tokens + (before if root else 0)
    flops = float(reader.shape.flops(step_tokens, before))
    if root:
        flops += reader.shape.flops(before)
    try:
        hold = account.hold([], prompt=new, flops_fixed=flops)
    except BudgetError:
        return None
    if root:
        roots[id(books), root.key] = root
    keep = keep_tokens > 0 and path[-1].endswith(question.delimiter)
    jobs[id(books), key] = Job(books, key, behind, pieces, keep)
    return _Bill(at, books, key, new, before + step_tokens - new, flops, hold)


def _tokens(books: Books, key: Key, roots: Mapping[tuple[int, Key], Job]) -> int:
    """Tokens of a path that was read, or of a prompt that will be."""
    if key in books.reads:
        return books.reads[key].tokens
    return len(roots[id(books), key].ids)


def _prompt(question: Question) -> str:
    """What the reasoner was given: its own prompt, or the one that its template would write."""
    prompt = question.prompt
    if isinstance(prompt, str) and prompt.startswith(USER):
        return prompt
    return render_prompt(question.text)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the weights and their card.")],
    chains: Annotated[int, typer.Option(help="Sampled chains to train on.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of problems, samples and order.")] = 0,
    reasoner: Annotated[
        str, typer.Option(help="Name or folder of the checkpoint to sample and to read with.")
    ] = "base",
    threads: Annotated[int, typer.Option(help="CPU threads; part of the recipe.")] = 1,
) -> None:
    """Sample chains, label them, train the head, measure it on held-out chains and save it."""
    from outlay.testbeds.reasoner.prm_train import TrainConfig, make

    prepare(threads)
    config = TrainConfig(chains=chains, seed=seed, reasoner=reasoner)
    make(config, out, typer.echo)
    typer.echo(f"saved to {out}")


if __name__ == "__main__":
    typer.run(main)
