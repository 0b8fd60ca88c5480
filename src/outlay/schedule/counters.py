"""What an iteration moves: distinct experts, their bytes, rows per layer. Counted, not estimated.

A router is watched where it returns its choice; the distinct experts of a call are the expert
weights that this call has to read. Calls are told apart by what was in them: rows of prompts
("prefill"), of decoding requests ("decode"), or both ("mixed").

Shapes: N rows, k chosen experts, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from outlay.errors import InputError

if TYPE_CHECKING:
    import torch

Kind = Literal["prefill", "decode", "mixed"]
KINDS: tuple[Kind, ...] = ("prefill", "decode", "mixed")


def kind_of(prefill_rows: int, decode_rows: int) -> Kind:
    """What a layer call with so many rows of each kind is."""
    if prefill_rows and decode_rows:
        return "mixed"
    return "prefill" if prefill_rows else "decode"


@dataclass
class Traffic:
    """Counts of one run.

    Args:
        experts: distinct experts read, by kind of call, over all layers; expected ones in the
            simulator.
        expert_bytes: bytes of one expert's weights; 0 for a dense model.
        calls: layer calls by kind.
        crossings: prompt rows that entered each layer.
        prompt_calls: calls of each layer that had prompt rows.
        kv_bytes: peak bytes of keys and values.
        saved_bytes: peak bytes of hidden states kept between layer groups.
    """

    experts: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    expert_bytes: int = 0
    calls: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    crossings: list[int] = field(default_factory=list)
    prompt_calls: list[int] = field(default_factory=list)
    kv_bytes: int = 0
    saved_bytes: int = 0

    @property
    def loads(self) -> float:
        """Experts read in all."""
        return sum(self.experts.values())

    @property
    def bytes(self) -> float:
        """Expert bytes read in all."""
        return self.loads * self.expert_bytes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "expert_loads": self.loads,
            "expert_bytes": self.bytes,
            "loads_by_kind": dict(self.experts),
            "calls_by_kind": dict(self.calls),
            "peak_kv_bytes": self.kv_bytes,
            "peak_saved_bytes": self.saved_bytes,
        }


def expected_experts(experts: int, top_k: int, tokens: int) -> float:
    """Distinct experts that so many tokens choose under uniform routing: `E(1 - (1 - k/E)^n)`.

    Raises:
        InputError: unless 1 <= top_k <= experts.
    """
    if not 1 <= top_k <= experts:
        raise InputError(f"top_k={top_k} of {experts} experts; need 1 to {experts}")
    return experts * (1 - (1 - top_k / experts) ** tokens)


class RouterWatch:
    """Counts the distinct experts of every call of every router of a network.

    Counts stay on the device until `read`, so that counting does not wait for it.

    Args:
        network: a transformers model; one without routers counts nothing.
    """

    def __init__(self, network: Any) -> None:
        self._handles = []
        self._counts: list[tuple[Kind, torch.Tensor]] = []
        self.kind: Kind = "decode"
        self.routers = self.experts = self.top_k = self.expert_bytes = 0
        for module in network.modules():
            gate, experts = getattr(module, "gate", None), getattr(module, "experts", None)
            if gate is None or experts is None or not hasattr(gate, "top_k"):
                continue
            self.experts = int(gate.weight.shape[0])
            self.top_k = int(gate.top_k)
            size = sum(p.numel() * p.element_size() for p in experts.parameters())
            self.expert_bytes = size // self.experts
            self._handles.append(gate.register_forward_hook(self._seen))
            self.routers += 1

    def _seen(self, gate: Any, inputs: Any, output: tuple[Any, ...]) -> None:
        chosen_Nk = output[-1]
        hit_E = chosen_Nk.new_zeros(self.experts)
        hit_E.index_fill_(0, chosen_Nk.flatten(), 1)
        self._counts.append((self.kind, hit_E.sum()))

    def read(self) -> dict[Kind, int]:
        """Distinct experts since the last reading, by kind of call."""
        found: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        if self._counts:
            import torch

            values = torch.stack([count for _, count in self._counts]).tolist()
            for (kind, _), value in zip(self._counts, values, strict=True):
                found[kind] += int(value)
            self._counts.clear()
        return found

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
