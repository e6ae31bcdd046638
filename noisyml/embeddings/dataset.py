"""Vectors as a data set, from files or from an embedding store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from noisyml.data.datasets.vectors.files import Source, Vectors
from noisyml.embeddings.store import EmbeddingStore
from noisyml.errors import UserError

#: Splits of a store that a run may use.
SPLITS = ("train", "val", "test")


class StoredVectors(Vectors):
    """Vectors in files, memory-mapped where the format allows, or what ``noisyml embed`` wrote.

    Labels are for evaluation, or for methods that learn from them; vectors may do without.

    Args:
        path: file of the training vectors (.npy, .npz, .parquet, .fvecs, .bvecs, .h5), or a folder
            of ``noisyml embed``, whose splits ``train``, ``val`` and ``test`` are taken.
        val: file of validation vectors; None: those of the folder, or a share of the training
            vectors.
        test: file of test vectors; None: likewise.
        key: name of the vectors in files that hold several arrays; None: the only ones.
        labels: name of the labels in such files; ``auto``: ``labels``, ``label`` or ``y`` there, or
            the file beside (``vectors.labels.npy`` or ``.labels.txt``); None: no labels.
        val_fraction: share of each class for ``val``, in [0, 1).
        test_fraction: the same for ``test``.
        seed: which of the possible carvings; unrelated to the seed of a run.
        centre: subtract the mean of the training vectors.
        unit_norm: bring vectors to length 1, after that.
        gallery: what a test searches: the other ``test`` vectors, or those of ``train``.
        labels_are_true: whether the labels are known to be right, see `CsvTable`.
    """

    description: ClassVar[str] = "Your vectors, in files of numbers or from `noisyml embed`"
    how_to_get: ClassVar[str] = (
        "set dataset.path to a file of vectors (.npy, .npz, .parquet, .fvecs, .bvecs, .h5) or a "
        "folder of `noisyml embed`."
    )

    def open(self, path: Path) -> Any:
        """The matrix [N, D] in a file, or the training split of a folder."""
        if not path.is_dir():
            return super().open(path)
        return EmbeddingStore(path).split("train")

    def sources(self) -> dict[str, Source]:
        """The vectors of each split that has a file, or that the folder has.

        Raises:
            UserError: a folder for a single split.
        """
        path = self.files["train"]
        for name, file in self.files.items():
            if name != "train" and file.is_dir():
                raise UserError(
                    f"dataset.{name}={file} is a folder: dataset.path takes folders of `noisyml "
                    f"embed` with all their splits, dataset.{name} a file."
                )
        if not path.is_dir():
            return super().sources()
        store = EmbeddingStore(path)
        found = {}
        for name in SPLITS:
            if name == "train" or (name in store.splits and name not in self.files):
                split = store.split(name)
                words = None if self.labels is None else split.label_names
                digest = f"{split.facts['data']} {split.facts['encoder']}"
                names = [str(key) for key in split.names]
                found[name] = Source(split, names, words, digest)
        return found | {
            name: self.source(name, file) for name, file in self.files.items() if name != "train"
        }
