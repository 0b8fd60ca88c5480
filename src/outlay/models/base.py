"""What produces tokens: the one protocol of local, embedded and remote models.

A *prompt* is raw text to continue (`str`), a chat (`Sequence[Message]`, rendered with the model's
own chat template) or token ids. A *branch* is an immutable piece of a token tree: `open` prefills a
prompt once, `extend` samples children, `append` forces text, and rolling back is keeping the
parent. Every call books its tokens in an `Account`: a ledger, the place in it, and the meter of the
budget that they are taken from. Room is reserved before tokens are sampled and settled after.

Light by intent: no torch, no transformers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import numpy as np
import numpy.typing as npt

from outlay.budget import Budget, Meter, Reservation, split_even
from outlay.errors import BudgetError, CapabilityError, InputError
from outlay.ledger import Ledger, Role, Stage

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

Finish = Literal["stop", "eos", "length", "budget", "forced", "open"]


class Message(TypedDict):
    """One chat message."""

    role: str
    content: str


Prompt = str | Sequence[Message] | Sequence[int]


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; a method checks its needs when it is handed a model."""

    fork_kv: bool = False
    logprobs: bool = False
    prompt_logprobs: bool = False
    hidden_states: bool = False
    seed: bool = False
    stop: bool = False
    token_prompts: bool = False
    n: bool = False
    append: bool = False
    min_tokens: bool = False
    logits_processors: bool = False

    def require(self, method: str, *needs: str, model: str = "this model") -> None:
        """Raise `CapabilityError` naming every one of `needs` that is missing."""
        missing = [need for need in needs if not getattr(self, need)]
        if missing:
            raise CapabilityError(
                f"{method} needs {', '.join(missing)}, which {model} does not offer; "
                "use a local model, or a server that offers it"
            )


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled.

    Args:
        max_tokens: at most this many sampled tokens per branch.
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        top_k: 0 is off.
        min_tokens: end-of-text and stop tokens are masked until this many were sampled.
        stop: strings that end the branch; matched on decoded text, the completing token is kept.
        stop_token_ids: token ids that end the branch.
        seed: of the branch's own random stream; the same seed and path give the same tokens,
            whatever else is in the batch.
        include_stop: keep the stop in the branch. If False, the tokens that overlap it are dropped
            from the branch (they were sampled, so the ledger counts them).
        ignore_eos: end-of-text is masked, so that the branch goes on.
        logprobs: keep the log-probability of every sampled token (under the unfiltered model).

    Raises:
        InputError: for values out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0
    include_stop: bool = True
    ignore_eos: bool = False
    logprobs: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 0:
            raise InputError(f"max_tokens={self.max_tokens}; must be >= 0")
        if not self.temperature >= 0:
            raise InputError(f"temperature={self.temperature}; must be >= 0 (0 is greedy)")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p}; must be in (0, 1]")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k}; must be >= 0 (0 is off)")
        if self.min_tokens < 0:
            raise InputError(f"min_tokens={self.min_tokens}; must be >= 0")
        if any(not text for text in self.stop):
            raise InputError("stop contains an empty string, which would stop at once; remove it")


@dataclass(frozen=True)
class Trail:
    """Which hidden states a branch keeps: means over segments of what is written after the prompt.

    Args:
        k: tokens of a segment; the last one may be shorter.
        layers: numbers of decoder layers (from 0), in ascending order, or "all", or "last_third".

    Raises:
        InputError: for k < 1, or layers that are negative, repeated or none.
    """

    k: int = 500
    layers: tuple[int, ...] | Literal["all", "last_third"] = "all"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"k={self.k}; a segment has at least 1 token")
        if isinstance(self.layers, str):
            if self.layers not in ("all", "last_third"):
                raise InputError(f"layers={self.layers!r}; choose all, last_third, or numbers")
        elif not self.layers or min(self.layers) < 0 or sorted({*self.layers}) != [*self.layers]:
            raise InputError(f"layers={self.layers}; give different numbers from 0, ascending")


@dataclass(frozen=True)
class Hold:
    """Room granted to one call: token caps per branch and a deadline."""

    limits: tuple[int, ...]
    truncated: bool
    deadline: float | None = None
    reservation: Reservation | None = None
    fixed: int = 0
    counted: bool = False


@dataclass(frozen=True)
class Account:
    """Where a call's tokens are booked, and whose budget they are taken from."""

    ledger: Ledger = field(default_factory=Ledger)
    meter: Meter | None = None
    stage: Stage = "answer"
    role: Role = "target"
    method: str = ""

    @classmethod
    def open(cls, budget: Budget | None = None, *, method: str = "") -> Account:
        """A fresh ledger under a fresh meter of `budget`."""
        return cls(meter=None if budget is None else budget.meter(), method=method)

    def at(
        self, stage: Stage | None = None, role: Role | None = None, method: str | None = None
    ) -> Account:
        """The same ledger and meter at another place."""
        return replace(
            self,
            stage=self.stage if stage is None else stage,
            role=self.role if role is None else role,
            method=self.method if method is None else method,
        )

    def hold(
        self,
        wants: Sequence[int],
        *,
        prompt: int = 0,
        forced: int = 0,
        flops_fixed: float = 0.0,
        flops_per_token: float = 0.0,
        usd_fixed: float = 0.0,
        usd_per_token: float = 0.0,
    ) -> Hold:
        """Reserve room for one call that may sample `wants[i]` tokens on branch i.

        When less than the sum is left, the room is shared fairly: no branch is cut below an even
        share while another gets more. `prompt` and `forced` tokens count only under counts="all".

        Raises:
            BudgetError: if nothing is left although something is wanted.
        """
        meter = self.meter
        if meter is None:
            return Hold(tuple(wants), truncated=False)
        budget = meter.budget
        counts = budget.counts
        in_stage = counts != "think" or self.stage == "think"
        counted = budget.tokens is not None and not budget.shapes_prompt and in_stage
        fixed = prompt + forced if counts == "all" else 0
        caps = list(wants)
        if counted:
            left = meter.remaining(self.stage)
            if left is not None:
                caps = _share(list(wants), max(0, left - fixed))
        room = sum(caps)
        for limit, used, per_token in (
            (budget.flops, meter.flops + flops_fixed, flops_per_token),
            (budget.usd, meter.usd + usd_fixed, usd_per_token),
        ):
            if limit is not None and per_token > 0:
                caps = _share(caps, max(0, int((limit - used) / per_token)))
        total = sum(caps)
        if room and not total:
            raise BudgetError(
                f"budget exhausted: {budget.label()} leaves no room for a single token; "
                "raise flops= or usd="
            )
        least = fixed + (1 if any(wants) else 0)
        reservation = meter.reserve(
            total + fixed if counted else 0,
            stage=self.stage,
            least=least if counted else 0,
            flops=flops_fixed + flops_per_token * total,
            usd=usd_fixed + usd_per_token * total,
        )
        if counted:  # another thread may have reserved since `remaining` was read
            caps = _share(caps, reservation.tokens - fixed)
        return Hold(
            limits=tuple(caps),
            truncated=caps != list(wants),
            deadline=meter.deadline,
            reservation=reservation,
            fixed=fixed,
            counted=counted,
        )

    def settle(self, hold: Hold, generated: int, *, flops: float = 0.0, usd: float = 0.0) -> None:
        """Settle a `hold` with what was really sampled."""
        if self.meter is not None and hold.reservation is not None:
            spent = generated + hold.fixed if hold.counted else 0
            self.meter.settle(hold.reservation, spent, flops=flops, usd=usd)


def _share(wants: list[int], room: int) -> list[int]:
    """Cut `wants` to sum to at most `room`, lowering the largest first (max-min fairness)."""
    if sum(wants) <= room:
        return wants
    caps = [0] * len(wants)
    open_ = sorted(range(len(wants)), key=lambda i: wants[i])
    while open_:
        shares = split_even(room, len(open_))
        first = open_[0]
        if wants[first] > shares[-1]:  # everyone left wants at least an even share
            for index, share in zip(sorted(open_), shares, strict=True):
                caps[index] = share
            break
        caps[first] = wants[first]
        room -= wants[first]
        open_.pop(0)
    return caps


@dataclass(frozen=True, eq=False)
class Branch:
    """One immutable segment of a token tree; its ancestors hold what came before.

    Args:
        id: unique within the process; the ledger's name for this branch.
        parent: the branch that this one continues, None for a prompt.
        token_ids: tokens of this segment only; `path()` gives the whole sequence.
        text: decoded text of this segment.
        logprobs: log-probability per sampled token where they were asked for.
        finish: why the segment ended; "open" for a prompt.
        depth: number of ancestors.
        handle: the backend's own state (KV of this segment); None after `release`.
    """

    id: str
    parent: Branch | None
    token_ids: tuple[int, ...]
    text: str
    finish: Finish
    logprobs: tuple[float, ...] | None = None
    depth: int = 0
    handle: Any = field(default=None, repr=False)

    def lineage(self) -> list[Branch]:
        """From the root prompt down to this branch."""
        chain: list[Branch] = []
        branch: Branch | None = self
        while branch is not None:
            chain.append(branch)
            branch = branch.parent
        return chain[::-1]

    def path(self) -> list[int]:
        """Token ids from the root to the end of this branch."""
        return [token for branch in self.lineage() for token in branch.token_ids]

    def completion(self) -> str:
        """Text after the prompt: sampled and forced segments of the path, joined."""
        return "".join(branch.text for branch in self.lineage()[1:])

    def completion_ids(self) -> list[int]:
        """Token ids after the prompt."""
        return [token for branch in self.lineage()[1:] for token in branch.token_ids]

    def ids(self) -> list[str]:
        """Ids of this branch and its ancestors, for `Ledger.deliver`."""
        return [branch.id for branch in self.lineage()]


@dataclass(frozen=True)
class Gauges:
    """What a clock and the cache said about one call; None where it was not measured.

    Args:
        ttft: seconds from the call to its first token.
        tbt: mean seconds between tokens.
        kv_bytes: peak bytes of keys and values.
    """

    ttft: float | None = None
    tbt: float | None = None
    kv_bytes: float | None = None


@dataclass(frozen=True)
class Generation:
    """What one call produced."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: Finish
    ledger: Ledger
    logprobs: tuple[float, ...] | None = None
    gauges: Gauges = Gauges()


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed generation; the last one carries the whole `generation`."""

    text: str
    generation: Generation | None = None


@dataclass(frozen=True)
class TokenLosses:
    """Per-token losses of one text, T tokens.

    Args:
        token_ids: (T,) ids.
        starts: (T,) first character of each token in the text.
        ends: (T,) character after each token.
        nll: (T,) negative log-likelihood in nats of each token given all before it; NaN where it
            was not scored (a first token without context, or before `keep_from`).
    """

    token_ids: IntArray
    starts: IntArray
    ends: IntArray
    nll: FloatArray

    def __len__(self) -> int:
        return len(self.token_ids)


def first_characters(texts: Sequence[str], keep_from: Sequence[int] | None) -> list[int]:
    """Where the losses of each text begin: `keep_from`, or everywhere at 0.

    Raises:
        InputError: unless `keep_from` has one entry a text.
    """
    starts = [0] * len(texts) if keep_from is None else list(keep_from)
    if len(starts) != len(texts):
        raise InputError(f"keep_from has {len(starts)} entries for {len(texts)} texts")
    return starts


@runtime_checkable
class Scorer(Protocol):
    """A model that can say how likely given text is."""

    name: str
    context_length: int

    def count(self, text: str) -> int:
        """Tokens of `text`, without added special tokens."""
        ...

    def losses(
        self,
        texts: Sequence[str],
        *,
        keep_from: Sequence[int] | None = None,
        account: Account | None = None,
    ) -> list[TokenLosses]:
        """Losses of every text; with `keep_from[i]`, only of tokens that end after character
        `keep_from[i]` of text i (cheaper: the vocabulary projection is skipped before it).

        Raises:
            InputError: if a text is longer than the model's window.
        """
        ...


@runtime_checkable
class Sees(Protocol):
    """A model that answers questions about images."""

    name: str
    decoder_layers: int

    def visual_tokens(self, image: Any) -> int:
        """Visual tokens of one image before anything is dropped."""
        ...

    def see(
        self,
        images: Sequence[Any],
        question: str,
        sampling: SamplingParams,
        *,
        pruner: Any = None,
        account: Account | None = None,
    ) -> Generation:
        """Answer a question about images.

        Args:
            images: (H, W, 3) arrays of bytes.
            question: what is asked.
            sampling: temperature and so on.
            pruner: a vision method, called with the model underneath; None for none.
            account: where tokens are booked: visual ones under the stage "vision".

        Raises:
            InputError: for images that the model does not take.
        """
        ...


@runtime_checkable
class Model(Protocol):
    """Anything that generates: local, embedded, or behind an endpoint."""

    name: str
    context_length: int
    capabilities: Capabilities

    @property
    def takes_chat(self) -> bool:
        """True if it takes messages (else text to continue)."""
        ...

    def count(self, text: str) -> int:
        """Tokens of `text`, without added special tokens."""
        ...

    def generate(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = ...,
        *,
        account: Account | None = None,
    ) -> Generation:
        """Continue one prompt within `budget` (or the account's own meter)."""
        ...

    def stream(
        self,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = ...,
        *,
        account: Account | None = None,
    ) -> Iterator[Chunk]:
        """As `generate`, piece by piece; the last chunk carries the `Generation`."""
        ...

    def open(
        self, prompt: Prompt, assistant_prefix: str = "", *, account: Account | None = None
    ) -> Branch:
        """Start a tree: prefill the prompt once."""
        ...

    def extend(
        self,
        branches: Sequence[Branch],
        sampling: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        *,
        account: Account | None = None,
    ) -> list[list[Branch]]:
        """Sample n children of every branch in one batch; result [branch][child]."""
        ...

    def append(
        self, branch: Branch, tokens: str | Sequence[int], *, account: Account | None = None
    ) -> Branch:
        """A child with forced tokens: no sampling."""
        ...

    def score(
        self,
        branch: Branch,
        continuations: Sequence[str | Sequence[int]],
        *,
        account: Account | None = None,
    ) -> list[tuple[float, ...]]:
        """Log-probability of every token of each continuation of `branch`."""
        ...

    def release(self, branch: Branch) -> None:
        """Drop the backend's state of `branch`; extending it afterwards is an error."""
        ...


@runtime_checkable
class LatentModel(Model, Protocol):
    """A model that shows hidden states (capability `hidden_states`)."""

    def extend(
        self,
        branches: Sequence[Branch],
        sampling: SamplingParams | Sequence[SamplingParams],
        n: int = 1,
        *,
        account: Account | None = None,
        trail: Trail | None = None,
    ) -> list[list[Branch]]:
        """As `Model.extend`; with `trail`, the children keep their hidden states' means."""
        ...

    def append(
        self,
        branch: Branch,
        tokens: str | Sequence[int],
        *,
        account: Account | None = None,
        trail: Trail | None = None,
    ) -> Branch:
        """As `Model.append`; without `trail`, a parent's trail goes on."""
        ...

    def hidden(
        self, branches: Sequence[Branch], *, account: Account | None = None
    ) -> list[Float32Array]:
        """(N, L, C) means of the N segments on each branch's path, of L layers."""
        ...


def elapsed(start: float) -> float:
    """Seconds since `start`, a `time.perf_counter()` reading."""
    return time.perf_counter() - start
