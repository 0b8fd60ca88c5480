"""Reading lists of moves: every tolerated format, and refusals with their position."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlay.evals.puzzles import parsing
from outlay.evals.puzzles.parsing import (
    Failure,
    Parsed,
    claims_impossible,
    nested_lists,
    parse_moves,
    parse_named,
    parse_program,
    print_moves,
    read_list,
    split_thinking,
)

WANTED = [["R", 0, 1], ["B", 2, 0]]

BOTH = {
    "json": 'moves = [["R", 0, 1], ["B", 2, 0]]',
    "python": "moves = [['R', 0, 1], ['B', 2, 0]]",
    "no blanks": 'moves=[["R",0,1],["B",2,0]]',
    "lines": 'moves = [\n  ["R", 0, 1],\n  ["B", 2, 0]\n]',
    "list on the next line": 'moves =\n[["R", 0, 1], ["B", 2, 0]]',
    "trailing commas": "moves = [['R', 0, 1,], ['B', 2, 0],]",
    "comments": "moves = [  # start ]]\n ['R', 0, 1],  # [red]\n ['B', 2, 0]  # then blue\n]",
    "fence": '```python\nmoves = [["R", 0, 1], ["B", 2, 0]]\n```\nDone.',
    "code quotes": '`moves = [["R", 0, 1], ["B", 2, 0]]`',
    "tuples": "moves = [('R', 0, 1), ('B', 2, 0)]",
    "blanks in names": 'moves = [["R ", 0, 1], [" B", 2, 0]]',
    "last of two": 'moves = [["R", 5, 6]]\nNo.\nmoves = [["R", 0, 1], ["B", 2, 0]]',
    "after thinking": '<think>moves = [["X"]]</think>moves = [["R", 0, 1], ["B", 2, 0]]',
    "dotted text after": 'So moves = [["R", 0, 1], ["B", 2, 0]]. That is [all].',
}
LENIENT = {
    "bare words": "moves = [[R, 0, 1], [B, 2, 0]]",
    "colon": 'moves: [["R", 0, 1], ["B", 2, 0]]',
    "key of an object": '{"moves": [["R", 0, 1], ["B", 2, 0]]}',
    "bold": '**moves** = [["R", 0, 1], ["B", 2, 0]]',
    "capital": 'Moves = [["R", 0, 1], ["B", 2, 0]]',
    "quoted numbers": 'moves = [["R", "0", "1"], ["B", "2", "0"]]',
    "curly quotes": "moves = [[\u201cR\u201d, 0, 1], [\u2018B\u2019, 2, 0]]",
    "no name": 'The answer is [["R", 0, 1], ["B", 2, 0]].',
    "no name, broken lines": 'Answer:\n[\n["R", 0, 1],\n["B", 2, 0]]',
}


@pytest.mark.parametrize("text", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("parser", ["strict", "lenient"])
def test_both_parsers_read_valid_lists(text, parser):
    found = parse_moves(text, parser)
    assert isinstance(found, Parsed), found
    assert found.moves == WANTED


@pytest.mark.parametrize("text", LENIENT.values(), ids=LENIENT)
def test_only_the_lenient_parser_reads_sloppy_lists(text):
    assert parse_moves(text, "lenient").moves == WANTED
    strict = parse_moves(text, "strict")
    assert isinstance(strict, Failure) or strict.moves != WANTED


@pytest.mark.parametrize(
    ("text", "reason", "at"),
    [
        ("", "empty", 0),
        ("   \n", "empty", 0),
        ("<think>all thought", "empty", 18),
        ("I do not know.", "no list", 0),
        ("moves = [[1, 0, 2]", "not closed", 18),
        ("moves = [[1, 0, 2], [2, 0", "not closed", 25),
        ("moves = [[1 0 2]]", "comma is missing", 12),
        ("moves = [[1, 0, 2] [2, 0, 1]]", "comma is missing", 19),
        ("moves = [[1, 0, 2],, [2, 0, 1]]", "without an item", 20),
        ("moves = [1, 0, 2]", "not a list", 10),
        ("moves = [[[1, 0, 2]]]", "nested too deeply", 11),
        ("moves = [[1, 0, 2)]", "closes", 18),
        ("moves = [[1, 0, 2], ...]", "belongs to no list", 20),
        ("moves = [[1, 0, 2], [2, 0, *]]", "belongs to no list", 27),
        ("moves = [[1, 0, 2.]]x = [[1, 0 2]]\nmoves = [[1;2]]", "belongs to no list", 46),
    ],
)
def test_what_can_be_read_in_several_ways_is_refused_with_its_position(text, reason, at):
    found = parse_moves(text)
    assert isinstance(found, Failure), found
    assert reason in found.reason
    assert found.position == at


def test_an_unreadable_last_list_is_not_replaced_by_an_earlier_one():
    text = "moves = [[1, 0, 2]]\nBetter: moves = [[1, 0, 2], [2, 0"
    assert isinstance(parse_moves(text), Failure)


def test_odd_values_are_kept_for_the_simulator_to_refuse():
    text = "moves = [[1.0, True, -1], [null, 0, 2], [99999999999999999999, 0, 1]]"
    (first, second, third) = parse_moves(text).moves
    assert [type(value) for value in first] == [float, bool, int]
    assert second[0] in (None, "null")
    assert third[0] > 10**18


def test_an_echo_of_the_example_does_not_count():
    echo = "moves = [[1, 0, 1]]"
    example = [[[1, 0, 1]]]
    assert isinstance(parse_moves(echo, exclude=example), Failure)
    both = f"moves = [[1, 0, 2]]\nas in {echo}"
    assert parse_moves(both, exclude=example).moves == [[1, 0, 2]]
    assert parse_moves(both).moves == [[1, 0, 1]]
    assert isinstance(parse_moves("see [[1, 0, 1]]", exclude=example), Failure)


def test_an_empty_list_is_a_list():
    assert parse_moves("moves = []").moves == []


def test_places_are_those_of_the_whole_reply():
    text = '<think>no</think>\nmoves = [["R", 0, 1]]!'
    found = parse_moves(text)
    assert text[found.start : found.end] == '[["R", 0, 1]]'


scalars = st.one_of(
    st.integers(-5, 200),
    st.text("abcAZ_19", min_size=1, max_size=4).filter(lambda t: not t.isdigit()),
)
lists = st.lists(st.lists(scalars, min_size=1, max_size=4), max_size=6)


def _python(moves):
    return "moves = " + repr(moves)


def _lines(moves):
    rows = "".join(f"  {json.dumps(move)},  # move [{i}]\n" for i, move in enumerate(moves))
    return f"moves = [\n{rows}]"


def _tuples(moves):
    inner = ", ".join("(" + ", ".join(map(json.dumps, move)) + ",)" for move in moves)
    return f"Moves: [{inner}]"


def _fenced(moves):
    return f"First.\n```json\n{json.dumps({'moves': moves}, indent=1)}\n```\nThat is all."


@given(lists, st.sampled_from([print_moves, _python, _lines, _tuples, _fenced]))
def test_reading_a_printed_list_gives_the_list(moves, write):
    assert parse_moves(write(moves)).moves == moves


@given(lists)
def test_the_slow_reader_agrees_with_the_json_reader(moves):
    text = json.dumps(moves)
    fast = read_list(text, 0)
    slow = parsing._read_slowly(text, 0, "lenient", 2)
    assert fast == slow


@given(st.text("[]()\",'#moves= 01Ra_\n", max_size=80))
def test_no_text_raises(text):
    for parser in ("strict", "lenient"):
        assert isinstance(parse_moves(text, parser), Parsed | Failure)
    list(nested_lists(text))
    parse_named(text, "move", 1)
    parse_named(text, "state", 0)
    parse_program(text)
    claims_impossible(text)


def test_hostile_brackets_end_quickly():
    for text in ("[" * 50_000, "[[" * 25_000, "[[1]," * 20_000, "moves = [[" * 5_000):
        assert isinstance(parse_moves(text), Failure)
    assert isinstance(parse_moves("moves = [[" + "9" * 6_000 + "]]"), Parsed | Failure)


def test_every_nested_list_of_a_text_is_found():
    text = "Try [[1, 0, 2]] or moves=[[2, 0, 1],\n[1, 0, 2]], maybe [3, 4] or [ [broken]] [[1 2]]."
    found = [item.moves for item in nested_lists(text)]
    assert found == [[[1, 0, 2]], [[2, 0, 1], [1, 0, 2]], [["broken"]]]


@pytest.mark.parametrize(
    ("text", "name", "depth", "value"),
    [
        ("move = [1, 0, 2]", "move", 1, [1, 0, 2]),
        ("so move: [1, 0, 2]\nmove = [2, 0, 1]", "move", 1, [2, 0, 1]),
        ("It is [1, 0, 2].", "move", 1, [1, 0, 2]),
        ("state = [[3], [], [2, 1]]", "state", 2, [[3], [], [2, 1]]),
        ('state = "RR_BB"', "state", 0, "RR_BB"),
        ("state = RR_BB", "state", 0, "RR_BB"),
        ("state = 'R_B'", "state", 0, "R_B"),
    ],
)
def test_single_values_are_read_by_name(text, name, depth, value):
    assert parse_named(text, name, depth) == value


def test_a_missing_value_is_a_failure():
    for depth in (0, 1, 2):
        assert isinstance(parse_named("nothing here", "state", depth), Failure)
    assert isinstance(parse_named("It is [1, 0, 2].", "move", 1, "strict"), Failure)


def test_the_last_block_of_code_is_the_program():
    text = "```python\na = 1\n```\nBetter:\n```python\nprint([1, 0, 2])\n```\nDone."
    assert parse_program(text) == "print([1, 0, 2])\n"
    assert parse_program("print([1, 0, 2])") == "print([1, 0, 2])"
    assert isinstance(parse_program("no code"), Failure)
    assert isinstance(parse_program("```python\nprint("), Failure)


@pytest.mark.parametrize(
    ("text", "claimed"),
    [
        ("impossible", True),
        ("Answer: impossible.", True),
        ("There is no solution, since the boat is too small.", True),
        ("This puzzle is provably unsolvable.", True),
        ("It cannot be solved.", True),
        ("It is not impossible.", False),
        ("I found no solution yet.", False),
        ("No valid sequence exists.", True),
        ("moves = [[1, 0, 2]] (anything else is impossible)", False),
        ("<think>is it impossible?</think>I am lost.", False),
        ("", False),
    ],
)
def test_claims_of_impossibility_are_recognised(text, claimed):
    assert claims_impossible(text) is claimed


def test_thinking_is_split_at_its_last_end():
    assert split_thinking("<think>a</think>b") == ("a", "b")
    assert split_thinking("a</think>b</think>c") == ("a</think>b", "c")
    assert split_thinking("<think>cut") == ("cut", "")
    assert split_thinking("plain") == ("", "plain")
