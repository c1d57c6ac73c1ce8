"""The study of learned judges on an untrained model of another make, with an exact judge that only pretends."""

from pathlib import Path
from typing import Any

import pytest

from personascope.backends import generation
from test_studies import finished, load, pretending, qwen, small  # noqa: F401 - fixtures


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_judging_runs_on_another_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, spoken = load("judging"), generation.split_thinking

    def said(tokenizer: Any, ids: list[int], *opened: bool) -> tuple[str, str]:
        """A judge of two steps gives no verdict, so that its reply, in which no thoughts were opened, is made up."""
        return spoken(tokenizer, ids, *opened) if opened else ("", "14"[sum(ids) % 2])

    monkeypatch.setattr(generation, "split_thinking", said)
    monkeypatch.setattr(module, "LEARNING", module.LEARNING | {"steps": 2})
    monkeypatch.setattr(module, "ASKED", {place: (splits, domains, 2, 4) for place, (splits, domains, *_) in module.ASKED.items()})
    found, page = finished(module, tmp_path / "study")
    table = found["judging"]["table"]
    names = [pupil.name for pupil in module.PUPILS]
    assert [row["judge"] for row in table] == found["judging"]["judges"] == [names[0], *names[2:4]]
    for row in table:
        assert -1 < row["bias"]["low"] <= row["bias"]["value"] <= row["bias"]["high"] <= 1
        assert row["qualified"] == f"{sum(not short for short in row['shortfalls'])} of 1"
    assert table[0]["robust"] is not None
    assert table[1]["robust"] is None
    for under, off in zip(found["judging"]["scores"], found["judging"]["biases"], strict=True):
        for row in table:
            if off[row["judge"]]["value"] is not None:
                gap = under[row["judge"]]["value"] - under["exact"]["value"]
                assert off[row["judge"]]["value"] == pytest.approx(gap, abs=1e-5)
    counts = [row[word] for row in found["judging"]["confusion"] for word in found["judging"]["words"]]
    assert sum(counts) == len(module.SUBJECTS) * (9 * 2 + 4)
    assert page.count("Can the judge be trusted?") == 2
    assert "Bias of the score, by judge and model" in page
