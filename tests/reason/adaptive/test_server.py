"""Over a real server: the formats that are forced there are those that are forced locally."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outlay.models.base import SamplingParams
from outlay.models.endpoint import EndpointModel
from outlay.models.local import LocalModel
from outlay.reason import solve_many
from outlay.reason.adaptive import REASONER, Adaptive
from outlay.testbeds.reasoner import build_tokenizer, checkpoint_path

from ..conftest import questions

_PATH = Path(__file__).parents[2] / "models" / "test_endpoint.py"
_SPEC = importlib.util.spec_from_file_location("serving_of_endpoints", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
_servers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_servers)

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = _servers.free_port()
    folder = str(checkpoint_path())
    command = [
        *(sys.executable, "-m", "transformers.cli.transformers", "serve", folder),
        *("--device", "cpu", "--host", "127.0.0.1", "--port", str(port)),
    ]
    log = tmp_path_factory.mktemp("serve") / "log"
    with _servers.serving(command, port, "/health", 120, log) as root:
        yield f"{root}/v1"


def test_consensus_over_a_server_gives_what_the_local_model_gives(
    url: str, reasoner: LocalModel
) -> None:
    some = questions(2, (2, 3))
    sampling = SamplingParams(max_tokens=60)
    method = Adaptive(mode="consensus", formats="reasoner", equal_fn=lambda one, other: False)
    with EndpointModel(
        url, str(checkpoint_path()), tokenizer=build_tokenizer(), api="completions"
    ) as served:
        there = solve_many(method, served, some, None, sampling)
    here = solve_many(method, reasoner, some, None, sampling)
    for remote, local in zip(there, here, strict=True):
        assert [call["format"] for call in remote.detail["calls"]] == list(REASONER.names)
        assert remote.value == local.value
        for one, other in zip(remote.detail["calls"], local.detail["calls"], strict=True):
            assert one["answer"] == other["answer"]
        assert remote.ledger.totals().forced == 4
        assert remote.text.removesuffix("<eos>") == local.text.removesuffix("<eos>")
