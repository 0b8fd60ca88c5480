"""KV Prediction: a small model reads the prompt, a linear map gives the big model's cache.

"KV Prediction for Improved Time to First Token" (arXiv 2410.08391, Apple). The base generates as
ever, from a cache that it did not compute: an auxiliary reads all but the last prompt tokens, and
its raw (not rotated) keys and values are mapped, layer by layer, to the base's.

Where it differs from the paper: `last_n_real`, `min_prompt` and `refill_after` are ours (the
paper's values are the defaults); copies of base layers may be trained by low-rank additions; a map
may start from ridge regression; the mean over layers weighs the cache's distance, as the paper's
text recommends and its configurations do not.

Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from outlay.cache.base import Prefilled
from outlay.errors import InputError
from outlay.models.base import Account

if TYPE_CHECKING:
    import torch

    from outlay.cache.kv_prediction.model import KVPredictionModel
    from outlay.cache.kv_prediction.training import KVPredictionConfig
    from outlay.models.local import LocalModel

# Loaded pairs by base network, so that a method that is only a few knobs loads its weights once.
_loaded: WeakKeyDictionary[Any, dict[str, KVPredictionModel]] = WeakKeyDictionary()


@dataclass(frozen=True)
class KVPrediction:
    """Reads prompts with an auxiliary and predicts the base's cache.

    Args:
        saved: folder of a saved pair, or "smollm2" for the shipped one of the embedded model.
        last_n_real: final tokens of a prompt that the base reads itself.
        min_prompt: shorter prompts are read by the base alone.
        refill_after: after so many decoded tokens the base reads the prompt itself, so that the
            prediction's errors do not stay; 0 never does.
        fitted: a `KVPredictionModel`; `fit` sets it, and `saved` is not read then.

    Raises:
        InputError: for last_n_real or min_prompt below 1, or refill_after below 0.
    """

    saved: str = "smollm2"
    last_n_real: int = 1
    min_prompt: int = 2
    refill_after: int = 0
    fitted: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.last_n_real < 1:
            raise InputError(
                f"last_n_real={self.last_n_real}; the base must read at least the last token"
            )
        if self.min_prompt < 1:
            raise InputError(f"min_prompt={self.min_prompt}; must be at least 1")
        if self.refill_after < 0:
            raise InputError(f"refill_after={self.refill_after}; must be >= 0 (0 is never)")

    def pair(self, network: Any) -> KVPredictionModel:
        """The auxiliary and predictor for a base network, loaded on first use.

        Raises:
            InputError: if they were trained for another base.
            ModelError: if there are none.
        """
        if self.fitted is not None:
            if self.fitted.base is not network:
                raise InputError(
                    "this method was fitted on another model; fit it on this one, or load its "
                    "saved pair"
                )
            found: KVPredictionModel = self.fitted
            return found
        from outlay.cache.kv_prediction import store
        from outlay.testbeds.kv_predictors import checkpoint_path

        known = _loaded.setdefault(network, {})
        if self.saved not in known:
            folder = checkpoint_path() if self.saved == "smollm2" else self.saved
            known[self.saved] = store.load(folder, network)
        return known[self.saved]

    def prefill(
        self, model: LocalModel, ids_BT: torch.Tensor, *, account: Account | None = None
    ) -> Prefilled:
        """Read B prompts of equal length; the auxiliary's tokens are booked as a draft's.

        Raises:
            CapabilityError: for a model whose keys and values cannot be predicted.
            InputError: for an empty or too long prompt, or a pair of another base.
            ModelError: if there is no pair.
        """
        from outlay.cache.loop import FullCache, booked, forward

        account = account or Account()
        rows, width = ids_BT.shape
        read = width - self.last_n_real
        if width >= 1 and (read < 1 or width < self.min_prompt):
            return FullCache().prefill(model, ids_BT, account=account)
        pair = self.pair(model.model)
        pair.check(width, self.last_n_real)
        small, large = pair.flops(width, last_n_real=self.last_n_real, batch=rows)
        with booked(account.at(role="draft"), rows * read, small, time.perf_counter()):
            cache = pair.predict(ids_BT[:, :read], cache=self._empty(model, ids_BT, account))
        with booked(account, rows * self.last_n_real, large, time.perf_counter()):
            logits_BV = forward(model, ids_BT[:, read:], cache)
        return Prefilled(cache, logits_BV)

    def _empty(self, model: LocalModel, ids_BT: torch.Tensor, account: Account) -> Any:
        """What the prediction is written to; None for a plain cache."""
        if not self.refill_after:
            return None
        from outlay.cache.kv_prediction.refill import RefilledCache

        return RefilledCache(model, ids_BT, self.refill_after, account)

    def fit(
        self,
        model: LocalModel,
        rows_NT: torch.Tensor,
        config: KVPredictionConfig,
        *,
        keep: Sequence[int] = (),
        prefix_aux: int = 0,
        aux: Any = None,
        lora_r: int = 0,
        ridge: bool = False,
    ) -> KVPrediction:
        """Train a pair for `model` on rows of tokens; returns this method with it.

        Args:
            model: the base.
            rows_NT: token ids, all rows of one length.
            config: options of the training and weights of its losses.
            keep: the auxiliary is a copy of the base with these layers; or
            prefix_aux: it is the base's first layers as they are; or
            aux: it is this transformers causal LM, or `LocalModel`, with the same tokenizer.
            lora_r: rank of low-rank additions to `keep`; 0 trains all its weights.
            ridge: start the predictor from ridge regression.

        Raises:
            InputError: unless exactly one of keep, prefix_aux and aux is given, or for tokenizers
                that differ.
        """
        from outlay.cache.kv_prediction.lora import Lora
        from outlay.cache.kv_prediction.model import KVPredictionModel
        from outlay.cache.kv_prediction.ridge import ridge_start
        from outlay.cache.kv_prediction.training import KVPredictionTrainer, Rows

        if (bool(keep), bool(prefix_aux), aux is not None).count(True) != 1:
            raise InputError("give exactly one of keep, prefix_aux and aux: which auxiliary?")
        if aux is not None:
            tokenizer = getattr(aux, "tokenizer", None)
            if tokenizer is not None and tokenizer.get_vocab() != model.tokenizer.get_vocab():
                raise InputError(
                    f"{aux.name} and {model.name} have different tokenizers; the auxiliary must "
                    "read the base's own tokens"
                )
            network = aux if tokenizer is None else aux.model
            network.requires_grad_(True)
            pair = KVPredictionModel(model.model, network)
        elif prefix_aux:
            pair = KVPredictionModel.prefix(model.model, prefix_aux)
        else:
            lora = Lora(lora_r, 2 * lora_r) if lora_r else None
            pair = KVPredictionModel.pruned(model.model, keep, lora=lora)
        if ridge:
            ridge_start(pair, rows_NT[: max(8, 16_384 // rows_NT.shape[1])])
        KVPredictionTrainer(pair, config, Rows(rows_NT)).train()
        pair.requires_grad_(False).eval()
        return replace(self, fitted=pair)
