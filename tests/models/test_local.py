"""Local models against plain forward passes and transformers' own `generate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from outlay.errors import CapabilityError, InputError, ModelError
from outlay.models.base import Account, Branch, Message, SamplingParams
from outlay.models.kv import segment
from outlay.models.local import LocalModel
from outlay.models.sampling import pick, stream
from tiny_models import KINDS, plain_logprobs, tiny_model, tiny_network, tiny_tokenizer

WORDS = "the cat in the hat reads one paper after another"
CHAT: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name the inner planets."},
]
MAIN = ("Llama", "Mixtral", "Qwen2")
OTHERS = tuple(kind for kind in KINDS if kind not in (*MAIN, "Mamba"))


@pytest.fixture(scope="module")
def llama() -> LocalModel:
    return tiny_model()


@pytest.fixture(scope="module", params=MAIN)
def main(request: pytest.FixtureRequest) -> LocalModel:
    return tiny_model(request.param)


@pytest.fixture(scope="module", params=OTHERS)
def other(request: pytest.FixtureRequest) -> LocalModel:
    return tiny_model(request.param)


def generated(model: LocalModel, ids: list[int], n: int) -> list[int]:
    """What transformers' own greedy search gives."""
    out = model.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=n,
        do_sample=False,
        pad_token_id=0,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return out[0, len(ids) :].tolist()


def from_scratch(
    model: LocalModel, parent: Branch, sampling: SamplingParams, child: int = 0
) -> tuple[list[int], list[float]]:
    """kv="none": the whole path is computed anew for every token."""
    path = parent.path()
    uniforms = stream(sampling.seed, parent, child, sampling.max_tokens)
    tokens: list[int] = []
    logprobs: list[float] = []
    while len(tokens) < sampling.max_tokens:
        after_V = plain_logprobs(model, path + tokens)[-1]
        token = int(pick(after_V[None], sampling, [float(uniforms[len(tokens)])]))
        tokens.append(token)
        logprobs.append(float(after_V[token]))
        if token in model.eos_ids:
            break
    return tokens, logprobs


def assert_as_from_scratch(
    model: LocalModel, branch: Branch, sampling: SamplingParams, child: int = 0
) -> None:
    assert branch.parent is not None
    tokens, logprobs = from_scratch(model, branch.parent, sampling, child)
    assert list(branch.token_ids) == tokens
    if sampling.logprobs:
        assert branch.logprobs is not None
        np.testing.assert_allclose(branch.logprobs, logprobs, atol=1e-4)


# -- greedy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [WORDS, "a", CHAT], ids=["text", "one token", "chat"])
def test_greedy_equals_generate(main: LocalModel, prompt: Any) -> None:
    ids = main.prompt_ids(prompt)
    made = main.generate(prompt, sampling=SamplingParams(max_tokens=40))
    assert list(made.token_ids) == generated(main, ids, 40)


def test_greedy_equals_generate_on_other_architectures(other: LocalModel) -> None:
    ids = other.prompt_ids(WORDS)
    made = other.generate(WORDS, sampling=SamplingParams(max_tokens=24))
    assert list(made.token_ids) == generated(other, ids, 24)


def test_greedy_stops_at_end_of_text_as_generate_does() -> None:
    network = tiny_network(seed=3)
    model = LocalModel(network, tiny_tokenizer(), "tiny")
    ids = model.prompt_ids(WORDS)
    tokens = generated(model, ids, 12)
    last = tokens[6]
    network.generation_config.eos_token_id = [2, last]
    model = LocalModel(network, tiny_tokenizer(), "tiny")
    made = model.generate(WORDS, sampling=SamplingParams(max_tokens=12))
    assert made.finish_reason == "eos"
    assert list(made.token_ids) == generated(model, ids, 12) == tokens[: tokens.index(last) + 1]
    assert made.text == model.decode(made.token_ids[:-1])


@pytest.mark.model
def test_greedy_equals_generate_on_the_embedded_model(model: LocalModel) -> None:
    chat: list[Message] = [{"role": "user", "content": "What is the capital of France?"}]
    for prompt in ("Once upon a time", chat):
        ids = model.prompt_ids(prompt)
        made = model.generate(prompt, sampling=SamplingParams(max_tokens=16))
        assert list(made.token_ids) == generated(model, ids, 16)
    assert made.finish_reason == "eos"


@pytest.mark.model
def test_forked_appended_and_batched_paths_are_exact_on_the_embedded_model(
    model: LocalModel,
) -> None:
    sampling = SamplingParams(max_tokens=4, temperature=0.8, seed=5, logprobs=True)
    root = model.open("List three colours:")
    (first,) = model.extend([root], sampling, 2)
    forced = model.append(first[0], " Wait, ")
    deeper = model.extend([forced, first[1], root], sampling)
    assert_as_from_scratch(model, first[1], sampling, 1)
    for (child,) in deeper:
        assert_as_from_scratch(model, child, sampling)


# -- the tree ---------------------------------------------------------------------------------


def test_batch_of_one_equals_batch_of_sixteen(main: LocalModel) -> None:
    sampling = SamplingParams(max_tokens=10, temperature=0.9, seed=1, logprobs=True)
    texts = [WORDS[: 2 + 3 * i] for i in range(15)] + ["z"]
    roots = [main.open(text) for text in texts]
    batch = main.extend(roots, sampling)
    for root, (child,) in zip(roots, batch, strict=True):
        ((alone,),) = main.extend([root], sampling)
        assert alone.token_ids == child.token_ids
        np.testing.assert_allclose(alone.logprobs, child.logprobs, atol=1e-4)
        assert_as_from_scratch(main, child, sampling)


def test_limits_and_settings_may_differ_within_a_batch(main: LocalModel) -> None:
    roots = [main.open(text) for text in ("a b c", WORDS, "one")]
    each = [
        SamplingParams(max_tokens=3, logprobs=True),
        SamplingParams(max_tokens=12, temperature=1.2, top_k=9, seed=4, logprobs=True),
        SamplingParams(max_tokens=7, temperature=0.7, top_p=0.8, seed=9),
    ]
    for sampling, (child,) in zip(each, main.extend(roots, each), strict=True):
        assert_as_from_scratch(main, child, sampling)


def test_branches_of_other_architectures_are_exact(other: LocalModel) -> None:
    sampling = SamplingParams(max_tokens=9, temperature=0.9, seed=2, logprobs=True)
    root, short = other.open(WORDS), other.open("on")
    forks = other.extend([root, short], sampling, 2)
    forced = other.append(forks[0][1], "the end")
    grown = other.extend([forced, forks[1][0]], sampling)
    for pair in forks:
        for number, child in enumerate(pair):
            assert_as_from_scratch(other, child, sampling, number)
    for (child,) in grown:
        if child.finish != "eos":
            assert_as_from_scratch(other, child, sampling)


def test_append_then_extend_equals_opening_the_longer_prompt(main: LocalModel) -> None:
    sampling = SamplingParams(max_tokens=12, logprobs=True)
    forced = main.append(main.open("one two"), " thX")
    whole = main.open("one two thX")
    assert forced.path() == whole.path()  # tokenisation agrees here
    ((left,),) = main.extend([forced], sampling)
    ((right,),) = main.extend([whole], sampling)
    assert left.token_ids == right.token_ids
    np.testing.assert_allclose(left.logprobs, right.logprobs, atol=1e-4)


def test_scores_equal_a_teacher_forced_pass(main: LocalModel) -> None:
    parent = main.append(main.open(WORDS), " so")
    options = ["x", " yes the", [9, 8, 7, 6, 5]]
    found = main.score(parent, options)
    for option, row in zip(options, found, strict=True):
        ids = main.encode(option) if isinstance(option, str) else option
        path = parent.path()
        after_TV = plain_logprobs(main, path + ids)
        want = [float(after_TV[len(path) - 1 + t, token]) for t, token in enumerate(ids)]
        np.testing.assert_allclose(row, want, atol=1e-4)


def test_sampled_logprobs_equal_a_teacher_forced_pass(main: LocalModel) -> None:
    sampling = SamplingParams(max_tokens=16, temperature=1.5, top_k=5, seed=3, logprobs=True)
    made = main.generate(WORDS, sampling=sampling)
    ids = main.prompt_ids(WORDS)
    after_TV = plain_logprobs(main, [*ids, *made.token_ids])
    want = [float(after_TV[len(ids) - 1 + t, i]) for t, i in enumerate(made.token_ids)]
    np.testing.assert_allclose(made.logprobs, want, atol=1e-4)


def test_scoring_is_that_of_the_loss(main: LocalModel) -> None:
    root = main.open("one two")
    (row,) = main.score(root, [" the cat"])
    (losses,) = main.losses(["one two the cat"], keep_from=[len("one two")])
    np.testing.assert_allclose(row, -losses.nll[np.isfinite(losses.nll)], atol=1e-4)


def test_eight_children_cost_no_second_prefill(llama: LocalModel) -> None:
    account = Account()
    before = llama.computed_tokens
    root = llama.open(WORDS, account=account)
    size = len(root.token_ids)
    assert llama.computed_tokens - before == size
    sampling = SamplingParams(max_tokens=5, temperature=1.0, ignore_eos=True)
    llama.extend([root], sampling, 8, account=account)
    assert llama.computed_tokens - before == size + 8 * 4  # a last token is never fed
    assert account.ledger.totals().prompt_new == size


def test_a_forked_branch_computes_its_last_token_once(llama: LocalModel) -> None:
    sampling = SamplingParams(max_tokens=5, temperature=1.0, ignore_eos=True)
    root = llama.open(WORDS)
    ((child,),) = llama.extend([root], sampling)
    forced = llama.append(child, "the")
    before = llama.computed_tokens
    llama.extend([forced], replace(sampling, max_tokens=1), 8)
    assert llama.computed_tokens - before == 1 + len(forced.token_ids)


TREES = st.lists(
    st.tuples(
        st.sampled_from(["open", "extend", "fork", "append", "back", "release", "all"]),
        st.integers(0, 50),
        st.integers(1, 5),
        st.sampled_from([0.0, 0.8]),
    ),
    min_size=2,
    max_size=9,
)


@settings(max_examples=15)
@given(TREES, st.sampled_from([32_768, 40]))
def test_any_tree_equals_from_scratch_and_computes_each_token_once(
    steps: list[tuple[str, int, int, float]], max_batch_tokens: int
) -> None:
    model = TREE_MODEL
    model.max_batch_tokens = max_batch_tokens
    account = Account()
    before = model.computed_tokens
    live = [model.open(WORDS[:9], account=account)]
    made: list[tuple[Branch, SamplingParams, int]] = []
    for kind, at, size, temperature in steps:
        branch = live[at % len(live)]
        sampling = SamplingParams(
            max_tokens=size, temperature=temperature, seed=at, logprobs=True, ignore_eos=True
        )
        if kind == "open":
            live.append(model.open(WORDS[at % 20 : at % 20 + size], account=account))
        elif kind in ("extend", "fork", "all"):
            parents = live[:6] if kind == "all" else [branch]
            n = 1 if kind == "extend" else 2
            for children in model.extend(parents, sampling, n, account=account):
                live += children
                made += [(child, sampling, k) for k, child in enumerate(children)]
        elif kind == "append":
            live.append(model.append(branch, [5 + at] * size, account=account))
        elif kind == "back" and branch.parent is not None:  # rolling back is keeping the parent
            live.append(branch.parent)
        elif kind == "release" and len(live) > 1:
            dead = live.pop()
            model.release(dead)
            live = [b for b in live if all(a is not dead for a in b.lineage())] or [
                model.open("b", account=account)
            ]
    for branch, sampling, child in made[-8:]:
        tokens, logprobs = masked_from_scratch(model, branch, sampling, child)
        assert list(branch.token_ids) == tokens
        np.testing.assert_allclose(branch.logprobs, logprobs, atol=1e-4)
    total = account.ledger.totals()
    distinct = total.prompt_new + total.generated + total.forced
    assert model.computed_tokens - before <= distinct
    assert total.generated + total.forced == total.delivered + total.discarded


def masked_from_scratch(
    model: LocalModel, branch: Branch, sampling: SamplingParams, child: int
) -> tuple[list[int], list[float]]:
    assert branch.parent is not None
    path = branch.parent.path()
    uniforms = stream(sampling.seed, branch.parent, child, sampling.max_tokens)
    tokens: list[int] = []
    logprobs: list[float] = []
    for step in range(sampling.max_tokens):
        after_V = plain_logprobs(model, path + tokens)[-1]
        masked_V = after_V.clone()
        masked_V[sorted(model.eos_ids)] = -torch.inf
        tokens.append(int(pick(masked_V[None], sampling, [float(uniforms[step])])))
        logprobs.append(float(after_V[tokens[-1]]))
    return tokens, logprobs


TREE_MODEL = tiny_model(seed=11)


def test_an_empty_child_continues_its_parent(llama: LocalModel) -> None:
    root = llama.open(WORDS)
    ((empty,),) = llama.extend([root], SamplingParams(max_tokens=0))
    assert empty.token_ids == ()
    assert empty.finish == "length"
    ((after,),) = llama.extend([empty], SamplingParams(max_tokens=6))
    assert list(after.token_ids) == generated(llama, root.path(), 6)


def test_a_branch_can_be_extended_after_its_descendants_were(llama: LocalModel) -> None:
    params = SamplingParams(max_tokens=5, temperature=1.0, seed=4, ignore_eos=True)
    root = llama.open("once upon a time")
    [[first]] = llama.extend([root], params)
    forced = llama.append(first, " the end")
    [[after]] = llama.extend([forced], params)
    [[again], [side]] = llama.extend([first, after], params)
    fresh = llama.open("once upon a time")
    [[twin]] = llama.extend([fresh], params)
    [[expected]] = llama.extend([twin], params)
    assert first.token_ids == twin.token_ids
    assert again.token_ids == expected.token_ids
    [[further]] = llama.extend([llama.append(twin, " the end")], params)
    assert further.token_ids == after.token_ids
    [[beyond]] = llama.extend([further], params)
    assert beyond.token_ids == side.token_ids


def test_extending_a_branch_whose_stop_was_dropped(llama: LocalModel) -> None:
    root = llama.open(WORDS)
    tokens = generated(llama, root.path(), 8)
    for length in (1, 4):
        stop = SamplingParams(
            max_tokens=8, stop_token_ids=(tokens[length - 1],), include_stop=False
        )
        ((child,),) = llama.extend([root], stop)
        assert child.finish == "stop"
        kept = tokens.index(tokens[length - 1])
        assert list(child.token_ids) == tokens[:kept]
        ((after,),) = llama.extend([child], SamplingParams(max_tokens=5, logprobs=True))
        assert list(after.token_ids) == generated(llama, child.path(), 5)
        assert segment(child).length <= len(child.token_ids)


# -- other architectures ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Gemma2", "Granite", "Cohere", "Llama", "GPT2"])
def test_logits_are_the_models_own_whatever_follows_its_head(kind: str) -> None:
    model = tiny_model(kind, initializer_range=0.8)
    root = model.open(WORDS)
    logits_V = segment(root).next_logits_V
    assert logits_V is not None
    with torch.inference_mode():
        want_V = model.model(torch.tensor([root.path()])).logits[0, -1]
    torch.testing.assert_close(logits_V, want_V, atol=1e-4, rtol=1e-4)


def test_unknown_architectures_work_with_unknown_flops() -> None:
    model = tiny_model("GPT2")
    assert model.shape is None
    assert model.vocabulary == len(tiny_tokenizer())
    assert model.context_length == 512
    made = model.generate(WORDS, sampling=SamplingParams(max_tokens=5))
    assert made.ledger.totals().flops == 0
    assert len(model.losses([WORDS])[0]) == model.count(WORDS)
    with pytest.raises(InputError, match="outside the vocabulary"):
        model.open([model.vocabulary])


def test_models_whose_state_is_not_keys_and_values_are_refused() -> None:
    with pytest.raises(CapabilityError, match="state other than keys and values"):
        LocalModel(tiny_network("Mamba"), tiny_tokenizer(), "mamba")


# -- losses -----------------------------------------------------------------------------------


def slow_losses(model: LocalModel, text: str) -> np.ndarray:
    ids = torch.tensor(model.encode(text))
    if len(ids) < 2:
        return np.full(len(ids), np.nan)
    with torch.inference_mode():
        logits_TV = model.model(ids[None], use_cache=False).logits[0]
    nll = torch.nn.functional.cross_entropy(logits_TV[:-1], ids[1:], reduction="none")
    return np.concatenate([[np.nan], nll.numpy()])


def test_losses_equal_one_plain_forward_a_text(main: LocalModel) -> None:
    texts = ["", "a", WORDS, "é 日本 🙂 end", WORDS * 3, "x\n\ny", "ab", WORDS[::-1]]
    main.max_score_tokens = 64
    found = main.losses(texts)
    for text, losses in zip(texts, found, strict=True):
        assert losses.token_ids.tolist() == main.encode(text)
        np.testing.assert_allclose(losses.nll, slow_losses(main, text), atol=1e-4)
        pieces = [text[s:e] for s, e in zip(losses.starts, losses.ends, strict=True)]
        assert set("".join(pieces)) == set(text)


@given(st.integers(0, len(WORDS) + 2))
@settings(max_examples=20)
def test_keep_from_scores_exactly_the_tokens_that_end_after_it(start: int) -> None:
    whole = slow_losses(TREE_MODEL, WORDS)
    (losses,) = TREE_MODEL.losses([WORDS], keep_from=[start])
    wanted = losses.ends > start
    wanted[0] = False
    assert (np.isfinite(losses.nll) == wanted).all()
    np.testing.assert_allclose(losses.nll[wanted], whole[wanted], atol=1e-4)


def test_losses_book_their_tokens(llama: LocalModel) -> None:
    account = Account(role="scorer")
    llama.losses([WORDS, "ab"], account=account)
    total = account.ledger.totals(role="scorer")
    assert total.prompt_new == llama.count(WORDS) + llama.count("ab")
    assert llama.shape is not None
    want = sum(llama.shape.flops(t, logits_rows=t - 1) for t in map(llama.count, (WORDS, "ab")))
    assert total.flops == want


# -- bad input --------------------------------------------------------------------------------


def test_bad_prompts_say_what_is_wrong(llama: LocalModel) -> None:
    for empty in ("", []):
        with pytest.raises(InputError, match="prompt is empty"):
            llama.open(empty)
    with pytest.raises(InputError, match="id 999 is outside the vocabulary of 273"):
        llama.open([3, 999])
    with pytest.raises(InputError, match="id -4 is outside"):
        llama.open([3, -4])
    with pytest.raises(InputError, match=r"has 512 tokens, the window of .* is 512"):
        llama.open([7] * 512)
    assert len(llama.open([7] * 511).path()) == 511


def test_generation_stops_at_the_window(llama: LocalModel) -> None:
    root = llama.open([7] * 508)
    ((child,),) = llama.extend([root], SamplingParams(max_tokens=50, ignore_eos=True))
    assert len(child.token_ids) == 4
    assert child.finish == "length"
    with pytest.raises(InputError, match="1 appended tokens after 512 exceed the window"):
        llama.append(child, [5])
    with pytest.raises(InputError, match="3 scored tokens after 512"):
        llama.score(child, [[5, 5, 5]])


def test_finished_and_released_branches_cannot_be_extended(llama: LocalModel) -> None:
    root = llama.open("ab")
    ((child,),) = llama.extend([root], SamplingParams(max_tokens=3, ignore_eos=True))
    ended = replace(child, finish="eos")
    for call in (lambda: llama.extend([ended]), lambda: llama.score(ended, ["a"])):
        with pytest.raises(InputError, match="ended with end-of-text"):
            call()
    llama.release(root)
    for call in (
        lambda: llama.extend([root]),
        lambda: llama.extend([child]),
        lambda: llama.append(child, "a"),
        lambda: llama.score(child, ["a"]),
    ):
        with pytest.raises(InputError, match="was released"):
            call()


def test_bad_calls_say_what_is_wrong(llama: LocalModel) -> None:
    root = llama.open("ab")
    with pytest.raises(InputError, match="n=0"):
        llama.extend([root], n=0)
    with pytest.raises(InputError, match="2 sampling parameters for 1 branches"):
        llama.extend([root], [SamplingParams(), SamplingParams()])
    for nothing in ("", []):
        with pytest.raises(InputError, match="nothing to append"):
            llama.append(root, nothing)
        with pytest.raises(InputError, match="at least one token"):
            llama.score(root, [nothing])
    with pytest.raises(InputError, match="at least one token"):
        llama.score(root, [])
    with pytest.raises(InputError, match="id 1000 is outside"):
        llama.append(root, [1000])
    with pytest.raises(InputError, match="id 1000 is outside"):
        llama.score(root, [[1000]])
    with pytest.raises(InputError, match="empty string"):
        SamplingParams(stop=("",))
    with pytest.raises(InputError, match="keep_from has 1 entries for 2 texts"):
        llama.losses(["a", "b"], keep_from=[0])
    with pytest.raises(InputError, match=r"text 1 has 600 tokens, the window of .* is 512"):
        llama.losses(["a", "z" * 600])


def test_chats_need_a_template(llama: LocalModel) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = None
    bare = LocalModel(llama.model, tokenizer, "bare")
    with pytest.raises(CapabilityError, match="bare has no chat template"):
        bare.open(CHAT)


def test_the_template_writes_special_tokens_once(llama: LocalModel) -> None:
    ids = llama.prompt_ids(CHAT, "Sure")
    want = llama.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    assert ids == [*want, *llama.encode("Sure")]


# -- loading ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tiny@home") / "net"
    tiny_network(seed=5).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_saved_model_loads_the_same(saved: Any) -> None:
    from outlay import models

    loaded = models.load(str(saved), device="cpu")
    want = tiny_model(seed=5).generate(WORDS, sampling=SamplingParams(max_tokens=8))
    made = loaded.generate(WORDS, sampling=SamplingParams(max_tokens=8))
    assert made.token_ids == want.token_ids
    assert isinstance(loaded, LocalModel)
    assert (loaded.name, loaded.mode) == ("net", "exact")
    fast = models.load(f"{saved}@fast", device="cpu")
    assert isinstance(fast, LocalModel)
    assert fast.mode == "fast"
    with pytest.raises(InputError, match="choose exact or fast"):
        models.load(f"{saved}@quick")


def test_damaged_and_missing_models_are_errors_that_say_so(saved: Any, tmp_path: Any) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    (broken / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ModelError, match="cannot load"):
        LocalModel.load(broken)
    with pytest.raises(ModelError, match="cannot load"):
        LocalModel.load(tmp_path)
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load"):
        LocalModel.load(broken)


def test_transformers_is_new_enough_for_the_cache_argument() -> None:
    assert tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24)
