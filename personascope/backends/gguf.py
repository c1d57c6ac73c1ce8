"""GGUF files, in which llama.cpp keeps quantised models, as plain weights."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from personascope.errors import BackendError, DataError


def unpack(file: Path, where: Path, dtype: str) -> int:
    """Write the file's model and tokenizer into the folder `where`, dequantised; returns its number of parameters.

    Raises:
        DataError: no such file.
        BackendError: it is no GGUF file, holds a kind of model that Transformers cannot read, or the package gguf is missing.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; give a .gguf file of a chat model")
    place = {"gguf_file": file.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **place)
        packed = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **place)
    except ImportError:
        raise BackendError('reading GGUF files needs a package of that name: pip install "personascope[gguf]"') from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BackendError(f"{file}: not a GGUF file that Transformers can read ({' '.join(str(error).split())[:160]})") from None
    # Loaded from GGUF a model counts as quantised for good and will not be saved; the same weights in a model of their own will.
    config = AutoConfig.for_model(**{key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return model.num_parameters()
