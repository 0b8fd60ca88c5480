"""QuoTA: scoring frames by letters, by cosines, by a server, from disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlms
import torch
from PIL import Image
from tests.models.misbehaving_server import Handler, fails, says, upstream, usage

from outlay.errors import CapabilityError, EndpointError, InputError, ResultsError
from outlay.models.base import Account
from outlay.models.retry import Retry
from outlay.vision.quota import Asked, QuoTA
from outlay.vision.quota.remote import EndpointScorer
from outlay.vision.quota.scorers import CosineScorer, LetterScorer, letter_ids, score, shrunk
from outlay.vision.quota.stored import StoredScores

A, B = 11, 12
ASKED = Asked("does it show a cup? A or B", "where is the cup?", ("cup",))
FAST = Retry(attempts=1)


def encode(frames: Sequence[torch.Tensor], text: str) -> dict[str, torch.Tensor]:
    """One frame a row; the text becomes as many tokens as it has words."""
    words = torch.tensor([20 + len(word) for word in text.split()])
    ids = torch.cat([torch.tensor([1]), torch.full((16,), tiny_vlms.IMAGE), words])
    ids = ids.expand(len(frames), -1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.stack(list(frames)),
    }


def scorer(**knobs: Any) -> LetterScorer:
    return LetterScorer(tiny_vlms.llava(), encode, (A,), (B,), **knobs)


def test_the_score_is_the_probability_of_the_letter_at_the_last_position() -> None:
    frames = tiny_vlms.pixels(3)
    one = scorer()
    logits = one.model(**encode(list(frames), ASKED.text)).logits[:, -1]
    wanted = logits.softmax(-1)
    assert one(list(frames), ASKED) == pytest.approx(wanted[:, A].tolist(), abs=1e-6)
    both = wanted[:, A] / (wanted[:, A] + wanted[:, B])
    among = LetterScorer(one.model, encode, (A,), (B,), normalise="letters")
    found = among(list(frames), ASKED)
    assert found == pytest.approx(both.tolist(), abs=1e-6)
    two = LetterScorer(one.model, encode, (A, 30), (B,))(list(frames), ASKED)
    assert two == pytest.approx((wanted[:, A] + wanted[:, 30]).tolist(), abs=1e-6)


def test_a_frame_alone_and_in_a_batch_scores_the_same() -> None:
    frames = list(tiny_vlms.pixels(5))
    one = scorer()
    together = score(one, frames, ASKED, batch=64)
    assert score(one, frames, ASKED, batch=1) == pytest.approx(together, abs=1e-6)
    assert score(one, frames, ASKED, batch=2) == pytest.approx(together, abs=1e-6)
    assert len({round(value, 6) for value in together}) == 5


def test_padding_on_the_left_changes_nothing_and_on_the_right_is_refused() -> None:
    frames = list(tiny_vlms.pixels(2))

    def padded(side: str) -> Any:
        def padding(frames: Sequence[torch.Tensor], text: str) -> Mapping[str, torch.Tensor]:
            given = encode(frames, text)
            rows, pad = len(frames), torch.zeros(len(frames), 3, dtype=torch.long)
            for name in ("input_ids", "attention_mask"):
                parts = [pad[:rows], given[name]]
                given[name] = torch.cat(parts if side == "left" else parts[::-1], dim=1)
            return given

        return padding

    model = tiny_vlms.llava()
    plain = LetterScorer(model, encode, (A,), (B,))(frames, ASKED)
    left = LetterScorer(model, padded("left"), (A,), (B,))(frames, ASKED)
    assert left == pytest.approx(plain, abs=1e-5)
    with pytest.raises(InputError, match="padded on the left"):
        LetterScorer(model, padded("right"), (A,), (B,))(frames, ASKED)


def test_what_scoring_cost_is_booked() -> None:
    account = Account(stage="vision", role="scorer", method="quota")
    one = LetterScorer(tiny_vlms.llava(), encode, (A,), (B,), account=account)
    score(one, list(tiny_vlms.pixels(4)), ASKED, batch=2)
    totals = account.ledger.totals(role="scorer")
    assert totals.calls == 2
    assert totals.prompt_new == 4 * (1 + 16 + len(ASKED.text.split()))
    assert totals.seconds > 0


def tokenizer(words: Sequence[str]) -> Any:
    """A word-level tokenizer whose words may begin with a space."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: at for at, word in enumerate(["<pad>", "<unk>", "<image>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ ]+"), "isolated")
    made.add_special_tokens(["<pad>", "<unk>", "<image>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def test_a_letter_must_be_one_token_and_counts_in_both_writings() -> None:
    both = tokenizer(["A", " A", "B", "see"])
    assert letter_ids(both, "A") == (
        both.convert_tokens_to_ids("A"),
        both.convert_tokens_to_ids(" A"),
    )
    assert letter_ids(both, "B") == (both.convert_tokens_to_ids("B"),)
    with pytest.raises(CapabilityError, match="no single token for 'C'"):
        letter_ids(both, "C")
    with pytest.raises(CapabilityError, match="no single token for 'A B'"):
        letter_ids(both, "A B")


def processor(chat: bool = True) -> Any:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    words = ["A", "B", "see", "a", " cup?", " A", " B"]
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=tokenizer(words),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
        if chat
        else None,
    )


def test_a_processor_of_transformers_encodes_frames_and_text() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (40, 50, 3), dtype=np.uint8) for _ in range(3)]
    made = processor()
    one = LetterScorer.of(tiny_vlms.llava(), made)
    asked = Asked("see cup?", "?")
    found = score(one, frames, asked)
    given = made(images=frames, text=["<image>see cup?"] * 3, return_tensors="pt")
    assert (given["input_ids"] == tiny_vlms.IMAGE).sum() == 3 * 16
    wanted = one.model(**given).logits[:, -1].softmax(-1)[:, list(one.yes)].sum(-1)
    assert found == pytest.approx(wanted.tolist(), abs=1e-6)
    assert found == pytest.approx(score(one, [Image.fromarray(f) for f in frames], asked), abs=1e-6)
    with pytest.raises(CapabilityError, match="chat template"):
        LetterScorer.of(tiny_vlms.llava(), processor(chat=False))


def test_large_pictures_are_made_smaller_in_proportion_and_tensors_are_left_alone() -> None:
    frame = np.zeros((100, 400, 3), np.uint8)
    small = shrunk(frame, 10_000)
    assert (small.height, small.width) == (50, 200)
    assert shrunk(frame, 40_000) is frame
    assert shrunk(frame, None) is frame
    assert shrunk(small, 10_000) is small
    pixels = torch.zeros(3, 500, 500)
    assert shrunk(pixels, 10) is pixels
    seen: list[Any] = []
    quota = QuoTA(
        frame_scorer=lambda frames, asked: [seen.append(f) or 0.5 for f in frames],
        max_score_pixels=100,
    )
    quota.score([frame], "where?")
    assert (seen[0].height, seen[0].width) == (5, 20)


def towers() -> Any:
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "eos_token_id": 3,
        "max_position_embeddings": 16,
    }
    vision = tiny_vlms.clip().to_dict()
    return tiny_vlms.ready(
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    )


def test_a_model_with_two_towers_scores_by_the_best_cosine() -> None:
    def texts(words: Sequence[str]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[10 + len(word), 3] for word in words])}

    model = towers()
    one = CosineScorer(model, lambda frames: {"pixel_values": torch.stack(list(frames))}, texts)
    frames = list(tiny_vlms.pixels(4))
    asked = Asked("", "where is it", ("cup", "plate"))
    found = score(one, frames, asked, batch=3)
    out = model(**texts(["cup", "plate"]), pixel_values=torch.stack(frames), attention_mask=None)
    scale = model.logit_scale.exp()
    wanted = (out.logits_per_image / scale).amax(1).clamp(min=0)
    assert found == pytest.approx(wanted.tolist(), abs=1e-5)
    plain = one(frames, Asked("", "where is it"))
    assert plain == pytest.approx(one(frames, Asked("", "?", ("where is it",))), abs=1e-6)


def counting(values: Sequence[float]) -> tuple[Any, list[int]]:
    asked: list[int] = []

    def one(frames: Sequence[Any], question: Asked) -> list[float]:
        asked.append(len(frames))
        return [values[int(np.asarray(frame).flat[0])] for frame in frames]

    return one, asked


def shades(count: int) -> list[np.ndarray]:
    return [np.full((2, 2, 3), k, np.uint8) for k in range(count)]


def test_scores_are_kept_on_disk_and_found_by_pixels_question_and_scorer(tmp_path: Path) -> None:
    one, asked = counting([0.1, 0.2, 0.3])
    path = tmp_path / "deep" / "scores.sqlite"
    first = StoredScores(one, path, "one")(shades(3), ASKED)
    assert first == [0.1, 0.2, 0.3]
    again = StoredScores(one, path, "one")([*shades(3), shades(1)[0]], ASKED)
    assert again == [0.1, 0.2, 0.3, 0.1]
    assert asked == [3]  # nothing was scored again
    sizes: list[int] = []
    batched = StoredScores(lambda f, a: [sizes.append(len(f)) or 0.5] * len(f), path, "many")
    batched([np.full((2, 2, 3), n, np.uint8) for n in range(100)], ASKED)
    assert sizes == [100]  # batches are the caller's
    StoredScores(one, path, "one")(shades(2), Asked("another", "?"))
    StoredScores(one, path, "two")(shades(2), ASKED)
    assert asked == [3, 2, 2]
    pictures = [Image.fromarray(frame) for frame in shades(3)]
    assert StoredScores(one, path, "one")(pictures, ASKED) == first
    assert len(asked) == 3


def test_frames_that_are_alike_are_scored_once(tmp_path: Path) -> None:
    one, asked = counting([0.4])
    found = StoredScores(one, tmp_path / "s", "one")(shades(1) * 5, ASKED)
    assert found == [0.4] * 5
    assert asked == [1]


def test_quota_stores_scores_where_it_is_told(tmp_path: Path) -> None:
    one, asked = counting([0.1, 0.9])
    one.name = "one"
    quota = QuoTA(frame_scorer=one, cache=tmp_path / "scores.sqlite")
    assert quota.score(shades(2), "where?") == [0.1, 0.9]
    assert quota.score(shades(2), "where?") == [0.1, 0.9]
    assert asked == [2]
    del one.name
    with pytest.raises(InputError, match="told apart"):
        quota.score(shades(2), "where?")


def test_a_model_from_nowhere_has_no_name_to_store_under(tmp_path: Path) -> None:
    one = scorer()
    assert one.name == ""
    with pytest.raises(InputError, match="another model's are told apart"):
        StoredScores(one, tmp_path / "s")
    one.model.config._name_or_path = "some/model"
    assert one.name == "letters:some/model:(11,):(12,):vocabulary"
    found = StoredScores(one, tmp_path / "s")(list(tiny_vlms.pixels(2)), ASKED)
    assert found == pytest.approx(one(list(tiny_vlms.pixels(2)), ASKED))


def test_a_file_that_holds_no_scores_is_named(tmp_path: Path) -> None:
    one, _ = counting([0.1])
    bad = tmp_path / "scores"
    bad.write_text("these are no scores, and long enough to be read as a header" * 9)
    with pytest.raises(ResultsError, match="delete the file"):
        StoredScores(one, bad, "one")(shades(1), ASKED)
    with pytest.raises(InputError, match="is a folder"):
        StoredScores(one, tmp_path, "one")
    with pytest.raises(InputError, match="without pixels"):
        StoredScores(one, tmp_path / "s", "one")([object()], ASKED)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.1, math.nan], "frame 1 has the score nan"),
        ([0.1, -0.5], "frame 1 has the score -0.5"),
        ([0.1], "gave 1 scores for 2 frames"),
    ],
)
def test_what_a_scorer_may_not_give_is_refused(values: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        QuoTA(frame_scorer=lambda frames, asked: values).score(shades(2), "where?")


def test_a_video_without_frames_and_a_quota_without_scorer_are_refused() -> None:
    with pytest.raises(InputError, match="no frames"):
        QuoTA(frame_scorer=lambda frames, asked: []).score([], "where?")
    with pytest.raises(InputError, match="no scorer"):
        QuoTA().score(shades(1), "where?")
    with pytest.raises(InputError, match="more than 100000"):
        QuoTA(frame_scorer=lambda frames, asked: []).score(range(100_001), "where?")


def test_choices_must_have_tokens_of_their_own() -> None:
    with pytest.raises(InputError, match="one of its own"):
        LetterScorer(None, encode, (1, 2), (2,))
    with pytest.raises(InputError, match="normalise='all'"):
        scorer(normalise="all")


# -- a server ------------------------------------------------------------------------------------


def first_token(**words: float) -> dict[str, Any]:
    rows = [{"token": token, "logprob": math.log(p)} for token, p in words.items()]
    return {"content": [{"token": rows[0]["token"], "logprob": 0.0, "top_logprobs": rows}]}


def graded(handler: Handler, body: dict[str, Any]) -> None:
    """Scores a frame by its first pixel, which travels as a PNG."""
    import base64
    import io

    url = body["messages"][0]["content"][0]["image_url"]["url"]
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    shade = Image.open(io.BytesIO(data)).getpixel((0, 0))[0]  # type: ignore[index]
    row = {
        "index": 0,
        "message": {"content": "A"},
        "finish_reason": "length",
        "logprobs": first_token(**{"A": shade / 10, " A": 0.05, "B": 0.2, "other": 0.1}),
    }
    handler.json({"choices": [row], "usage": usage(30, 1)})


def test_a_server_scores_frames_by_its_log_probabilities() -> None:
    account = Account(stage="vision", role="scorer", method="quota")
    with upstream(graded) as server:
        one = EndpointScorer(server.url, "tiny", account=account, max_concurrency=2)
        found = score(one, shades(4)[1:], ASKED)
        share = EndpointScorer(server.url, "tiny", normalise="letters")(shades(3)[2:], ASKED)
        one.close()
    assert found == pytest.approx([0.15, 0.25, 0.35])
    assert share == pytest.approx([0.25 / 0.45])
    body = server.requests[0]
    assert (body["max_tokens"], body["logprobs"], body["temperature"]) == (1, True, 0)
    assert body["top_logprobs"] == 20
    assert body["messages"][0]["content"][1] == {"type": "text", "text": ASKED.text}
    totals = account.ledger.totals(role="scorer")
    assert (totals.calls, totals.prompt_new, totals.generated) == (3, 90, 3)


def test_a_letter_that_is_not_among_the_likeliest_counts_nothing() -> None:
    def reply(handler: Handler, body: dict[str, Any]) -> None:
        row = {"message": {"content": "Yes"}, "logprobs": first_token(Yes=0.9, No=0.1)}
        handler.json({"choices": [row]})

    with upstream(reply) as server:
        for normalise in ("vocabulary", "letters"):
            one = EndpointScorer(server.url, "tiny", normalise=normalise)  # type: ignore[arg-type]
            assert one(shades(1), ASKED) == [0.0]
        words = EndpointScorer(server.url, "tiny", letters=("Yes", "No"))
        assert words(shades(1), ASKED) == pytest.approx([0.9])


def test_a_server_that_fails_or_gives_no_log_probabilities_says_so() -> None:
    with upstream(says("A")) as server, pytest.raises(CapabilityError, match="top_logprobs"):
        EndpointScorer(server.url, "tiny")(shades(1), ASKED)
    with upstream(fails(500)) as server, pytest.raises(EndpointError, match="500"):
        EndpointScorer(server.url, "tiny", retry=FAST)(shades(1), ASKED)


def test_the_key_is_never_shown() -> None:
    one = EndpointScorer("http://localhost:1/v1", "tiny", api_key="secret-key")
    assert "secret-key" not in repr(one)
    assert "secret-key" not in one.name
    assert json.dumps(one.name)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"model": ""}, "model is empty"),
        ({"letters": ("A", "A")}, "two different"),
        ({"top": 1}, "top=1"),
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"detail": "fine"}, "detail='fine'"),
        ({"normalise": "all"}, "normalise='all'"),
        ({"base_url": "nowhere"}, "base_url"),
    ],
)
def test_a_bad_knob_of_a_server_is_named(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EndpointScorer(**{"base_url": "http://localhost:1/v1", "model": "tiny", **knobs})


def test_a_frame_that_is_no_picture_is_refused() -> None:
    with upstream(graded) as server, pytest.raises(InputError, match="give pictures of Pillow"):
        EndpointScorer(server.url, "tiny")(["a frame"], ASKED)
