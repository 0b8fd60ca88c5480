"""Real networks with known habits: one that says the same token for ever, one that babbles."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_networks import always, tiny_llama

from outlay.models.local import LocalModel
from outlay.testbeds.reasoner import build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    torch.set_num_threads(1)
    return build_tokenizer()


@pytest.fixture(scope="session")
def says(tokenizer: Any) -> Callable[[str], LocalModel]:
    """A model that says nothing but the given token."""
    known: dict[str, LocalModel] = {}

    def make(text: str) -> LocalModel:
        if text not in known:
            known[text] = LocalModel(always(tokenizer, text), tokenizer, f"always {text}")
        return known[text]

    return make


@pytest.fixture(scope="session")
def babbler(tokenizer: Any) -> LocalModel:
    """A random network: it never means to stop."""
    return LocalModel(tiny_llama(tokenizer), tokenizer, "babbler")


@pytest.fixture(scope="session")
def reasoner() -> LocalModel:
    """The shipped reasoner: it thinks, closes its thinking and answers."""
    from outlay.testbeds.reasoner import checkpoint_path

    torch.set_num_threads(1)
    return LocalModel.load(checkpoint_path("small"), device="cpu")


@pytest.fixture(scope="session")
def restless(tokenizer: Any) -> LocalModel:
    """A random network that often, at temperature 1, closes its thinking or ends the text."""
    network = tiny_llama(tokenizer, initializer_range=0.1)
    head = torch.nn.Linear(32, len(tokenizer))
    with torch.no_grad():
        head.weight.copy_(network.lm_head.weight)
        head.bias.zero_()
        for text, bias in (("</think>", 4.5), ("<eos>", 3.5), ("Wait", 3.5), ("\n", 3.0)):
            head.bias[tokenizer.convert_tokens_to_ids(text)] = bias
    network.lm_head = head
    return LocalModel(network, tokenizer, "restless")
