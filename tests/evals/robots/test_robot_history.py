"""The history in a prompt: newest steps first in, oldest first out, never above the limit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from robot_worlds import play

from outlay.errors import InputError
from outlay.evals.robots.boxlift import BoxLift
from outlay.evals.robots.boxnet import BoxNet1
from outlay.evals.robots.frameworks import CMAS, HMAS2
from outlay.evals.robots.history import HEAD, Past, history_text, past_lines
from outlay.evals.robots.scripted import ScriptedModel

POLICIES = ("none", "state_action", "full", "summary")
words = st.text("ab c", min_size=1, max_size=40)
pasts = st.lists(st.tuples(words, words, words, words), max_size=12).map(
    lambda rows: [Past(i + 1, s, a, f, d, d) for i, (s, a, f, d) in enumerate(rows)]
)


def by_words(text: str) -> int:
    return len(text.split())


def by_bytes(text: str) -> int:
    return -(-len(text.encode()) // 4)


def build(text: str) -> str:
    return f"rules\n{text}\nask"


@given(pasts, st.sampled_from(POLICIES), st.integers(0, 120), st.sampled_from([by_words, by_bytes]))
def test_prompt_and_history_never_exceed_the_limit(rows, policy, extra, count):
    limit = count(build("")) + extra
    text = history_text(rows, policy, build, count=count, limit=limit)
    assert count(build(text)) <= limit


@given(pasts, st.integers(0, 150))
def test_the_newest_steps_are_kept_and_printed_oldest_first(rows, extra):
    limit = by_words(build("")) + extra
    text = history_text(rows, "state_action", build, count=by_words, limit=limit)
    numbers = [int(n) for n in re.findall(r"State_(\d+)", text)]
    assert numbers == list(range(len(rows) - len(numbers) + 1, len(rows) + 1))
    if len(numbers) < len(rows):  # one more would not have fitted
        more = rows[-len(numbers) - 1 :]
        blocks = "".join("\n".join(past_lines(p, "state_action")) + "\n" for p in more)
        assert by_words(build(HEAD + blocks)) > limit


@given(pasts)
def test_richer_policies_contain_poorer_ones(rows):
    for past in rows:
        lines = [set(past_lines(past, policy)) for policy in POLICIES[:3]]
        assert lines[0] == set()
        assert lines[0] < lines[1] <= lines[2]
        assert any("Dialogue" in line for line in lines[2])


def test_a_prompt_longer_than_the_limit_is_an_error_with_both_numbers():
    model = ScriptedModel(BoxNet1(2, 2))
    with pytest.raises(InputError, match=r"has \d+ tokens, history_tokens=50"):
        play(model.world, 0, HMAS2(), model, history_tokens=50)
    assert play(model.world, 0, CMAS(), model, history_tokens=50).solved


@pytest.mark.parametrize("policy", POLICIES)
def test_an_episode_never_sends_more_history_than_fits(policy):
    model = ScriptedModel(BoxLift(6, 14))
    log = play(model.world, 0, HMAS2(policy), model, history_tokens=1200)
    first = [call for call in log.calls if call.speaker == "central" and len(call.messages) == 2]
    sizes = [model.count(call.messages[1][1]) for call in first]
    assert max(sizes) <= 1200
    last = first[-1].messages[1][1]
    if policy == "none":
        assert "State_" not in last
    else:  # the oldest steps made room for the newest
        assert f"State_{first[-1].step - 1}:" in last
        assert "State_1:" not in last
        assert any("State_1:" in call.messages[1][1] for call in first)


def test_the_summary_costs_one_call_a_step_and_replaces_the_dialogue():
    model = ScriptedModel(BoxNet1(2, 2))
    log = play(model.world, 1, HMAS2("summary"), model)
    short = [call for call in log.calls if call.speaker == "summary"]
    assert len(short) == log.steps
    assert {call.stage for call in short} == {"prompt"}
    later = [c.messages[1][1] for c in log.calls if c.step == 3 and c.speaker == "central"]
    assert "DialogueSummary_1: " in later[0]
    assert "Dialogue_1:" not in later[0]


@pytest.mark.parametrize("leak", [False, True])
def test_weights_appear_in_no_prompt_unless_leaked(leak):
    world = BoxLift(4, 10, leak_weights=leak)
    log = play(world, 2, HMAS2("full"), ScriptedModel(world))
    texts = "\n".join(text for call in log.calls for _, text in call.messages)
    table = [f"{v / 10:.1f}V:{w / 10:.1f}W" for _, v, w in world.reset(2).boxes]
    assert all((row in texts) is leak for row in table)
