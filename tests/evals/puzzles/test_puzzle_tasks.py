"""The task: problems, prompts, verdicts, marks, episodes, and studies of a scripted model."""

import itertools
import pickle
import re

import pytest

from outlay import registry
from outlay.budget import Budget
from outlay.errors import BudgetError, InputError
from outlay.evals.base import Explains, Interactive, Marks, Task
from outlay.evals.puzzles import Hanoi, Puzzles, print_moves
from outlay.evals.puzzles.answers import ProgramLimits
from outlay.evals.puzzles.parsing import parse_moves
from outlay.evals.puzzles.prompts import example_moves, system_prompt
from outlay.evals.puzzles.study import Study, collect
from outlay.models.base import Account, Capabilities, Generation, SamplingParams
from outlay.proofs.puzzles_policies import ScriptedReasoner, count, cut, slips
from outlay.registry import Entry

TASKS = [
    Puzzles("hanoi", (1, 2, 3)),
    Puzzles("hanoi", (2, 3, 40), "kth"),
    Puzzles("checkers", (1, 2, 3), vary=True),
    Puzzles("checkers", (2, 3), "kth", ask="state", vary=True),
    Puzzles("river", (1, 2, 3, 4)),
    Puzzles("river", (5, 6, 7), k=3, allow_unsolvable=True, vary=True),
    Puzzles("blocks", (2, 3, 4), vary=True, optimal_required=True),
    Puzzles("blocks", (2, 9), "kth", ask="state", goal_stack=2),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}")
def test_references_are_right_and_other_levels_answers_are_wrong(task):
    problems = task.sample(0, 12)
    assert isinstance(task, Task)
    assert isinstance(task, Explains)
    assert isinstance(task, Marks)
    for problem in problems:
        assert task.verify(problem, problem.answer) == 1.0
        assert task.verify(problem, f"<think>x</think>So {problem.answer}") == 1.0
        for nonsense in ("", "moves = [[9, 9, 9]]", "state = 7", "I give up."):
            assert task.verify(problem, nonsense) == 0.0
    one, two = problems[0], problems[1]
    assert one.answer == "impossible" or task.verify(one, two.answer) == 0.0


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}")
def test_a_larger_sample_extends_a_smaller_one_and_ids_differ(task):
    assert task.sample(3, 12)[:5] == task.sample(3, 5)
    assert len({problem.id for problem in task.sample(3, 12)}) == 12
    levels = [problem.meta["n"] for problem in task.sample(3, 12)]
    assert levels[: len(task.levels)] == list(task.levels)
    assert task.sample(3, 4) != task.sample(4, 4)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}")
def test_no_prompt_shows_the_answer(task):
    for problem in task.sample(0, 12):
        text = task.prompt(problem, "")
        assert problem.question in text
        example = example_moves(task.instance(problem.meta["n"], problem.meta["variant"]))
        assert task.answer == "kth" or print_moves(example) in text
        assert task.answer == "kth" or task.verify(problem, print_moves(example)) == 0.0
        assert problem.answer == "impossible" or problem.answer not in text


def test_a_prompt_holds_rules_twice_the_format_and_the_request_to_write_lists():
    task = Puzzles("hanoi", (4,))
    problem = task.sample(0, 1)[0]
    text = task.prompt(problem, "CONTEXT")
    assert text.count("larger disk may not be placed") == 2
    assert "moves = [[disk, from_peg, to_peg], ...]" in text
    assert "While you think" in text
    assert "CONTEXT" in text
    assert "ALGORITHM" not in text
    assert "shortest" not in text
    given = Puzzles("hanoi", (4,), algorithm=True, goal="optimal")
    text = given.prompt(given.sample(0, 1)[0], "")
    assert "ALGORITHM Solve" in text
    assert "the shortest sequence" in text


def test_variants_differ_in_names_and_pegs():
    for world in ("hanoi", "checkers", "river", "blocks"):
        keys = {Puzzles(world, (3,), vary=True).instance(3, variant).key for variant in range(12)}
        assert len(keys) >= 5
    assert len({Puzzles("hanoi", (3,)).instance(3, variant).key for variant in range(12)}) == 1


def test_explanations_say_where_and_why():
    task = Puzzles("hanoi", (3,))
    problem = task.sample(0, 1)[0]
    told = task.explain(problem, "moves = [[1, 0, 2], [3, 0, 1]]")
    assert told["outcome"] == "wrong"
    assert told["first bad move"] == "1"
    assert "disk 2 is" in told["reason"]
    assert told["state"] == "peg 0: [3, 2], peg 1: [], peg 2: [1]"
    assert (told["moves"], told["fewest moves"]) == ("2", "7")
    assert task.explain(problem, problem.answer)["outcome"] == "solved"
    assert task.explain(problem, "")["outcome"] == "unparsed"


def test_marks_are_in_order_and_say_which_list_solves_it():
    task = Puzzles("hanoi", (2,))
    problem = task.sample(0, 1)[0]
    text = f"First [[1, 0, 0]], then {problem.answer}, or [[1, 0, 2]]; {problem.answer}"
    marks = task.marks(problem, text)
    assert [mark.good for mark in marks] == [False, True, False, True]
    assert all(a.end <= b.start for a, b in itertools.pairwise(marks))
    assert "would stay" in marks[0].label
    assert text[marks[1].start : marks[1].end] in problem.answer
    assert task.marks(problem, "no list") == []


def test_a_task_can_be_hashed_pickled_and_named_on_a_command_line():
    for task in TASKS:
        assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
        assert hash(task) == hash(pickle.loads(pickle.dumps(task)))  # noqa: S301


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"puzzle": "chess"}, "puzzle='chess'"),
        ({"answer": "essay"}, "answer='essay'"),
        ({"parser": "fuzzy"}, "parser='fuzzy'"),
        ({"goal": "best"}, "goal='best'"),
        ({"ask": "why"}, "ask='why'"),
        ({"levels": ()}, "levels is empty"),
        ({"levels": (0,)}, "n=0"),
        ({"levels": (2, 2)}, "twice"),
        ({"levels": (True,)}, "n=True"),
        ({"k": 3}, "puzzle='river'"),
        ({"goal_stack": 2}, "puzzle='blocks'"),
        ({"puzzle": "river", "levels": (6,)}, "k=3 with n <= 5"),
        ({"puzzle": "river", "levels": (2,), "k": 0}, "k=0"),
        ({"puzzle": "river", "levels": (3,), "answer": "kth"}, "has several"),
        ({"puzzle": "river", "levels": (6,), "answer": "kth", "allow_unsolvable": True}, "none"),
        ({"puzzle": "blocks", "levels": (8,), "answer": "kth"}, "has several"),
        ({"puzzle": "blocks", "levels": (1,), "answer": "kth"}, "needs no move"),
        ({"puzzle": "checkers", "algorithm": True}, "hanoi only"),
        ({"moves_per_turn": 0}, "moves_per_turn=0"),
        ({"max_turns": 0}, "max_turns=0"),
        ({"levels": (12,), "answer": "stepwise"}, "1000 are the limit"),
    ],
)
def test_bad_knobs_are_refused_by_name(knobs, match):
    with pytest.raises(InputError, match=match):
        Puzzles(**knobs)


def test_problems_of_another_task_are_refused():
    problem = Puzzles("checkers", (3,)).sample(0, 1)[0]
    with pytest.raises(InputError, match="is not of"):
        Puzzles("hanoi", (3,)).verify(problem, "")
    with pytest.raises(InputError, match="is no episode"):
        Puzzles("checkers", (3,)).play(
            None, problem, Budget(tokens=5), SamplingParams(), decode=None, account=Account.open()
        )


def test_a_spec_of_the_command_line_sets_every_kind_of_knob(monkeypatch):
    entry = Entry("puzzles", "outlay.evals.puzzles.tasks:Puzzles", "evals", "Puzzles", "")
    monkeypatch.setattr(registry, "find", lambda kind, slug: entry)
    spec = 'puzzles:puzzle=river,levels=[2,3],k=4,answer=program,sandbox_limits={"seconds":2}'
    limits = ProgramLimits(seconds=2.0)
    wanted = Puzzles("river", (2, 3), "program", k=4, sandbox_limits=limits)
    assert registry.create("tasks", spec) == wanted
    with pytest.raises(InputError, match="puzzle"):
        registry.create("tasks", "puzzles:puzzle=chess")


# -- episodes --------------------------------------------------------------------------------------


class Talker:
    """Answers a chat by a function of its messages; counts and books tokens."""

    def __init__(self, reply):
        self.reply = reply
        self.name = "talker"
        self.context_length = 100_000
        self.capabilities = Capabilities()
        self.takes_chat = True
        self.chats = []

    def count(self, text):
        return count(text)

    def generate(self, prompt, budget=None, sampling=None, *, account=None):
        self.chats.append(prompt)
        hold = account.hold([sampling.max_tokens])
        whole = self.reply(prompt)
        text = cut(whole, hold.limits[0])
        account.settle(hold, count(text))
        account.ledger.record(
            account.stage, account.role, prompt_new=1, generated=count(text), method=account.method
        )
        finish = "eos" if text == whole else "length"
        return Generation(text, (), finish, account.ledger)


def play(task, reply, tokens=100_000):
    model = Talker(reply)
    account = Account.open(Budget(tokens=tokens))
    problem = task.sample(0, 1)[0]
    assert isinstance(task, Interactive)
    episode = task.play(
        model, problem, Budget(tokens=tokens), SamplingParams(), decode=None, account=account
    )
    assert task.verify(problem, episode.texts["answer"]) == episode.quality
    return episode, model, account


def solver(task, *, per_turn=1, tool=False):
    """Reads the state in the last message and looks up the next moves of the solution."""
    puzzle = task.instance(task.levels[0])
    moves = [list(move) for move in puzzle.solution()]
    shown = {}
    state = puzzle.start_state()
    for index, move in enumerate(moves):
        shown[puzzle.describe(state)] = index
        state = puzzle.apply(state, puzzle.clean(move))

    def reply(chat):
        text = re.findall(r"state is (?:now|still): (.*)", chat[-1]["content"])[-1]
        at = max((i for key, i in shown.items() if text.startswith(key)), default=0)
        if tool:
            return f"I call move({print_moves([moves[at]])[9:-1]}) now."
        return print_moves(moves[at : at + per_turn])

    return reply


@pytest.mark.parametrize("per_turn", [1, 3, 100])
@pytest.mark.parametrize("world", ["hanoi", "checkers", "river", "blocks"])
def test_a_stepwise_solver_reaches_the_goal_from_the_shown_state_alone(world, per_turn):
    task = Puzzles(world, (3,), "stepwise", moves_per_turn=per_turn)
    episode, model, account = play(task, solver(task, per_turn=per_turn))
    moves = task.instance(3).min_moves()
    assert episode.quality == 1.0
    assert len(model.chats) == -(-moves // per_turn)
    assert account.ledger.totals().generated > 0
    assert "state:" in episode.texts["transcript"]


def test_an_illegal_step_ends_a_stepwise_episode():
    task = Puzzles("hanoi", (3,), "stepwise", moves_per_turn=2)
    episode, model, _ = play(task, lambda chat: "moves = [[1, 0, 2], [3, 0, 1]]")
    assert episode.quality == 0.0
    assert episode.texts["ended"].startswith("move 1: disk 3")
    assert len(model.chats) == 1


@pytest.mark.parametrize(
    ("reply", "ended"),
    [
        ("no idea", "no list"),
        ("", "empty"),
        ("moves = []", "the list of moves is empty"),
        ("It is impossible.", "but there is one"),
    ],
)
def test_a_step_that_cannot_be_read_ends_the_episode(reply, ended):
    episode, _, _ = play(Puzzles("hanoi", (3,), "stepwise"), lambda chat: reply)
    assert episode.quality == 0.0
    assert ended in episode.texts["ended"]


def test_more_moves_than_asked_for_are_not_made():
    task = Puzzles("hanoi", (2,), "stepwise", moves_per_turn=1, max_turns=1)
    episode, _, _ = play(task, lambda chat: print_moves(list(Hanoi(2).solution())))
    assert parse_moves(episode.texts["answer"]).moves == [[1, 0, 1]]
    assert episode.texts["ended"] == "out of turns"


@pytest.mark.parametrize("world", ["hanoi", "checkers", "river", "blocks"])
def test_a_tool_user_reaches_the_goal(world):
    task = Puzzles(world, (2,), "tool", optimal_required=True)
    episode, model, _ = play(task, solver(task, tool=True))
    assert episode.quality == 1.0
    assert episode.texts["refused moves"] == "0"
    assert all(len(chat) <= 10 for chat in model.chats)  # old exchanges are dropped


def test_a_refused_call_changes_nothing_and_says_why():
    task = Puzzles("hanoi", (1,), "tool", max_turns=4)
    replies = iter(["move(1, 0, 0)", "hello", "move([9, 0, 2])", "move(1, 0, 2)"])
    episode, model, _ = play(task, lambda chat: next(replies))
    assert episode.quality == 1.0
    assert episode.texts["refused moves"] == "3"
    assert "Refused: disk 1 would stay" in model.chats[1][-1]["content"]
    assert "There is no call" in model.chats[2][-1]["content"]


def test_calls_inside_thinking_do_not_count_and_turns_are_limited():
    task = Puzzles("hanoi", (1,), "tool", max_turns=3)
    episode, model, _ = play(task, lambda chat: "<think>move(1, 0, 2)</think>Let me wait.")
    assert episode.quality == 0.0
    assert episode.texts["ended"] == "out of turns"
    assert len(model.chats) == 3


def test_running_out_of_budget_ends_an_episode_quietly():
    for answer in ("stepwise", "tool"):
        task = Puzzles("hanoi", (3,), answer)
        episode, _, account = play(task, solver(task, tool=answer == "tool"), tokens=40)
        assert episode.quality == 0.0
        assert account.ledger.totals().generated <= 40
        assert episode.texts["ended"] == "out of budget"


def test_an_unsolvable_episode_is_won_by_saying_so():
    for answer in ("stepwise", "tool"):
        task = Puzzles("river", (6,), answer, allow_unsolvable=True)
        assert play(task, lambda chat: "There is no solution.")[0].quality == 1.0
        assert play(task, lambda chat: "move([a_1, A_1])")[0].quality == 0.0


# -- studies ---------------------------------------------------------------------------------------


def run(task, policy, samples=4, **knobs):
    model = ScriptedReasoner(policy, task, seed=0, samples=samples)
    return collect(model, task, samples=samples, **knobs)


def test_a_study_has_all_samples_with_their_fates():
    task = Puzzles("hanoi", (1, 2, 3))
    study = run(task, slips(0.0))
    assert [sample.fate for sample in study.samples] == ["solved"] * 12
    assert study.parse_rate == 1.0
    assert [s.moves for s in study.samples[:3]] == [1, 3, 7]
    failing = run(task, slips(1.0))
    assert {sample.fate for sample in failing.samples} == {"wrong"}
    assert failing.first_bad_moves == [0] * 12


def test_a_list_that_does_not_fit_is_output_bound_and_a_cut_one_truncated():
    task = Puzzles("hanoi", (1, 4))
    study = run(task, slips(0.0), max_tokens=60)
    assert {s.n: s.fate for s in study.samples} == {1: "solved", 4: "output_bound"}

    def rambling(puzzle, random):
        return "word " * 500, print_moves(list(puzzle.solution()))

    cut_off = run(task, rambling, max_tokens=300)
    assert {sample.fate for sample in cut_off.samples} == {"truncated"}


def test_thinking_is_counted_and_its_candidates_found():
    def thoughtful(puzzle, random):
        moves = print_moves(list(puzzle.solution()))
        return f"maybe [[1, 0, 0]] or {moves} yes", moves

    study = run(Puzzles("hanoi", (2,)), thoughtful, samples=2)
    assert [[c.correct for c in trace.candidates] for trace in study.traces] == [[False, True]] * 2
    hidden = run(Puzzles("hanoi", (2,)), thoughtful, samples=2, hidden=True)
    assert hidden.traces == []
    assert [sample.thinking for sample in hidden.samples] == [None, None]
    (trace, _) = study.traces
    assert study.samples[0].thinking == trace.tokens
    assert study.samples[0].tokens > trace.tokens


def test_episodes_can_be_studied_too():
    task = Puzzles("hanoi", (2,), "stepwise")
    study = collect(Talker(solver(task)), task, samples=2)
    assert [sample.fate for sample in study.samples] == ["solved"] * 2
    short = collect(Talker(solver(task)), task, samples=1, max_tokens=25)
    assert short.samples[0].fate == "truncated"


def test_a_study_needs_samples_and_room():
    task = Puzzles("hanoi", (2,))
    model = ScriptedReasoner(slips(0.0), task, seed=0, samples=1)
    with pytest.raises(InputError, match="samples=0"):
        collect(model, task, samples=0)
    with pytest.raises(InputError, match="no samples"):
        _ = Study().parse_rate
    model.context_length = 50
    with pytest.raises(BudgetError, match="nothing is left after a prompt"):
        collect(model, task, samples=1)


def test_the_algorithm_is_for_hanoi_only():
    with pytest.raises(InputError, match="hanoi only"):
        system_prompt(Puzzles("river", (2,)).instance(2), "list", algorithm=True)
