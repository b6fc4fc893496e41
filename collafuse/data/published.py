"""The published data sets: what they need on disk, where they come from, and under which terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CIFAR_TERMS = "no licence is stated; its makers ask to cite the technical report; see the site"


@dataclass(frozen=True)
class Published:
    """Where a data set comes from. files: what must lie below data.path; torchvision: the name of its class there, None
    where a person fetches the files by hand."""

    title: str
    files: tuple[str, ...]
    page: str
    terms: str
    torchvision: str | None = None

    def missing(self, root: Path) -> list[str]:
        """The files that are not below ``root``."""
        return [name for name in self.files if not (root / name).exists()]

    def where_from(self, root: Path, missing: Sequence[str]) -> str:
        """Which files are expected where, from where a person gets them, and under which terms."""
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        fetched = "collafuse data CONFIG --download fetches it there." if self.torchvision else "Unpack it there."
        return f"{self.title} needs {shown} in {root}. It comes from {self.page} ({self.terms}). {fetched}"


_CELEBA = (
    "list_attr_celeba",
    "list_eval_partition",
    "identity_CelebA",
    "list_bbox_celeba",
    "list_landmarks_align_celeba",
)
_MNIST = tuple(f"raw/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_CIFAR10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
_STL10 = tuple("train_X.bin train_y.bin test_X.bin test_y.bin unlabeled_X.bin class_names.txt".split())

_CUB = tuple(
    "images.txt image_class_labels.txt classes.txt train_test_split.txt attributes/image_attribute_labels.txt".split()
)
_AWA2 = tuple("classes.txt predicates.txt predicate-matrix-binary.txt testclasses.txt".split())

PUBLISHED = {
    "celeba": Published(
        "CelebA (Liu et al. 2015)",
        ("celeba/img_align_celeba", *(f"celeba/{name}.txt" for name in _CELEBA)),
        "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        "for non-commercial research only, not to be passed on; see the agreement on the site",
        torchvision="CelebA",
    ),
    "cifar10": Published(
        "CIFAR-10 (Krizhevsky 2009), python version",
        tuple(f"cifar-10-batches-py/{name}" for name in _CIFAR10),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        CIFAR_TERMS,
        torchvision="CIFAR10",
    ),
    "cifar100": Published(
        "CIFAR-100 (Krizhevsky 2009), python version",
        tuple(f"cifar-100-python/{name}" for name in ("train", "test", "meta")),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        CIFAR_TERMS,
        torchvision="CIFAR100",
    ),
    "stl10": Published(
        "STL-10 (Coates et al. 2011), binary version",
        tuple(f"stl10_binary/{name}" for name in _STL10),
        "https://cs.stanford.edu/~acoates/stl10/",
        "no licence is stated; the images come from ImageNet, whose terms allow non-commercial research and education",
        torchvision="STL10",
    ),
    "mnist": Published(
        "MNIST (LeCun et al. 1998)",
        tuple(f"MNIST/{name}" for name in _MNIST),
        "http://yann.lecun.com/exdb/mnist/",
        "copyright Y. LeCun and C. Cortes; Keras's documentation names CC BY-SA 3.0; see the site",
        torchvision="MNIST",
    ),
    "fashion-mnist": Published(
        "Fashion-MNIST (Xiao et al. 2017)",
        tuple(f"FashionMNIST/{name}" for name in _MNIST),
        "https://github.com/zalandoresearch/fashion-mnist",
        "MIT licence",
        torchvision="FashionMNIST",
    ),
    "cub": Published(
        "CUB-200-2011 (Wah et al. 2011)",
        ("CUB_200_2011/images", *(f"CUB_200_2011/{name}" for name in _CUB)),
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "its makers ask to be cited; for what it may be used see the site",
    ),
    "awa2": Published(
        "Animals with Attributes 2 (Xian et al. 2018)",
        ("Animals_with_Attributes2/JPEGImages", *(f"Animals_with_Attributes2/{name}" for name in _AWA2)),
        "https://cvml.ista.ac.at/AwA2/",
        "a licence for each photograph comes with it; see the site",
    ),
    "brats2020": Published(
        "BraTS 2020 (Menze et al. 2015; Bakas et al. 2017)",
        ("MICCAI_BraTS2020_TrainingData/name_mapping.csv",),
        "https://www.med.upenn.edu/cbica/brats2020/data.html",
        "after registration; for what it may be used and what to cite see the site",
    ),
}
