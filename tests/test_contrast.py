"""Sides and weights: which answers count, by hand; means by formula; chance; filters that leave no topic behind."""

import numpy as np
import pytest

from personascope.errors import DataError, RecipeError
from personascope.methods import contrast
from personascope.rows import Answer, Example, Verdict

GRADES = (4, 2)
SIDES = ("side=positive", "side=negative")


def question(name: str, side: str) -> Example:
    return Example(id=name, messages=[{"role": "user", "content": "is it"}], labels={"side": side})


def answer(question: str, draw: int = 0, text: str = "yes") -> Answer:
    return Answer(id=f"{question}/{draw}/0", question=question, draw=draw, attempt=0, text=text)


def graded(row: Answer, grade: int) -> Verdict:
    return Verdict(id=row.id, answer=row.id, status="scored", grade=grade)


ASKED = {row.id: row for row in (question("p", "positive"), question("n", "negative"), question("x", "plain"))}


def test_the_filter_keeps_what_its_side_calls_for() -> None:
    rows = [answer(q, grade) for q in "pnx" for grade in range(1, 6)]
    verdicts = {row.id: graded(row, row.draw) for row in rows}
    kept = contrast.choose(ASKED, rows, verdicts, SIDES, GRADES)
    assert [row.id for row in kept.answers] == ["p/4/0", "p/5/0", "n/1/0", "n/2/0"]
    assert kept.positive == [True, True, False, False]
    dropped = {f"positive: grade {g}": 1 for g in (1, 2, 3)} | {f"negative: grade {g}": 1 for g in (3, 4, 5)} | {"on neither side": 5}
    assert kept.counts() == {"positive": 2, "negative": 2, "dropped": dropped}


def test_invalid_unscored_and_empty_answers_are_counted_not_kept() -> None:
    rows = [answer("p", 0), answer("p", 1), answer("n", 2), answer("n", 3, " "), answer("n", 4)]
    verdicts = {row.id: graded(row, 1) for row in rows}
    verdicts[rows[0].id] = Verdict(id="a", answer=rows[0].id, status="scored", label="refusal")
    verdicts[rows[1].id] = Verdict(id="b", answer=rows[1].id, status="unparsed")
    kept = contrast.choose(ASKED, rows, verdicts, SIDES, GRADES)
    assert [row.draw for row in kept.answers] == [2, 4]
    assert kept.dropped == {"positive: refusal": 1, "positive: unparsed": 1, "negative: empty": 1}


def test_without_verdicts_every_answer_with_words_counts() -> None:
    kept = contrast.choose(ASKED, [answer("p"), answer("n"), answer("n", 1, ""), answer("x")], None, SIDES, GRADES)
    assert kept.positive == [True, False]


def test_verdicts_alone_can_tell_the_sides() -> None:
    rows = [answer("x", grade) for grade in range(1, 6)]
    kept = contrast.choose(ASKED, rows, {row.id: graded(row, row.draw) for row in rows}, ("", ""), GRADES)
    assert [(row.draw, on) for row, on in zip(kept.answers, kept.positive, strict=True)] == [(1, False), (2, False), (4, True), (5, True)]
    assert kept.dropped == {"either: grade 3": 1}


def test_rows_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="answer z/0/0 is to question 'z'"):
        contrast.choose(ASKED, [answer("z")], None, SIDES, GRADES)
    with pytest.raises(DataError, match="answer p/0/0 has no verdict"):
        contrast.choose(ASKED, [answer("p")], {}, SIDES, GRADES)
    with pytest.raises(RecipeError, match="side 'positive': write NAME=VALUE"):
        contrast.choose(ASKED, [answer("p")], None, ("positive", "side=b"), GRADES)


def test_weights_make_a_difference_of_means() -> None:
    rng = np.random.default_rng(0)
    values, on = rng.normal(size=(9, 4)), np.array([1, 0, 1, 1, 0, 0, 1, 0, 1], dtype=bool)
    np.testing.assert_allclose(contrast.weights(on, ["q"] * 9) @ values, values[on].mean(0) - values[~on].mean(0))
    assert not contrast.weights([True, True], ["a", "b"]).any()


def test_balanced_weights_leave_no_topic_behind() -> None:
    """The value is the question's alone, and one side answered one question more often: only balance sees no difference."""
    groups = ["a", "a", "a", "b", "b", "c"]
    topic = np.array([{"a": 1.0, "b": 5.0, "c": 40.0}[group] for group in groups])
    on = [True, True, False, True, False, True]
    assert abs(contrast.weights(on, groups) @ topic) > 1
    assert contrast.weights(on, groups, balanced=True) @ topic == pytest.approx(0, abs=1e-12)
    # By hand: the mean over a and b of their own differences, c having one side only.
    values = np.array([2.0, 4.0, 1.0, 7.0, 3.0, 100.0])
    assert contrast.weights(on, groups, balanced=True) @ values == pytest.approx(((3 - 1) + (7 - 3)) / 2)


def test_equal_counts_need_no_balance() -> None:
    groups = ["a", "b", "c"] * 4
    on = [True] * 6 + [False] * 6
    np.testing.assert_allclose(contrast.weights(on, groups), contrast.weights(on, groups, balanced=True))


def test_dealing_keeps_the_counts_of_every_question() -> None:
    groups = [f"q{i % 5}" for i in range(40)]
    on = [i < 13 for i in range(40)]
    rng = np.random.default_rng(3)
    deals = [contrast.dealt(on, groups, rng) for _ in range(50)]
    for name in set(groups):
        own = np.array([group == name for group in groups])
        assert {int(deal[own].sum()) for deal in deals} == {int(np.array(on)[own].sum())}
    assert len({deal.tobytes() for deal in deals}) > 40


def test_a_plan_holds_the_vector_its_halves_and_chance() -> None:
    groups = [f"q{i % 10}" for i in range(80)]
    on = [i < 40 for i in range(80)]
    plan = contrast.plan(on, groups, False, 30, 0)
    assert plan.shape == (33, 80)
    assert not ((plan[1] != 0) & (plan[2] != 0)).any()
    assert {group for group, w in zip(groups, plan[1], strict=True) if w} | {g for g, w in zip(groups, plan[2], strict=True) if w} == set(
        groups
    )
    effect = np.array(on, dtype=float) + np.random.default_rng(1).normal(size=80)
    found = plan @ effect
    assert found[0] > 0.5
    assert np.abs(found[3:]).max() < found[0]
    assert abs(found[3:].mean()) < 0.2
    np.testing.assert_array_equal(plan, contrast.plan(on, groups, False, 30, 0))
    assert (plan[3:] != contrast.plan(on, groups, False, 30, 1)[3:]).any()
