"""The paper's kind of controller: an encoder-decoder that reads the input and writes the number.

What it reads is the encoder's choice:

- "bytes": the bytes of instruction and input, by a small T5 trained from scratch;
- "seq2seq:PLACE": its own tokens, by a pretrained encoder-decoder (such as FLAN-T5) that is
  fine-tuned whole; PLACE is a folder or id for transformers;
- a sentence encoder ("minilm", "hash", ...): its vector, as a few soft tokens of a small T5.

Only the numbers 0..K can be written, so the chance of each is known: its likelihood, digits and
end, over that of all. The policy gradient of stage 2 is therefore exact here as well.

Shapes: N inputs, T positions, K1 = K + 1 numbers, S symbols of a number, C width, M soft tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

from outlay.errors import InputError, ModelError
from outlay.models.local import choose_device
from outlay.prompt.dynaicl.config import Training
from outlay.prompt.dynaicl.encoders import BYTES, PRETRAINED, encode, reads_text

FloatArray = npt.NDArray[np.float64]
WEIGHTS, CONFIG, TOKENIZER = "writer.safetensors", "writer.json", "tokenizer"
MAX_READ = 512  # tokens of instruction and input; what follows is not read
_PAD, _END, _FIRST = 0, 1, 3  # a byte b is the token b + 3, as in ByT5
_VOCABULARY = 256 + _FIRST
_SOFT = 4  # tokens that a sentence vector becomes
_IGNORED = -100
_ROWS = 256  # inputs of one pass when predicting


class Writer(torch.nn.Module):
    """An encoder-decoder that writes one of the numbers 0..K.

    Args:
        net: a transformers model with encoder and decoder.
        K: largest number.
        encoder: what it reads, see above.
        tokenizer: of a pretrained model, else None.
        features: width of the sentence vectors; 0 where text is read.
    """

    numbers_KS: torch.Tensor

    def __init__(
        self, net: Any, K: int, encoder: str, tokenizer: Any = None, features: int = 0
    ) -> None:
        super().__init__()
        self.net, self.K, self.encoder, self.tokenizer = net, K, encoder, tokenizer
        self.features = features
        rows = [self._ended(self._symbols(str(k))) for k in range(K + 1)]
        width = max(map(len, rows))
        padded = [[*row, *[_IGNORED] * (width - len(row))] for row in rows]
        self.register_buffer("numbers_KS", torch.tensor(padded), persistent=False)
        self.soft: torch.nn.Linear | None = None
        if features:
            self.soft = torch.nn.Linear(features, _SOFT * net.config.hidden_size)

    @classmethod
    def fresh(cls, encoder: str, K: int, config: Training, seed: int, features: int = 0) -> Writer:
        """An untrained writer, seeded, or a pretrained one; in eval mode.

        Raises:
            ModelError: if the pretrained one cannot be loaded.
        """
        if encoder.startswith(PRETRAINED):
            net, tokenizer = _pretrained(encoder.removeprefix(PRETRAINED))
            return cls(net, K, encoder, tokenizer).to(choose_device()).train(False)
        heads = math.gcd(config.hidden, 4)
        shape = T5Config(
            vocab_size=_VOCABULARY,
            d_model=config.hidden,
            d_kv=config.hidden // heads,
            d_ff=2 * config.hidden,
            num_layers=config.layers,
            num_decoder_layers=config.layers,
            num_heads=heads,
            dropout_rate=0.0,
            pad_token_id=_PAD,
            eos_token_id=_END,
            decoder_start_token_id=_PAD,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = cls(T5ForConditionalGeneration(shape), K, encoder, features=features)
            if made.soft is not None:
                with torch.no_grad():  # vectors have length one, whatever their width
                    made.soft.weight.mul_(features**0.5)
        return made.train(False)

    def _symbols(self, text: str) -> list[int]:
        if self.tokenizer is None:
            return [*(byte + _FIRST for byte in text.encode("utf-8", "surrogatepass")), _END]
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def _ended(self, ids: list[int]) -> list[int]:
        """With an end, without which 1 would be the beginning of 10."""
        end = _END if self.tokenizer is None else self.tokenizer.eos_token_id
        return ids if ids[-1:] == [end] else [*ids, end]

    def inputs(self, texts: Sequence[str]) -> torch.Tensor:
        """What the network reads: (N, T) tokens, right-padded, or (N, F) vectors.

        Raises:
            ModelError: for sentence vectors of another width than the training's.
        """
        if not reads_text(self.encoder):
            vectors_NF = encode(self.encoder, texts)
            if vectors_NF.shape[1] != self.features:
                raise ModelError(
                    f"the encoder {self.encoder!r} gives {vectors_NF.shape[1]} numbers, the "
                    f"controller was trained on {self.features}; use the encoder of its training"
                )
            return torch.tensor(vectors_NF, dtype=torch.float32)
        pad = _PAD
        if self.tokenizer is None:
            rows = [self._symbols(text) for text in texts]
            rows = [[*row[: MAX_READ - 1], _END] if len(row) > MAX_READ else row for row in rows]
        else:
            pad = self.tokenizer.pad_token_id
            read = self.tokenizer(list(texts), truncation=True, max_length=MAX_READ)
            rows = [row or [self.tokenizer.eos_token_id] for row in read["input_ids"]]
        width = max(map(len, rows))
        return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])

    def _encoded(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, T, C) encoder states and their (N, T) mask."""
        x = x.to(self.net.device)
        if self.soft is not None:
            soft_NMC = self.soft(x).view(len(x), _SOFT, -1)
            mask_NT = torch.ones(soft_NMC.shape[:2], dtype=torch.long, device=x.device)
            made = self.net.get_encoder()(inputs_embeds=soft_NMC, attention_mask=mask_NT)
            return made.last_hidden_state, mask_NT
        pad = _PAD if self.tokenizer is None else self.tokenizer.pad_token_id
        mask_NT = (x != pad).long()
        widest = int(mask_NT.sum(dim=1).max())
        x, mask_NT = x[:, :widest], mask_NT[:, :widest]
        made = self.net.get_encoder()(input_ids=x, attention_mask=mask_NT)
        return made.last_hidden_state, mask_NT

    def _likelihoods(
        self, states_NTC: torch.Tensor, mask_NT: torch.Tensor, labels_NS: torch.Tensor
    ) -> torch.Tensor:
        """(N,) log-likelihood of each row's number, its end included."""
        states = BaseModelOutput(last_hidden_state=states_NTC)
        out = self.net(encoder_outputs=states, attention_mask=mask_NT, labels=labels_NS)
        log_NSV = out.logits.float().log_softmax(dim=-1)
        found_NS = log_NSV.gather(2, labels_NS.clamp_min(0)[:, :, None])[:, :, 0]
        return (found_NS * (labels_NS != _IGNORED)).sum(dim=1)

    def written(self, x: torch.Tensor, k_N: torch.Tensor) -> torch.Tensor:
        """(N,) log-likelihood of writing `k_N[i]` for input i: what stage 1 raises."""
        states_NTC, mask_NT = self._encoded(x)
        labels_NS = self.numbers_KS[k_N.to(self.numbers_KS.device)]
        return self._likelihoods(states_NTC, mask_NT, labels_NS).to(x.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, K1) log-likelihood of every number."""
        states_NTC, mask_NT = self._encoded(x)
        each = self.K + 1
        labels = self.numbers_KS.repeat(len(x), 1)
        flat = self._likelihoods(
            states_NTC.repeat_interleave(each, dim=0), mask_NT.repeat_interleave(each, 0), labels
        )
        return flat.view(len(x), each).to(x.device)

    @torch.no_grad()
    def policy(self, texts: Sequence[str]) -> FloatArray:
        """(N, K1) chances of each number, from the texts alone."""
        blocks = [
            self(self.inputs(texts[at : at + _ROWS])).double().softmax(dim=1)
            for at in range(0, len(texts), _ROWS)
        ]
        return np.asarray(torch.cat(blocks).cpu().numpy(), dtype=np.float64)

    def finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(bool(torch.isfinite(weight).all()) for weight in self.parameters())

    def save(self, folder: Path) -> None:
        """Write weights, shape and, of a pretrained model, the tokenizer."""
        from safetensors.torch import save_model

        save_model(self, str(folder / WEIGHTS))
        (folder / WEIGHTS).chmod(0o644)
        about = {"net": self.net.config.to_dict(), "features": self.features}
        (folder / CONFIG).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / TOKENIZER)

    @classmethod
    def load(cls, folder: Path, encoder: str, K: int) -> Writer:
        """Read what `save` wrote.

        Raises:
            ModelError: for files that are missing, broken or of another shape.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        try:
            about = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            shape = about["net"]
            config = AutoConfig.for_model(shape.pop("model_type"), **shape)
            tokenizer = None
            if encoder.startswith(PRETRAINED):
                tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER)
            net: Any = AutoModelForSeq2SeqLM.from_config(config)
            made = cls(net, K, encoder, tokenizer, int(about["features"]))
            load_model(made, str(folder / WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{folder} holds no seq2seq controller that can be read "
                f"({str(error).strip().splitlines()[:1]}); save one with DynaICL.save"
            ) from error
        return made.to(choose_device() if tokenizer is not None else "cpu").train(False)


def _pretrained(place: str) -> tuple[Any, Any]:
    if not place.strip():
        raise InputError(f"controller={PRETRAINED!r} names no model; give a folder or id behind it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        net = AutoModelForSeq2SeqLM.from_pretrained(place, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"cannot load {place!r} as an encoder-decoder ({str(error).strip().splitlines()[:1]}); "
            f"give the folder of one, or controller={BYTES!r} for a small one from scratch"
        ) from error
    if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {place!r} lacks a pad or an end token; give it both")
    return net, tokenizer
