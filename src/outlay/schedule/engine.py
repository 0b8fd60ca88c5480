"""The mini-engine: runs plans on a transformers model, layer by layer.

An iteration walks once through all layers. Rows of decoding requests enter at the embedding and
traverse everything. Rows of the cohort enter at the first layer of its active group, from the
embedding or from the hidden states saved by the previous group, and leave behind its last layer.
Inside a layer all rows are one batch; attention is per request (see `rows`). The head runs on the
rows that are sampled. Sampling is greedy.

Any decoder whose layers can be called one after the other works, dense or mixture-of-experts; the
engine compares a short layer-wise pass with the model's own when it is built, and refuses a model
that does not agree (sliding windows, soft caps, scaled embeddings, state-space layers).

Shapes: N rows, C hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from outlay.errors import CapabilityError
from outlay.models.trail import decoder_layers
from outlay.schedule.base import Job, Plan
from outlay.schedule.counters import RouterWatch, Traffic, kind_of
from outlay.schedule.rows import RequestCache, Span, attending, span

_PROBE = 6  # tokens of the comparison with the model's own forward pass


class Engine:
    """Executes plans.

    Args:
        network: a transformers causal LM in eval mode.
        block: tokens of a cache block, as in the pool.
        count: count distinct experts (a little slower).

    Raises:
        CapabilityError: for a model that the engine cannot run layer by layer.
    """

    def __init__(self, network: Any, *, block: int = 16, count: bool = True) -> None:
        self.network = network
        self.block = block
        config = network.config.get_text_config()
        body = network.base_model
        self.depth = int(config.num_hidden_layers)
        found = decoder_layers(body, self.depth)
        self._refuse(config, body, found)
        assert found is not None
        self._layers: list[Any] = list(found)
        self._embed, self._norm, self._rotary = body.embed_tokens, body.norm, body.rotary_emb
        self._head = network.get_output_embeddings()
        attentions = [layer.self_attn for layer in self._layers]
        self._configs = [*{id(each.config): each.config for each in attentions}.values()]
        self.device: torch.device = network.device
        self.context = int(getattr(config, "max_position_embeddings", 0) or 2**20)
        self.vocabulary = int(config.vocab_size)
        self.caches: dict[int, RequestCache] = {}
        self.saved: dict[int, torch.Tensor] = {}
        self._check_probe()
        self.watch = RouterWatch(network) if count else None
        self.traffic = self._fresh()

    def _fresh(self) -> Traffic:
        size = self.watch.expert_bytes if self.watch else 0
        return Traffic(expert_bytes=size, crossings=[0] * self.depth, prompt_calls=[0] * self.depth)

    def reset(self) -> None:
        """Forget all requests and counts."""
        self.caches.clear()
        self.saved.clear()
        if self.watch:
            self.watch.read()
        self.traffic = self._fresh()

    def close(self) -> None:
        """Take all hooks off the network."""
        if self.watch:
            self.watch.close()

    def release(self, id_: int) -> None:
        """Free all that a request holds: its cache and its saved hidden states."""
        self.caches.pop(id_, None)
        self.saved.pop(id_, None)

    @torch.inference_mode()
    def run(self, plan: Plan, jobs: Mapping[int, Job]) -> dict[int, int]:
        """Execute one iteration; the sampled tokens by job id.

        Args:
            plan: begun in the books, so that blocks are there.
            jobs: of the books.
        """
        prompt_rows = sum(chunk.count for chunk in plan.prefill)
        low, high = plan.group
        spans: list[Span] = []
        prompt_spans: list[Span] = []
        positions: list[int] = []
        row = 0
        for id_ in plan.decode:
            job = jobs[id_]
            spans.append(span(self._cache(job), row, job.done, 1, self.device))
            positions.append(job.done)
            row += 1
        for chunk in plan.prefill:
            cache = self._cache(jobs[chunk.id])
            prompt_spans.append(span(cache, row, chunk.start, chunk.count, self.device))
            positions += range(chunk.start, chunk.start + chunk.count)
            row += chunk.count
        decode_rows = len(plan.decode)
        position_1N = torch.tensor([positions], device=self.device)
        ids = [token for id_ in plan.decode for token in jobs[id_].tokens(jobs[id_].done, 1)]
        hidden_1NC = self._embed(torch.tensor([ids], dtype=torch.long, device=self.device))
        hidden_1NC = hidden_1NC.to(self.network.dtype)
        rotary_all = self._rotary(hidden_1NC, position_1N)
        rotary_decode = tuple(part[:, :decode_rows] for part in rotary_all)
        done_1NC: torch.Tensor | None = None
        with attending(self._configs):
            for index in range(self.depth):
                if prompt_rows and index == low:
                    hidden_1NC = torch.cat([hidden_1NC, self._enter(plan, jobs)], dim=1)
                inside = low <= index < high
                if inside or decode_rows:
                    self._count_call(index, prompt_rows if inside else 0, decode_rows)
                    hidden_1NC = self._layers[index](
                        hidden_1NC,
                        attention_mask=None,
                        position_ids=position_1N if inside else position_1N[:, :decode_rows],
                        position_embeddings=rotary_all if inside else rotary_decode,
                        cache=_PASS,
                        spans=[*spans, *prompt_spans] if inside else spans,
                    )
                if prompt_rows and index == high - 1:
                    done_1NC = hidden_1NC[:, decode_rows:]
                    hidden_1NC = hidden_1NC[:, :decode_rows]
        return self._leave(plan, jobs, hidden_1NC, done_1NC)

    # -- inside an iteration --------------------------------------------------------------------

    def _cache(self, job: Job) -> RequestCache:
        if job.id not in self.caches:
            self.caches[job.id] = RequestCache(self.depth, self.block)
        self.caches[job.id].reserve(job.length)
        return self.caches[job.id]

    def _enter(self, plan: Plan, jobs: Mapping[int, Job]) -> torch.Tensor:
        """Hidden states of the cohort in front of its active group."""
        if plan.stage:
            return torch.cat([self.saved.pop(chunk.id) for chunk in plan.prefill], dim=1)
        ids = [
            token
            for chunk in plan.prefill
            for token in jobs[chunk.id].tokens(chunk.start, chunk.count)
        ]
        embedded_1NC: torch.Tensor = self._embed(torch.tensor([ids], device=self.device))
        return embedded_1NC.to(self.network.dtype)

    def _leave(
        self,
        plan: Plan,
        jobs: Mapping[int, Job],
        hidden_1NC: torch.Tensor,
        done_1NC: torch.Tensor | None,
    ) -> dict[int, int]:
        """Keep the cohort's hidden states, or sample where a prompt is complete."""
        ids, rows = list(plan.decode), [hidden_1NC]
        if done_1NC is not None:
            row = 0
            for chunk in plan.prefill:
                part_1TC = done_1NC[:, row : row + chunk.count]
                row += chunk.count
                if not plan.final:
                    self.saved[chunk.id] = part_1TC
                elif chunk.start + chunk.count == jobs[chunk.id].length:
                    ids.append(chunk.id)
                    rows.append(part_1TC[:, -1:])
        self._count_memory()
        if not ids:
            return {}
        logits_NV = self._head(self._norm(torch.cat(rows, dim=1)))[0]
        return dict(zip(ids, logits_NV.argmax(-1).tolist(), strict=True))

    def _count_call(self, layer: int, prompt_rows: int, decode_rows: int) -> None:
        kind = kind_of(prompt_rows, decode_rows)
        if self.watch:
            self.watch.kind = kind
        self.traffic.calls[kind] += 1
        self.traffic.crossings[layer] += prompt_rows
        self.traffic.prompt_calls[layer] += bool(prompt_rows)

    def _count_memory(self) -> None:
        if self.watch is None:
            return
        kv = sum(cache.bytes for cache in self.caches.values())
        saved = sum(part.numel() * part.element_size() for part in self.saved.values())
        self.traffic.kv_bytes = max(self.traffic.kv_bytes, kv)
        self.traffic.saved_bytes = max(self.traffic.saved_bytes, saved)

    def counted(self) -> Traffic:
        """The traffic so far."""
        if self.watch:
            for kind, count in self.watch.read().items():
                self.traffic.experts[kind] += count
        return self.traffic

    # -- which models ---------------------------------------------------------------------------

    def _refuse(self, config: Any, body: Any, layers: Any) -> None:
        name = type(self.network).__name__
        types = set(getattr(config, "layer_types", None) or ["full_attention"])
        window = getattr(config, "sliding_window", None)
        if getattr(config, "is_encoder_decoder", False):
            raise CapabilityError(f"{name} is an encoder-decoder; schedules need a decoder alone")
        if types != {"full_attention"} or (
            window is not None and getattr(config, "use_sliding_window", True)
        ):
            raise CapabilityError(
                f"{name} has layers other than full attention ({', '.join(sorted(types))}, "
                f"sliding_window={window}); use a model with full attention in every layer"
            )
        parts = ("embed_tokens", "norm", "rotary_emb")
        missing = [part for part in parts if not hasattr(body, part)]
        if layers is None or missing or not hasattr(layers[0], "self_attn"):
            raise CapabilityError(
                f"{name} does not show its decoder layers and {', '.join(parts)}; "
                "use a Llama-like or Mixtral-like model"
            )

    @torch.inference_mode()
    def _check_probe(self) -> None:
        """Compare a layer-wise pass with the model's own."""
        name = type(self.network).__name__
        ids_1N = torch.arange(_PROBE, device=self.device)[None] % self.vocabulary
        own_1NV = self.network(ids_1N, use_cache=False).logits.float()
        cache = RequestCache(self.depth, self.block)
        spans = [span(cache, 0, 0, _PROBE, self.device)]
        try:
            hidden_1NC = self._embed(ids_1N).to(self.network.dtype)
            rotary = self._rotary(hidden_1NC, torch.arange(_PROBE, device=self.device)[None])
            with attending(self._configs):
                for layer in self._layers:
                    hidden_1NC = layer(
                        hidden_1NC,
                        attention_mask=None,
                        position_embeddings=rotary,
                        cache=_PASS,
                        spans=spans,
                    )
            ours_1NV = self._head(self._norm(hidden_1NC)).float()
            gap = float((ours_1NV - own_1NV).abs().max() / own_1NV.abs().max().clamp_min(1e-6))
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise CapabilityError(
                f"{name} cannot be run layer by layer ({error}); use a Llama-like or Mixtral-like "
                "model"
            ) from error
        most = 1e-3 if self.network.dtype == torch.float32 else 0.1
        if not gap <= most:
            raise CapabilityError(
                f"{name} run layer by layer differs from its own forward pass (by {gap:.2g} of its "
                "largest logit); its embeddings, masks or head are special: use another model"
            )


class _Pass:
    """Hands new keys and values on to `rows.attend`, which files them per request."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *rest: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return keys, values


_PASS = _Pass()
