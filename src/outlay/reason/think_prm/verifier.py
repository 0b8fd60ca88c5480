"""ThinkPRM: a verifier that writes a critique of every step before it judges the solution.

"Process Reward Models That Think" (Khalifa et al., arXiv 2504.16828). The model reasons about the
steps, then "Is the solution correct?" is forced and the score is P(yes) / (P(yes) + P(no)). More
compute buys better scores: K chains in parallel (their mean), or R rounds of double-checking.

Where it differs from the paper and its code: labels are scored as they were trained on (" Yes", not
"yes" after a space); the verdict is asked after the closed thinking, as in training; K and R may be
combined; steps get scores of their own, from the chains' decisions (their mean), and the first
error is the one that most chains name; the stop at step n + 1 is right for ten and more steps;
equal requests of one question share one verification.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from outlay.decode.batching import Growth, grow
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.models.base import Account, Branch, Message, Model, Prompt, SamplingParams
from outlay.reason.base import Question
from outlay.reason.think_prm.format import Decision, Layout, LayoutName, layout_of
from outlay.reason.verifiers import ratio

if TYPE_CHECKING:
    from outlay.reason.think_prm.data import Chain
    from outlay.reason.think_prm.train import TrainSettings

UNDECIDED = 0.5  # the score of what a spent budget leaves unjudged
_VERDICT_TOKENS = 4  # sampled where a model has no log-probabilities


@dataclass(frozen=True)
class Judgement:
    """What a verifier found about one solution.

    Args:
        score: probability that all is right.
        steps: a score per step: how likely all is right so far, never rising.
        first_error: index of the first step called wrong, by most chains (ties go to the earlier
            chain); None if there is none.
        chains: the critiques, one per parallel chain.
        valid: whether the first chain decides every step up to the first wrong one, or all.
        sampled: the score is a frequency of sampled verdicts, for want of log-probabilities.
        complete: False where the budget ran out.
    """

    score: float
    steps: tuple[float, ...]
    first_error: int | None
    chains: tuple[str, ...]
    valid: bool = True
    sampled: bool = False
    complete: bool = True


@dataclass
class _Job:
    """One solution being verified: its request, chains and verdicts."""

    steps: tuple[str, ...]
    account: Account
    root: Branch
    stops: SamplingParams
    chains: list[Branch]
    rounds: list[list[str]]
    scores: list[float]
    spent: bool = False


@dataclass(frozen=True)
class ThinkPRM:
    """P(yes) of a model that first critiques every step.

    Args:
        model: the verifier; None loads `checkpoint`.
        checkpoint: a verifier that comes with the package ("reasoner", for single chains of 2 to 6
            operations in the format "short"), used in place of `model`; its layout and lengths are
            set.
        layout: words of request, critique and verdict: "boxed" for real models, "compact" for the
            reasoner's tokenizer.
        chains: K, critiques in parallel; the score is their mean.
        rounds: R, rounds of checking in sequence; each but the first is asked for in other words.
        temperature: of the critiques; None takes 0 for one chain and 0.6 for several.
        tau: decision temperature; large values pull the score to 0.5.
        max_verify_tokens: tokens of critique and verdict, all rounds together.
        decision: text that is forced before the verdict; None takes the layout's.
        labels: verdicts for right and wrong, with the space before them; None takes the layout's.
        number_steps: number the steps in the request; a critique then ends at step n + 1.
        step_scores: "sampled" takes the probability of the word that the critique wrote, the rest
            counting for the other word; "exact" reads the chain again and scores both words.
        seed: of sampled critiques.

    Raises:
        InputError: for values out of range, labels that begin alike, more rounds than triggers, or
            a length beyond the model's window.
        CapabilityError: if the model cannot append text.
    """

    model: Model | None = None
    checkpoint: str = ""
    layout: LayoutName = "boxed"
    chains: int = 1
    rounds: int = 1
    temperature: float | None = None
    tau: float = 1.0
    max_verify_tokens: int = 8192
    decision: str | None = None
    labels: tuple[str, str] | None = None
    number_steps: bool = True
    step_scores: Literal["sampled", "exact"] = "sampled"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.checkpoint:
            self._take_checkpoint()
        layout = layout_of(self.layout)
        if self.chains < 1 or self.rounds < 1:
            raise InputError(f"chains={self.chains}, rounds={self.rounds}; both at least 1")
        if self.rounds > len(layout.triggers) + 1:
            raise InputError(
                f"rounds={self.rounds}; there are {len(layout.triggers)} ways to ask for another, "
                f"so at most {len(layout.triggers) + 1} rounds"
            )
        if self.temperature is not None and not self.temperature >= 0:
            raise InputError(f"temperature={self.temperature}; must be >= 0 (0 is greedy)")
        if self.step_scores not in ("sampled", "exact"):
            raise InputError(f"step_scores={self.step_scores!r}; choose sampled or exact")
        ratio(0.0, 0.0, self.tau)
        if self.decision == "":
            raise InputError("decision is empty; give the question that precedes the verdict")
        self._check_model()
        if self.chains > 1 and self.temperature == 0:
            warnings.warn(
                f"chains={self.chains} at temperature 0 are one chain; only one is made",
                stacklevel=3,
            )

    def _take_checkpoint(self) -> None:
        if self.checkpoint != "reasoner":
            raise InputError(f"checkpoint={self.checkpoint!r}; shipped is: reasoner")
        from outlay.models.local import LocalModel

        object.__setattr__(self, "model", LocalModel.load(shipped_path(), name="think-prm"))
        object.__setattr__(self, "layout", "compact")
        object.__setattr__(self, "max_verify_tokens", min(self.max_verify_tokens, 320))

    def _check_model(self) -> None:
        if self.model is None:
            raise InputError("model is missing; give a model, or checkpoint='reasoner'")
        model = self._judge
        model.capabilities.require("ThinkPRM", "append", model=model.name)
        if not self._reserve() < self.max_verify_tokens < model.context_length:
            raise InputError(
                f"max_verify_tokens={self.max_verify_tokens} does not fit between the verdict's "
                f"{self._reserve()} tokens and the window of {model.name}, "
                f"{model.context_length}; set max_verify_tokens"
            )
        labels = self._labels
        if self._alike(labels):
            raise InputError(
                f"labels={labels} begin with the same token; choose words that differ at once"
            )
        if not self._reads:
            warnings.warn(
                f"{model.name} has no log-probabilities of given text: scores are frequencies of "
                "sampled verdicts, so use several chains",
                stacklevel=4,
            )

    @classmethod
    def load(cls, name: str = "reasoner", *, chains: int = 1) -> ThinkPRM:
        """A verifier that comes with the package, or one saved in a folder.

        Args:
            name: "reasoner", or the folder of a verifier trained in the "boxed" layout.
            chains: critiques in parallel.
        """
        if name == "reasoner":
            return cls(checkpoint=name, chains=chains)
        from outlay.models.local import LocalModel

        model = LocalModel.load(name)
        room = min(8192, model.context_length * 3 // 4)
        return cls(model, chains=chains, max_verify_tokens=room)

    def fit(
        self,
        chains: Sequence[Chain],
        settings: TrainSettings | None = None,
        out: str | Path | None = None,
    ) -> ThinkPRM:
        """The same verifier with weights trained on `chains`; this one stays as it is.

        Args:
            chains: kept by a `ChainFilter`.
            settings: of the training; None takes the paper's.
            out: folder for the weights (safetensors) and the tokenizer; None saves nothing.

        Raises:
            CapabilityError: for a model that is not local.
            DependencyError: without trl and datasets.
        """
        from outlay.models.local import LocalModel
        from outlay.reason.think_prm.train import examples, fine_tune

        model = self._judge
        if not isinstance(model, LocalModel):
            raise CapabilityError(f"{model.name} is not a local model, so it cannot be trained")
        rows = examples(chains, self._layout, model.tokenizer, number_steps=self.number_steps)
        network = fine_tune(copy.deepcopy(model.model), model.tokenizer, rows, settings, out)
        trained = LocalModel(network, model.tokenizer, model.name)
        return replace(self, model=trained, checkpoint="")

    # -- the protocol -----------------------------------------------------------------------------

    def score(
        self,
        questions: Sequence[Question],
        paths: Sequence[Sequence[str]],
        known: Sequence[Sequence[float]],
        *,
        accounts: Sequence[Account],
    ) -> list[list[float]]:
        """A score for every step without one; the last step's is the verdict on the whole path.

        A path whose steps all have scores costs nothing. Where a budget is spent, the remaining
        steps stay at 0.5.
        """
        rows = [list(scores) for scores in known]
        due = [i for i, path in enumerate(paths) if len(rows[i]) < len(path)]
        found = self.judge(
            [questions[i].text for i in due],
            [paths[i] for i in due],
            accounts=[accounts[i] for i in due],
        )
        for i, judgement in zip(due, found, strict=True):
            whole = [*judgement.steps[:-1], judgement.score]
            rows[i] += whole[len(rows[i]) :]
        return rows

    def judge(
        self,
        questions: Sequence[str],
        solutions: Sequence[Sequence[str]],
        *,
        accounts: Sequence[Account] | None = None,
    ) -> list[Judgement]:
        """Critiques and scores of solutions; all are generated in shared batches.

        Args:
            questions: one per solution.
            solutions: cut into steps.
            accounts: books of each solution, in the role "verifier"; None opens new ones.

        Raises:
            InputError: for a solution without steps, an empty step, or unequal numbers of them.
        """
        if accounts is None:
            accounts = [Account(stage="think", role="verifier") for _ in solutions]
        if not len(questions) == len(solutions) == len(accounts):
            raise InputError(
                f"{len(questions)} questions, {len(solutions)} solutions, {len(accounts)} "
                "accounts; give one of each per solution"
            )
        place: dict[tuple[int, str, tuple[str, ...]], int] = {}
        jobs: list[_Job | None] = []
        at: list[int] = []
        for question, solution, account in zip(questions, solutions, accounts, strict=True):
            key = (id(account.ledger), question, tuple(solution))
            if key not in place:
                place[key] = len(jobs)
                booked = account.at(role="verifier")
                jobs.append(self._open(question, tuple(solution), booked))
            at.append(place[key])
        live = [job for job in jobs if job is not None]
        self._think(live)
        done = {id(job): self._decide(job) for job in live}
        return [
            _unjudged(len(solution)) if (job := jobs[i]) is None else done[id(job)]
            for i, solution in zip(at, solutions, strict=True)
        ]

    # -- the parts --------------------------------------------------------------------------------

    @property
    def _judge(self) -> Model:
        assert self.model is not None
        return self.model

    @property
    def _reads(self) -> bool:
        """Whether the model scores given text, and not only what it samples."""
        known = self._judge.capabilities
        return known.logprobs and known.prompt_logprobs

    @property
    def _layout(self) -> Layout:
        return layout_of(self.layout)

    @property
    def _labels(self) -> tuple[str, str]:
        """The verdicts; without the space before them where it is a token of its own."""
        given = self.labels or self._layout.labels
        return (given[0].lstrip(), given[1].lstrip()) if self._spaced(given) else given

    @property
    def _ask(self) -> str:
        """The forced question; with the space after it where the verdicts do not bring it."""
        given = self.labels or self._layout.labels
        return (self.decision or self._layout.ask) + (" " if self._spaced(given) else "")

    def _spaced(self, labels: tuple[str, str]) -> bool:
        return all(label.startswith(" ") for label in labels) and self._alike(labels)

    def _alike(self, labels: tuple[str, str]) -> bool:
        """Whether two labels begin with the same token, or one text with the other."""
        encode = getattr(self._judge, "encode", None)
        if encode is not None:
            return bool(encode(labels[0])[:1] == encode(labels[1])[:1])
        first, second = (label.strip() for label in labels)
        return first.startswith(second) or second.startswith(first)

    @property
    def _heat(self) -> float:
        if self.temperature is not None:
            return self.temperature
        return 0.6 if self.chains > 1 else 0.0

    def _reserve(self) -> int:
        """Tokens kept for what is forced, verdict included."""
        layout, model = self._layout, self._judge
        extra = [layout.think_close + self._ask + max(self._labels, key=len)]
        extra += [f"\n{trigger}\n" for trigger in layout.triggers[: self.rounds - 1]]
        return sum(model.count(text) for text in extra) + _VERDICT_TOKENS * self.rounds

    def _open(self, question: str, steps: tuple[str, ...], account: Account) -> _Job | None:
        layout, model = self._layout, self._judge
        text = layout.render(question, steps, self.number_steps)
        prompt: Prompt = text + "\n"
        rendered = ""
        if model.takes_chat:
            messages = [Message(role="user", content=text)]
            prompt, rendered = messages, _rendered(model, messages)
        try:
            root = model.open(prompt, layout.prefix(rendered), account=account)
        except BudgetError:
            return None
        room = model.context_length - len(root.path()) - self._reserve()
        if room < 1:
            model.release(root)
            raise InputError(
                f"the request has {len(root.path())} tokens, which leaves no room for a critique "
                f"in the window of {model.name}, {model.context_length}; verify shorter solutions"
            )
        stop = [layout.think_close.strip(), self._ask.strip() or self._ask]
        if self.number_steps:
            stop.append(layout.next_step.format(number=len(steps) + 1))
        sampling = SamplingParams(
            max_tokens=min(self.max_verify_tokens - self._reserve(), room),
            temperature=self._heat,
            stop=tuple(dict.fromkeys(stop)),
            stop_token_ids=tuple(sorted(getattr(model, "eos_ids", ()))),
            seed=self.seed,
            include_stop=False,
            logprobs=model.capabilities.logprobs,
        )
        return _Job(steps, account, root, sampling, [], [], [])

    def _think(self, jobs: Sequence[_Job]) -> None:
        """Grow the chains of all jobs, round by round, in shared batches."""
        width = 1 if self._heat == 0 else self.chains
        for number in range(self.rounds):
            growths, alive = [], []
            for job in jobs:
                if job.spent:
                    continue
                try:
                    branches = self._again(job, number) if number else [job.root]
                except BudgetError:
                    job.spent = True
                    continue
                sampling = replace(job.stops, max_tokens=self._room(job))
                growths.append(Growth(branches, sampling, 1 if number else width, job.account))
                alive.append(job)
            for job, grown in zip(alive, grow(self._judge, growths), strict=True):
                if isinstance(grown, BudgetError):
                    job.spent = True
                    continue
                job.chains = [child for row in grown for child in row]
                job.rounds.append([chain.text for chain in job.chains])

    def _again(self, job: _Job, number: int) -> list[Branch]:
        """Every chain, asked for another round."""
        text = f"\n{self._layout.triggers[number - 1]}\n"
        return [self._judge.append(chain, text, account=job.account) for chain in job.chains]

    def _room(self, job: _Job) -> int:
        """Tokens that every chain of a job may still sample."""
        used = max(
            (sum(len(b.token_ids) for b in _own(chain, job)) for chain in job.chains), default=0
        )
        return max(0, job.stops.max_tokens - used)

    def _decide(self, job: _Job) -> Judgement:
        layout, model = self._layout, self._judge
        if not job.chains:
            model.release(job.root)
            return _unjudged(len(job.steps))
        scores: list[float] = []
        try:
            for chain in job.chains:
                asked = model.append(chain, layout.think_close + self._ask, account=job.account)
                scores += self._verdict(asked, job)
        except BudgetError:
            job.spent = True
        steps, first_error, valid = self._votes(job)
        score = math.fsum(scores) / len(scores) if scores else UNDECIDED
        texts = tuple("\n".join(parts) for parts in zip(*job.rounds, strict=True))
        for chain in job.chains:
            model.release(chain)
        model.release(job.root)
        return Judgement(score, steps, first_error, texts, valid, not self._reads, not job.spent)

    def _verdict(self, asked: Branch, job: _Job) -> list[float]:
        """P(yes) after the forced question, or a sampled verdict; none if it cannot be read."""
        model, (yes, no) = self._judge, self._labels
        if self._reads:
            rows = model.score(asked, (yes, no), account=job.account)
            means = [math.fsum(row) / len(row) for row in rows]
            return [ratio(means[0], means[1], self.tau)]
        want = SamplingParams(
            max_tokens=_VERDICT_TOKENS, temperature=self._heat, seed=self.seed, stop=("\n",)
        )
        [[child]] = model.extend([asked], want, account=job.account)
        said = child.text.strip().lower()
        return [float(said.startswith(yes.strip().lower()))] if said else []

    def _votes(self, job: _Job) -> tuple[tuple[float, ...], int | None, bool]:
        """Mean scores of the steps, the first error of most chains, and whether the first is valid.

        A chain that decides nothing up to the end has no say in the vote where another one does.
        """
        found = [self._steps(job, chain) for chain in job.chains]
        rows = [row for row, _, _ in found]
        means = tuple(math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
        heard = [first for _, first, valid in found if valid] or [first for _, first, _ in found]
        winner = max(heard, key=heard.count)  # the earliest of those named most often
        return means, winner, found[0][2]

    def _steps(self, job: _Job, chain: Branch) -> tuple[tuple[float, ...], int | None, bool]:
        """Scores of the steps from a chain's last round, running minimum."""
        count = len(job.steps)
        found = self._layout.decisions(chain.text)[:count]
        first = next((i for i, d in enumerate(found) if d.label == "bad"), None)
        judged = found if first is None else found[: first + 1]
        valid = first is not None or len(found) == count
        local = self._local(job, chain, judged)
        rows, low = [], 1.0
        for i in range(count):
            if i < len(local):
                low = min(low, local[i])
            elif first is None:
                low = min(low, UNDECIDED)
            rows.append(low)
        return tuple(rows), first, valid

    def _local(self, job: _Job, chain: Branch, found: Sequence[Decision]) -> list[float]:
        """P(correct) / (P(correct) + P(incorrect)) of every decision."""
        decode = _decoder(self._judge)
        if not chain.logprobs or decode is None or len(chain.token_ids) > len(chain.logprobs):
            return [float(decision.label == "good") for decision in found]
        spans = [_tokens(decode, chain, decision) for decision in found]
        if self.step_scores == "exact" and self._reads:
            try:
                return self._exact(job, chain, spans)
            except BudgetError:  # the words that were written have scores without a reading
                job.spent = True
        scores = []
        for decision, (start, end) in zip(found, spans, strict=True):
            written = math.exp(math.fsum(chain.logprobs[start:end]) / max(1, end - start))
            scores.append(written if decision.label == "good" else 1 - written)
        return [min(1.0, max(0.0, score)) for score in scores]

    def _exact(self, job: _Job, chain: Branch, spans: Sequence[tuple[int, int]]) -> list[float]:
        """Both words scored at every decision, along one more reading of the chain."""
        model, scores = self._judge, []
        at, done = chain.parent or job.root, 0
        for start, _ in spans:
            if start > done:
                at = model.append(at, chain.token_ids[done:start], account=job.account)
                done = start
            good, bad = model.score(at, self._layout.words, account=job.account)
            scores.append(ratio(math.fsum(good) / len(good), math.fsum(bad) / len(bad)))
        return scores


def _own(chain: Branch, job: _Job) -> list[Branch]:
    """The sampled parts of a chain: what was forced has room of its own."""
    return [b for b in chain.lineage()[job.root.depth + 1 :] if b.finish != "forced"]


def shipped_path() -> Path:
    """Folder of the verifier that comes with the package."""
    import outlay.testbeds.reasoner as testbed

    return Path(str(testbed.__file__)).parent / "think_prm"


def _unjudged(steps: int) -> Judgement:
    return Judgement(UNDECIDED, (UNDECIDED,) * steps, None, (), valid=False, complete=False)


def _rendered(model: Model, messages: Sequence[Message]) -> str:
    """A chat as the model's template writes it; "" where only its server knows the template."""
    render = getattr(model, "render", None)
    tokenizer = getattr(model, "tokenizer", None)
    if render is None and getattr(tokenizer, "template", False):  # an endpoint's
        render = tokenizer.render  # type: ignore[union-attr]
    return "" if render is None else str(render(messages))


def _decoder(model: Model) -> Callable[[Sequence[int]], str] | None:
    """What turns the model's token ids into text; None where they are not known."""
    decode: Any = getattr(model, "decode", None)
    tokenizer = getattr(model, "tokenizer", None)
    if decode is None and getattr(tokenizer, "present", False):  # an endpoint's
        decode = tokenizer.decode  # type: ignore[union-attr]
    return None if decode is None else lambda ids: str(decode(ids))


def _tokens(
    decode: Callable[[Sequence[int]], str], chain: Branch, decision: Decision
) -> tuple[int, int]:
    """The tokens of a chain that hold a decision's word."""
    ids = list(chain.token_ids)

    def first(position: int) -> int:
        """Fewest tokens whose text is at least `position` characters long."""
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if len(decode(ids[:middle])) >= position:
                high = middle
            else:
                low = middle + 1
        return low

    return first(decision.start + 1) - 1, first(decision.end)
