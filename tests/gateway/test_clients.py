"""The official clients, unchanged: openai for Python and JavaScript, LangChain's ChatOpenAI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from recording_upstream import upstream
from servers import Serving, serving

from outlay.gateway.store import admin
from outlay.gateway.windows import Window

JS = Path(__file__).parent / "js"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with upstream() as running, serving(tmp_path_factory.mktemp("g"), running.url) as found:
        yield found


@pytest.fixture
def token(gateway: Serving) -> str:
    made = gateway.key("client")
    gateway.call(
        admin.create_budget,
        actor="test",
        name="client's",
        unit="tokens",
        amount=100_000,
        window=Window("day"),
        key_id=made.key.id,
    )
    return made.token


def test_openais_python_client_works_unchanged(gateway: Serving, token: str) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=token, max_retries=0)
    ask = [{"role": "user", "content": "hi you"}]
    chat = client.chat.completions.create(model="plain", messages=ask, max_tokens=3)  # type: ignore[call-overload]
    assert chat.choices[0].message.content == "word word word"
    assert chat.usage.completion_tokens == 3
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="plain",
        messages=ask,
        max_tokens=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "word " * 3
    assert chunks[-1].usage.completion_tokens == 3
    old = client.completions.create(model="plain", prompt="hi", max_tokens=2)
    assert old.choices[0].text == "word word"
    response = client.responses.create(model="plain", input="hi", max_output_tokens=2)
    assert response.output_text == "word word"
    events = [
        e.type
        for e in client.responses.create(
            model="plain", input="hi", max_output_tokens=2, stream=True
        )
    ]
    assert events[-1] == "response.completed"
    vector = client.embeddings.create(model="plain", input="hi", encoding_format="float")
    assert vector.data[0].embedding == [0.1, 0.2]
    assert "plain" in [each.id for each in client.models.list()]
    assert client.models.retrieve("plain").id == "plain"


def test_openais_python_client_raises_its_own_errors_and_does_not_retry_an_empty_budget(
    gateway: Serving, token: str
) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=token, max_retries=5)
    ask = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="plain", messages=ask, max_tokens=900_000)  # type: ignore[call-overload]
    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"
    stranger = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="nobody", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such", messages=ask)  # type: ignore[call-overload]


def test_langchains_chat_model_works_unchanged(gateway: Serving, token: str) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    chat = ChatOpenAI(
        model="plain",
        base_url=f"{gateway.url}/v1",
        api_key=SecretStr(token),
        max_completion_tokens=3,
        max_retries=0,
        stream_usage=True,
    )
    answer = chat.invoke("hi you")
    assert answer.content == "word word word"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 3
    pieces = list(chat.stream("hi you"))
    assert "".join(str(piece.content) for piece in pieces) == "word word word "


def test_openais_javascript_client_works_unchanged(
    gateway: Serving, token: str, tmp_path: Path
) -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        if os.environ.get("OUTLAY_CI"):
            pytest.fail("node and npm are not installed; install the packages nodejs and npm")
        pytest.skip("node and npm are not installed: the JavaScript client is untested")
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(JS / name, tmp_path)
    subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=300,
    )
    done = subprocess.run(
        ["node", "client.mjs", f"{gateway.url}/v1", token, "plain"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["chat"] == "word word word"
    assert (seen["usage"], seen["streamUsage"]) == (3, 3)
    assert seen["stream"] == "word word word "
    assert seen["response"] == "word word"
    assert seen["events"][-1] == "response.completed"
    assert seen["embedding"] == [0.1, 0.2]
    assert "plain" in seen["models"]
    assert seen["refused"] == [429, "insufficient_quota", "RateLimitError"]
