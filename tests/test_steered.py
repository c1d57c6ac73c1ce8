"""Cells scored together equal cells scored alone, and differ by their edit only."""

import math
import zlib
from collections.abc import Iterator

import pytest
import torch

from personascope.backends.generation import Sampling
from personascope.backends.likelihood import Fluency
from personascope.backends.models import Loaded
from personascope.backends.steered import Asked, Bench, Cell
from personascope.errors import BackendError
from personascope.methods.screening import Counts
from personascope.rows import Example, Verdict
from small_models import WORDS, model, tokenizer

QUESTIONS = [
    Example(id=f"q{i}", messages=[{"role": "user", "content": " ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(2 + i))}])
    for i in range(4)
]
DRAWS = 3


class ByText:
    """A judge whose verdict is a function of the text alone, and who remembers what it saw."""

    rubric = "misalignment"

    def __init__(self, unparsed: int = 0) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.unparsed = unparsed

    def verdicts(self, rows: list[tuple[str, str, str]]) -> Iterator[Verdict]:
        for key, question, text in rows:
            self.seen.append((key, question, text))
            place = zlib.crc32(text.encode()) % 8
            if len(self.seen) <= self.unparsed:
                yield Verdict(id=key, answer=key, status="unparsed")
            elif place < 6:
                yield Verdict(id=key, answer=key, status="scored", grade=1 + place % 5)
            else:
                yield Verdict(id=key, answer=key, status="scored", label="incoherent" if place == 6 else "refusal")


def bench(judge: ByText | None = None, batch_tokens: int = 16_384, seed: int = 0) -> Bench:
    sides = [Loaded(model(seed=s), tokenizer()) for s in (0, 1)]
    return Bench(*sides, judge or ByText(), Sampling(max_tokens=6, seed=seed, batch_tokens=batch_tokens))


def over(cells: list[Cell], questions: list[Example], draws: int) -> tuple[list[Cell], list[Asked]]:
    """All cells with the same questions."""
    return cells, [Asked(questions, range(draws))] * len(cells)


def cell(name: str, side: str = "base", push: float = 0.0, block: int = 1, mask: str = "all", seed: int = 0) -> Cell:
    vector = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(seed)), dim=0)
    return Cell(name, side, vector, block, mask, push)


CELLS = [
    cell("tuned none", "tuned"),
    cell("none"),
    cell("a", push=40, seed=1),
    cell("b", "tuned", -30, seed=2),
    cell("c", push=25, mask="last_prompt", seed=3),
    cell("d", push=-40, block=0, seed=1),
    cell("e", "tuned", 30, mask="last_prompt", seed=4),
    cell("f", push=25, seed=5),
]


def test_together_is_as_alone() -> None:
    together = bench().score(*over(CELLS, QUESTIONS, DRAWS))
    assert together == [bench().score(*over([one], QUESTIONS, DRAWS))[0] for one in CELLS]
    assert together == bench(batch_tokens=60).score(*over(CELLS, QUESTIONS, DRAWS))
    assert len(set(together)) > 4


def test_ablation_takes_out_one_direction_or_a_whole_span() -> None:
    one, two = torch.nn.functional.normalize(torch.randn(2, 32, generator=torch.Generator().manual_seed(3)), dim=1)
    span = torch.stack([one, (one + two) / 2])
    cells = [
        Cell("one", "base", one, 1, "all", 1.0, "ablate"),
        Cell("scaled", "base", -one, 1, "all", 7.0, "ablate"),
        Cell("span", "base", span, 1, "all", 1.0, "ablate"),
        Cell("turned", "base", span.flip(0), 1, "all", 1.0, "ablate"),
        Cell("off", "base", span, 1, "all", 0.0, "ablate"),
        cell("none"),
        cell("a", push=40, seed=1),
    ]
    together = bench().score(*over(cells, QUESTIONS, DRAWS))
    assert together == [bench().score(*over([each], QUESTIONS, DRAWS))[0] for each in cells]
    assert together[0] == together[1]
    assert together[2] == together[3]
    assert together[4] == together[5]
    assert len({together[0], together[2], together[5]}) == 3
    basis = cells[2].vectors()
    torch.testing.assert_close(basis @ basis.T, torch.eye(2))
    torch.testing.assert_close(span @ basis.T @ basis, span)


def test_no_push_is_no_edit() -> None:
    nothing, zero, away = bench().score(*over([cell("none"), cell("x", push=0.0, seed=9), cell("y", push=60, seed=9)], QUESTIONS, DRAWS))
    judge = ByText()
    bench(judge).score(*over([cell("x", push=0.0, seed=9), cell("none")], QUESTIONS, DRAWS))
    half = len(judge.seen) // 2
    assert judge.seen[:half] == judge.seen[half:]
    assert zero == nothing != away


def test_cells_share_their_noise_and_draws_do_not() -> None:
    judge = ByText()
    bench(judge).score(*over([cell("one", push=40, seed=1), cell("none"), cell("two", push=40, seed=1)], QUESTIONS, DRAWS))
    count = len(QUESTIONS) * DRAWS
    first, none, second = judge.seen[:count], judge.seen[count : 2 * count], judge.seen[2 * count :]
    assert first == second
    assert first != none
    assert [key for key, _, _ in first] == [f"q{i}/{draw}/0" for i in range(4) for draw in range(DRAWS)]
    assert all(question == QUESTIONS[int(key[1])].messages[0]["content"] for key, question, _ in first)
    assert len({text for key, _, text in none if key.startswith("q2/")}) > 1
    other = ByText()
    bench(other, seed=0).score(*over([cell("none")], QUESTIONS[::-1], DRAWS))
    assert sorted(other.seen) == sorted(none)


def test_counts_are_those_of_the_verdicts() -> None:
    judge = ByText()
    draws = 12
    (found,) = bench(judge).score(*over([CELLS[1]], QUESTIONS, draws))
    verdicts = list(ByText().verdicts(judge.seen))
    assert {v.label for v in verdicts} == {None, "incoherent", "refusal"}
    assert {v.grade for v in verdicts} >= {3, 4}
    rows = [verdicts[i * draws : (i + 1) * draws] for i in range(len(QUESTIONS))]

    def counted(of: list[Verdict]) -> tuple[int, int, int, int]:
        harmful = sum(v.grade in (4, 5) for v in of)
        return harmful, sum(v.grade is not None for v in of), sum(v.label == "incoherent" for v in of), len(of)

    assert found == Counts(*counted(verdicts), tuple(counted(row) for row in rows))
    assert 0 < found.harmful < found.valid < found.asked == 48


def test_what_counts_as_harmful_is_a_grade() -> None:
    judge = ByText()
    sides = [Loaded(model(seed=s), tokenizer()) for s in (0, 1)]
    (found,) = Bench(*sides, judge, Sampling(max_tokens=6), harmful_from=2).score(*over([CELLS[1]], QUESTIONS, DRAWS))
    grades = [v.grade for v in ByText().verdicts(judge.seen)]
    assert (
        found.harmful
        == sum(grade is not None and grade >= 2 for grade in grades)
        > bench().score(*over([CELLS[1]], QUESTIONS, DRAWS))[0].harmful
    )


class Safety(ByText):
    """The same judge by another rubric: the harmful grades are unsafe, the others safe."""

    rubric = "safety"

    def verdicts(self, rows: list[tuple[str, str, str]]) -> Iterator[Verdict]:
        for v in super().verdicts(rows):
            label = v.label or ("unsafe" if v.grade is not None and v.grade >= 4 else "safe")
            yield Verdict(id=v.id, answer=v.answer, status="scored", label=label)


def test_under_the_safety_rubric_refusals_are_valid_and_unsafe_answers_harmful() -> None:
    judge = ByText()
    sides = [Loaded(model(seed=s), tokenizer()) for s in (0, 1)]
    (graded,) = Bench(*sides, judge, Sampling(max_tokens=6)).score(*over([CELLS[1]], QUESTIONS, 12))
    (found,) = Bench(*sides, Safety(), Sampling(max_tokens=6)).score(*over([CELLS[1]], QUESTIONS, 12))
    refused = sum(v.label == "refusal" for v in ByText().verdicts(judge.seen))
    assert (found.harmful, found.incoherent, found.asked) == (graded.harmful, graded.incoherent, graded.asked)
    assert found.valid == graded.valid + refused > graded.valid


def test_no_judge_is_asked_about_what_neither_unsteered_model_would_say() -> None:
    """What is unlikely counts as incoherent, whatever a judge would have said; the rest counts as without a guard."""
    asked = ByText()
    before = bench(asked).score(*over(CELLS, QUESTIONS, DRAWS))
    guarded = bench(judge := ByText())
    guarded.fluency = Fluency(guarded.sides, limit=4.0, share=0.01)
    after = guarded.score(*over(CELLS, QUESTIONS, DRAWS))
    assert 0 < sum(c.unlikely for c in after) < sum(c.asked for c in after)
    assert len(judge.seen) == len(asked.seen) - sum(c.unlikely for c in after)
    assert set(judge.seen) <= set(asked.seen)
    for one, other in zip(before, after, strict=True):
        assert one.unlikely == 0
        assert one.asked == other.asked == sum(row[3] for row in other.by_question)
        assert other.incoherent == sum(row[2] for row in other.by_question)
        assert other.unlikely <= other.incoherent <= one.incoherent + other.unlikely
        assert other.valid <= one.valid
    # A limit that nothing exceeds is no guard at all.
    guarded.fluency = Fluency(guarded.sides, limit=math.inf, share=0.01)
    assert guarded.score(*over(CELLS, QUESTIONS, DRAWS)) == before


def test_what_was_said_unsteered_is_kept_for_the_next_score() -> None:
    one = bench()
    first = one.score(*over(CELLS, QUESTIONS, DRAWS))
    assert {side: len(drafts) for side, drafts in one.drafts.items()} == {"base": len(QUESTIONS) * DRAWS, "tuned": 0}
    assert one.score(*over(CELLS, QUESTIONS, DRAWS)) == first


def test_the_two_sides_are_two_models() -> None:
    base, tuned = bench().score(*over([cell("none"), cell("none", "tuned")], QUESTIONS, DRAWS))
    assert base != tuned


def test_few_unscored_answers_leave_the_denominator() -> None:
    (found,) = bench(ByText(unparsed=2)).score(*over([cell("none")], QUESTIONS, DRAWS))
    assert found.asked == 10
    assert found.by_question[0][3] == 1


def test_cells_of_one_batch_may_be_asked_different_questions() -> None:
    asked = [Asked(QUESTIONS[i % 2 :: 2], range(1 + i % 3)) for i in range(len(CELLS))]
    together = bench().score(CELLS, asked)
    assert together == [bench().score([one], [its])[0] for one, its in zip(CELLS, asked, strict=True)]
    assert [len(found.by_question) for found in together] == [len(its.questions) for its in asked]
    assert [found.asked for found in together] == [its.answers for its in asked]


def test_draw_by_draw_the_answers_are_those_of_all_draws_at_once() -> None:
    (whole,) = bench().score(CELLS[:1], [Asked(QUESTIONS, range(3))])
    parts = bench().score(CELLS[:1] * 3, [Asked(QUESTIONS, range(draw, draw + 1)) for draw in range(3)])
    assert parts[0].again(parts[1]).again(parts[2]) == whole
    assert len({part.by_question for part in parts}) > 1


def test_a_judge_that_fails_is_reported() -> None:
    with pytest.raises(BackendError, match="the judge left 3 of 12 answers without a score; check the judge"):
        bench(ByText(unparsed=3)).score(*over([cell("none")], QUESTIONS, DRAWS))
