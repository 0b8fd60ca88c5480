"""The controller: predicts from an input alone how many demonstrations it needs.

An encoder turns the text into a vector, a small network turns that into K numbers ("ordinal": the
chances that more than 0, 1, ..., K-1 demonstrations are needed) or K + 1 ("curve": the accuracies
with 0..K); these run in numpy. Or an encoder-decoder writes the number ("seq2seq", the paper's
kind, see `seq2seq`; needs torch). Training is in `training`.

Shapes: N inputs, F features, H hidden units, K1 = K + 1 numbers of demonstrations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from outlay.errors import DependencyError, InputError, ModelError
from outlay.prompt.dynaicl.encoders import encode

if TYPE_CHECKING:
    from outlay.prompt.dynaicl.seq2seq import Writer

FloatArray = npt.NDArray[np.float64]
Head = Literal["ordinal", "curve", "seq2seq"]
HEADS: tuple[Head, ...] = get_args(Head)
WEIGHTS, CONFIG = "controller.safetensors", "controller.json"
LAYERS = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
CALIBRATION = "calibration"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a controller says about N inputs.

    Args:
        needed_N: (N,) C(x), the predicted number of demonstrations, a real number.
        policy_NK: (N, K1) how likely each number is the right one; rows sum to 1.
        curves_NK: (N, K1) predicted accuracy; with the ordinal and the seq2seq head, the chance
            that k is enough.
    """

    needed_N: FloatArray
    policy_NK: FloatArray
    curves_NK: FloatArray


def hidden_layer(features_NF: FloatArray, weights: Mapping[str, FloatArray]) -> FloatArray:
    """(N, H) tanh units."""
    return np.asarray(np.tanh(features_NF @ weights["inner.weight"].T + weights["inner.bias"]))


def sigmoid(x: FloatArray) -> FloatArray:
    """The logistic function, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def ordinal_policy(more_NK: FloatArray) -> FloatArray:
    """(N, K1) chances of each number from (N, K) chances of more; those are made to fall first."""
    falling_NK = np.minimum.accumulate(more_NK, axis=1)
    edge_N1 = np.ones((len(more_NK), 1))
    whole_NK = np.concatenate([edge_N1, falling_NK, 0 * edge_N1], axis=1)
    return np.asarray(whole_NK[:, :-1] - whole_NK[:, 1:])


@dataclass(frozen=True, eq=False)
class Controller:
    """A trained controller.

    Args:
        head: "ordinal", "curve" or "seq2seq".
        K: most demonstrations.
        encoder: see `encoders`.
        instruction: of the task; read before every input.
        t: the threshold of accuracy behind k*.
        weights: of the two layers; none with the seq2seq head.
        calibration_MK: (M, K1) predicted curves of training inputs, by which fixed prices are set.
        knots: (predicted, true) accuracies of held-out cells, monotone; none where not calibrated.
        about: how it was trained (JSON-ready).
        writer: the encoder-decoder of the seq2seq head, else None.

    Raises:
        ModelError: for weights that do not fit together or are not finite.
    """

    head: Head
    K: int
    encoder: str
    instruction: str
    t: float
    weights: Mapping[str, FloatArray]
    calibration_MK: FloatArray
    knots: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    about: Mapping[str, Any] = field(default_factory=dict)
    writer: Writer | None = None

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise ModelError(f"head={self.head!r}; known are {', '.join(HEADS)}")
        if self.head == "seq2seq":
            self._check_writer()
            return
        missing = [name for name in LAYERS if name not in self.weights]
        if missing:
            raise ModelError(f"the controller lacks {', '.join(missing)}; train it again")
        hidden, outputs = self.weights["inner.bias"].shape, self.weights["outer.bias"].shape
        width = self.K if self.head == "ordinal" else self.K + 1
        shapes = (
            self.weights["inner.weight"].shape[:1] == hidden
            and self.weights["outer.weight"].shape == outputs + hidden
            and outputs == (width,)
            and self.calibration_MK.shape[1:] == (self.K + 1,)
        )
        if not shapes:
            raise ModelError(
                f"the controller's weights do not fit K={self.K} and head={self.head!r}"
            )
        if not all(np.isfinite(self.weights[name]).all() for name in LAYERS):
            raise ModelError("the controller's weights are not finite; train it with a smaller lr")

    def _check_writer(self) -> None:
        if self.writer is None:
            raise ModelError("the controller lacks its encoder-decoder; train it again")
        if self.writer.K != self.K or self.calibration_MK.shape[1:] != (self.K + 1,):
            raise ModelError(f"the controller's encoder-decoder does not fit K={self.K}")
        if not self.writer.finite():
            raise ModelError("the controller's weights are not finite; train it with a smaller lr")

    @cached_property
    def _features(self) -> int:
        return int(self.weights["inner.weight"].shape[1])

    def _read(self, texts: Sequence[str]) -> list[str]:
        return [f"{self.instruction}\n{text}" if self.instruction else text for text in texts]

    def features(self, texts: Sequence[str]) -> FloatArray:
        """(N, F) encodings of instruction and input."""
        vectors_NF = encode(self.encoder, self._read(texts))
        if vectors_NF.shape[1] != self._features:
            raise ModelError(
                f"the encoder {self.encoder!r} gives {vectors_NF.shape[1]} numbers, the controller "
                f"was trained on {self._features}; use the encoder of its training"
            )
        return vectors_NF

    def outputs(self, texts: Sequence[str]) -> FloatArray:
        """(N, K) or (N, K1) chances of the head."""
        if not texts:
            raise InputError("the batch is empty; give at least one input")
        if self.writer is not None:
            return self.writer.policy(self._read(texts))
        hidden_NH = hidden_layer(self.features(texts), self.weights)
        return sigmoid(hidden_NH @ self.weights["outer.weight"].T + self.weights["outer.bias"])

    def predict(self, texts: Sequence[str]) -> Prediction:
        """Predictions for inputs, each from its own text alone.

        Raises:
            InputError: for no inputs.
            ModelError: if the encoder is not that of the training.
        """
        chances_NK = self.outputs(texts)
        if self.head == "ordinal":
            policy_NK = ordinal_policy(chances_NK)
            return Prediction(chances_NK.sum(axis=1), policy_NK, policy_NK.cumsum(axis=1))
        if self.head == "seq2seq":
            mean_N = chances_NK @ np.arange(self.K + 1.0)
            return Prediction(mean_N, chances_NK, chances_NK.cumsum(axis=1))
        best_NK = chances_NK > self.t
        first_N = np.where(best_NK.any(axis=1), best_NK.argmax(axis=1), chances_NK.argmax(axis=1))
        policy_NK = np.eye(self.K + 1)[first_N]
        return Prediction(first_N.astype(float), policy_NK, chances_NK)

    def calibrated(self, curves_NK: FloatArray) -> FloatArray:
        """Predicted accuracies as held-out accuracies, where the controller was calibrated."""
        predicted, true = self.knots
        if not predicted:
            return curves_NK
        return np.asarray(np.interp(curves_NK, predicted, true))

    def save(self, folder: str | Path) -> Path:
        """Write safetensors and JSON; returns the folder."""
        from safetensors.numpy import save_file

        base = Path(folder)
        base.mkdir(parents=True, exist_ok=True)
        tensors = {name: weight.astype(np.float32) for name, weight in self.weights.items()}
        tensors[CALIBRATION] = self.calibration_MK.astype(np.float32)
        save_file(tensors, base / WEIGHTS)
        (base / WEIGHTS).chmod(0o644)  # the writer makes it private; packages need it read
        if self.writer is not None:
            self.writer.save(base)
        record = {
            "format": FORMAT,
            "head": self.head,
            "K": self.K,
            "encoder": self.encoder,
            "instruction": self.instruction,
            "t": self.t,
            "knots": [list(row) for row in self.knots],
            "about": dict(self.about),
        }
        (base / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return base

    @classmethod
    def load(cls, folder: str | Path) -> Controller:
        """Read what `save` wrote.

        Raises:
            DependencyError: for a seq2seq controller without torch.
            ModelError: for a folder without a controller, or a file that cannot be read.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        base = Path(folder)
        try:
            record = json.loads((base / CONFIG).read_text(encoding="utf-8"))
            tensors = load_file(base / WEIGHTS)
            if record["format"] != FORMAT:
                raise ModelError(
                    f"{base} has format {record['format']}; this version reads {FORMAT}"
                )
            head, K, encoder = record["head"], int(record["K"]), record["encoder"]
            writer = None
            if head == "seq2seq":
                from outlay.prompt.dynaicl.seq2seq import Writer

                writer = Writer.load(base, encoder, K)
            return cls(
                head,
                K,
                encoder,
                record["instruction"],
                float(record["t"]),
                {n: tensors[n].astype(np.float64) for n in (LAYERS if writer is None else ())},
                tensors[CALIBRATION].astype(np.float64),
                (tuple(record["knots"][0]), tuple(record["knots"][1])),
                record["about"],
                writer,
            )
        except ImportError as error:
            raise DependencyError(
                f"a seq2seq controller needs torch ({error}); pip install 'outlay[local]'"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError) as error:
            raise ModelError(
                f"{base} holds no controller that can be read ({error!r}); save one with "
                "DynaICL.save"
            ) from error
