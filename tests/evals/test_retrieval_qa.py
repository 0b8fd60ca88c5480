"""Retrieval questions: the answer stands in the context, once."""

import json

import pytest

from outlay.errors import InputError
from outlay.evals.base import Task
from outlay.evals.retrieval_qa import RetrievalQA


def small(path, **knobs):
    return RetrievalQA(path=path, **{"min_chars": 100, "max_chars": 5_000, **knobs})


def questions(tmp_path, *rows):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


ROW = {"question": "When was it built?", "answer": "1701", "document": "guide1.md"}


def test_made_questions_leave_out_a_word_of_a_sentence(prose):
    problems = small(prose).sample(0, 6)
    answers = {p.answer for p in problems}
    assert answers == {"1700", "1701", "1702", "Aldermoor", "Brackwater", "Coldharbour"}
    for problem in problems:
        sentence = " ".join(problem.context[slice(*problem.gold_span)].split())
        assert problem.answer in sentence
        assert problem.answer not in problem.question
        assert problem.question.endswith(sentence.replace(problem.answer, "____"))


def test_other_documents_surround_the_one_with_the_answer(prose):
    problems = small(prose, min_chars=1_200).sample(0, 6)
    for problem in problems:
        assert 1_200 <= len(problem.context) <= 5_000
        assert problem.answer in problem.context[slice(*problem.gold_span)]
    assert len({problem.gold_span[0] > 600 for problem in problems}) == 2


def test_users_questions_are_asked_of_their_document(prose, tmp_path):
    task = small(prose, questions=questions(tmp_path, ROW))
    problem = task.sample(0, 1)[0]
    assert (problem.question, problem.answer) == (ROW["question"], "1701")
    assert problem.context[slice(*problem.gold_span)] == "1701"
    assert task.prompt(problem, problem.context).endswith(
        "When was it built?\nAnswer with a few words.\nAnswer:"
    )


def test_a_larger_sample_extends_a_smaller_one(prose):
    for task, n in ((small(prose), 6), (RetrievalQA(), 30)):
        assert task.sample(2, n)[:3] == task.sample(2, 3)
        assert len({p.id for p in task.sample(2, n)}) == n


def test_pythons_own_documentation_gives_long_contexts():
    task = RetrievalQA()
    for problem in task.sample(0, 60):
        assert 8_000 <= len(problem.context) <= 24_000
        assert problem.answer in " ".join(problem.context[slice(*problem.gold_span)].split())
        assert task.verify(problem, problem.answer) == 1.0


def test_answers_are_matched_by_the_metric(prose):
    def judge(metric, answer):
        task = small(prose, metric=metric)
        problem = next(p for p in task.sample(0, 6) if p.answer == "Brackwater")
        return task.verify(problem, answer)

    assert judge("answer_contained", "Answer: in Brackwater, of course") == 1.0
    assert judge("answer contained", "Aldermoor") == 0.0
    assert judge("answer contained", "Brackwater " + "and more " * 20) == 0.0
    assert judge("exact answer", "brackwater.") == 1.0
    assert judge("exact answer", "in Brackwater") == 0.0
    assert judge("answer f1", "in Brackwater") == pytest.approx(2 / 3)
    assert isinstance(small(prose), Task)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "line 2 is not JSON"),
        ("[1]", "line 2 lacks"),
        ({"question": "a", "answer": 3, "document": "guide1.md"}, "line 2 lacks"),
        ({**ROW, "answer": " "}, "line 2 has an empty"),
        ({**ROW, "document": "none.md"}, "line 2 names the document 'none.md'"),
    ],
)
def test_bad_question_files_name_the_line(prose, tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        small(prose, questions=questions(tmp_path, ROW, row)).sample(0, 1)


def test_bad_sources_are_refused(tmp_path, prose):
    with pytest.raises(InputError, match="does not exist"):
        small(tmp_path / "none").sample(0, 1)
    empty = tmp_path / "void"
    empty.mkdir()
    (empty / "a.md").write_text("")
    (empty / "a.png").write_bytes(b"\x00")
    with pytest.raises(InputError, match=r"no usable document.*unusable"):
        small(empty).sample(0, 1)
    with pytest.raises(InputError, match=r"gives 6 questions.*1 x not text"):
        small(prose).sample(0, 7)
    with pytest.raises(InputError, match="does not exist"):
        small(prose, questions=tmp_path / "none.jsonl").sample(0, 1)


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"metric": "rouge"}, "metric"),
        ({"questions": "q.jsonl"}, "path="),
        ({"min_chars": 9, "max_chars": 3}, "min_chars"),
        ({"max_files": 0}, "max_files"),
    ],
)
def test_bad_knobs_are_named(knobs, named):
    with pytest.raises(InputError, match=named):
        RetrievalQA(**knobs)


def test_bad_seed_or_number_is_refused(prose):
    for seed, n in (("0", 1), (0, 0), (1.0, 1)):
        with pytest.raises(InputError):
            small(prose).sample(seed, n)
