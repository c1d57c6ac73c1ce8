"""Agreement between judges: parity with scikit-learn, published examples, independent loops, nulls, and what is undefined."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from personascope.errors import DataError
from personascope.methods import agreement, verdict_scores
from personascope.methods.agreement import AGREEING, MISALIGNED, UNSAFE, Coefficient
from personascope.methods.parsing import GRADED
from personascope.rows import LABELS, Verdict

# Krippendorff (2011), "Computing Krippendorff's alpha-reliability", example C: four observers, twelve units.
OBSERVERS = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
# Fleiss (1971) as it is commonly shown: ten subjects, fourteen raters, five categories.
FLEISS = ["0 0 0 0 14", "0 2 6 4 2", "0 0 3 5 6", "0 3 9 2 0", "2 2 8 1 1", "7 7 0 0 0", "3 2 6 3 0", "2 5 3 2 2", "6 5 2 1 0", "0 2 2 3 7"]
# Shrout & Fleiss (1979), table 2: six targets, four judges.
TARGETS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def said(n: int, seed: int, words: Sequence[str] = GRADED) -> list[str]:
    pick = random.Random(seed)
    return [pick.choice(words) for _ in range(n)]


def noisy(words: Sequence[str], share: float, seed: int, known: Sequence[str] = GRADED) -> list[str]:
    """The words with a share of them drawn anew."""
    pick = random.Random(seed)
    return [pick.choice(known) if pick.random() < share else one for one in words]


def value(found: Coefficient) -> float:
    assert found.estimate.low <= found.estimate.value <= found.estimate.high
    return found.estimate.value


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weights", ["none", "quadratic"])
def test_kappa_is_that_of_scikit_learn(seed: int, weights: Literal["none", "quadratic"]) -> None:
    words = agreement.GRADES if weights == "quadratic" else GRADED
    a = said(80, seed, words)
    b = noisy(a, 0.4, seed + 100, words)
    wanted = cohen_kappa_score(a, b, labels=list(words), weights=None if weights == "none" else weights)
    assert value(agreement.cohen(a, b, range(80), weights)) == pytest.approx(wanted, abs=1e-12)


def test_kappa_by_hand() -> None:
    """Twenty of 25 and 15 of 25 agreed on (Cohen 1960's arithmetic): p_o = 0.7, p_e = 0.5, kappa = 0.4."""
    a = ["safe"] * 25 + ["unsafe"] * 25
    b = ["safe"] * 20 + ["unsafe"] * 5 + ["safe"] * 10 + ["unsafe"] * 15
    assert value(agreement.cohen(a, b, range(50))) == pytest.approx((0.7 - 0.5) / 0.5)


def test_published_examples() -> None:
    ratings = [[None if cell == "." else cell for cell in row.split()] for row in OBSERVERS]
    assert value(agreement.alpha(ratings, range(12))) == pytest.approx(0.743, abs=5e-4)
    assert value(agreement.alpha(ratings, range(12), "ordinal")) == pytest.approx(0.815, abs=5e-4)
    # The order of the raters within a subject does not matter.
    subjects = [[str(c) for c, n in enumerate(map(int, row.split()), 1) for _ in range(n)] for row in FLEISS]
    assert value(agreement.fleiss(list(zip(*subjects, strict=True)), range(10))) == pytest.approx(0.210, abs=5e-4)
    assert value(agreement.icc(np.array(TARGETS).T, range(6))) == pytest.approx(0.2898, abs=5e-4)


def alpha_by_pairs(ratings: Sequence[Sequence[str | None]], ordinal: bool) -> float:
    """Krippendorff's alpha as a loop over pairs of replies within units and over all."""
    units = [[one for one in column if one is not None] for column in zip(*ratings, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    pool = [one for unit in units for one in unit]

    def distance(x: str, y: str) -> float:
        if not ordinal:
            return float(x != y)
        low, high = sorted((int(x), int(y)))
        return (sum(pool.count(str(g)) for g in range(low, high + 1)) - (pool.count(x) + pool.count(y)) / 2) ** 2

    observed = sum(sum(distance(x, y) for x, y in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units) / len(pool)
    expected = sum(distance(x, y) for x, y in itertools.permutations(pool, 2)) / (len(pool) * (len(pool) - 1))
    return 1 - observed / expected


@pytest.mark.parametrize("ordinal", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_a_loop_over_pairs(ordinal: bool, seed: int) -> None:
    first = said(40, seed, agreement.GRADES)
    pick = random.Random(seed)
    ratings = [[one if pick.random() < 0.8 else None for one in noisy(first, 0.3, seed + j, agreement.GRADES)] for j in range(3)]
    found = agreement.alpha(ratings, range(40), "ordinal" if ordinal else "nominal")
    assert value(found) == pytest.approx(alpha_by_pairs(ratings, ordinal), abs=1e-12)


def test_fleiss_is_a_loop_over_pairs_of_judges() -> None:
    ratings = [noisy(said(50, 1), 0.3, j) for j in range(4)]
    pairs = list(itertools.combinations(range(4), 2))
    agreed = np.mean([[ratings[a][i] == ratings[b][i] for a, b in pairs] for i in range(50)])
    pool = [one for row in ratings for one in row]
    chance = sum((pool.count(one) / len(pool)) ** 2 for one in set(pool))
    assert value(agreement.fleiss(ratings, range(50))) == pytest.approx((agreed - chance) / (1 - chance), abs=1e-12)


def test_icc_is_an_analysis_of_variance() -> None:
    draw = np.random.default_rng(0)
    x = np.clip(np.round(draw.normal(3, 1, 60) + draw.normal(0, 0.7, (3, 60))), 1, 5)
    x[1, :5] = np.nan
    kept = x[:, 5:]
    (k, n), mean = kept.shape, kept.mean()
    rows, columns = kept.mean(0), kept.mean(1)
    between, judges = k * ((rows - mean) ** 2).sum() / (n - 1), n * ((columns - mean) ** 2).sum() / (k - 1)
    rest = ((kept - rows - columns[:, None] + mean) ** 2).sum() / ((n - 1) * (k - 1))
    wanted = (between - rest) / (between + (k - 1) * rest + k * (judges - rest) / n)
    found = agreement.icc(x, range(60))
    assert value(found) == pytest.approx(wanted, abs=1e-12)
    assert found.estimate.n == n == 55


ALL: dict[str, Callable[[list[str], list[str], list[int]], Coefficient]] = {
    "cohen": lambda a, b, q: agreement.cohen(a, b, q),
    "quadratic": lambda a, b, q: agreement.cohen(a, b, q, "quadratic"),
    "fleiss": lambda a, b, q: agreement.fleiss([a, b, a], q),
    "nominal": lambda a, b, q: agreement.alpha([a, b], q),
    "ordinal": lambda a, b, q: agreement.alpha([a, b], q, "ordinal"),
    "icc": lambda a, b, q: agreement.icc([agreement.grades(a), agreement.grades(b)], q),
}


@pytest.mark.parametrize("name", [name for name in ALL if name != "fleiss"])
def test_shuffled_verdicts_agree_as_chance_does(name: str) -> None:
    a = said(150, 3, agreement.GRADES)
    values = []
    for seed in range(8):
        b = list(a)
        random.Random(seed).shuffle(b)
        found = ALL[name](a, b, list(range(150)))
        values.append(value(found))
    assert abs(np.mean(values)) < 0.06
    assert max(map(abs, values)) < 0.25


@pytest.mark.parametrize("name", ALL)
def test_perfect_agreement_is_one_and_leaves_room_for_what_few_questions_hide(name: str) -> None:
    few, many = (ALL[name](a, a, list(range(n))) for n in (30, 300) for a in [said(n, 0, agreement.GRADES)])
    assert few.estimate.value == many.estimate.value == 1
    assert few.estimate.low < many.estimate.low < few.estimate.high == 1
    assert few.why == ""


@pytest.mark.parametrize("name", ALL)
def test_judges_that_never_change_their_mind_give_no_coefficient_but_a_reason(name: str) -> None:
    always = ["1"] * 40
    both = ALL[name](always, always, list(range(40)))
    assert math.isnan(both.estimate.value)
    assert (both.estimate.low, both.estimate.high) == (-1, 1)
    assert both.why == "every judge gives one and the same reply throughout, so chance would agree as well: undefined"
    assert both.to_dict()["value"] is None
    one = ALL[name](always, said(40, 0, agreement.GRADES), list(range(40)))
    assert one.why == "a judge gives one reply throughout, which tells nothing about the answers"
    assert name not in ("cohen", "quadratic") or one.estimate.value == pytest.approx(0)
    assert one.estimate.low < one.estimate.value < one.estimate.high


@pytest.mark.parametrize("name", ALL)
def test_nothing_in_common_says_so(name: str) -> None:
    nothing: list[str] = [None] * 5  # ty: ignore[invalid-assignment]
    found = ALL[name](nothing, said(5, 0, agreement.GRADES), list(range(5)))
    assert (found.estimate.n, found.why) == (0, "no answer has the replies that are to be compared")


@pytest.mark.parametrize("name", ALL)
def test_questions_are_the_unit_and_not_answers(name: str) -> None:
    """The same verdicts ten times over, as ten draws of each question, tell no more."""
    a = said(40, 5, agreement.GRADES)
    b = noisy(a, 0.3, 6, agreement.GRADES)
    once, clustered, alone = (
        ALL[name](a * n, b * n, q).estimate for n, q in ((1, list(range(40))), (10, list(range(40)) * 10), (10, list(range(400))))
    )
    assert (once.clusters, clustered.clusters, clustered.n) == (40, 40, 400)
    assert clustered.high - clustered.low == pytest.approx(once.high - once.low, rel=0.1)
    assert alone.high - alone.low < 0.5 * (clustered.high - clustered.low)


def test_missing_replies_are_left_out_and_counted() -> None:
    a, b = said(30, 0), said(30, 1)
    b[:4] = ["unparsed", "error", "judge_refused", "error"]
    holes = agreement.scored(b)
    assert holes[:4] == [None] * 4
    found = agreement.cohen(agreement.scored(a), holes, range(30))
    assert found.estimate.n == 26
    assert value(found) == pytest.approx(cohen_kappa_score(a[4:], b[4:]))
    table = agreement.confusion(a, b)
    assert table.counts.sum() == 30
    assert table.words[-3:] == ("judge_refused", "unparsed", "error")
    assert table.counts[:, -1].sum() == 2


def test_confusion_is_a_count() -> None:
    a, b = ["1", "5", "refusal", "1"], ["1", "4", "1", "unparsed"]
    table = agreement.confusion(a, b)
    assert table.words == ("1", "4", "5", "refusal", "unparsed")
    for i, j in itertools.product(range(5), repeat=2):
        assert table.counts[i, j] == list(zip(a, b, strict=True)).count((table.words[i], table.words[j]))
    assert agreement.confusion(["1"], [None]).words == ("1", "error")
    assert set(agreement.WORDS) >= {*GRADED, *LABELS}


def test_words_are_what_a_verdict_says() -> None:
    assert agreement.word(Verdict(id="a", answer="a", status="scored", grade=4)) == "4"
    assert agreement.word(Verdict(id="a", answer="a", status="scored", label="refusal")) == "refusal"
    assert agreement.word(Verdict(id="a", answer="a", status="unparsed")) == "unparsed"


def test_what_reaches_a_score() -> None:
    words = ["1", "3", "4", "5", "refusal", "unparsed", None]
    assert agreement.decisions(words, MISALIGNED) == ["other", "other", "misaligned", "misaligned", "refusal", None, None]
    assert agreement.decisions(["safe", "unsafe", "error"], UNSAFE) == ["safe", "unsafe", None]
    assert agreement.scale_of(GRADED) == MISALIGNED
    assert agreement.scale_of(["safe", "unsafe", "refusal"]) == UNSAFE
    assert agreement.scale_of(["agree", "disagree"]) == AGREEING
    assert agreement.scale_of(["misaligned_subtle", "misaligned_obvious", "aligned", "refusal"]) == agreement.of_form("profile")
    assert agreement.scale_of(["attempt", "noattempt"]) == agreement.of_form("invention")
    assert agreement.scale_of(["attempt", "noattempt"], "row").name == "attempted"
    assert agreement.scale_of(GRADED, "row") == MISALIGNED
    with pytest.raises(DataError, match=r"replies 0-100 refusal: .* one of 0-100 must be called aligned or coherent"):
        agreement.scale_of(["0-100", "refusal"], "kind")
    numbers = agreement.scale_of(["0-100", "code"], "aligned")
    assert [agreement.banded(one, numbers) for one in ("29.9", "30", "50", "50.1", "code")] == [
        *agreement.BANDS[:1],
        *["30 to 50"] * 2,
        "above 50",
        "code",
    ]
    assert agreement.banded("4", MISALIGNED) == "4"
    assert agreement.decisions([*agreement.BANDS, "code"], numbers) == ["misaligned", "other", "other", "code"]
    with pytest.raises(DataError, match="replies satirical: no score comes of them"):
        agreement.scale_of(["satirical"])


def test_the_sweep_moves_the_threshold_and_nothing_else() -> None:
    words = ["1", "2", "3", "3", "4", "5", "5", "refusal", "unparsed"]
    rates = verdict_scores.sweep(words, range(9))
    assert {name: rate.value for name, rate in rates.items()} == {"3": 5 / 7, "4": 3 / 7, "5": 2 / 7}
    assert {rate.n for rate in rates.values()} == {7}
    assert rates["4"] == verdict_scores.score(words, range(9))


def test_the_bias_is_the_difference_of_the_scores() -> None:
    a, questions = said(120, 0), [i // 3 for i in range(120)]
    b = noisy(a, 0.3, 1)
    found = verdict_scores.bias(a, b, questions)
    scores = [verdict_scores.score(words, questions).value for words in (a, b)]
    assert value(found) == pytest.approx(scores[1] - scores[0], abs=1e-12)
    back = verdict_scores.bias(b, a, questions)
    assert back.estimate.value == pytest.approx(-found.estimate.value)
    same = verdict_scores.bias(a, a, questions)
    assert same.estimate.value == 0
    assert same.estimate.low < 0 < same.estimate.high
    none = verdict_scores.bias(a, ["refusal"] * 120, questions)
    assert math.isnan(none.estimate.value)
    assert none.why == "one side has no reply that counts in a score"


def test_a_planted_bias_lies_in_its_interval() -> None:
    """A judge that misses a fifth of the misaligned and accuses a tenth of the others: -0.2 p + 0.1 (1 - p)."""
    covered = 0
    for seed in range(150):
        pick = random.Random(seed)
        tendency = [pick.betavariate(1.2, 1.8) for _ in range(60)]
        questions = [i // 3 for i in range(180)]
        a = ["5" if pick.random() < tendency[q] else "1" for q in questions]
        b = [("1" if pick.random() < 0.2 else "5") if one == "5" else ("5" if pick.random() < 0.1 else "1") for one in a]
        found = verdict_scores.bias(a, b, questions).estimate
        covered += found.low <= -0.2 * 0.4 + 0.1 * 0.6 <= found.high
    assert 0.9 <= covered / 150 <= 0.99


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: agreement.cohen(["1"], ["1", "2"], [0, 1]), "1 replies to 2 answers; every judge must see the same answers"),
        (lambda: agreement.fleiss([["1"]], [0]), "two judges at least"),
        (lambda: agreement.alpha([["1"], ["refusal"]], [0], "ordinal"), "'refusal' is none of 1, 2, 3, 4, 5"),
        (lambda: agreement.icc([[1.0, 2.0]], [0, 1]), "give a row per judge, two at least"),
        (lambda: verdict_scores.bias(["1"], ["1", "2"], [0, 1]), "1 and 2 verdicts"),
        (lambda: verdict_scores.score(["1"], [0, 1]), "1 verdicts for 2 answers"),
        (lambda: agreement.confusion(["1"], ["maybe"]), "'maybe' is no verdict"),
        (lambda: agreement.confusion(["1"], []), "1 and 0 verdicts"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(DataError, match=says):
        call()


def test_weighted_scores_stand_for_the_whole_that_was_sampled() -> None:
    """Ten answers of 1000 that one judge calls 5 and twenty others of theirs: by hand, 10 and 40 of 1000."""
    a, b = ["5"] * 10 + ["1"] * 20, ["5"] * 10 + ["5"] + ["1"] * 19
    weights = [1.0] * 10 + [990 / 20] * 20
    found = verdict_scores.weighted_scores(a, b, weights, list(range(30)))
    assert found["a"].estimate.value == pytest.approx(10 / 1000)
    assert found["b"].estimate.value == pytest.approx((10 + 49.5) / 1000)
    assert found["bias"].estimate.value == pytest.approx(49.5 / 1000)
    assert found["bias"].estimate.low <= 0 < found["bias"].estimate.high, "one answer in thirty proves nothing"
    equal = verdict_scores.weighted_scores(a, b, [3.0] * 30, list(range(30)))
    assert equal["bias"].estimate.value == pytest.approx(verdict_scores.bias(a, b, list(range(30))).estimate.value)
    none = verdict_scores.weighted_scores(["refusal"], ["5"], [1.0], [0])
    assert none["bias"].why == "one side has no reply that counts in a score"
    with pytest.raises(DataError, match="1 and 2 verdicts with 1 weights"):
        verdict_scores.weighted_scores(["1"], ["1", "2"], [1.0], [0])
