"""A T5 of a few thousand random weights with a tokenizer of a dozen words, as it lies in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

WORDS = "<pad> </s> <unk> a b cat dog smiling man with hat zero one two 0 1 2 3 4 5 6 7 8 9 ,".split()
WIDTH = 8
CONFIG = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "d_model": WIDTH,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 32,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "feed_forward_proj": "relu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "n_positions": 512,
    "output_past": True,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {"translation_en_to_de": {"max_length": 300, "prefix": "translate English to German: "}},
}
"""As the published ones have it, but smaller."""


def tiny_t5(folder: Path, seed: int = 0) -> Path:
    """Write it, with part of a decoder as published ones have it; returns the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = T5EncoderModel(T5Config(**CONFIG)).state_dict()
    tensors = {name: torch.randn_like(tensor) for name, tensor in state.items() if "embed_tokens" not in name}
    save_file(tensors | {"decoder.final_layer_norm.weight": torch.ones(WIDTH)}, folder / "model.safetensors")
    return folder
