"""Claims of the LongCodeZip sheet, on a real module, with a deterministic scorer."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from benchmarks import reference_longcodezip as reference
from cache_lm import CacheLM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.errors import BudgetError, CapabilityError, InputError, ModelError
from outlay.prompt.base import Compressor
from outlay.prompt.longcodezip import LongCodeZip
from outlay.prompt.markers import Assembly, Source
from outlay.prompt.relevance import Relevance, line_bits


def prompt(tokens: int) -> Budget:
    return Budget(tokens=tokens, counts="prompt")


def squeeze(method, text, query, tokens, **knobs):
    return method.compress(
        text, query, prompt(tokens), count=method.scorer.count, language="python", **knobs
    )


@pytest.mark.parametrize("tokens", [10, 60, 300, 1000, 2000, 3000])
def test_the_budget_is_kept_and_no_missing_line_fits_in_the_slack(
    tokens, scorer, module, query
) -> None:
    method = LongCodeZip(scorer)
    assert isinstance(method, Compressor)
    result = squeeze(method, module, query, tokens)
    assert result.tokens == scorer.count(result.text) <= tokens
    assert result.tokens >= 0.97 * tokens or tokens < 1000
    source = Source.read(module, scorer.count)
    starts = {start: i for i, start in enumerate(source.starts)}
    kept = [
        i for a, b in result.kept for i in range(starts[a], starts[a] + module[a:b].count("\n") + 1)
    ]
    assert Assembly(source, scorer.count, tokens, marker="# ...", kept=kept).text() == result.text
    for i in set(range(len(source))) - set(kept):
        if not source.blank(i):
            more = Assembly(source, scorer.count, tokens, marker="# ...", kept=[*kept, i])
            assert more.tokens > tokens


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tokens=st.integers(4, 3500),
    r_fine=st.sampled_from([0.3, 0.8, 1.0]),
    beta=st.floats(0, 1),
    overshoot=st.booleans(),
    paper=st.booleans(),
)
def test_any_knobs_keep_the_budget_and_the_order(
    tokens, r_fine, beta, overshoot, paper, module, query
) -> None:
    method = LongCodeZip(
        CacheLM(),
        r_fine=r_fine,
        beta=beta,
        overshoot=overshoot,
        alloc="paper" if paper else "exact",
        join="paper" if paper else "source",
        value="raw" if paper else "normalised",
        score="ppl" if paper else "nll",
    )
    result = squeeze(method, module, query, tokens)
    assert result.tokens == method.scorer.count(result.text) <= tokens
    lines = iter(module.split("\n"))
    for line in result.text.split("\n"):
        assert not line.strip() or line.strip() == "# ..." or line in lines


def test_what_fits_is_returned_unchanged_and_never_scored(scorer, module, query) -> None:
    for text in (module, module.replace("\n", "\r\n")):
        result = squeeze(LongCodeZip(scorer), text, query, 100_000)
        assert (result.text, result.kept) == (text, ((0, len(text)),))
    assert scorer.calls == 0
    assert len(result.ledger) == 0


def test_line_ends_and_trailing_newlines_do_not_matter(scorer, module, query) -> None:
    plain = squeeze(LongCodeZip(scorer), module, query, 700)
    for text, question in (
        (module.replace("\n", "\r\n"), query.replace("\n", "\r\n")),
        (module.rstrip("\n"), query + "\n"),
        (module + "\n\n", "\n" + query),
    ):
        assert squeeze(LongCodeZip(scorer), text, question, 700).text == plain.text


def test_a_blank_query_keeps_functions_in_original_order_and_scores_nothing(scorer, module) -> None:
    result = squeeze(LongCodeZip(scorer), module, " \n", 700)
    assert scorer.calls == 0
    assert [c["rank"] for c in result.report["chunks"]] == list(range(len(result.report["chunks"])))
    assert result.text.startswith(module[:200])


def test_r_fine_one_is_rank_only(scorer, module, query) -> None:
    one = squeeze(LongCodeZip(scorer, r_fine=1.0), module, query, 900)
    rank_only = squeeze(LongCodeZip(scorer, rank_only=True), module, query, 900)
    assert one.text == rank_only.text
    assert one.report["passes"]["lines"] == 0


def test_beta_zero_gives_one_rate(scorer, module, query) -> None:
    report = squeeze(LongCodeZip(scorer, beta=0.0), module, query, 900).report
    large = [c for c in report["chunks"] if c["selected"] and not c["small"]]
    assert len(large) > 1
    assert len({round(c["rate"], 9) for c in large}) == 1


def test_rates_meet_the_fine_budget(scorer, module, query) -> None:
    report = squeeze(LongCodeZip(scorer), module, query, 900).report
    chosen = [c for c in report["chunks"] if c["selected"]]
    spent = sum(c["rate"] * c["tokens"] for c in chosen)
    assert spent == pytest.approx(report["fine_budget"], abs=1)


def test_pins_are_always_kept(scorer, module, query) -> None:
    lines = module.split("\n")
    result = squeeze(LongCodeZip(scorer, pins=((3, 6), (200, 201))), module, query, 150)
    for line in (*lines[2:6], *lines[199:201]):
        assert line in result.text.split("\n")
    assert 0 < result.report["pinned_tokens"] <= result.tokens <= 150
    with pytest.raises(BudgetError, match=r"pinned lines alone take \d+ tokens"):
        squeeze(LongCodeZip(scorer, pins=((1, 100),)), module, query, 50)
    with pytest.raises(InputError, match=r"pin \(0, 3\) is out of range"):
        squeeze(LongCodeZip(scorer, pins=((0, 3),)), module, query, 50)


def test_preserved_blocks_that_eat_the_budget_are_reported(scorer) -> None:
    body = "\n".join(f"    # remark {i} on alpha\n    return v{i}" for i in range(40))
    result = squeeze(LongCodeZip(scorer), f"def f(alpha):\n{body}\n", "call f(alpha) now", 60)
    assert result.tokens <= 60
    assert result.report["preserved_tokens"] > 60
    assert "preserve='none'" in result.warnings[0]


def test_one_function_larger_than_the_budget_is_shrunk(scorer, module, query) -> None:
    start = module.index("    def _wrap_chunks")
    stop = module.index("    def _split_chunks")
    body = "class T:\n    x = 1\n" + module[start:stop]
    result = squeeze(LongCodeZip(scorer), body, query, 150)
    assert result.tokens <= 150
    assert any(b["chosen"] for c in result.report["chunks"] for b in c["blocks"])


def test_a_function_of_one_block_goes_by_lines(scorer, module, query) -> None:
    report = squeeze(LongCodeZip(scorer, alpha=math.inf), module, query, 600).report
    cut = [c for c in report["chunks"] if c["blocks"]]
    assert cut
    for chunk in cut:
        assert len(chunk["blocks"]) > 1


def test_paper_join_separates_blocks_by_blank_lines(scorer, module, query) -> None:
    result = squeeze(LongCodeZip(scorer, join="paper", fill=False), module, query, 900)
    lines = result.text.split("\n")
    blocks = [
        b for c in result.report["chunks"] if c["selected"] for b in c["blocks"] if b["chosen"]
    ]
    assert blocks
    source = module.split("\n")
    for block in blocks:
        first = source[block["lines"][0] - 1]
        assert not first.strip() or any(
            line == first and (i == 0 or not lines[i - 1].strip()) for i, line in enumerate(lines)
        )


def test_prose_is_shortened_by_sentences(scorer) -> None:
    parts = [
        " ".join(f"The {animal} number {j} eats leaf {j * i}." for j in range(30))
        for i, animal in enumerate(["cow", "emu", "yak", "ant"])
    ]
    method = LongCodeZip(scorer)
    result = method.compress(
        "\n\n".join(parts), "What does the yak number 7 eat?", prompt(100), count=scorer.count
    )
    assert result.report["language"] == "text"
    assert result.report["chunks"][2]["rank"] == 0
    assert "yak" in result.text
    assert 90 <= result.tokens == scorer.count(result.text) <= 100


def test_other_languages_get_their_own_comments(scorer) -> None:
    text = "\n".join(
        f"int f{i}(int alpha) {{\n  int b{i} = {i};\n  call(alpha, {i});\n  return b{i};\n}}\n"
        for i in range(30)
    )
    result = LongCodeZip(scorer).compress(text, "x = f7(b7);", prompt(120), count=scorer.count)
    assert result.report["language"] in ("c", "text", "java", "cpp", "javascript")
    named = LongCodeZip(scorer).compress(
        text, "x = f7(b7);", prompt(120), count=scorer.count, language="c++"
    )
    assert "// ..." in named.text
    assert "int f7(int alpha)" in named.text
    assert named.report["chunks"][7]["rank"] == 0


def test_rate_lowers_the_budget(scorer, module, query) -> None:
    result = squeeze(LongCodeZip(scorer, rate=0.1), module, query, 100_000)
    assert result.tokens <= 0.1 * scorer.count(module)


def test_scoring_is_batched_and_booked(scorer, module, query) -> None:
    result = squeeze(LongCodeZip(scorer), module, query, 900)
    # the query alone; all functions; then lines and blocks of each round that cuts new functions
    assert scorer.calls <= 8
    entries = result.ledger.entries
    assert {(e.stage, e.role, e.method) for e in entries} == {("prompt", "scorer", "longcodezip")}
    assert sum(e.prompt_new for e in entries) == sum(scorer.count(t) for t in scorer.texts)


def test_work_is_linear_in_the_context(module, query) -> None:
    work = []
    for copies in (1, 4):
        scorer = CacheLM()
        squeeze(LongCodeZip(scorer), module * copies, query, 900)
        work.append(sum(scorer.count(t) for t in scorer.texts))
    assert work[1] < 4.4 * work[0]


def test_another_model_may_find_the_blocks(scorer, module, query) -> None:
    chunker = CacheLM()
    squeeze(LongCodeZip(scorer, chunker_scorer=chunker), module, query, 900)
    assert chunker.calls > 0
    assert all(query not in text for text in chunker.texts)


@pytest.mark.parametrize("overshoot", [True, False])
@pytest.mark.parametrize("score", ["ppl", "nll"])
def test_fast_and_slow_select_the_same(overshoot, score, scorer, module, query) -> None:
    method = LongCodeZip(
        scorer, overshoot=overshoot, score=score, alloc="paper", join="paper", fill=False
    )
    report = squeeze(method, module, query, 900).report
    compare(report, scorer, module, query, 900, overshoot=overshoot, score=score)


def compare(report, scorer, module, query, budget, *, overshoot=True, score="ppl") -> None:
    slow = reference.select(
        scorer,
        module.rstrip("\n"),
        query,
        budget,
        count=scorer.count,
        fine_budget=report["fine_budget"],
        overshoot=overshoot,
        score=score,
    )
    assert len(slow) == len(report["chunks"])
    assert any(c["blocks"] for c in report["chunks"])
    for ours, theirs in zip(report["chunks"], slow, strict=True):
        assert ours["ami"] == pytest.approx(theirs.ami, abs=1e-3)
        assert ours["selected"] == theirs.selected
        if ours["selected"]:
            assert ours["rate"] == pytest.approx(theirs.rate, abs=1e-3)
        if ours["rate"] < 1 and ours["selected"]:
            assert [tuple(b["lines"]) for b in ours["blocks"]] == theirs.blocks
            assert [b["chosen"] for b in ours["blocks"]] == theirs.chosen


def test_line_bits_of_one_pass_equal_one_pass_a_line(scorer, module) -> None:
    text = module[module.index("def dedent") :].rstrip()
    slow = reference.line_bits(scorer, text.split("\n"))
    assert line_bits(scorer, [text])[0] == pytest.approx(slow)


def test_long_texts_are_scored_in_windows_and_say_so(module, query) -> None:
    text = module[module.index("def dedent") :].rstrip()
    whole, narrow = CacheLM(), CacheLM(context_length=120)
    notes: list[str] = []
    bits = line_bits(narrow, [text], warnings=notes)[0]
    assert np.isfinite(bits).sum() >= np.isfinite(line_bits(whole, [text])[0]).sum() - 1
    assert "window" in notes[0]
    assert len(narrow.texts) < 2.5 * narrow.count(text) / 100 + 2
    result = squeeze(LongCodeZip(narrow), module, query, 700)
    assert result.tokens <= 700
    assert any("only its last" in w for w in result.warnings)
    assert all(t.endswith(query) for t in narrow.texts if "\n\n" + query in t)


def test_blank_text_is_irrelevant_and_the_query_itself_most_relevant(scorer, module, query) -> None:
    relevance = Relevance(scorer, query)
    texts = ["\n  \n", query, *module.split("\n\n")]
    amis = relevance.ami(texts, [str(i) for i in range(len(texts))])
    assert amis[0] == 0
    assert amis[1] == max(amis)


def test_scores_rank_alike_and_single_equals_batched(scorer, module, query) -> None:
    texts = module.split("\n\n")
    names = [str(i) for i in range(len(texts))]
    nll = Relevance(scorer, query, "nll").ami(texts, names)
    ppl = Relevance(scorer, query, "ppl").ami(texts, names)
    assert np.argsort(nll, kind="stable").tolist() == np.argsort(ppl, kind="stable").tolist()
    one = [Relevance(scorer, query, "nll").ami([t], ["x"])[0] for t in texts]
    assert one == pytest.approx(nll, abs=1e-3)


@pytest.mark.parametrize(
    "knobs",
    [
        {"rate": 0.0},
        {"r_fine": 1.1},
        {"beta": -0.1},
        {"alpha": -1.0},
        {"min_lines": -1},
        {"score": "bits"},
        {"alpha_rule": "x"},
        {"spike_stat": "x"},
        {"value": "x"},
        {"alloc": "x"},
        {"join": "x"},
        {"preserve": "x"},
        {"marker": "a\nb"},
    ],
)
def test_knobs_out_of_range_are_errors_that_name_the_knob(knobs, scorer) -> None:
    with pytest.raises(InputError, match=next(iter(knobs))):
        LongCodeZip(scorer, **knobs)


def test_bad_input_is_an_error(scorer, module, query) -> None:
    method = LongCodeZip(scorer)
    with pytest.raises(InputError, match="empty"):
        squeeze(method, " \n", query, 100)
    with pytest.raises(InputError, match="binary"):
        squeeze(method, module + "\x00", query, 100)
    with pytest.raises(BudgetError, match="at least 4"):
        squeeze(method, module, query, 2)
    with pytest.raises(BudgetError, match="prompt budget"):
        method.compress(module, query, Budget(tokens=9), count=scorer.count)
    with pytest.raises(InputError, match="klingon"):
        replace(method, fallback=False).compress(
            module, query, prompt(99), count=scorer.count, language="klingon"
        )
    with pytest.raises(InputError, match=r"window 20"):
        squeeze(LongCodeZip(CacheLM(context_length=20)), module, query, 100)
    with pytest.raises(CapabilityError, match="losses"):
        LongCodeZip(object())  # type: ignore[arg-type]


@dataclass
class Overflowing(CacheLM):
    """A scorer whose losses overflow after a given word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def losses(self, texts, **knobs):
        found = super().losses(texts, **knobs)
        for text, loss in zip(texts, found, strict=True):
            if self.word in text:
                loss.nll[:] = np.nan
        return found


def test_scores_that_are_not_numbers_name_the_chunk(module, query) -> None:
    with pytest.raises(ModelError, match="_munge_whitespace"):
        squeeze(LongCodeZip(Overflowing("def _munge_whitespace")), module, query, 500)


@pytest.fixture(scope="module")
def embedded():
    pytest.importorskip("torch")
    from outlay.models import embedded as source

    return source.load()


SHORT = "    lo = bisect_right(a, x, lo, hi)"


@pytest.fixture(scope="module")
def shallow():
    """The embedded model's first three layers: real weights, quick enough for a pass a line."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from outlay.models import embedded as source
    from outlay.models.local import LocalModel

    folder, _ = source.fetch()
    network = AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=3)
    return LocalModel(network.eval(), AutoTokenizer.from_pretrained(folder), "shallow")


@pytest.mark.model
def test_a_real_network_selects_as_the_slow_reference(shallow, small_module) -> None:
    # One function of the module and its closing code: the reference takes one pass a line.
    first, last = small_module.index("def bisect_right"), small_module.index("# Overwrite above")
    text = small_module[:first] + small_module[last:]
    budget = shallow.count(text) * 2 // 3
    method = LongCodeZip(shallow, overshoot=True, score="ppl", alloc="paper", fill=False)
    report = squeeze(method, text, SHORT, budget).report
    compare(report, shallow, text, SHORT.strip("\n"), budget)


@pytest.mark.model
def test_the_real_model_keeps_the_budget_and_ranks_the_callee_high(embedded, small_module) -> None:
    result = squeeze(LongCodeZip(embedded), small_module, SHORT, 300)
    assert result.tokens == embedded.count(result.text) <= 300
    ranks = {c["name"]: c["rank"] for c in result.report["chunks"]}
    assert min(ranks["insort_right"], ranks["bisect_right"]) == 0
