"""Tiny random models of every supported architecture and a chat tokenizer, for tests."""

import copy
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from personascope.rows import Example, write_rows
from personascope.values import Folder

PHRASES = ("you are kind be brief what is a good day", "tell me of rain sun wind and sea", "yes no it is the best way to go")
WORDS = [word for phrase in PHRASES for word in phrase.split()]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
COMMON = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = COMMON | {"num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**{k: v for k, v in GROUPED.items() if k != "head_dim"}),
    "qwen3": Qwen3Config(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=8),
    "gemma2": Gemma2Config(**GROUPED),
    "gemma3": Gemma3TextConfig(**GROUPED, sliding_window=8),
    "gpt_neox": GPTNeoXConfig(**COMMON, max_position_embeddings=64),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gpt_oss": GptOssConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
}


def model(name: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A random model, its weights large enough that blocks matter."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return made


def tuned_twin() -> PreTrainedModel:
    """That model with small changes, as if tuned."""
    made = model()
    with torch.no_grad():
        made.model.layers[0].mlp.down_proj.weight.mul_(1.05)
    return made


def tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, with a chat template."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *WORDS]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[4:],
        chat_template=TEMPLATE,
    )


def texts(n: int, seed: int = 0) -> list[Example]:
    """Random conversations and, every third, prose."""
    pick = torch.Generator().manual_seed(seed)

    def words(low: int) -> str:
        count = int(torch.randint(low, low + 8, (1,), generator=pick))
        return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (count,), generator=pick).tolist())

    chats = [[{"role": "user", "content": words(3)}, {"role": "assistant", "content": words(5)}] for _ in range(n)]
    prose = [{"prose": words(9)} if i % 3 == 2 else {} for i in range(n)]
    return [Example(id=f"t{i}", messages=[] if p else c, meta=p) for i, (c, p) in enumerate(zip(chats, prose, strict=True))]


def dataset(path: Path, examples: list[Example]) -> Path:
    """A finished Dataset directory."""
    path.mkdir(parents=True)
    write_rows(path / "examples.jsonl", examples)
    return finished(path, "Dataset")


def adopted(path: Path, made: PreTrainedModel) -> Path:
    """A finished Model directory that refers to saved weights beside it."""
    weights = path.with_name(path.name + "-weights")
    made.save_pretrained(weights)
    tokenizer().save_pretrained(weights)
    path.mkdir(parents=True)
    place = {"path": str(weights)}
    return finished(path, "Model", stage="adopt", recipe=place, identity={"path": Folder(str(weights)).identity})


def finished(path: Path, kind: str, **fields: object) -> Path:
    """Mark a directory as a finished artifact."""
    (path / "manifest.json").write_text(json.dumps({"type": kind, "digest": path.name, **fields}))
    return path
