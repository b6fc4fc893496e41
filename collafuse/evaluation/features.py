"""Feature extractors, in whose numbers images are compared: standard networks where they are on the machine, otherwise
a classifier trained on the data set itself. Nothing is downloaded here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core import tensorfile
from ..core.errors import DataError, FileFormatError, RuntimeMissingError, UsageError, first_line
from ..data.imageset import ImageSet
from ..learning.checkpoint import digest_of_tensors
from .classifier import Classifier, Network, train_classifier
from .quality import Features

CHOICES = ("auto", "inception", "clip", "classifier")
SMALLEST_FOR_STANDARD = 32
"""Side in pixels below which ``auto`` keeps to the classifier: networks for photographs see little in a few pixels."""
BATCH = 64

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the one file of weights that every published FID since 2020 uses (mseitzer/pytorch-fid, toshas/torch-fidelity)."""
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
CLIP_MODEL = "openai/clip-vit-base-patch32"

KIND, VERSION, SEED = "classifier", 1, 0
STEPS = 800
"""How long the classifier trains: 20 s of one core on the digits of the demo."""


@dataclass(frozen=True)
class Extractor:
    """name: as every table says it; features: images uint8 [N, C, H, W] -> [N, F]."""

    name: str
    features: Callable[[NDArray[np.uint8]], Features]


def choose(
    wanted: str, path: Path | None, known: ImageSet, classifier: Classifier | None, device: torch.device
) -> Extractor:
    """The extractor that was asked for. ``path``: the Inception weights or the CLIP folder, in place of the usual ones;
    known: the images that the classifier, where there is one, learned from.

    ``auto`` takes Inception where its weights are found and the images are not tiny, otherwise the classifier, whose
    features are scaled to a mean square of 1 over the known images. Raises UsageError for another name,
    RuntimeMissingError where a package or weights are not on this machine, FileFormatError for weights that are damaged
    or of another network, DataError where there is no classifier, since no label tells the images apart.
    """
    if wanted not in CHOICES:
        raise UsageError(f"features {wanted!r} are not known; use one of {', '.join(CHOICES)}.")
    if path is not None and wanted not in ("inception", "clip"):
        raise UsageError(f"weights go with features inception or clip, not {wanted}; say which of the two they are.")
    if wanted == "auto":
        standard = known.pixels.shape[-1] >= SMALLEST_FOR_STANDARD and _inception_weights() is not None
        wanted = "inception" if standard and _has("torch_fidelity") else "classifier"
    if wanted == "inception":
        return _inception(path or _inception_weights(), device)
    if wanted == "clip":
        return _clip(path, device)
    if classifier is None:
        raise DataError(
            "no label tells the images apart, so that no classifier can be trained to compare them by; put standard "
            "weights on this machine and ask for --features inception or clip."
        )
    of = classifier.features
    scale = np.sqrt(np.square(of(known.in_memory())).mean())
    return Extractor("a classifier trained on the data itself", lambda pixels: of(pixels) / scale)


def classifier_of(
    images: ImageSet, folder: Path, advance: Callable[[int], None] = lambda count: None
) -> Classifier | None:
    """A classifier trained on these images, or the one that an earlier call left in the folder; None where no label
    tells any of them apart."""
    if not images.label_names or (images.labels == images.labels[:1]).all():
        return None
    digest = digest_of_tensors(torch.from_numpy(images.in_memory()), torch.from_numpy(images.labels))
    path = folder / f"classifier-{digest[:16]}-{STEPS}.safetensors"
    if path.exists():
        advance(STEPS)
        return _load_classifier(path, images, digest)
    made = train_classifier(images, seed=SEED, steps=STEPS, advance=advance)
    state = {name: tensor.numpy() for name, tensor in made.network.state_dict().items()}
    tensorfile.write(path, KIND, VERSION, {"data": digest, "one_label": made.one_label}, state, overwrite=True)
    return made


def _load_classifier(path: Path, images: ImageSet, digest: str) -> Classifier:
    file = tensorfile.read(path, KIND, VERSION)
    data, one_label = file.fields.text("data"), file.fields.boolean("one_label")
    file.fields.done()
    network = Network(images.image_shape, len(images.label_names))
    state = {name: torch.from_numpy(array) for name, array in file.tensors.items()}
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if data != digest or {name: tensor.shape for name, tensor in state.items()} != expected:
        raise FileFormatError(f"{path} belongs to other images; remove it, and it is made anew.")
    network.load_state_dict(state)
    return Classifier(network.eval(), one_label)


def _inception_weights(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The weights where torch.hub, and with it torch-fidelity, torchmetrics and pytorch-fid, keep them."""
    cache = Path(environment.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    home = Path(environment.get("TORCH_HOME", cache / "torch"))
    found = [home / "hub" / "checkpoints" / name for name in INCEPTION_FILES]
    return next((path for path in found if path.is_file()), None)


def _inception(path: Path | None, device: torch.device) -> Extractor:
    if not _has("torch_fidelity"):
        raise RuntimeMissingError("Inception features need torch-fidelity; pip install 'collafuse[metrics]'.")
    if path is None or not path.is_file():
        raise RuntimeMissingError(
            f"the Inception weights are not on this machine ({path or 'torch.hub has none'}); nothing is downloaded. "
            f"Get {INCEPTION_FILES[0]} from torch-fidelity's releases and pass it with --weights."
        )
    if (found := tensorfile.file_digest(path)) != INCEPTION_SHA256:
        # Also because torch-fidelity reads it in a way that can run code: nothing but that very file may come there.
        raise FileFormatError(
            f"{path} has SHA-256 {found[:16]}..., the standard Inception weights have {INCEPTION_SHA256[:16]}...; "
            "get the standard file, since figures by another cannot be compared."
        )
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device)
    return Extractor("Inception-v3, 2048 features (standard FID weights)", _batched(lambda x: network(x)[0], device))


def _clip(path: Path | None, device: torch.device) -> Extractor:
    if not _has("transformers"):
        raise RuntimeMissingError("CLIP features need transformers; pip install 'collafuse[text]'.")
    from safetensors import SafetensorError
    from transformers import CLIPVisionModelWithProjection

    source = str(path or CLIP_MODEL)
    load: Any = CLIPVisionModelWithProjection.from_pretrained  # of which types say that it returns no report
    try:
        found, report = load(source, local_files_only=True, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise RuntimeMissingError(
            f"the CLIP weights {source} are not on this machine as safetensors; nothing is downloaded. Fetch them with "
            "`huggingface-cli download`, or pass their folder with --weights."
        ) from error
    except (SafetensorError, RuntimeError) as error:  # a file that is cut short, tensors of another size
        raise _no_clip(source, first_line(error)) from error
    network: torch.nn.Module = found
    if absent := sorted(report["missing_keys"]):  # drawn at random, so that figures would say nothing
        raise _no_clip(source, f"it lacks {absent[0]}")
    if broken := [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]:
        raise _no_clip(source, f"{broken[0]} is not finite")
    settings: Any = found.config
    side: int = settings.image_size
    network.to(device).eval()
    # CLIP's own preprocessing, as numbers (openai/CLIP, clip.py: _transform).
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )

    def embed(x: torch.Tensor) -> torch.Tensor:
        resized = torch.nn.functional.interpolate(x.float() / 255, (side, side), mode="bicubic", antialias=True)
        return network(pixel_values=(resized.clamp(0, 1) - mean) / std).image_embeds

    named = CLIP_MODEL
    if path is not None:  # of one name there may be several
        digest = digest_of_tensors(*(tensor.float() for tensor in network.state_dict().values()))
        named = f"{path.name} {digest[:8]}"
    return Extractor(f"CLIP image features ({named})", _batched(embed, device))


def _no_clip(source: str, why: str) -> FileFormatError:
    return FileFormatError(
        f"the weights {source} are damaged or no CLIP's ({why}); fetch them again, or pass another folder with "
        "--weights."
    )


def _batched(network: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> Callable[[Any], Features]:
    """Images uint8 [N, C, H, W] through a network for RGB images, in parts."""

    @torch.inference_mode()
    def features(pixels: NDArray[np.uint8]) -> Features:
        parts = torch.from_numpy(pixels).split(BATCH)
        return torch.cat([network(p.to(device).expand(-1, 3, -1, -1)).cpu() for p in parts]).double().numpy()

    return features


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None
