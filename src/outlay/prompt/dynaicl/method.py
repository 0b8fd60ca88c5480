"""DynaICL: as many demonstrations as each input needs, under one token budget for the workload.

"Efficient Prompting via Dynamic In-Context Learning", arXiv 2305.11170. A small controller reads
the input alone and predicts how many demonstrations the generalist needs; the budget of a batch is
then split accordingly.

Where it differs from the paper:
- The paper's controller is a large sequence-to-sequence model that writes the number. That is
  `head="seq2seq"`, pretrained (`controller="seq2seq:PLACE"`) or small and from scratch; the mean of
  what it may write counts, not the likeliest. By default a sentence encoder carries a small network
  with cumulative chances ("ordinal") or an accuracy for every number ("curve").
- Labels are one table of all numbers of demonstrations, so that the policy gradient of stage 2 is
  exact; `pg="reinforce"` samples, as the paper does.
- Budgets are exact: rounding and clipping are repaired with the tokens of the very demonstrations.
- `utility`, `floor` and `stream` are ours, and so is the price per demonstration by which
  `compress` decides about one input at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.ledger import Ledger
from outlay.prompt.base import Compressed, CountTokens
from outlay.prompt.dynaicl import allocation as allocations
from outlay.prompt.dynaicl.config import Gradient, Training
from outlay.prompt.dynaicl.contexts import shortened
from outlay.prompt.dynaicl.controller import CONFIG, HEADS, Controller, Head, Prediction
from outlay.prompt.dynaicl.encoders import reads_text
from outlay.prompt.dynaicl.prompts import Example, Pools, Template, check_examples
from outlay.prompt.dynaicl.selection import SELECTORS, Selector
from outlay.prompt.dynaicl.serving import Served, Workload, serve
from outlay.prompt.dynaicl.stream import Price, Stream
from outlay.prompt.dynaicl.table import (
    Generalist,
    Metric,
    Recipe,
    Table,
    collect,
    exact_match,
)

IntArray = npt.NDArray[np.int64]
Allocation = Literal["proportional", "utility", "floor", "stream"]
_CALIBRATION = 512  # training inputs whose curves set fixed prices


@dataclass(frozen=True)
class DynaICL:
    """Predicts how many demonstrations each input needs, and splits a budget accordingly.

    Args:
        K: most demonstrations of an input.
        t: an input has enough demonstrations once its accuracy exceeds this.
        n_s: random draws of demonstrations per input when labels are collected.
        margin: standard errors by which an accuracy must exceed `t`.
        head: "ordinal" predicts the number, "curve" the accuracy with every number, "seq2seq"
            writes the number.
        lam: price of K demonstrations in accuracy: of stage 2's reward (not with "curve"), and of
            `compress` where `mean_k` is not given.
        pg: gradient of stage 2, "exact" or "reinforce".
        allocation: "proportional" to the predicted number, "utility" for the largest predicted
            accuracy, "floor" for the fewest tokens that reach `target_acc`, "stream" for inputs
            that arrive one by one.
        beta: share of the budget that "proportional" may use.
        exact: repair rounding so that "proportional" never exceeds the budget.
        budget_tokens: tokens of all demonstrations of a batch; or
        mean_k: mean number of demonstrations of an input; or
        target_acc: mean accuracy to reach, for "floor".
        selector: how demonstrations are chosen: "random", "fixed", "knn" or "votek".
        balanced: demonstrations take turns between answers, where K is at least their number.
        cache_friendly: more demonstrations are appended, so that a prefix cache helps; else they
            are put in front, and the best stays next to the input.
        controller: encoder of the controller: "minilm", "hash", or a sentence-transformers model;
            for the seq2seq head also "bytes" (a small one from scratch reads the text itself) or
            "seq2seq:PLACE" (a pretrained encoder-decoder by folder or id).
        max_context: tokens of the generalist's window; prompts that do not fit have fewer
            demonstrations.
        seed: of training and of random demonstrations.
        instruction: of the task; opens every prompt, and the controller reads it.
        demo: text of a demonstration, with `{input}` and `{answer}`.
        query: text of the input that is asked about, with `{input}`.
        separator: between instruction, demonstrations and query.
        delimiter: ends a demonstration inside a context given to `compress`.
        training: sizes and rates of both stages.
        saved: folder of a saved controller, or "icl" for the one of the in-context testbed.
        fitted: a trained controller; `fit` sets it.

    Raises:
        InputError: for knobs out of range.
    """

    K: int = 8
    t: float = 0.7
    n_s: int = 4
    margin: float = 0.0
    head: Head = "ordinal"
    lam: float = 0.1
    pg: Gradient = "exact"
    allocation: Allocation = "proportional"
    beta: float = 1.0
    exact: bool = True
    budget_tokens: int | None = None
    mean_k: float | None = None
    target_acc: float | None = None
    selector: Selector = "random"
    balanced: bool = False
    cache_friendly: bool = False
    controller: str = "minilm"
    max_context: int | None = None
    seed: int = 0
    instruction: str = ""
    demo: str = "Input: {input}\nOutput: {answer}"
    query: str = "Input: {input}\nOutput:"
    separator: str = "\n\n"
    delimiter: str = "\n\n"
    training: Training = field(default_factory=Training)
    saved: str = ""
    fitted: Controller | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.recipe()
        for name, value, known in (
            ("head", self.head, HEADS),
            ("pg", self.pg, get_args(Gradient)),
            ("allocation", self.allocation, get_args(Allocation)),
            ("selector", self.selector, SELECTORS),
        ):
            if value not in known:
                raise InputError(f"{name}={value!r}; choose one of {', '.join(known)}")
        if reads_text(self.controller):
            if self.head != "seq2seq":
                raise InputError(
                    f"controller={self.controller!r} reads text, which needs head='seq2seq', not "
                    f"{self.head!r}"
                )
            if self.selector in ("knn", "votek"):
                raise InputError(
                    f"selector={self.selector!r} compares vectors, which controller="
                    f"{self.controller!r} does not make; use minilm or hash, or selector='random'"
                )
        if not 0 < self.t < 1:
            raise InputError(f"t={self.t} is outside (0, 1); 0.7 is usual")
        if not self.margin >= 0 or not self.lam >= 0:
            raise InputError(f"margin={self.margin}, lam={self.lam}; both must be >= 0")
        if not 0 < self.beta <= 1:
            raise InputError(f"beta={self.beta} is outside (0, 1]; 1 uses the whole budget")
        if self.budget_tokens is not None and self.budget_tokens < 0:
            raise InputError(
                f"budget_tokens={self.budget_tokens}; must be >= 0 (0 answers zero-shot)"
            )
        if self.mean_k is not None and not 0 <= self.mean_k <= self.K:
            raise InputError(f"mean_k={self.mean_k}; need 0 <= mean_k <= K={self.K}")
        if self.target_acc is not None and not 0 <= self.target_acc <= 1:
            raise InputError(f"target_acc={self.target_acc}; must be in [0, 1]")
        if not self.delimiter:
            raise InputError("delimiter is empty; give the text that ends a demonstration")
        if self.fitted is not None and self.fitted.K != self.K:
            raise InputError(f"the controller was trained for K={self.fitted.K}, not K={self.K}")

    # -- labels and training ----------------------------------------------------------------------

    def recipe(self) -> Recipe:
        """How labels are collected and prompts are made."""
        return Recipe(
            K=self.K,
            n_s=self.n_s,
            selector=self.selector,
            balanced=self.balanced,
            encoder=self.controller,
            seed=self.seed,
            template=self.template(),
            max_context=self.max_context,
        )

    def template(self) -> Template:
        """How prompts are written."""
        return Template(
            self.instruction, self.demo, self.query, self.separator, self.cache_friendly
        )

    def collect(
        self,
        generalist: Generalist,
        inputs: Sequence[Example],
        pools: Pools,
        *,
        count: CountTokens,
        metric: Metric = exact_match,
        name: str = "generalist",
        folder: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Table:
        """The table of labels; see `table.collect`."""
        return collect(
            generalist,
            inputs,
            pools,
            self.recipe(),
            count=count,
            metric=metric,
            name=name,
            folder=folder,
            progress=progress,
        )

    def fit(self, table: Table, held_out: Table | None = None) -> DynaICL:
        """The same method with a trained controller.

        Args:
            table: labels of training inputs.
            held_out: labels of other inputs, on which predicted accuracies are calibrated
                (isotonic); "floor" is only as good as that.

        Raises:
            InputError: for a table of another K, or the same inputs in both tables.
            DependencyError: without torch.
        """
        from outlay.prompt.dynaicl.fitting import fit_controller

        made = fit_controller(
            table,
            held_out,
            K=self.K,
            t=self.t,
            margin=self.margin,
            head=self.head,
            lam=self.lam,
            pg=self.pg,
            encoder=self.controller,
            instruction=self.instruction,
            config=self.training,
            seed=self.seed,
            calibration=_CALIBRATION,
        )
        return replace(self, fitted=made, saved="")

    def save(self, folder: str | Path) -> Path:
        """Write the controller as safetensors and JSON; load it with `saved=`."""
        return self.trained().save(folder)

    def trained(self) -> Controller:
        """The controller.

        Raises:
            InputError: if there is none, or one of another K.
            ModelError: if the saved one cannot be read.
        """
        if self.fitted is not None:
            return self.fitted
        if not self.saved:
            raise InputError(
                "dynaicl has no controller; fit one on a table, or name a saved one with saved="
            )
        path = Path(self.saved)
        if self.saved == "icl":
            from outlay.testbeds.icl.store import controller_path

            path = controller_path()
        written = (path / CONFIG).stat().st_mtime_ns if (path / CONFIG).is_file() else 0
        found = _loaded(str(path.resolve()), written)
        if found.K != self.K:
            raise InputError(f"the controller in {path} was trained for K={found.K}, not {self.K}")
        return found

    def predict(self, inputs: Sequence[str]) -> Prediction:
        """What the controller says about texts: it sees no answers and no demonstrations."""
        return self.trained().predict(inputs)

    # -- a workload -------------------------------------------------------------------------------

    def allocate(
        self,
        inputs: Sequence[str],
        costs_NK: IntArray,
        budget: Budget | None = None,
        *,
        keys: Sequence[str] | None = None,
    ) -> IntArray:
        """(N,) demonstrations of every input.

        Args:
            inputs: texts.
            costs_NK: (N, K+1) tokens of the demonstrations of each input.
            budget: of all demonstrations, with counts="prompt"; None takes the method's own
                `budget_tokens`, `mean_k` or `target_acc`.
            keys: names of the inputs, which decide ties; None takes the texts.

        Raises:
            InputError: for an empty batch, costs of another K, no budget, or a target that cannot
                be reached.
        """
        found = self.predict(inputs)
        if costs_NK.shape != found.curves_NK.shape:
            raise InputError(
                f"costs of shape {costs_NK.shape}; need {found.curves_NK.shape} (inputs, K+1)"
            )
        names = list(inputs) if keys is None else keys
        if self.allocation == "floor":
            curves_NK = self.trained().calibrated(found.curves_NK)
            return allocations.floor(curves_NK, costs_NK, self._target(), keys=names)[1]
        tokens = self.limit(costs_NK, budget)
        if self.allocation == "utility":
            return allocations.utility(found.curves_NK, costs_NK, tokens, keys=names)
        if self.allocation == "stream":
            stream = self.stream(costs_NK, tokens)
            pairs = zip(found.curves_NK, costs_NK, strict=True)
            return np.array([stream.take(curve_K, cost_K) for curve_K, cost_K in pairs])
        return allocations.proportional(
            found.needed_N, costs_NK, tokens, beta=self.beta, exact=self.exact, keys=names
        )

    def stream(self, costs_NK: IntArray, tokens: int) -> Stream:
        """A stream whose inputs cost about `costs_NK` and may spend `tokens` for all of them."""
        scale = max(1.0, float(costs_NK[:, -1].mean()))
        mean = tokens / len(costs_NK)
        start = Price.of(self.trained().calibration_MK, min(self.K, self.K * mean / scale))
        return Stream(mean, scale, price=self.K * start.low)

    def limit(self, costs_NK: IntArray, budget: Budget | None = None) -> int:
        """The tokens that all demonstrations may cost.

        Raises:
            InputError: if neither the call nor the method says it.
        """
        if budget is not None:
            from outlay.prompt.base import prompt_limit

            return prompt_limit(budget)
        if self.budget_tokens is not None:
            return self.budget_tokens
        if self.mean_k is not None:
            return allocations.mean_budget(costs_NK, self.mean_k)
        raise InputError(
            f"allocation={self.allocation!r} needs a budget; give budget_tokens= or mean_k="
        )

    def _target(self) -> float:
        if self.target_acc is None:
            raise InputError("allocation='floor' needs target_acc=, the mean accuracy to reach")
        return self.target_acc

    def plan(
        self,
        inputs: Sequence[Example],
        pools: Pools,
        *,
        count: CountTokens,
        budget: Budget | None = None,
        draw: int = 0,
    ) -> Workload:
        """Choose demonstrations, split the budget, and write the prompts of a batch.

        Args:
            inputs: the batch; answers are not read.
            pools: demonstrations by task.
            count: tokens of a text for the generalist.
            budget: see `allocate`.
            draw: which random draw of demonstrations.

        Raises:
            InputError: as `allocate`, and for pools that cannot be used.
        """
        check_examples(inputs, pools, self.K)
        recipe = self.recipe()
        ladders = [recipe.ladder(x, pools, count, draw) for x in inputs]
        tokens_NK = np.array([made.tokens for made in ladders], dtype=np.int64)
        started = time.perf_counter()
        texts = [x.read for x in inputs]
        k_N = self.allocate(
            texts, tokens_NK - tokens_NK[:, :1], budget, keys=[x.id for x in inputs]
        )
        seconds = time.perf_counter() - started
        return Workload.of(inputs, ladders, k_N, self.instruction, count, seconds)

    def run(
        self,
        generalist: Generalist,
        inputs: Sequence[Example],
        pools: Pools,
        *,
        count: CountTokens,
        metric: Metric = exact_match,
        budget: Budget | None = None,
    ) -> Served:
        """Answer a batch within its budget; see `plan` and `serving`."""
        return serve(
            self.plan(inputs, pools, count=count, budget=budget), generalist, metric, count
        )

    # -- one input at a time ----------------------------------------------------------------------

    def compress(
        self, prompt: str, question: str, budget: Budget, *, count: CountTokens, language: str = ""
    ) -> Compressed:
        """Keep as many demonstrations of a context as the question is worth.

        A call sees one input, so there is no batch to split a budget over: the input takes the
        number that is worth its price. The price is the one at which training inputs take `mean_k`
        demonstrations on average, or `lam` for K demonstrations where `mean_k` is None. `budget`
        caps every single input.

        Args:
            prompt: demonstrations, each ended by `delimiter`; the best first with
                `cache_friendly`, else last.
            question: the input.
            budget: most prompt tokens of this input's demonstrations.
            count: token counter of the generalist.
            language: not used.

        Raises:
            BudgetError: for a budget without a prompt token limit.
            InputError: for an empty context or question, or without a controller.
        """
        controller = self.trained()
        if not question.strip():
            raise InputError("dynaicl decides by the question; give the input that is asked about")
        started = time.perf_counter()
        curve_K = controller.predict([question]).curves_NK[0]
        if self.mean_k is None:
            price = Price(self.lam / self.K, self.lam / self.K, 1.0)
        else:
            price = _price(controller, self.mean_k)
        ledger = Ledger()
        ledger.record(
            "prompt",
            "scorer",
            prompt_new=count(question),
            estimated=True,
            method="dynaicl",
            seconds=time.perf_counter() - started,
        )
        report: dict[str, Any] = {"curve": [round(float(p), 4) for p in curve_K]}
        return shortened(
            prompt,
            self.delimiter,
            budget,
            count,
            choose=lambda fits: price.take(question, curve_K, min(fits, self.K)),
            first=self.cache_friendly,
            ledger=ledger,
            report=report,
        )


@lru_cache(maxsize=8)
def _loaded(folder: str, written: int) -> Controller:
    return Controller.load(folder)


@lru_cache(maxsize=64)
def _price(controller: Controller, mean_k: float) -> Price:
    return Price.of(controller.calibration_MK, mean_k)
