"""SwiReasoning as transformers' custom_generate."""

import warnings
from typing import Any

import pytest
import torch

from outlay.decode.swireasoning import SoftThinking, SwiReasoning
from outlay.decode.swireasoning.custom import swir_generate
from outlay.errors import CapabilityError, InputError
from outlay.models.base import SamplingParams
from tiny_models import tiny_model, tiny_network

MARKERS: Any = {"think_token": "<|im_start|>", "end_think_token": "<|im_end|>"}
METHOD = SwiReasoning(window=2, math_tokens="none", **MARKERS)
PROMPTS = ("abc<|im_start|>", "on the other in<|im_start|>")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def inputs_of(model: Any, prompts: Any = PROMPTS, side: str = "left") -> Any:
    tokenizer = model.tokenizer
    tokenizer.padding_side = side
    return tokenizer(list(prompts), return_tensors="pt", padding=True)


def generated(model: Any, inputs: Any, **knobs: Any) -> list[list[int]]:
    """What was written after the prompts, without padding."""
    knobs = {"swir_method": METHOD, "max_new_tokens": 24, "do_sample": False, **knobs}
    out_BT = model.model.generate(
        **inputs, custom_generate=swir_generate, swir_tokenizer=model.tokenizer, **knobs
    )
    new_BT = out_BT[:, inputs["input_ids"].shape[1] :].tolist()
    return [unpadded(row, model.tokenizer.pad_token_id) for row in new_BT]


def unpadded(row: list[int], pad: int) -> list[int]:
    """A row without the padding at its end."""
    while row and row[-1] == pad:
        row = row[:-1]
    return row


def test_it_writes_what_the_decoder_writes(reasoner):
    method = SwiReasoning(
        window=2, c_max=3, termination_text="</think><answer>", math_tokens="none"
    )
    prompts = ["<user>3+4*7=?<assistant><think>", "<user>9-2=?<assistant><think>"]
    made = generated(reasoner, inputs_of(reasoner, prompts), swir_method=method)
    sampling = SamplingParams(max_tokens=24)
    for tokens, ours in zip(
        made, method.generate_many(reasoner, prompts, None, sampling), strict=True
    ):
        assert tokens == [each.token for each in ours.trace]


def test_explicit_thinking_without_an_end_is_generate(model):
    plain = SwiReasoning(start_mode="explicit", window=10**9, **MARKERS)
    inputs = inputs_of(model)
    ours = generated(model, inputs, swir_method=plain)
    theirs_BT = model.model.generate(**inputs, max_new_tokens=24, do_sample=False)
    width = inputs["input_ids"].shape[1]
    assert ours == [unpadded(row, 0) for row in theirs_BT[:, width:].tolist()]


def test_processors_and_criteria_of_generate_are_used(model):
    class Ban:
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores[:, sorted(banned)] = -torch.inf
            return scores

    inputs = inputs_of(model, PROMPTS[:1])
    banned: set[int] = set()
    free = generated(model, inputs)[0]
    banned = {free[0]}
    assert free[0] not in generated(model, inputs, logits_processor=[Ban()])[0]
    assert generated(model, inputs, eos_token_id=free[3])[0] == free[:4]
    assert len(generated(model, inputs, max_new_tokens=5)[0]) == 5


def test_sampling_follows_the_global_seed(model):
    inputs = inputs_of(model)
    knobs: Any = {"do_sample": True, "temperature": 1.0, "top_k": 30, "min_p": 0.01}
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(generated(model, inputs, **knobs))
    assert runs[0] == runs[1] != runs[2]


def test_a_streamer_gets_every_token(model):
    class Collect:
        def __init__(self) -> None:
            self.seen: list[list[int]] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.seen.append(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    stream = Collect()
    inputs = inputs_of(model, PROMPTS[:1])
    (tokens,) = generated(model, inputs, swir_streamer=stream)
    assert stream.ended
    assert stream.seen[0] == inputs["input_ids"][0].tolist()
    assert [token for piece in stream.seen[1:] for token in piece] == tokens
    with pytest.raises(InputError, match="streamer"):
        generated(model, inputs_of(model), swir_streamer=Collect())


def test_soft_thinking_runs_inside_generate(model):
    knobs = SoftThinking(**MARKERS)
    for prompt in PROMPTS:  # singly: soft steps of a random network amplify rounding
        (ours,) = generated(
            model, inputs_of(model, [prompt]), swir_method=knobs.method(), swir_plan=frozenset()
        )
        alone = knobs.generate(model, prompt, sampling=SamplingParams(max_tokens=24))
        assert ours == [each.token for each in alone.trace]


def test_a_prompt_that_does_not_end_in_thinking_is_warned_about(model):
    with pytest.warns(UserWarning, match="prompt 1 does not end inside thinking"):
        generated(model, inputs_of(model, ["a<|im_start|>", "a<|im_start|>b<|im_end|>"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generated(model, inputs_of(model))


def test_right_padding_is_refused(model):
    with pytest.raises(InputError, match="padded on the right"):
        generated(model, inputs_of(model, side="right"))


def test_holes_in_the_mask_are_refused(model):
    inputs = inputs_of(model, PROMPTS[1:])
    inputs["attention_mask"][0, 1] = 0
    with pytest.raises(InputError, match="holes"):
        generated(model, inputs)


def test_several_prompts_need_a_pad_token(model):
    class Config:
        pad_token_id = None
        num_beams = 1
        return_dict_in_generate = False
        max_length = 9

    ids_BT = torch.ones((2, 3), dtype=torch.long)
    with pytest.raises(InputError, match="pad token"):
        swir_generate(
            model.model,
            ids_BT,
            None,
            None,
            Config(),
            swir_tokenizer=model.tokenizer,
            swir_method=METHOD,
        )


def test_the_tokenizer_is_needed(model):
    inputs = inputs_of(model, PROMPTS[:1])
    with pytest.raises(InputError, match="swir_tokenizer="):
        model.model.generate(**inputs, custom_generate=swir_generate, max_new_tokens=3)


@pytest.mark.parametrize("knobs", [{"num_beams": 2}, {"return_dict_in_generate": True}])
def test_beams_and_dictionaries_are_refused(model, knobs):
    with pytest.raises(CapabilityError, match="num_beams=1"):
        generated(model, inputs_of(model), **knobs)


def test_an_encoder_decoder_is_refused():
    from outlay.decode.swireasoning.embeddings import check_feeding

    network = tiny_network()
    network.config.is_encoder_decoder = True
    with pytest.raises(CapabilityError, match="encoder-decoder"):
        check_feeding(network)
