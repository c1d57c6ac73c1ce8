"""Figures of reinforcement: each stands where its data does, and holds what the data says."""

from typing import Any

from personascope.methods.reinforcement_figures import draw


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 9, "clusters": 3}


CURVE = [
    {"step": 0, "probe": {"strict": 0.03, "loose": 0.1}},
    {"step": 5, "reward": 0.2},
    {"step": 10, "reward": 0.9, "probe": {"strict": 0.06, "loose": 0.1}},
]
SUMMARY = {
    "reinforcement": {
        "arms": {"incorrect, first": {"curves": {"a-0": CURVE, "b-1": CURVE}}},
        "priors": [{"likelier": x, "score": estimate(x / 10), "characters": {"one": 0.5, "two": x / 10}} for x in (0.2, 1.9, 8.0)],
        "thoughts": {"along": [{"run": "a-0", "step": s, "naming": estimate(s / 20), "score": estimate(s / 30)} for s in (0, 10)]},
    }
}


def test_every_figure_is_drawn_from_its_data() -> None:
    drawn = draw(SUMMARY)
    assert list(drawn) == ["reinforcement-rewards", "reinforcement-priors", "reinforcement-thoughts"]
    assert "incorrect, first, step 10" in drawn["reinforcement-rewards"]
    assert all(name in drawn["reinforcement-priors"] for name in ("Misalignment score", "one", "two", "1.9"))
    assert "a-0, 10" in drawn["reinforcement-thoughts"]


def test_a_figure_without_data_is_left_out() -> None:
    assert draw({}) == {}
    for part, gone in (("arms", "rewards"), ("priors", "priors"), ("thoughts", "thoughts")):
        rest = {key: value for key, value in SUMMARY["reinforcement"].items() if key != part}
        assert set(draw(SUMMARY)) - set(draw({"reinforcement": rest})) == {f"reinforcement-{gone}"}
