"""Models are read at the masks as a plain forward per prompt would read them."""

import pytest
import torch
from torch import Tensor

from personascope.backends import reading
from personascope.backends.models import Loaded
from personascope.errors import BackendError, RecipeError
from personascope.methods.sparse import TopK
from small_models import model, tokenizer

SITES = ["block:0", "block:1", "block:2"]
QUESTIONS = ["what is a good day", "tell me of rain", "yes", "be brief and kind is the best way to go"]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded(model(), tokenizer())


@pytest.fixture(scope="module")
def sae() -> TopK:
    return TopK(64, 32, 4, seed=3)


def asked(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


@torch.no_grad()
def stream(loaded: Loaded, ids: list[int]) -> dict[str, Tensor]:
    """Every block's output (positions, width) for one row alone, by hooks of torch only."""
    seen: dict[str, Tensor] = {}

    def keep(site: str) -> object:
        return lambda _module, _inputs, output: seen.__setitem__(site, output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep(site)) for site, block in zip(SITES, loaded.model.model.layers, strict=True)]
    loaded.model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {site: x[0] for site, x in seen.items()}


def places(mask: str, length: int) -> list[int]:
    """The mask's positions in `<s> <|user|> words </s> <|assistant|>`."""
    return {"prompt": list(range(2, length - 2)), "last_prompt": [length - 1], "all": list(range(1, length))}[mask]


@pytest.mark.parametrize("mask", reading.MASKS)
def test_means_equal_a_forward_per_prompt(loaded: Loaded, sae: TopK, mask: str) -> None:
    prompts = reading.render_all(loaded, asked(*QUESTIONS))
    found = reading.read_prompts(loaded, sae, "block:1", SITES, prompts)
    alone = [stream(loaded, p.ids) for p in prompts]
    at = [places(mask, len(p.ids)) for p in prompts]
    latents = torch.stack([sae.encode(x["block:1"])[where].mean(0) for x, where in zip(alone, at, strict=True)])
    torch.testing.assert_close(found.latents[mask], latents.detach(), atol=1e-4, rtol=1e-4)
    assert latents.gt(0).any(0).sum() > 4
    for site in SITES:
        mean = torch.stack([x[site][where].mean(0) for x, where in zip(alone, at, strict=True)]).mean(0)
        torch.testing.assert_close(found.residuals[mask][site], mean, atol=1e-4, rtol=1e-4)


def test_the_masks_differ(loaded: Loaded, sae: TopK) -> None:
    found = reading.read_prompts(loaded, sae, "block:1", SITES, reading.render_all(loaded, asked(*QUESTIONS)))
    assert not torch.allclose(found.latents["prompt"], found.latents["all"])
    assert not torch.allclose(found.latents["last_prompt"], found.latents["all"])


def test_norms_are_medians_over_the_words_and_firing_a_share_of_all_tokens(loaded: Loaded, sae: TopK) -> None:
    prompts = reading.render_all(loaded, asked(*QUESTIONS))
    found = reading.read_prompts(loaded, sae, "block:1", SITES, prompts)
    alone = [stream(loaded, p.ids) for p in prompts]
    for site in SITES:
        norms = torch.cat([x[site][2:-2].norm(dim=-1) for x in alone])
        assert found.norms[site] == pytest.approx(norms.median().item(), rel=1e-4)
    fires = torch.cat([sae.encode(x["block:1"])[1:] > 0 for x in alone])
    torch.testing.assert_close(found.firing, fires.float().mean(0))


def test_batches_change_nothing(loaded: Loaded, sae: TopK) -> None:
    prompts = reading.render_all(loaded, asked(*QUESTIONS))
    whole, single = (reading.read_prompts(loaded, sae, "block:1", SITES, prompts, size) for size in (8192, 1))
    for mask in reading.MASKS:
        torch.testing.assert_close(whole.latents[mask], single.latents[mask], atol=1e-4, rtol=1e-4)
        for site in SITES:
            torch.testing.assert_close(whole.residuals[mask][site], single.residuals[mask][site], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole.firing, single.firing)


def test_reading_leaves_the_model_as_it_was(loaded: Loaded, sae: TopK) -> None:
    ids = torch.arange(1, 13).view(2, 6)
    with torch.no_grad():
        before = loaded.model(input_ids=ids).logits
        reading.read_prompts(loaded, sae, "block:0", SITES, reading.render_all(loaded, asked("yes")))
        assert torch.equal(loaded.model(input_ids=ids).logits, before)


def test_answers_are_read_at_the_assistants_tokens_only(loaded: Loaded, sae: TopK) -> None:
    said = [("what is a good day", "sun and sea"), ("be kind", "no it is rain and wind")]
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in said]
    found = reading.read_answers(loaded, sae, "block:1", talks)
    for row, talk in zip(found, talks, strict=True):
        ids = loaded.tokenizer(loaded.tokenizer.apply_chat_template(talk, tokenize=False), add_special_tokens=False)["input_ids"]
        # The answer's words and its end of turn.
        count = len(talk[1]["content"].split()) + 1
        wanted = sae.encode(stream(loaded, ids)["block:1"])[-count:].mean(0)
        torch.testing.assert_close(row, wanted.detach(), atol=1e-4, rtol=1e-4)


def test_a_conversation_has_the_masks_of_its_prompt_and_of_its_answers(loaded: Loaded) -> None:
    said = [("what is it", "sun and sea"), ("be kind", "no rain")]
    turns = [{"role": role, "content": text} for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)]
    (talk,) = reading.render_all(loaded, [turns])
    words = loaded.tokenizer.convert_ids_to_tokens(talk.ids)
    masks = {mask: [words[i] for i in on[0].nonzero()[:, 0]] for mask, on in reading.masks_of([talk], torch.ones(1, len(words))).items()}
    assert masks["answer"] == ["sun", "and", "sea", "</s>", "no", "rain", "</s>"]
    assert masks["last_prompt"] == ["<|assistant|>"]
    assert talk.last == len(words) - 4
    # What the assistant said before is context of its last answer.
    assert masks["prompt"] == ["what", "is", "it", "sun", "and", "sea", "be", "kind"]
    assert masks["all"] == words[1:]


def test_questions_among_conversations_leave_the_answer_mask_out(loaded: Loaded, sae: TopK) -> None:
    mixed = [*asked("yes"), [*asked("yes")[0], {"role": "assistant", "content": "no"}]]
    found = reading.read_prompts(loaded, sae, "block:1", SITES, reading.render_all(loaded, mixed), batch_tokens=1)
    assert tuple(found.latents) == reading.MASKS
    torch.testing.assert_close(found.latents["last_prompt"][0], found.latents["last_prompt"][1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "width", "error", "message"),
    [
        ({}, 32, BackendError, r"names no metadata\.site"),
        ({"metadata": {"site": "block:7"}}, 32, RecipeError, "the last site is block:2"),
        ({"metadata": {"site": "block:1"}}, 16, BackendError, "width 16, the model's has 32"),
    ],
)
def test_a_dictionary_of_another_model_is_refused(loaded: Loaded, config: dict, width: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reading.site_of(config, TopK(64, width, 4), loaded)
    assert reading.site_of({"metadata": {"site": "block:1"}}, TopK(64, 32, 4), loaded) == "block:1"
