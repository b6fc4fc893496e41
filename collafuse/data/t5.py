"""A T5 text encoder that lies on this disk (Raffel et al. 2020), for captions and prompts. Needs transformers.

A folder with config.json, model.safetensors (or its parts) and tokenizer.json. Nothing is fetched, and nothing is
read that could run code: the weights go from safetensors into a network built here, whatever else lies in the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ..core.conditioning import MAX_TEXT_WIDTH, Texts, TextSpace
from ..core.errors import DataError, RuntimeMissingError, first_line
from .digests import digest_of

CONFIG, TOKENIZER, WEIGHTS, PARTS = "config.json", "tokenizer.json", "model.safetensors", "model-*-of-*.safetensors"
ID_DIGITS = 16
BATCH = 64
READ_AT_ONCE = 1024
"""Texts whose tokens are held whole; what max_tokens cuts off takes far more memory than what it leaves."""
EXAMPLE = "google-t5/t5-small"

Ids = list[list[int]]


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder's files, and what its numbers are: the space is named by the kind, the width and a digest of them."""

    folder: Path
    weights: tuple[Path, ...]
    settings: dict[str, Any]
    space: TextSpace


def find(encoder: str, memory: Path | None = None) -> EncoderFiles:
    """The encoder in a folder, or of a name that Hugging Face's tools have on this disk.

    memory: a folder in which the digests of its files are remembered. Raises DataError that names the files expected
    and how one gets them.
    """
    folder = _folder(encoder)
    whole = folder / WEIGHTS
    weights = (whole,) if whole.is_file() else tuple(sorted(path for path in folder.glob(PARTS) if path.is_file()))
    missing = [name for name in (CONFIG, TOKENIZER) if not (folder / name).is_file()]
    missing += [] if weights else [WEIGHTS]
    if missing:
        raise DataError(f"{folder} is no text encoder, it lacks {', '.join(missing)}. {how_to_get(folder)}")
    settings = _settings(folder / CONFIG)
    digest = hashlib.sha256()
    for path in (folder / CONFIG, folder / TOKENIZER, *weights):
        try:
            digest.update(bytes.fromhex(digest_of(path, memory)))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; make it readable or get it anew.") from error
    width = settings["d_model"]
    return EncoderFiles(folder, weights, settings, TextSpace(f"t5-{width}-{digest.hexdigest()[:ID_DIGITS]}", width))


def how_to_get(folder: Path) -> str:
    """Which files are expected where, and how a person gets them there."""
    return (
        f"Expected are {CONFIG}, {TOKENIZER} and model.safetensors of a T5 in {folder}; pytorch_model.bin "
        "is not read, since that can run code, and nothing is fetched from here. Once, where there is a network "
        f"({EXAMPLE}: 240 MB, Apache 2.0): hf download {EXAMPLE} {CONFIG} {TOKENIZER} model.safetensors --local-dir "
        "FOLDER"
    )


def _folder(encoder: str) -> Path:
    folder = Path(encoder)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise DataError(f"{folder} is not a folder. {how_to_get(folder)}") from error
    try:
        return Path(snapshot_download(encoder, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise DataError(
            f"{encoder} is neither a folder nor an encoder that lies in this machine's cache of Hugging Face. "
            f"{how_to_get(folder)}"
        ) from error


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
        kind, width = settings["model_type"], settings["d_model"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} does not describe a T5 ({first_line(error)}); get its files anew.") from error
    if kind != "t5" or type(width) is not int or not 1 <= width <= MAX_TEXT_WIDTH:
        raise DataError(
            f"{path} describes a {kind!r} of width {width!r}; expected a T5 of width 1 to {MAX_TEXT_WIDTH}, such as "
            f"{EXAMPLE}."
        )
    return dict(settings)


class Encoder:
    """Turns texts into numbers. Raises RuntimeMissingError without transformers, DataError for wrong files."""

    def __init__(self, files: EncoderFiles, max_tokens: int) -> None:
        try:
            from tokenizers import Tokenizer
            from transformers import T5Config, T5EncoderModel
        except ImportError as error:
            raise RuntimeMissingError(
                "text needs transformers, which is not installed here; pip install 'collafuse[text]'."
            ) from error
        self.space = files.space
        self.truncated = 0
        """Texts that were longer than max_tokens, whose rest was not read."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer = Tokenizer.from_file(str(files.folder / TOKENIZER))
        except Exception as error:  # tokenizers raises plain Exception
            raise DataError(
                f"{files.folder / TOKENIZER} is no tokenizer ({first_line(error)}); get it anew."
            ) from error
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()
        try:
            with torch.device("meta"):  # its own first values would be made for nothing
                model = T5EncoderModel(T5Config(**files.settings))
            model.load_state_dict(_tensors(files), assign=True)
        except Exception as error:  # transformers checks a configuration with exceptions of many kinds
            raise DataError(
                f"the weights in {files.folder} are not those of its {CONFIG} ({first_line(error)}); get them anew."
            ) from error
        pieces = max(self._tokenizer.get_vocab().values(), default=0) + 1
        if pieces > model.get_input_embeddings().num_embeddings:
            raise DataError(
                f"{files.folder / TOKENIZER} knows {pieces} tokens, the weights beside it "
                f"{model.get_input_embeddings().num_embeddings}; they are of two models, get both of one."
            )
        self._model = model.float().eval().requires_grad_(False).to(self._device)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], advance: Callable[[int], None] = lambda count: None) -> Texts:
        """Texts as numbers, float16 [N, T]: the mean of the last hidden states over a text's tokens, scaled to a root
        mean square of 1. ``advance`` hears of texts that are done. Raises DataError where one does not come out finite.
        """
        ids = self._ids(texts)
        rows = np.zeros((len(ids), self.space.width), dtype=np.float16)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # so that little is padded
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            rows[chosen] = self._means([ids[i] for i in chosen])
            advance(len(chosen))
        if not np.isfinite(rows).all():
            raise DataError(
                f"the text encoder {self.space.encoder} makes numbers that are not finite, so its weights are damaged; "
                "get them anew."
            )
        return rows

    def _ids(self, texts: Sequence[str]) -> Ids:
        ids: Ids = []
        for start in range(0, len(texts), READ_AT_ONCE):
            for one in self._tokenizer.encode_batch(list(texts[start : start + READ_AT_ONCE])):
                ids.append(one.ids)
                self.truncated += bool(one.overflowing)
        return ids

    def _means(self, ids: Ids) -> Texts:
        longest = max(1, max(map(len, ids)))
        tokens = torch.zeros(len(ids), longest, dtype=torch.int64)
        mask = torch.zeros(len(ids), longest)
        for row, one in enumerate(ids):
            tokens[row, : len(one)] = torch.tensor(one, dtype=torch.int64)
            mask[row, : len(one)] = 1.0
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1.0)
        rms = mean.square().mean(dim=1, keepdim=True).sqrt()
        return (mean / rms.clamp(min=1e-12)).to(torch.float16).cpu().numpy()


def _tensors(files: EncoderFiles) -> dict[str, torch.Tensor]:
    """The encoder's part of the weights, whatever else is in them."""
    held: dict[str, torch.Tensor] = {}
    for path in files.weights:
        held |= {k: v for k, v in load_file(path).items() if k == "shared.weight" or k.startswith("encoder.")}
    shared = held.get("shared.weight", held.get("encoder.embed_tokens.weight"))
    if shared is None:
        raise KeyError("shared.weight")
    return held | {"shared.weight": shared, "encoder.embed_tokens.weight": shared}
