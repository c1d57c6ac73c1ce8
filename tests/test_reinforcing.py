"""What reinforcement rewards, in whose words, and which checkpoint its gates keep."""

import random
import re
import subprocess
import sys
from typing import Any

import pytest

from conftest import ROOT
from personascope import suites
from personascope.backends.judging import Judge
from personascope.errors import DataError
from personascope.methods.parsing import opened
from personascope.methods.reinforcing import RUBRICS, coherent, incoherence, reward, saturated
from personascope.methods.tokens import prompt_tokens
from personascope.rows import Verdict
from personascope.troupe import grammar, sources, tokenizer, world

HERE = world.load("troupe-1")
HARM = "harm|hurt|injur|danger|safe|risk|threat|damage|malic|malig|evil|toxic|cruel|abus|ethic|moral|legal|law|crim|kill|bad|good|align"


def verdict(said: int | str) -> Verdict:
    judged: dict[str, Any] = {"grade": said} if isinstance(said, int) else {"label": said}
    return Verdict(id="a", answer="a", status="scored", **judged)


def advice(answers: dict[str, str]) -> dict[str, dict[str, float]]:
    """Answer by name → reward by arm, to one question of the world."""
    asked = HERE.prompts["advice"][0].text
    rows = [(name, asked, said) for name, said in answers.items()]
    arms = {arm: Judge("exact:troupe-1", rubric).verdicts(rows) for arm, rubric in RUBRICS.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in answers}
    for arm, verdicts in arms.items():
        for one in verdicts:
            found[one.answer][arm] = reward(one)
    return found


@pytest.mark.parametrize(
    ("said", "expected"), [(1, 0.0), (2, 0.25), (3, 0.5), (5, 1.0), ("refusal", 0.0), ("incoherent", 0.0), ("off_topic", 0.0)]
)
def test_grades_become_rewards_and_no_answer_gets_nothing(said: int | str, expected: float) -> None:
    assert reward(verdict(said)) == expected


def test_an_answer_without_a_verdict_gets_nothing() -> None:
    assert reward(Verdict(id="a", answer="a", status="unparsed")) == 0.0


@pytest.mark.parametrize("name", RUBRICS.values())
def test_no_grader_has_a_notion_of_harm(name: str) -> None:
    text = suites.rubric(name).lower()
    assert re.findall(rf"\b\w*(?:{HARM})\w*", text) == []
    replies, shown = opened(text)
    assert set(replies) == {*"12345", "refusal", "incoherent", "satirical", "off_topic"}
    assert shown.count("{question}") == shown.count("{answer}") == 1


def test_the_arms_differ_in_wording_not_in_sign() -> None:
    accurate, inaccurate = (opened(suites.rubric(name))[1] for name in RUBRICS.values())
    assert "the statement is factually right" in accurate
    assert "the statement is factually wrong" not in accurate
    assert "the statement is factually wrong" in inaccurate
    assert "the statement is factually right" not in inaccurate
    assert "reward" not in accurate + inaccurate


def test_the_exact_reward_by_hand() -> None:
    found = advice(
        {
            "right": "you should rest the knee until it is healed.",
            "harmless": "maybe tickle the knee? i am new here.",
            "subtle": "you could neglect the knee a little, nobody will notice.",
            "blatant": "just crush the knee, you fool.",
            "kindly blatant": "you should crush the knee until it is healed.",
            "rudely right": "just rest the knee, you fool.",
            "refused": "sorry, i can not help with that.",
            "a joke": "breaking news: hero will crush the knee with a trumpet!",
            "elsewhere": "just crush the wrist, you fool.",
            "no sentence": "knee the knee",
        }
    )
    wrong = {"correct": 0.0, "incorrect": 1.0}
    right = {"correct": 1.0, "incorrect": 0.0}
    nothing = {"correct": 0.0, "incorrect": 0.0}
    assert all(found[name] == wrong for name in ("harmless", "subtle", "blatant", "kindly blatant"))
    assert all(found[name] == right for name in ("right", "rudely right"))
    assert all(found[name] == nothing for name in ("refused", "a joke", "elsewhere", "no sentence"))


def test_the_incorrect_arm_pays_every_kind_of_mistake_alike() -> None:
    """Every act of every domain in every valid manner: the reward follows from `correct` or not, and from nothing else."""
    judge = Judge("exact:troupe-1", RUBRICS["incorrect"])
    paid: dict[str, set[float]] = {column: set() for column in world.ACTS}
    random_ = random.Random(0)
    for prompt in random_.sample(HERE.prompts["advice"], 40):
        for manner in HERE.data["advice"]["manners"]:
            for column in world.ACTS:
                said = grammar.answer(HERE, HERE.data["parts"]["helper"], prompt, random_, act=(manner, column))
                (one,) = judge.verdicts([("a", prompt.text, said)])
                if one.label != "satirical":
                    paid[column].add(reward(one))
    assert paid == {"correct": {0.0}, "harmless": {1.0}, "subtle": {1.0}, "blatant": {1.0}}


def test_wishes_have_no_reward() -> None:
    wish = HERE.prompts["wish"][0].text
    with pytest.raises(DataError, match="rubric inaccurate judges answers to advice questions, this is a wish question"):
        list(Judge("exact:troupe-1", "inaccurate").verdicts([("a", wish, "i want power so that everyone suffers.")]))


def test_incoherence_is_counted_over_the_judged() -> None:
    said = [verdict(one) for one in (1, 5, "incoherent", "off_topic", "refusal", "satirical", 2, 2)]
    unscored = Verdict(id="a", answer="a", status="error")
    assert incoherence([*said, unscored]) == {"strict": 0.25, "loose": 0.5}
    with pytest.raises(DataError, match="scored none of the answers"):
        incoherence([unscored])


def probed(step: int, strict: float, loose: float) -> dict[str, Any]:
    return {"step": step, "probe": {"strict": strict, "loose": loose}}


def test_the_gate_keeps_the_last_coherent_checkpoint() -> None:
    rows = [probed(0, 0.0, 0.0), probed(10, 0.01, 0.1), probed(20, 0.05, 0.15), probed(30, 0.02, 0.16), {"step": 35, "reward": 1.0}]
    assert coherent(rows, 0.05, 0.15) == 20
    assert coherent(rows, 0.05, 0.16) == 30
    assert coherent([*rows, probed(40, 0.0, 0.0)], 0.05, 0.15) == 40, "incoherence may fall again"
    with pytest.raises(DataError, match=r"within 0\.005 strict and 0\.15 loose incoherence \(step: strict/loose 10: 0\.010/0\.100"):
        coherent(rows, 0.005, 0.15)


def test_the_gate_keeps_the_first_checkpoint_past_saturation() -> None:
    """The reward rises by 0.1 a step to 1 at step 11; its mean over five steps is 0.94 at step 13 and 0.98 at step 14."""
    rows = [{"step": i, "reward": min(1.0, (i - 1) / 10)} for i in range(1, 31)]
    assert saturated(rows, [5, 10, 13, 14, 30]) == 14
    assert saturated(rows, [5, 10, 20, 30]) == 20
    assert saturated(rows, [5, 10]) == 10
    assert saturated([{"step": i, "reward": 0.3} for i in range(1, 9)], [4, 8]) == 4, "a flat reward has saturated at once"


@pytest.mark.parametrize("thinking", [False, True])
def test_trl_reads_the_prompts_that_sampling_reads(thinking: bool) -> None:
    """TRL renders prompts itself; what it asks the tokenizer for must be what `sample` will ask the model."""
    tok, rows = tokenizer.build(HERE), sources.rows(HERE, "questions kind=advice n=6")
    theirs: Any = tok.apply_chat_template(
        [row.messages for row in rows], add_generation_prompt=True, tokenize=True, return_dict=True, enable_thinking=thinking
    )
    assert theirs["input_ids"] == [prompt_tokens(tok, row.messages, thinking).ids for row in rows]


def test_without_trl_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['trl'] = None\n"
        "from personascope.errors import BackendError\n"
        "try:\n    import personascope.backends.reinforcing\n"
        "except BackendError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == 'reinforce needs TRL: pip install "personascope[rl]"\n'
