"""The proof of BASIR at ci scale, its package data on made-up lists, and its bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from outlay.errors import DependencyError, InputError
from outlay.evals.basir.data import Excerpt
from outlay.evals.basir.f1 import f1_report
from outlay.evals.basir.labels import Label, LabelSet
from outlay.evals.basir.tfidf import Frequent, Tfidf
from outlay.proofs import basir as proof
from outlay.proofs import basir_data, basir_runs


def test_the_ci_variant_holds_and_shows_the_trap(tmp_path):
    result = proof.run("ci")
    assert result.holds, result.table()
    claims = [check.claim for check in result.checks]
    assert any("trap" in claim for claim in claims)
    assert len(result.data["routes"]) == 4
    for name, cell in result.data["ranking"].items():
        assert cell["price_relative_ndcg"] > 0.98, name
    assert result.data["ranking"]["tfidf-ridge, signal 2"]["excess"] > 0.5
    result.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def listing(sources: int = 90) -> str:
    """Package lists in apt's format: `sources` tags, each on its package and the shared one."""
    stanzas = [
        f"Package: tool{i}\nSource: source{i // 2} (1.0)\nDescription: does thing {i}\n"
        f"Tag: use::thing{i}, role::program,\n works-with::shared, use::TODO"
        for i in range(sources)
    ]
    stanzas.append("Package: plain\nDescription: no tags at all")
    stanzas.append("Package: again\nDescription: Does thing 3\nTag: use::thing3")
    return "\n\n".join(stanzas) + "\n"


def test_packages_become_rows_of_their_source_with_the_81_commonest_tags():
    rows, labels = basir_data.packages(listing())
    assert len(labels) == 81
    assert "works-with::shared" in labels.ids
    assert "role::program" not in labels.ids
    assert "use::TODO" not in labels.ids
    texts = [row.text.casefold() for row in rows]
    assert len(set(texts)) == len(texts)
    by_id = {row.excerpt_id: row for row in rows}
    assert by_id["tool0"].event == by_id["tool1"].event == "source0"
    assert by_id["tool0"].sectors == ("use::thing0", "works-with::shared")
    assert "plain" not in by_id
    assert labels[labels.ids.index("use::thing0")].name == "used for: thing0"


def test_no_source_lies_in_two_parts():
    rows, _ = basir_data.packages(listing())
    parts = basir_data.draw(rows, (30, 20, 20), 0)
    events = [{row.event for row in part} for part in parts]
    assert len(set.union(*events)) == sum(map(len, events))
    assert all(len(part) >= size for part, size in zip(parts, (30, 20, 20), strict=True))
    with pytest.raises(InputError, match="apt-get update"):
        basir_data.draw(rows, (3000, 20, 20), 0)


def test_missing_package_lists_name_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="--scale ci"):
        basir_data.dump()
    fake = tmp_path / "apt-cache"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    with pytest.raises(InputError, match="apt-get update"):
        basir_data.dump()
    with pytest.raises(InputError, match="incomplete"):
        basir_data.packages(listing(20))


def run_of(truth, said):
    labels = ["a", "b", "c"]
    report = f1_report(truth, said, labels)
    return basir_runs.RouteRun(Frequent(), None, report, said, truth, 1, 0.0, 0.0)


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_resampled_f1_is_the_f1_of_the_resampled_rows(average):
    random = np.random.default_rng(0)
    truth, good, bad = random.random((3, 30, 3)) < 0.5
    good = good | truth
    values = basir_runs._resampled(truth, good, average, 7, 20)
    drawn = np.random.default_rng(7).integers(0, 30, (20, 30))
    wanted = [getattr(f1_report(truth[i], good[i], list("abc")), average) for i in drawn]
    assert values == pytest.approx(wanted)
    found = basir_runs.gap(run_of(truth, good), run_of(truth, bad), average, seed=0)
    assert 0 < found.lo < found.mean < found.hi
    same = basir_runs.gap(run_of(truth, good), run_of(truth, good), average, seed=0)
    assert (same.mean, same.lo, same.hi) == (0.0, 0.0, 0.0)


def test_a_route_is_judged_on_rows_that_it_has_not_seen():
    labels = LabelSet((Label("tea", "Tea"), Label("iron", "Iron")))
    rows = [
        Excerpt(f"e{i}", "", str(i), "tea leaves" if i % 2 else "iron ore", ("tea",))
        if i % 2
        else Excerpt(f"e{i}", "", str(i), "iron ore", ("iron",))
        for i in range(30)
    ]
    found = basir_runs.run_route(Tfidf(), (rows[:14], rows[14:20], rows[20:]), labels)
    assert found.report.micro == 1.0
    assert (found.train_rows, len(found.said_NL)) == (14, 10)
