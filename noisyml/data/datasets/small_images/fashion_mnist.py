"""Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747), read from its four IDX files."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from noisyml.data.datasets.small_images.mnist import IdxImages

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
#: Folder of Debian's package ``dataset-fashion-mnist``.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


class FashionMNIST(IdxImages):
    """70,000 photographs of clothes, 28x28 grey, 10 classes.

    Args:
        root: folder with ``FashionMNIST/raw/*`` (torchvision's download folder) or with the four
            files themselves; where it has none, the folder of Debian's package is looked at.
        val_fraction: see `ArrayBenchmark`.
        seed: see `ArrayBenchmark`.
        check_counts: see `ArrayBenchmark`.
        split: see `ArrayBenchmark`.
    """

    description: ClassVar[str] = "Fashion-MNIST: 70,000 clothes, 28x28 grey, 10 classes"
    how_to_get: ClassVar[str] = (
        "fetch the four *-ubyte.gz files (30 MB) of github.com/zalandoresearch/fashion-mnist, with "
        "torchvision.datasets.FashionMNIST(root, download=True) or as Debian's package "
        "dataset-fashion-mnist, and set dataset.root to the folder that holds FashionMNIST/raw."
    )
    name = "fashion_mnist"
    folder = "FashionMNIST"
    class_names = CLASS_NAMES

    def folders(self) -> tuple[Path, ...]:
        """Debian's folder comes last."""
        return (*super().folders(), DEBIAN_FOLDER)
