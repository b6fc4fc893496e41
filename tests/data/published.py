"""Published data sets in their true layout on disk, with a few random images each.

torchvision compares some files with their published MD5 sums; here, and nowhere else, the sums of the files that
were just written take their place.
"""

from __future__ import annotations

import hashlib
import pickle  # noqa: TID251 -- CIFAR's own format, written here and never read by us
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

CELEBA_NAMES = "5_o_Clock_Shadow Eyeglasses Male Smiling Wearing_Hat".split()
CUB_ATTRIBUTES = (
    *("has_bill_shape::curved_(up_or_down)", "has_bill_shape::cone"),
    *("has_wing_color::blue", "has_size::large_(16_-_32_in)"),
)
AWA2_ATTRIBUTES = ("furry", "swims", "fierce")
TRAIN, TEST = 16, 6
"""Images in the training part and in the others together."""

LABELS = {
    "celeba": tuple(CELEBA_NAMES),
    "cub": ("Black_footed_Albatross", "Laysan_Albatross", "Sooty_Albatross", *CUB_ATTRIBUTES),
    "awa2": ("antelope", "grizzly+bear", "killer+whale", "beaver", *AWA2_ATTRIBUTES),
    "cifar10": tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    "cifar100": tuple(f"class {i}" for i in range(100)),
    "stl10": tuple("airplane bird car cat deer dog horse monkey ship truck".split()),
    "mnist": tuple("0123456789"),
    "fashion-mnist": tuple(datasets.FashionMNIST.classes),
}
"""The labels of each set, in the order in which they are read."""


def _images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def write_celeba(root: Path, patch: pytest.MonkeyPatch) -> None:
    """People 1, 2, ... with two images each; validation and test images are those of the last people."""
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(TRAIN + TEST)]
    for name, pixels in zip(names, _images(len(names), 22, 18, 3), strict=True):
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)
    signs = np.random.default_rng(1).choice([-1, 1], (len(names), len(CELEBA_NAMES)))
    attributes = [f"{name} {' '.join(f'{sign:2d}' for sign in row)}" for name, row in zip(names, signs, strict=True)]
    parts = [0] * TRAIN + [1] * 2 + [2] * (TEST - 2)
    boxes, marks = [f"{name} 1 2 3 4" for name in names], [f"{name}{' 1' * 10}" for name in names]
    texts = {
        "list_attr_celeba.txt": [str(len(names)), " ".join(CELEBA_NAMES) + " ", *attributes],
        "list_eval_partition.txt": [f"{name} {part}" for name, part in zip(names, parts, strict=True)],
        "identity_CelebA.txt": [f"{name} {i // 2 + 1}" for i, name in enumerate(names)],
        "list_bbox_celeba.txt": [str(len(names)), "image_id x_1 y_1 width height", *boxes],
        "list_landmarks_align_celeba.txt": [str(len(names)), "a b c d e f g h i j", *marks],
    }
    for name, lines in texts.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    sums = {name: _md5(folder / name) for name in texts}
    listed = [(key, sums.get(name, md5), name) for key, md5, name in datasets.CelebA.file_list]
    patch.setattr(datasets.CelebA, "file_list", listed)


def _write_cifar(root: Path, patch: pytest.MonkeyPatch, made: type, label_key: str, names: list[str]) -> None:
    folder = root / made.base_folder
    folder.mkdir(parents=True)
    for attribute, count in (("train_list", TRAIN), ("test_list", TEST)):
        files = [name for name, _ in getattr(made, attribute)]
        share = -(-count // len(files))
        for i, name in enumerate(files):
            rows = range(i * share, min(count, (i + 1) * share))
            pixels = _images(len(rows), 3072, seed=i + 10 * count)
            batch = {"data": pixels, label_key: [row % len(names) for row in rows]}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        patch.setattr(made, attribute, [[name, _md5(folder / name)] for name in files])
    meta = folder / made.meta["filename"]
    meta.write_bytes(pickle.dumps({made.meta["key"]: names}, protocol=2))
    patch.setattr(made, "meta", {**made.meta, "md5": _md5(meta)})


def write_cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    _write_cifar(root, patch, datasets.CIFAR10, "labels", names)


def write_cifar100(root: Path, patch: pytest.MonkeyPatch) -> None:
    _write_cifar(root, patch, datasets.CIFAR100, "fine_labels", [f"class {i}" for i in range(100)])


def write_stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    names = "airplane bird car cat deer dog horse monkey ship truck".split()
    for part, count in (("train", TRAIN), ("test", TEST), ("unlabeled", 2)):
        _images(count, 3, 96, 96, seed=count).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(names) + "\n")
    for attribute in ("train_list", "test_list"):
        listed = [[name, _md5(folder / name)] for name, _ in getattr(datasets.STL10, attribute)]
        patch.setattr(datasets.STL10, attribute, listed)


def _write_mnist(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        pixels, labels = _images(count, 28, 28, seed=count), np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = (0x0800 + array.ndim).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())


def write_mnist(root: Path, patch: pytest.MonkeyPatch) -> None:
    _write_mnist(root / "MNIST" / "raw")


def write_fashion_mnist(root: Path, patch: pytest.MonkeyPatch) -> None:
    _write_mnist(root / "FashionMNIST" / "raw")


def write_cub(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Three species and four attributes in place of 200 and 312; every certainty occurs."""
    folder = root / "CUB_200_2011"
    (folder / "attributes").mkdir(parents=True)
    species = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
    count = TRAIN + TEST
    files = [f"{species[i % 3]}/{species[i % 3][4:]}_{i:04d}.jpg" for i in range(count)]
    for file, pixels in zip(files, _images(count, 16, 20, 3), strict=True):
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / file)
    votes = [
        # The published list has lines with a stray value, as the last attribute has here.
        f"{i + 1} {k + 1} {(i + k) % 2} {(i // 2 + k) % 4 + 1} {'0 ' if k == 3 else ''}5.7"
        for i in range(count)
        for k in range(4)
    ]
    texts = {
        "images.txt": [f"{i + 1} {file}" for i, file in enumerate(files)],
        "image_class_labels.txt": [f"{i + 1} {i % 3 + 1}" for i in range(count)],
        "classes.txt": [f"{i + 1} {name}" for i, name in enumerate(species)],
        "train_test_split.txt": [f"{i + 1} {int(i < TRAIN)}" for i in range(count)],
        "attributes/image_attribute_labels.txt": votes,
        "../attributes.txt": [f"{i + 1} {name}" for i, name in enumerate(CUB_ATTRIBUTES)],
    }
    for name, lines in texts.items():
        (folder / name).write_text("\n".join(lines) + "\n")


def write_awa2(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Four animals and three attributes in place of 50 and 85."""
    folder = root / "Animals_with_Attributes2"
    animals = ["antelope", "grizzly+bear", "killer+whale", "beaver"]
    for row, pixels in enumerate(_images(TRAIN + TEST, 16, 20, 3)):
        animal = "beaver" if row >= TRAIN else animals[row % 3]
        path = folder / "JPEGImages" / animal / f"{animal}_{10001 + row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (folder / "classes.txt").write_text("".join(f"{i + 1:12d}\t{name}\n" for i, name in enumerate(animals)))
    (folder / "predicates.txt").write_text("".join(f"{i + 1:12d}\t{name}\n" for i, name in enumerate(AWA2_ATTRIBUTES)))
    (folder / "predicate-matrix-binary.txt").write_text("1 0 0\n1 0 1\n0 1 0\n1 1 1\n")
    (folder / "testclasses.txt").write_text("beaver\n")


LAYOUT_WRITERS = {"cub": write_cub, "awa2": write_awa2}
WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "celeba": write_celeba,
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "stl10": write_stl10,
    "mnist": write_mnist,
    "fashion-mnist": write_fashion_mnist,
}
