"""Labels of a run: those of a data set, corrupted by an injector."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from noisyml.data.base import DatasetSource, Split
from noisyml.data.inputs import ReplacedInputs
from noisyml.data.partial import (
    check_hidden,
    corrupt_labelled,
    halves,
    hides_labels,
    without_hidden_labels,
)
from noisyml.data.transforms.image import ViewMaker
from noisyml.data.views import EvaluationView, OnBroken, UnusableBatch, stack
from noisyml.errors import UserError
from noisyml.noise.base import FeatureKind, Injector
from noisyml.noise.manifest import NoiseManifest
from noisyml.noise.random import GENERATOR
from noisyml.storage.caches import done_without
from noisyml.targets import Labels

log = logging.getLogger(__name__)

#: Numbers [N, D] of the inputs of a split that noise may depend on.
FeaturesOf = Callable[[Split], NDArray[Any]]


@dataclass(frozen=True)
class Observed:
    """Splits with their noise.

    Attributes:
        manifest: of the training split.
        splits: by name; the images of the training split as open-set noise left them.
        val_labels: labels that validation compares with; None without a validation split.
    """

    manifest: NoiseManifest
    splits: dict[str, Split]
    val_labels: Labels | None


class Labelling:
    """Corrupts the labels of a data set; deterministic, the same on every process.

    Args:
        dataset: says whether its labels are true.
        noise: corrupts the labels of the training split.
        pixels: raw pixels of a split, see `raw_pixels`.
        features: features of a frozen backbone, or None if there is none.
        open_set_source: where the images of open-set noise come from (its training split).
        cache_dir: folder in which noisy masks are kept; None: they are made each time.
        pooled: samples whose label must not be used are kept out of the batches that read labels,
            see `noisyml.data.labelled`; False: their labels are hidden.
    """

    def __init__(
        self,
        dataset: DatasetSource,
        noise: Injector,
        pixels: FeaturesOf,
        features: FeaturesOf | None = None,
        open_set_source: DatasetSource | None = None,
        cache_dir: Path | None = None,
        pooled: bool = False,
    ) -> None:
        self.cache_dir = cache_dir
        self.pooled = pooled
        self.dataset = dataset
        self.noise = noise
        self.pixels = pixels
        self.features = features
        self.open_set_source = open_set_source
        self._foreign: Split | None = None

    def observe(self, splits: Mapping[str, Split], noisy_val: bool) -> Observed:
        """Corrupt the training labels and, if asked, those of validation.

        Args:
            splits: by name, with ``train``.
            noisy_val: inject noise into ``val`` too, unless it describes one training split
                (`Injector.training_only`).

        Raises:
            UserError: noise that does not fit the data.
        """
        train = splits["train"]
        self.noise.check_kind(train.labels)
        noise = self.noise.sized(lambda: len(self._open_set_images()))
        manifest = self.corrupt(train, noise)
        observed = dict(splits)
        if manifest.source_index is not None:
            observed["train"] = train = self._with_foreign_images(train, manifest)
        if self._hides(train):
            check_hidden(train, manifest)
            observed |= halves(train, manifest)
            # From here on nothing but the record of the noise knows the hidden ones.
            observed["train"] = without_hidden_labels(train)
        val_labels: Labels | None = None
        if "val" in splits:
            val_labels = splits["val"].labels
            if noisy_val and self.noise.training_only:
                log.info(
                    "noise %s exists for the training split only; val stays as it is",
                    self.noise.name,
                )
            elif noisy_val and manifest.changed.any():
                val_labels = self.corrupt(splits["val"], self.noise).observed
        return Observed(manifest, observed, val_labels)

    def corrupt(self, split: Split, noise: Injector) -> NoiseManifest:
        """Corrupt the labels of a split.

        Raises:
            UserError: noise that does not fit the split.
        """
        if self._hides(split) and not noise.describes_split:
            return corrupt_labelled(split, lambda part: self.corrupt(part, noise))
        features = {kind: self._noise_features(split, kind, noise.name) for kind in noise.wants}

        def inject() -> NoiseManifest:
            return noise.inject(
                split.labels,
                len(split.class_names),
                keys=split.keys,
                features=features,
                class_names=split.class_names,
            )

        kept = self._kept(split, noise)
        manifest = inject() if kept is None else kept_manifest(kept, inject)
        if not self.dataset.labels_are_true and not manifest.changed.any():
            return manifest.with_unknown_truth(split.extras.get("clean_label"))
        return manifest

    def _hides(self, split: Split) -> bool:
        return hides_labels(split) and not self.pooled

    def _kept(self, split: Split, noise: Injector) -> Path | None:
        """File in which noisy labels are kept that take long to make; None: they do not."""
        if self.cache_dir is None or not split.target.beside_image or noise.name == "none":
            return None
        digest = hashlib.sha256(split.target.content(split.labels))
        names = "\0".join([*split.keys, GENERATOR, repr(noise), str(len(split.class_names))])
        digest.update(names.encode(errors="surrogateescape"))
        return self.cache_dir / "masks" / f"{noise.name}-{digest.hexdigest()[:20]}.parquet"

    def _noise_features(
        self, split: Split, kind: FeatureKind, noise: str
    ) -> NDArray[np.floating[Any]]:
        """The features that noise asks for: pixels in 0..255, embeddings, or probabilities."""
        if kind == "pixels":
            return self.pixels(split)
        if self.features is not None:
            features = self.features(split)
        elif kind == "embeddings":
            raise UserError(
                f"noise '{noise}' groups images by their features: set backbone.frozen=true, "
                f"so that there is a fixed network to compute them with."
            )
        else:
            features = self.pixels(split)
        if kind == "embeddings":
            return features
        return class_probabilities(features, split.labels, len(split.class_names))

    def _open_set_images(self) -> Split:
        """The training split of the open-set source, read once."""
        if self.open_set_source is None:
            raise UserError(
                "Open-set noise takes images from another data set: name it by its configuration, "
                "e.g. 'data.open_set_source={_target_: "
                "noisyml.data.datasets.embedded.digits.Digits}'."
            )
        if self._foreign is None:
            self._foreign = self.open_set_source.splits()["train"]
        return self._foreign

    def _with_foreign_images(self, train: Split, manifest: NoiseManifest) -> Split:
        source, source_index = self._open_set_images(), manifest.source_index
        assert source_index is not None
        if source_index.max(initial=-1) >= len(source):
            raise UserError(
                f"The noise manifest refers to image {source_index.max()} of the open-set source, "
                f"which has {len(source)}; set noise.source_size to that, or to null."
            )
        inputs = ReplacedInputs(train.inputs, source.inputs, source_index)
        fingerprint = f"{train.fingerprint}+{source.fingerprint}+{manifest.sha256}"
        return replace(train, inputs=inputs, fingerprint=fingerprint)


def kept_manifest(file: Path, inject: Callable[[], NoiseManifest]) -> NoiseManifest:
    """The manifest in a file, made and written first where there is none or a damaged one."""
    if file.is_file():
        try:
            return NoiseManifest.load(file)
        except UserError as error:
            log.warning("%s; noisy masks are made anew", str(error).rstrip("."))
    manifest = inject()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        manifest.save(file)
    except OSError as error:
        done_without(file.parent, error)
    return manifest


def raw_pixels(split: Split, transform: ViewMaker, on_broken: OnBroken) -> NDArray[np.float32]:
    """Raw pixels 0..255 of the evaluation form, float32 [N, H * W * C]; zeros if broken.

    Args:
        split: of images.
        transform: its deterministic form is used.
        on_broken: what an undecodable image does: ``error`` or ``skip``.

    Raises:
        UserError: images of different sizes, or none that can be decoded.
        BrokenImage: an image cannot be decoded and `on_broken` is ``error``.
    """
    view = EvaluationView(split, transform, on_broken=on_broken)
    batches = [
        view.__getitems__(np.arange(start, min(start + 1024, len(split))))
        for start in range(0, len(split), 1024)
    ]
    images = stack([image for batch in batches for image in batch["image"]])
    if not len(images):
        raise UnusableBatch(
            f"None of the {len(split)} images of the {split.name} split can be decoded; "
            "`noisyml data check` says why."
        )
    # Height, width, channel: the order in which released generators project raw pixels.
    flat = images.permute(0, 2, 3, 1).flatten(1)
    pixels = np.zeros((len(split), flat.shape[1]), dtype=np.float32)
    pixels[torch.cat([batch["index"] for batch in batches]).numpy()] = flat.numpy()
    return pixels


def class_probabilities(
    features: NDArray[np.floating[Any]], labels: NDArray[np.int64], num_classes: int
) -> NDArray[np.float64]:
    """Softmax outputs of a classifier trained on the clean labels, as some noise asks for.

    A multinomial logistic regression on standardised features stands in for the networks of the
    papers; classes without members get probability 0.

    Args:
        features: [N, D].
        labels: int64 [N].
        num_classes: C.

    Returns:
        [N, C].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features)
    classifier = LogisticRegression(C=0.1, max_iter=200).fit(scaled, labels)
    probabilities = np.zeros((len(labels), num_classes))
    probabilities[:, classifier.classes_] = classifier.predict_proba(scaled)
    return probabilities
