"""Base, auxiliary and predictor together: the training pass, and a prompt's predicted cache.

The training pass (section 3.3): the auxiliary reads the tokens; its raw keys and values, mapped,
replace the base's own at every layer and position, through hooks on the base's projections; the
base's queries, norms and causal mask stay. Gradients reach the auxiliary and the predictor through
the frozen base.

Shapes: B sequences, T tokens, V vocabulary, E keys (or values) of a token.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from outlay.cache.kv_prediction.layout import layout
from outlay.cache.kv_prediction.lora import Lora, attach
from outlay.cache.kv_prediction.losses import IGNORED, LossWeights, kv_distance, next_token_loss
from outlay.cache.kv_prediction.mapping import canonical_map, pruned_map
from outlay.cache.kv_prediction.predictor import KVPredictor
from outlay.cost import ModelShape
from outlay.errors import InputError, OutlayError
from outlay.models.truncated import truncated

LayerMap = Literal["auto"] | Sequence[int]


@dataclass(frozen=True)
class Origin:
    """How an auxiliary was made of its base.

    Args:
        keep: the base's layers that it has; None for a model of its own.
        lora: its trainable additions, None where all its weights are its own.
        frozen: it is the base's own layers, as they are.
    """

    keep: tuple[int, ...] | None = None
    lora: Lora | None = None
    frozen: bool = False


PAPER, OWN = LossWeights(), Origin()


class KVPredictionModel(nn.Module):
    """A frozen base, an auxiliary that reads prompts for it, and the predictor between them.

    Args:
        base: a transformers causal LM; it is frozen.
        aux: a smaller one with the same tokenizer.
        layer_map: the auxiliary layer behind every base layer; "auto" is the paper's.
        losses: weights of the training loss.
        origin: how `aux` was made of `base`.
        identity: first layers whose keys and values are taken over as they are.

    Raises:
        CapabilityError: for a base or auxiliary whose keys and values cannot be had.
        InputError: for different vocabularies, or a map that does not fit.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the batch

    def __init__(
        self,
        base: Any,
        aux: Any,
        layer_map: LayerMap = "auto",
        *,
        losses: LossWeights = PAPER,
        origin: Origin = OWN,
        identity: int = 0,
    ) -> None:
        super().__init__()
        sizes = [int(each.config.get_text_config().vocab_size) for each in (base, aux)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"the base has {sizes[0]} tokens, the auxiliary {sizes[1]}; "
                "both must have the same tokenizer"
            )
        if any(parameter.requires_grad for parameter in base.parameters()):
            warnings.warn("the base has trainable parameters; they are frozen now", stacklevel=2)
            base.requires_grad_(False)
        self.base, self.aux = base.eval(), aux
        self.losses, self.origin = losses, origin
        self.base_layout, self.aux_layout = layout(base), layout(aux)
        if layer_map == "auto":
            chosen = (
                canonical_map(len(self.base_layout), len(self.aux_layout))
                if origin.keep is None
                else pruned_map(len(self.base_layout), origin.keep)
            )
        else:
            chosen = tuple(layer_map)
        self.predictor = KVPredictor(
            self.base_layout.sizes, self.aux_layout.sizes, chosen, identity=identity
        ).to(base.device)
        self.context_length = min(
            int(getattr(each.config.get_text_config(), "max_position_embeddings", 0) or 2**20)
            for each in (base, aux)
        )
        self.shapes = _shape(base), _shape(aux)

    @classmethod
    def pruned(
        cls,
        base: Any,
        keep: Sequence[int],
        *,
        lora: Lora | None = None,
        layer_map: LayerMap = "auto",
        losses: LossWeights = PAPER,
    ) -> KVPredictionModel:
        """KVP-LP: the auxiliary is a copy of the base with only the layers `keep`.

        Args:
            base: the model.
            keep: layers of the auxiliary, increasing.
            lora: train low-rank additions only; None trains all of the auxiliary's weights.
            layer_map: as for the class.
            losses: as for the class.
        """
        aux = truncated(base, keep)
        if lora is None:
            aux.requires_grad_(True)
        else:
            attach(aux, lora)
        origin = Origin(tuple(int(index) for index in keep), lora)
        return cls(base, aux, layer_map, losses=losses, origin=origin)

    @classmethod
    def prefix(
        cls, base: Any, prefix_aux: int, *, losses: LossWeights = PAPER
    ) -> KVPredictionModel:
        """The auxiliary is the base's own first layers, whose caches are then exact (ours).

        It is not trained; only the maps to the layers above are.

        Raises:
            InputError: unless 1 <= prefix_aux < the base's layers.
        """
        total = int(base.config.get_text_config().num_hidden_layers)
        if not 1 <= prefix_aux < total:
            raise InputError(f"prefix_aux={prefix_aux}; must be between 1 and {total - 1} layers")
        aux = truncated(base, range(prefix_aux))
        aux.requires_grad_(False)
        origin = Origin(tuple(range(prefix_aux)), frozen=True)
        return cls(base, aux, losses=losses, origin=origin, identity=prefix_aux)

    def train(self, mode: bool = True) -> KVPredictionModel:
        """Training mode for auxiliary and predictor; the base stays as it is."""
        super().train(mode)
        self.base.eval()
        return self

    # -- training -------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The training loss and its parts.

        Args:
            input_ids: ids_BT.
            attention_mask: 0 at padding, to the left or the right.
            labels: as the ids, `IGNORED` where nothing is to be learnt; None learns every token.

        Returns:
            "loss", and its parts "base", "aux", "keys", "values", "z" where they are on.
        """
        weights = self.losses
        labels_BT = input_ids if labels is None else labels
        if attention_mask is not None:
            real_BT = attention_mask != 0
            real_BT[:, 1:] &= real_BT[:, :-1].clone()  # no padding position predicts a token
            labels_BT = labels_BT.masked_fill(~real_BT, IGNORED)
        with self.aux_layout.captured() as (keys, values):
            if weights.lambda_aux:
                aux_BTV = _run(self.aux, input_ids, attention_mask).logits
            else:
                aux_BTV = None
                _run(self.aux.base_model, input_ids, attention_mask)
        parts: dict[str, torch.Tensor] = {}
        if weights.lambda_base or weights.lambda_kv:
            ours = self.predictor(keys, values)
        if weights.lambda_base:
            with self.base_layout.given(*ours):
                base_BTV = _run(self.base, input_ids, attention_mask).logits
            parts["base"], parts["z"] = next_token_loss(base_BTV, labels_BT, weights.z_loss)
        if aux_BTV is not None:
            parts["aux"], z = next_token_loss(aux_BTV, labels_BT, weights.z_loss)
            parts["z"] = weights.lambda_aux * z + weights.lambda_base * parts.get("z", 0.0)
        elif "z" in parts:
            parts["z"] = weights.lambda_base * parts["z"]
        if weights.lambda_kv:
            own = self.true(input_ids, attention_mask)
            for name, pair in zip(("keys", "values"), zip(ours, own, strict=True), strict=True):
                predicted, true = pair
                if name == "keys":
                    predicted = [self.base_layout.normed(i, k) for i, k in enumerate(predicted)]
                parts[name] = kv_distance(predicted, true, attention_mask, weights.kv_reduce)
        scale = {
            "base": weights.lambda_base,
            "aux": weights.lambda_aux,
            "keys": weights.lambda_kv,
            "values": weights.lambda_kv,
            "z": 1.0,
        }
        loss = torch.stack([scale[name] * part for name, part in parts.items()]).sum()
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    @torch.no_grad()
    def true(
        self, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The base's own keys_BTE (normed, not rotated) and values_BTE of every layer."""
        with self.base_layout.captured() as (keys, values):
            _run(self.base.base_model, ids_BT, mask_BT)
        return [self.base_layout.normed(i, k) for i, k in enumerate(keys)], values

    def logits(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None = None) -> torch.Tensor:
        """The base's logits_BTV with every key and value predicted, as in training."""
        with self.aux_layout.captured() as raw:
            _run(self.aux.base_model, ids_BT, mask_BT)
        with self.base_layout.given(*self.predictor(*raw)):
            found: torch.Tensor = _run(self.base, ids_BT, mask_BT).logits
        return found

    # -- reading prompts ------------------------------------------------------------------------

    @torch.inference_mode()
    def predict(
        self,
        ids_BT: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        *,
        cache: DynamicCache | None = None,
    ) -> DynamicCache:
        """The base's cache of these tokens, predicted; rotated by the base's own frequencies.

        Args:
            ids_BT: tokens that the auxiliary reads.
            mask_BT: 0 at padding on the left.
            cache: an empty cache to fill; None makes one.
        """
        with self.aux_layout.captured() as raw:
            _run(self.aux.base_model, ids_BT, mask_BT)
        keys, values = self.predictor(*raw)
        made = DynamicCache(config=self.base.config) if cache is None else cache
        kind = self.base.dtype
        turn = self.base_layout.turn(keys[0].to(kind), _positions(ids_BT, mask_BT))
        for layer, (keys_BTE, values_BTE) in enumerate(zip(keys, values, strict=True)):
            keys_BHTD = self.base_layout.prepared(layer, keys_BTE.to(kind), turn)
            values_BHTD = self.base_layout.split_values(layer, values_BTE.to(kind))
            made.update(keys_BHTD, values_BHTD, layer)
        return made

    @torch.inference_mode()
    def prefill(
        self,
        ids_BT: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        *,
        last_n_real: int = 1,
        cache: DynamicCache | None = None,
    ) -> tuple[DynamicCache, torch.Tensor]:
        """Read prompts: all but the last tokens are predicted, the base reads those itself.

        Any loop goes on from there. transformers' own takes the prediction alone:
        `base.generate(ids_BT, cache=pair.predict(ids_BT[:, :-1]))`.

        Args:
            ids_BT: prompts, padded on the left where they differ in length.
            mask_BT: 0 at padding.
            last_n_real: final tokens that the base reads.
            cache: an empty cache to fill; None makes one.

        Returns:
            The cache of all tokens, and logits_BV after the last one.

        Raises:
            InputError: for an empty or too long prompt, a mask that is not left padding, a cache
                that is not empty, or last_n_real < 1.
        """
        self.check(ids_BT.shape[1], last_n_real)
        if cache is not None and cache.get_seq_length():
            raise InputError(
                f"the cache holds {cache.get_seq_length()} rows; a prompt is predicted from its "
                "first token, so give an empty cache or none"
            )
        _check_mask(ids_BT, mask_BT, last_n_real)
        first = max(0, ids_BT.shape[1] - last_n_real)
        made = DynamicCache(config=self.base.config) if cache is None else cache
        if first:
            before = None if mask_BT is None else mask_BT[:, :first]
            self.predict(ids_BT[:, :first], before, cache=made)
        logits_BTV = self.base(
            ids_BT[:, first:],
            attention_mask=mask_BT,
            position_ids=_positions(ids_BT, mask_BT)[:, first:],
            cache=made,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return made, logits_BTV[:, -1]

    def check(self, tokens: int, last_n_real: int = 1) -> None:
        """Refuse prompts that cannot be read.

        Raises:
            InputError: for an empty prompt, one beyond the context, or last_n_real < 1.
        """
        if last_n_real < 1:
            raise InputError(
                f"last_n_real={last_n_real}; the base must read at least the last token"
            )
        if tokens < 1:
            raise InputError("the prompt is empty; give at least one token")
        if tokens > self.context_length:
            raise InputError(
                f"the prompt has {tokens} tokens, base and auxiliary take {self.context_length}; "
                "shorten it"
            )

    def flops(self, tokens: int, *, last_n_real: int = 1, batch: int = 1) -> tuple[float, float]:
        """FLOPs to the first token: of auxiliary and predictor, and of the base.

        0 where an architecture has no closed form.
        """
        real = min(last_n_real, tokens)
        base, aux = self.shapes
        read = tokens - real
        if base is None or aux is None:
            return 0.0, 0.0
        small = aux.flops(read, logits_rows=0, batch=batch) if read else 0
        small += batch * self.predictor.flops(read)
        return float(small), float(base.flops(real, read, logits_rows=1, batch=batch))


def _shape(network: Any) -> ModelShape | None:
    try:
        return ModelShape.from_config(network.config)
    except OutlayError:
        return None


def _positions(ids_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
    if mask_BT is None:
        return torch.arange(ids_BT.shape[1], device=ids_BT.device)[None].expand(ids_BT.shape)
    return (mask_BT.long().cumsum(-1) - 1).clamp(min=0)


def _run(network: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> Any:
    if mask_BT is None:
        return network(ids_BT, use_cache=False)
    where = _positions(ids_BT, mask_BT)
    return network(ids_BT, attention_mask=mask_BT, position_ids=where, use_cache=False)


def _check_mask(ids_BT: torch.Tensor, mask_BT: torch.Tensor | None, last_n_real: int) -> None:
    if mask_BT is None:
        return
    if mask_BT.shape != ids_BT.shape:
        raise InputError(
            f"the mask has shape {tuple(mask_BT.shape)}, the ids {tuple(ids_BT.shape)}; "
            "give one entry for each token"
        )
    if bool((mask_BT[:, 1:] < mask_BT[:, :-1]).any()) or not bool(mask_BT[:, -last_n_real:].all()):
        raise InputError(
            f"the mask leaves gaps, or pads the last {last_n_real} tokens; pad prompts on the left"
        )
