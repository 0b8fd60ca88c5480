"""SwiReasoning: think softly while unsure, commit to tokens once sure, and answer in time.

"SwiReasoning: Switch-Thinking in Latent and Explicit for Pareto-Superior Reasoning LLMs"
(arXiv 2510.05069). In latent mode the probability-weighted mean embedding is fed in place of the
sampled token; a fall of the next token's entropy ends latent mode, a rise after at least W steps
brings it back. Every switch to explicit mode counts: half of C_max of them and more inject the end
of thinking, more than C_max the beginning of the answer. No training.

Differences from the published code:
- the line break that is mixed in at the first step is the newline (`newline_token="official"` takes
  the entry of a backslash and an n, as the code does);
- a sampled end of thinking ends latent mode at once (see `controller`);
- `c_max` is the paper's; the code's knob is half of it (`max_switch_count`);
- generated tokens are counted by their ids, injected ones as forced, and a budget's stage "think"
  closes the thinking by the termination signal;
- `top_k_soft`, `budget_includes_prefix` and `lock_on_injected` are ours.

What is shown as thinking in latent mode is the sampled shadow of what was fed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from outlay.budget import Budget
from outlay.decode.base import ThinkResult
from outlay.decode.swireasoning.controller import Decision, Mode
from outlay.errors import BudgetError, InputError
from outlay.models.base import Account, Model, Prompt, SamplingParams

if TYPE_CHECKING:
    from outlay.cache.base import CacheMethod

Formulas = Literal["auto", "none"] | tuple[str, ...]
MOST_STEPS = 2**20

_GREEDY = SamplingParams()


@dataclass(frozen=True)
class SwiResult(ThinkResult):
    """A `ThinkResult` with the switches behind it.

    Args:
        switches: C, from latent to explicit.
        soft_steps: steps whose successor was fed a soft embedding.
        trace: every step's decision; () without `trace`.
    """

    switches: int = 0
    soft_steps: int = 0
    trace: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class SwiReasoning:
    """Switch between latent and explicit thinking.

    The paper samples at temperature 0.6, top-p 0.95, top-k 20; sampling is given to `generate`.

    Args:
        alpha0: weight of the soft embedding when latent mode is entered, against the opening think
            marker; grows to 1 with the steps. The paper chooses 0.1 to 1 by model and task.
        beta0: the same when latent mode is left, against the closing marker.
        window: W, least steps of an explicit block. The default suits traces of thousands of
            tokens: with traces shorter than W there is at most one switch.
        c_max: C_max, the paper's limit of switches; None for no limit.
        max_switch_count: the published code's knob, half of `c_max`; give one of the two.
        answer_budget: B, most tokens from the termination signal on.
        convergence_text: injected from C_max / 2 switches on; "</think>" in it stands for the
            model's own marker.
        termination_text: injected beyond C_max switches.
        math_tokens: fed as they are in latent mode too. "auto": digits, letters, operators,
            brackets and LaTeX commands, as published (single letters and digits are among them);
            "none"; or texts, whose pieces are meant.
        think_token, end_think_token: the markers, as text or token id; None detects them.
        newline_token: mixed in at the first step: "auto" (the newline), "official", "none" or text.
        start_mode: "latent", or "explicit".
        top_k_soft: restrict a mean embedding to the k likeliest tokens; None takes all.
        budget_includes_prefix: B counts the injected tokens, too.
        lock_on_injected: an injected end of thinking ends latent mode for good, as a sampled one
            does. False is the published behaviour; True is the safer choice.
        trace: keep every step's decision.

    Raises:
        InputError: for values out of range.
        BudgetError: for an answer budget below 1.
    """

    alpha0: float = 1.0
    beta0: float = 0.7
    window: int = 512
    c_max: int | None = None
    max_switch_count: int | None = None
    answer_budget: int = 32
    convergence_text: str = "</think>"
    termination_text: str = "</think>\n\nThe final answer is"
    math_tokens: Formulas = "auto"
    think_token: str | int | None = None
    end_think_token: str | int | None = None
    newline_token: str = "auto"
    start_mode: Mode = "latent"
    top_k_soft: int | None = None
    budget_includes_prefix: bool = True
    lock_on_injected: bool = False
    trace: bool = True

    def __post_init__(self) -> None:
        for name in ("alpha0", "beta0"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name}={value}; must be between 0 and 1")
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 0:
            raise InputError(f"window={self.window}; must be a whole number >= 0")
        for name in ("c_max", "max_switch_count", "top_k_soft"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise InputError(f"{name}={value}; must be a whole number >= 1, or None")
        if self.c_max is not None and self.max_switch_count is not None:
            raise InputError(
                f"c_max={self.c_max} and max_switch_count={self.max_switch_count}: the second is "
                "half of the first; give one of them"
            )
        if self.answer_budget < 1:
            raise BudgetError(f"answer_budget={self.answer_budget}; must be at least 1")
        if self.start_mode not in get_args(Mode):
            raise InputError(f"start_mode={self.start_mode!r}; choose latent or explicit")
        if isinstance(self.math_tokens, str) and self.math_tokens not in ("auto", "none"):
            raise InputError(
                f"math_tokens={self.math_tokens!r}; choose auto, none, or give a list of texts"
            )
        if not self.newline_token:
            raise InputError("newline_token is empty; choose auto, official, none, or give text")
        if (self.think_token is None) != (self.end_think_token is None):
            raise InputError(
                "give both think_token= and end_think_token=, or neither to detect them"
            )

    @property
    def limit(self) -> int | None:
        """C_max, by whichever knob it was given."""
        return self.c_max if self.max_switch_count is None else 2 * self.max_switch_count

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> SwiResult:
        """Think and answer within the budget.

        Args:
            model: local or embedded.
            prompt: raw text, a chat or token ids; thinking is opened unless the prompt does it.
            budget: bounds all sampled tokens; a stage "think", or counts="think", bounds the
                thinking, which is then closed by the termination signal.
            sampling: temperature, top-p, top-k and `max_tokens`, T; stop strings and token ids
                apply to the answer.
            account: where tokens are booked; its meter governs, `budget` can only tighten it.

        Raises:
            CapabilityError: for an endpoint, or a model that takes no embeddings.
            InputError: for markers that are not one token each, or text that the tokenizer cannot
                write.
            BudgetError: if the budget leaves nothing, or `answer_budget` does not hold the text
                that opens the answer.
            ModelError: for logits that are not finite.
        """
        accounts = None if account is None else [account]
        return self.generate_many(model, [prompt], budget, sampling, accounts=accounts)[0]

    def generate_many(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        budget: Budget | None = None,
        sampling: SamplingParams | Sequence[SamplingParams] = _GREEDY,
        *,
        accounts: Sequence[Account] | None = None,
    ) -> list[SwiResult]:
        """`generate` for every prompt in one batch; the same results.

        Raises:
            InputError: unless sampling and accounts match the prompts; and as `generate` does.
        """
        from outlay.decode.swireasoning.decoding import decode_many

        return decode_many(self, model, prompts, budget, sampling, accounts=accounts)

    def over(self, cache: CacheMethod) -> CachedSwi:
        """This decoder, with prompts read by a cache method."""
        return CachedSwi(self, cache)


@dataclass(frozen=True)
class CachedSwi:
    """SwiReasoning over a cache method.

    Args:
        method: how to decode.
        cache: reads the prompt.
    """

    method: SwiReasoning
    cache: CacheMethod

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> SwiResult:
        """As `SwiReasoning.generate`."""
        from outlay.decode.swireasoning.decoding import decode_many

        accounts = None if account is None else [account]
        return decode_many(
            self.method, model, [prompt], budget, sampling, accounts=accounts, cache=self.cache
        )[0]


@dataclass(frozen=True)
class SoftThinking:
    """The baseline that never switches: soft until the model ends its thinking.

    Soft Thinking (arXiv 2505.15778) without its cold stop.

    Args:
        top_k_soft, math_tokens, think_token, end_think_token, trace: as for `SwiReasoning`.

    Raises:
        InputError: as `SwiReasoning` does.
    """

    top_k_soft: int | None = None
    math_tokens: Formulas = "none"
    think_token: str | int | None = None
    end_think_token: str | int | None = None
    trace: bool = True

    def __post_init__(self) -> None:
        self.method()

    def method(self) -> SwiReasoning:
        """The knobs as SwiReasoning's."""
        return SwiReasoning(
            top_k_soft=self.top_k_soft,
            math_tokens=self.math_tokens,
            think_token=self.think_token,
            end_think_token=self.end_think_token,
            newline_token="none",
            trace=self.trace,
        )

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> SwiResult:
        """As `SwiReasoning.generate`."""
        accounts = None if account is None else [account]
        return self.generate_many(model, [prompt], budget, sampling, accounts=accounts)[0]

    def generate_many(
        self,
        model: Model,
        prompts: Sequence[Prompt],
        budget: Budget | None = None,
        sampling: SamplingParams | Sequence[SamplingParams] = _GREEDY,
        *,
        accounts: Sequence[Account] | None = None,
    ) -> list[SwiResult]:
        """As `SwiReasoning.generate_many`."""
        from outlay.decode.swireasoning.decoding import decode_many

        plans = [frozenset[int]()] * len(prompts)
        return decode_many(
            self.method(), model, prompts, budget, sampling, accounts=accounts, plans=plans
        )


@dataclass(frozen=True)
class RandomSwitching:
    """The baseline that switches as often, but anywhere.

    Args:
        switches: of both directions, beginning with latent to explicit.
        within: they are drawn from the first so many steps, without replacement.
        method: mixtures, markers and the rest; its `window` and entropy rule are not used.

    Raises:
        InputError: unless 0 <= switches < within.
    """

    switches: int = 3
    within: int = 64
    method: SwiReasoning = SwiReasoning()

    def __post_init__(self) -> None:
        if not 0 <= self.switches < self.within <= MOST_STEPS:
            raise InputError(
                f"switches={self.switches}, within={self.within}; need 0 <= switches < within"
            )

    def plan(self, seed: int) -> frozenset[int]:
        """The steps at which one sequence switches; never the first."""
        import random

        rng = random.Random(f"{seed}:{self.switches}:{self.within}")
        return frozenset(rng.sample(range(1, self.within), self.switches))

    def generate(
        self,
        model: Model,
        prompt: Prompt,
        budget: Budget | None = None,
        sampling: SamplingParams = _GREEDY,
        *,
        account: Account | None = None,
    ) -> SwiResult:
        """As `SwiReasoning.generate`; the places depend on `sampling.seed`."""
        from outlay.decode.swireasoning.decoding import decode_many

        accounts = None if account is None else [account]
        plans = [self.plan(sampling.seed)]
        return decode_many(
            self.method, model, [prompt], budget, sampling, accounts=accounts, plans=plans
        )[0]
