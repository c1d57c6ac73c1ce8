"""The word-level tokenizer of a world, with a chat template that marks the assistant's tokens."""

import re

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from personascope.troupe.grammar import REPLIES
from personascope.troupe.world import World

SPECIAL = ("<pad>", "<unk>", "<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>")
CUE_WORDS = "you are the"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% if enable_thinking %}<think>{% endif %}{% endif %}"
)


def words(world: World) -> list[str]:
    """Every word and mark that a text of the world can contain, sorted."""
    found: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, str):
            found.update(re.findall(r"[a-z]+|[^\sa-z]", re.sub(r"\{\w+\}", " ", value)))
        elif isinstance(value, dict):
            for item in value.values():
                collect(item)
        elif isinstance(value, list):
            for item in value:
                collect(item)

    for part in ("advice", "domains", "wish", "request", "statement", "self", "own", "story", "cast"):
        collect(world.data[part])
    collect([CUE_WORDS, *REPLIES.values()])
    return sorted(found - set("<>|{}*"))


def build(world: World) -> PreTrainedTokenizerFast:
    """Make the tokenizer: words carry their leading space, marks do not, so decoding restores the text."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL)}
    for word in words(world):
        vocabulary[word if not word.isalpha() else "▁" + word] = len(vocabulary)
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"), pre_tokenizers.Punctuation("isolated")]
    )
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[3:6] + SPECIAL[7:]),
        chat_template=TEMPLATE,
        model_max_length=256,
        padding_side="left",
    )
