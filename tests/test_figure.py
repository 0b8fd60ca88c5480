"""Pictures of frontiers: formats, labels, legends, axes, numbers."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.budget import Budget
from outlay.errors import InputError
from outlay.figure import _look, linear_ticks, log_ticks, short, spread
from outlay.frontier import Point, plot


def point(cost, quality, *, stack="m", lo=None, hi=None):
    return Point(
        stack, Budget(10), quality, lo, hi, 5, cost, 1.0, None, 0.1, None, None, cost=float(cost)
    )


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_is_written_in_each_format(tmp_path, suffix):
    cloud = [
        point(10 * k, 0.1 * k, stack="a $x$ <b>", lo=0.1 * k - 0.05, hi=0.1 * k + 0.05)
        for k in (1, 2, 8)
    ] + [point(12, 0.3, stack="other")]
    path = plot(cloud, tmp_path / f"front.{suffix}", title="T", metric="accuracy")
    data = path.read_bytes()
    assert data.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    if suffix == "svg":
        text = data.decode()
        for words in ("a $x$ &lt;b&gt;", "other", "log scale", "accuracy"):
            assert words in text
        assert (
            plot(cloud, tmp_path / "again.svg", title="T", metric="accuracy").read_bytes() == data
        )


def test_many_curves_have_a_legend_with_the_best_first(tmp_path):
    few = [point(10 * k, 0.05 * k + 0.1, stack=f"method {k}") for k in range(1, 8)]
    many = [point(10 * k, 0.05 * k + 0.1, stack=f"method {k}") for k in range(1, 12)]
    assert 'id="legend' not in plot(few, tmp_path / "few.svg").read_text()
    text = plot(many, tmp_path / "many.svg").read_text()
    legend = text[text.index('id="legend') :]
    places = [legend.index(f"method {k}<") for k in range(11, 0, -1)]
    assert places == sorted(places)
    looks = {_look(index) for index in range(21)}
    assert len(looks) == 21  # colours come again, with another line and another marker
    assert _look(0)[0] == _look(7)[0]
    assert _look(0)[1:] != _look(7)[1:]
    assert _look(0)[2] != _look(7)[2]


def test_a_single_point_and_equal_costs_can_be_drawn(tmp_path):
    plot([point(5, 0.5)], tmp_path / "one.png")
    plot([point(0, 0.5), point(0, 0.6, stack="n")], tmp_path / "same.png")


@pytest.mark.parametrize(
    ("cloud", "name", "words"),
    [
        ([], "a.png", "no points"),
        ([point(1, 1)], "a.jpeg", "ends in .png"),
        ([point(1, 1), replace(point(1, 1), axis="all")], "a.png", "several tasks or axes"),
    ],
)
def test_a_picture_that_makes_no_sense_is_refused(tmp_path, cloud, name, words):
    with pytest.raises(InputError, match=words):
        plot(cloud, tmp_path / name)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_keep_their_distance_and_order(wanted):
    placed = spread(wanted, 5.0, 0.0, 100.0)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    assert all(placed[b] - placed[a] >= 5 - 1e-9 for a, b in itertools.pairwise(order))
    assert min(placed) >= -1e-9
    assert max(placed) <= 100 + 1e-9


@given(st.floats(1e-6, 1e9), st.floats(1.5, 1e6))
def test_log_ticks_are_round_and_inside(lo, factor):
    marks = log_ticks(lo, lo * factor)
    assert marks == sorted(set(marks))
    assert all(lo <= mark <= lo * factor for mark in marks)
    assert len(marks) <= 30


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_linear_ticks_are_few_and_inside(lo, width):
    marks = linear_ticks(lo, lo + width)
    assert 2 <= len(marks) <= 12
    assert all(lo - 1e-6 * width <= mark <= lo + width + 1e-6 * width for mark in marks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12, "12"),
        (999.99, "1k"),
        (3400, "3.4k"),
        (1.2345e12, "1.23T"),
        (0.0123, "0.0123"),
        (1e-7, "1.00e-07"),
    ],
)
def test_numbers_are_short(value, text):
    assert short(value) == text
