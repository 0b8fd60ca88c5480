"""How much each frame matters for a question: a number >= 0 for every frame.

A scorer is any callable `(frames, asked) -> scores`. Frames are whatever it takes: arrays
(H, W, 3), pictures of Pillow, or tensors that a model's processor has made. Here are three that
read frames; `outlay.vision.quota.remote` asks a server.

- `LetterScorer`: a vision-language model is asked a question with choices A and B about each frame;
  the score is the probability that it would answer A (paper, section 3.3). One forward pass for a
  batch of frames, nothing is generated.
- `CosineScorer`: a model with two towers, such as CLIP; the score is the cosine between frame and
  text.

`outlay.vision.quota.stored` keeps what a scorer said on disk.

Differs from the paper: both writings of a letter count (with and without a space before it), where
the release reads one token id; and a score may be taken among the two letters alone.

Shapes: F frames, B of a batch, V vocabulary, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from outlay.errors import CapabilityError, DependencyError, InputError
from outlay.models.base import Account
from outlay.vision.quota.allocation import check_scores
from outlay.vision.quota.checks import one_of, whole
from outlay.vision.quota.decoupling import Asked, Frames, Scorer
from outlay.vision.quota.sampling import MAX_FRAMES

Encode = Callable[[Frames, str], Mapping[str, Any]]
"""Frames and the text that is asked of each -> inputs of a model, padded on the left."""
Normalise = Literal["vocabulary", "letters"]
MAX_BATCH = 65_536
_BICUBIC = 3  # as Pillow numbers it


def score(
    scorer: Scorer, frames: Frames, asked: Asked, *, batch: int = 64, max_pixels: int | None = None
) -> list[float]:
    """Scores of frames, in batches, checked.

    Args:
        scorer: gives a number a frame.
        frames: of one video.
        asked: about each.
        batch: frames that the scorer gets at once.
        max_pixels: pictures with more are made smaller first; None leaves them.

    Raises:
        InputError: for no frames or too many, another number of scores, or a score that is negative
            or not finite; the message names the frame.
    """
    whole("score_batch", batch, 1, MAX_BATCH)
    if len(frames) < 1:
        raise InputError("the video has no frames; give at least one")
    if len(frames) > MAX_FRAMES:
        raise InputError(
            f"{len(frames)} frames are more than {MAX_FRAMES}; sample fewer (t_base, alpha)"
        )
    found: list[float] = []
    for start in range(0, len(frames), batch):
        some = [shrunk(frame, max_pixels) for frame in frames[start : start + batch]]
        given = list(scorer(some, asked))
        if len(given) != len(some):
            raise InputError(f"the scorer gave {len(given)} scores for {len(some)} frames")
        found += given
    return [float(value) for value in check_scores(found, len(frames))]


@dataclass
class LetterScorer:
    """Asks a vision-language model about each frame; the score is the probability of "yes".

    Args:
        model: any model of transformers that maps `encode`'s inputs to logits.
        encode: frames and a text -> inputs, padded on the left; `for_processor` makes one.
        yes: token ids of the first choice (letter A), in its writings.
        no: of the second (letter B).
        normalise: "vocabulary": the probability among all tokens (the paper's); "letters": among
            the two choices, for models whose mass is on other words.
        account: where the tokens are booked.

    Raises:
        InputError: for choices without a token or with a common one, or a knob out of range.
    """

    model: Any
    encode: Encode
    yes: tuple[int, ...]
    no: tuple[int, ...]
    normalise: Normalise = "vocabulary"
    account: Account = field(
        default_factory=lambda: Account(stage="vision", role="scorer", method="quota")
    )

    def __post_init__(self) -> None:
        one_of("normalise", self.normalise, get_args(Normalise))
        if not self.yes or not self.no or {*self.yes} & {*self.no}:
            raise InputError(
                f"the choices have the tokens {self.yes} and {self.no}; each needs one of its own"
            )

    @classmethod
    def of(
        cls,
        model: Any,
        processor: Any,
        *,
        letters: tuple[str, str] = ("A", "B"),
        normalise: Normalise = "vocabulary",
    ) -> LetterScorer:
        """With a processor of transformers.

        Args:
            model: a vision-language model.
            processor: its processor, with a chat template.
            letters: of the choices.
            normalise: see the class.

        Raises:
            CapabilityError: if a letter is not one token, or the processor has no chat template.
        """
        yes, no = (letter_ids(processor.tokenizer, letter) for letter in letters)
        return cls(model, for_processor(processor), yes, no, normalise)

    @property
    def name(self) -> str:
        """Names the model and how it is read, for stored scores; "" for a model without a name."""
        place = _place(self.model)
        return place and f"letters:{place}:{self.yes}:{self.no}:{self.normalise}"

    @torch.no_grad()
    def __call__(self, frames: Frames, asked: Asked) -> list[float]:
        """One probability a frame, in one forward pass.

        Raises:
            InputError: for a batch that is padded on the right, or another number of rows.
        """
        started = time.perf_counter()
        device = next(self.model.parameters()).device
        given = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self.encode(frames, asked.text).items()
        }
        mask_BT = given.get("attention_mask")
        if mask_BT is not None and not bool(mask_BT[:, -1].all()):
            raise InputError("frames of a batch must be padded on the left; set padding_side")
        logits_BV = self.model(**given, logits_to_keep=1).logits[:, -1].float()
        if len(logits_BV) != len(frames):
            raise InputError(f"the model gave {len(logits_BV)} rows for {len(frames)} frames")
        yes_BK, no_BK = logits_BV[:, list(self.yes)], logits_BV[:, list(self.no)]
        if self.normalise == "letters":
            whole_B = torch.cat([yes_BK, no_BK], dim=1).logsumexp(1)
        else:
            whole_B = logits_BV.logsumexp(1)
        found_B = (yes_BK.logsumexp(1) - whole_B).exp()
        ids = given.get("input_ids")
        tokens = int(mask_BT.sum()) if mask_BT is not None else 0 if ids is None else ids.numel()
        self.account.ledger.record(
            self.account.stage,
            self.account.role,
            prompt_new=tokens,
            method=self.account.method,
            seconds=time.perf_counter() - started,
        )
        return [float(value) for value in found_B.clamp(0.0, 1.0)]


def letter_ids(tokenizer: Any, letter: str) -> tuple[int, ...]:
    """Token ids of a letter alone and after a space.

    Raises:
        CapabilityError: if the letter alone is not exactly one token, or an unknown one.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)

    def one(text: str) -> int | None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        return int(ids[0]) if len(ids) == 1 and ids[0] != unknown else None

    bare = one(letter)
    if bare is None:
        raise CapabilityError(
            f"the tokenizer has no single token for {letter!r}, so the probability of that answer "
            "cannot be read; give other letters, or another scorer"
        )
    spaced = one(f" {letter}")
    return (bare,) if spaced in (None, bare) else (bare, spaced)


def for_processor(processor: Any) -> Encode:
    """How a processor of transformers encodes one frame and a text as a chat.

    Raises:
        CapabilityError: if it has no chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise CapabilityError(
            "the processor has no chat template; set processor.chat_template, or give LetterScorer "
            "an encode of your own"
        )

    def encode(frames: Frames, text: str) -> Mapping[str, Any]:
        said = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": said}], add_generation_prompt=True
        )
        return dict(
            processor(
                images=[[frame] for frame in frames],
                text=[prompt] * len(frames),
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
        )

    return encode


def picture(frame: Any) -> Any:
    """A frame as a picture of Pillow.

    Raises:
        InputError: for something that is no frame.
        DependencyError: without Pillow.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DependencyError("pictures need Pillow: pip install 'outlay[vision]'") from error
    if isinstance(frame, Image.Image):
        return frame
    try:
        return Image.fromarray(frame)
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"a frame is a {type(frame).__name__}; give pictures of Pillow, or uint8 arrays "
            "(H, W, 3)"
        ) from error


def shrunk(frame: Any, max_pixels: int | None) -> Any:
    """A picture with at most `max_pixels`, its sides in proportion; other frames as they are."""
    if isinstance(frame, np.ndarray) and frame.ndim >= 2:
        height, width = frame.shape[:2]
    elif hasattr(frame, "resize") and hasattr(frame, "width"):
        height, width = frame.height, frame.width
    else:
        return frame
    if max_pixels is None or height * width <= max_pixels:
        return frame
    scale = (max_pixels / (height * width)) ** 0.5
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return picture(frame).resize(size, _BICUBIC)


def _place(model: Any) -> str:
    """Where a model was loaded from."""
    return str(getattr(model.config, "_name_or_path", "") or "")


@dataclass
class CosineScorer:
    """Cosine between a frame and what is looked for, by a model with two towers such as CLIP.

    Args:
        model: has `get_image_features` and `get_text_features`.
        images: frames -> inputs of `get_image_features`.
        texts: texts -> inputs of `get_text_features`.
    """

    model: Any
    images: Callable[[Frames], Mapping[str, Any]]
    texts: Callable[[Sequence[str]], Mapping[str, Any]]

    @classmethod
    def of(cls, model: Any, processor: Any) -> CosineScorer:
        """With a processor of transformers, of CLIP or SigLIP."""
        return cls(
            model,
            lambda frames: processor(images=list(frames), return_tensors="pt"),
            lambda texts: processor(
                text=list(texts), padding=True, truncation=True, return_tensors="pt"
            ),
        )

    @property
    def name(self) -> str:
        """Names the model, for stored scores; "" for a model without a name."""
        place = _place(self.model)
        return place and f"cosine:{place}"

    @torch.no_grad()
    def __call__(self, frames: Frames, asked: Asked) -> list[float]:
        """One cosine a frame: the best over the entities, or that of the question; at least 0."""
        words = list(asked.entities) or [asked.event or asked.question]
        text_WD = _features(self.model.get_text_features(**self.texts(words)))
        image_FD = _features(self.model.get_image_features(**self.images(frames)))
        return [float(value) for value in (image_FD @ text_WD.T).amax(1).clamp(0.0, 1.0)]


def _features(output: Any) -> Tensor:
    """Vectors of length one, of a tensor or of an output that pools."""
    vectors_ND = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(vectors_ND.float(), dim=-1)
