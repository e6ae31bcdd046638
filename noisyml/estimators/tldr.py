"""TLDR as a scikit-learn transformer, with the names and defaults of the published class."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from noisyml.checks import (
    Count,
    NonNegative,
    Positive,
    WholeNonNegative,
    check_arguments,
)
from noisyml.errors import UserError
from noisyml.estimators.files import Snapshots, read_model, write_array, write_model
from noisyml.estimators.fitting import MOMENTUM, ROWS_OF_RATE, TRUST, Fit
from noisyml.methods.vectors.pairs import Approximation, GraphMetric, Pairs, given_pairs, knn_pairs
from noisyml.methods.vectors.training import lack_of_steps
from noisyml.methods.vectors.twins import PairLoss, Twins
from noisyml.models.dense import HiddenNorm, encoder_layers, linear_map, parse_architecture
from noisyml.runs.progress import bar

NORMS: dict[str, HiddenNorm] = {"BN": "batch", "LN": "layer"}
LOSSES: dict[str, PairLoss] = {"BT": "redundancy", "MSE": "autoencoder"}
#: What a file must share with the object that reads it.
ARCHITECTURE = ("inputdim", "n_components", "encoder", "norm_layer")


class EstimatorError(UserError, ValueError):
    """A mistake that scikit-learn expects as `ValueError`."""


@contextlib.contextmanager
def value_errors() -> Iterator[None]:
    """Context in which a user's mistake is a `ValueError` too."""
    try:
        yield
    except EstimatorError:
        raise
    except UserError as error:
        raise EstimatorError(str(error)) from error


class TLDR(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Dimensionality reduction learnt from pairs of neighbours, without labels.

    Kalantidis et al., "TLDR: Twin Learning for Dimensionality Reduction", TMLR 2022, arXiv
    2110.09455. Names and defaults are those of the published class; what it did wrong is mended: a
    second `fit` searches its own graph, `save` leaves the object as it is, a resumed fit has its
    momentum, and rows are compared by their cosine, each left out of its own neighbours by number.

    Rows are read batch by batch, so that `X` may be a memory map larger than memory; inputs are
    used as they are: centre or normalise them before if they want it.

    Args:
        n_components: dimension d of the codes.
        encoder: ``linear``, ``flinear-L-H`` or ``mlp-L-H``, see `noisyml.models.dense`.
        projector: network of training alone, likewise; None: the loss looks at the codes.
        n_neighbors: neighbours of each row, one of which is drawn at each visit.
        pin_memory: keep all rows on the device.
        knn_approximation: None: exact; ``low``, ``medium``, ``high``: product quantisation; the
            share of true neighbours found is `knn_recall_`.
        knn_graph: neighbours [N, k] of the rows, lists of them by row, a folder of ``noisyml knn``
            or a ``.npy`` file; None: they are searched.
        inputdim: columns of the rows; None: as `fit` sees them.
        batch_size: rows of a batch, at most N.
        scale_loss: factor of the loss.
        lambd: weight of the entries off the diagonal.
        epochs: passes through the rows.
        learning_rate: for 256 rows of a batch: the rate is ``learning_rate * batch_size / 256``.
        warmup_epochs: epochs of linear rise, fewer than `epochs`.
        norm_layer: of hidden layers: ``BN`` or ``LN``.
        loss: ``BT``: redundancy reduction; ``MSE``: an autoencoder.
        gaussian: partners are the rows themselves with noise.
        output_folder: receives snapshots; None: there are none.
        snapshot_freq: epochs between them; 0: only the last and the final one.
        resume: go on from ``latest_snapshot.pth`` of the folder, with its momentum.
        save_best: keep ``best.pth`` by the metric of `fit`'s ``dataset_val``.
        verbose: 1 or more shows the progress of the search and of the epochs.
        random_state: of weights, batches and partners.
        device: where to compute.
        writer: has ``add_scalar(name, value, epoch)``, as TensorBoard's; None: none.
        knn_metric: ``cosine``, ``inner_product``, ``l2``; ``inner_product_raw`` reproduces the
            release, which drops the first hit as the row itself.
        optimizer: ``lars`` or ``adam``.

    Attributes:
        encoder_: the trained network.
        knn_recall_: of an approximate search, else None.
        loss_curve_: mean loss of each epoch.
        n_features_in_: D.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
        >>> tldr = TLDR(2, projector="mlp-1-16", batch_size=16, epochs=3, warmup_epochs=1,
        ...             learning_rate=50, random_state=0)
        >>> tldr.fit_transform(rows).shape
        (64, 2)
        >>> weight, bias = tldr.linear_map()
        >>> bool(np.allclose(rows @ weight + bias, tldr.transform(rows), atol=1e-5))
        True
    """

    encoder_: nn.Sequential
    twins_: Twins | None
    knn_: NDArray[np.int64]
    knn_recall_: float | None
    loss_curve_: list[float]
    best_score_: float
    _loaded_graph: NDArray[np.int64] | None

    def __init__(
        self,
        n_components: Count = 32,
        encoder: str = "linear",
        projector: str | None = "mlp-2-2048",
        n_neighbors: Count = 5,
        pin_memory: bool = False,
        knn_approximation: Approximation | None = None,
        knn_graph: Any = None,
        inputdim: Count | None = None,
        batch_size: Count = 1024,
        scale_loss: Positive = 1 / 32,
        lambd: NonNegative = 3.9e-3,
        epochs: Count = 100,
        learning_rate: Positive = 0.2,
        warmup_epochs: WholeNonNegative = 10,
        norm_layer: Literal["BN", "LN"] = "BN",
        loss: Literal["BT", "MSE"] = "BT",
        gaussian: bool = False,
        output_folder: Any = None,
        snapshot_freq: WholeNonNegative = 0,
        resume: bool = False,
        save_best: bool = False,
        verbose: WholeNonNegative = 0,
        random_state: Any = None,
        device: str = "cpu",
        writer: Any = None,
        *,
        knn_metric: GraphMetric = "cosine",
        optimizer: Literal["lars", "adam"] = "lars",
    ) -> None:
        self.n_components = n_components
        self.encoder = encoder
        self.projector = projector
        self.n_neighbors = n_neighbors
        self.pin_memory = pin_memory
        self.knn_approximation = knn_approximation
        self.knn_graph = knn_graph
        self.inputdim = inputdim
        self.batch_size = batch_size
        self.scale_loss = scale_loss
        self.lambd = lambd
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.warmup_epochs = warmup_epochs
        self.norm_layer = norm_layer
        self.loss = loss
        self.gaussian = gaussian
        self.output_folder = output_folder
        self.snapshot_freq = snapshot_freq
        self.resume = resume
        self.save_best = save_best
        self.verbose = verbose
        self.random_state = random_state
        self.device = device
        self.writer = writer
        self.knn_metric = knn_metric
        self.optimizer = optimizer

    # -- training ----------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        epochs: Count | None = None,
        warmup_epochs: WholeNonNegative | None = None,
        batch_size: Count | None = None,
        knn_graph: Any = None,
        output_folder: Any = None,
        snapshot_freq: WholeNonNegative | None = None,
        print_every: Count | None = None,
        retain_projector: bool = False,
        dataset_val: Any = None,
        l2_norm_eval: bool = False,
        eval_every: Count = 1,
    ) -> Self:
        """Learn the encoder from rows alone.

        Args:
            X: [N, D] floats: an array, a memory map, a tensor.
            y: not looked at.
            epochs, warmup_epochs, batch_size, knn_graph, output_folder, snapshot_freq: for this fit
                alone, in place of the constructor's.
            print_every: epochs between printed losses; None: nothing is printed.
            retain_projector: keep the projector, as `save` then does.
            dataset_val: has ``transform(model)`` and ``evaluate(l2_norm, whiten, metric)``.
            l2_norm_eval: codes of length 1 there.
            eval_every: epochs between its evaluations.

        Raises:
            EstimatorError: settings or rows that do not fit.
        """
        with value_errors():
            given: dict[str, Any] = {
                "epochs": epochs,
                "warmup_epochs": warmup_epochs,
                "batch_size": batch_size,
                "snapshot_freq": snapshot_freq,
            }
            settings = self.get_params() | {k: v for k, v in given.items() if v is not None}
            check_arguments(type(self).__init__, settings)
            rows = self._rows(X, reset=True)
            self._check_sizes(rows, settings)
            seed = int(check_random_state(self.random_state).randint(2**31))
            fit = Fit(self, rows, settings, self._pairs(rows, knn_graph), seed)
            folder = self.output_folder if output_folder is None else output_folder
            snapshots = Snapshots(folder, settings["snapshot_freq"])
            first = fit.restore(snapshots) if self.resume else 0
            with bar("epochs") as shown:
                shown.disable = not self.verbose
                task = shown.add_task("TLDR", total=fit.epochs, note="", completed=first)
                for epoch in range(first, fit.epochs):
                    loss = fit.epoch(epoch)
                    self._say(epoch, loss, print_every)
                    shown.update(task, completed=epoch + 1, note=f"loss {loss:.4f}")
                    best = self._validated(epoch, dataset_val, l2_norm_eval, eval_every)
                    if snapshots.folder is not None:
                        snapshots.write(fit.content(epoch + 1), epoch + 1, best and self.save_best)
            if not retain_projector:
                self.remove_projector()
            if snapshots.folder is not None:
                write_model(snapshots.folder / "final_model.pth", self.content())
        return self

    def _rows(self, X: Any, reset: bool) -> NDArray[Any]:
        """The rows as an array that is not copied; checked as scikit-learn does."""
        if isinstance(X, Tensor):
            X = X.detach().cpu().numpy()
        rows: NDArray[Any] = validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float32, np.float64],
            ensure_min_samples=2 if reset else 1,
        )
        return rows

    def _check_sizes(self, rows: NDArray[Any], settings: dict[str, Any]) -> None:
        """Refuse sizes of which a fit comes to nothing, and warn of one that does not come far."""
        n, batch, epochs = len(rows), settings["batch_size"], settings["epochs"]
        if self.inputdim is not None and self.inputdim != rows.shape[1]:
            raise EstimatorError(
                f"inputdim={self.inputdim}, but the rows have {rows.shape[1]} columns."
            )
        if batch > n:
            raise EstimatorError(
                f"batch_size={batch} exceeds the {n} rows, so that no step would be taken: lower "
                f"it, e.g. to {max(2, n // 4)}."
            )
        if batch < 2:
            raise EstimatorError("batch_size=1 has no statistics: a batch needs 2 rows or more.")
        if settings["warmup_epochs"] >= epochs:
            raise EstimatorError(
                f"warmup_epochs={settings['warmup_epochs']} must be fewer than epochs={epochs}: "
                f"the rate would never leave its warm-up."
            )
        if self.optimizer == "lars":
            rate = self.learning_rate * batch / ROWS_OF_RATE
            if advice := lack_of_steps(epochs * (n // batch), rate, MOMENTUM, TRUST):
                warnings.warn(f"TLDR: {advice}", ConvergenceWarning, stacklevel=3)

    def _pairs(self, rows: NDArray[Any], graph: Any) -> Pairs | None:
        """The graph of this fit: given, loaded or searched; None for Gaussian partners."""
        self.knn_recall_ = None
        if self.gaussian:
            return None
        loaded, self._loaded_graph = getattr(self, "_loaded_graph", None), None
        for known in (graph, self.knn_graph, loaded):
            if known is not None:
                pairs = given_pairs(known, len(rows), self.n_neighbors)
                self.knn_ = pairs.index
                return pairs
        return self._search(rows)

    def _search(self, rows: NDArray[Any]) -> Pairs:
        device: Literal["cpu", "cuda"] = "cuda" if str(self.device).startswith("cuda") else "cpu"
        with bar("blocks") as shown:
            shown.disable = not self.verbose
            task = shown.add_task("neighbours", total=None, note="")
            pairs = knn_pairs(
                rows,
                self.n_neighbors,
                metric=self.knn_metric,
                knn_approximation=self.knn_approximation,
                device=device,
                progress=lambda done, total: shown.update(task, completed=done, total=total),
            )
        self.knn_, self.knn_recall_ = pairs.index, pairs.recall
        return pairs

    def _say(self, epoch: int, loss: float, print_every: int | None) -> None:
        if self.writer is not None:
            self.writer.add_scalar("loss", loss, epoch)
        if print_every is not None and (epoch + 1) % print_every == 0:
            print(f"epoch {epoch + 1}  loss {loss:.6g}")

    def _validated(self, epoch: int, dataset: Any, l2_norm: bool, every: int) -> bool:
        """True if a validation of this epoch is the best so far."""
        if dataset is None or (epoch + 1) % every:
            return False
        value = float(self.evaluate(dataset, l2_norm_eval=l2_norm))
        if self.writer is not None:
            self.writer.add_scalar("validation", value, epoch)
        before = getattr(self, "best_score_", -np.inf) if epoch else -np.inf
        self.best_score_ = max(value, before)
        return value > before

    # -- use -----------------------------------------------------------------------------------

    def transform(
        self,
        X: Any,
        l2_norm: bool = False,
        batching_threshold: Count = 10_000,
        amount_batches: Count = 1_000,
    ) -> Any:
        """Codes [N, d] float32 of rows, in the kind of container that they came in.

        Args:
            X: [N, D] floats.
            l2_norm: bring codes to length 1; a code of zeros stays.
            batching_threshold: more rows than that are worked through in parts.
            amount_batches: rows of a part.
        """
        check_is_fitted(self, "encoder_")
        rows = self._rows(X, reset=False)
        size = amount_batches if len(rows) > batching_threshold else max(1, len(rows))
        found = np.empty((len(rows), self.n_components), dtype=np.float32)
        for start in range(0, len(rows), size):
            part = np.ascontiguousarray(rows[start : start + size], dtype=np.float32)
            codes = self.forward(torch.tensor(part, device=self.device))
            found[start : start + size] = codes.cpu().numpy()
        if l2_norm:
            lengths = np.linalg.norm(found, axis=1, keepdims=True)
            found /= np.where(lengths > 0, lengths, 1)
        return torch.from_numpy(found).to(X.device) if isinstance(X, Tensor) else found

    @torch.no_grad()
    def forward(self, X: Tensor) -> Tensor:
        """Codes [N, d] of a tensor [N, D] on the device, in evaluation mode."""
        check_is_fitted(self, "encoder_")
        mode = self.encoder_.training
        codes: Tensor = self.encoder_.eval()(X)
        self.encoder_.train(mode)
        return codes

    def linear_map(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The map of a linear encoder: codes are ``rows @ weight + bias``, [D, d] and [d].

        Raises:
            EstimatorError: the encoder is not linear.
        """
        check_is_fitted(self, "encoder_")
        with value_errors():
            if not parse_architecture(self.encoder).is_linear or (
                self.norm_layer == "LN" and self.encoder != "linear"
            ):
                raise UserError(
                    f"encoder={self.encoder} with norm_layer={self.norm_layer} is no linear map: "
                    f"use encoder=linear, or flinear with norm_layer=BN."
                )
            weight, bias = linear_map(self.encoder_)
        return weight.cpu().numpy(), bias.cpu().numpy()

    def export_onnx(self, path: Any, l2_norm: bool = False) -> None:
        """Write the encoder as an ONNX model: input ``rows`` [N, D], output ``codes`` [N, d].

        Args:
            path: of the file.
            l2_norm: bring codes to length 1.

        Raises:
            EstimatorError: the package onnx is not installed.
        """
        from noisyml.estimators.onnx import write_onnx

        check_is_fitted(self, "encoder_")
        with value_errors():
            write_onnx(Path(path), self.encoder_, self.n_features_in_, self.n_components, l2_norm)

    def evaluate(
        self,
        dataset: Any,
        l2_norm_eval: bool = True,
        whiten_eval: bool = False,
        metric: str = "mAP-medium",
    ) -> Any:
        """A data set's own metric of the codes.

        Args:
            dataset: has ``transform(model)`` and ``evaluate(l2_norm, whiten, metric)``.
            l2_norm_eval, whiten_eval, metric: handed on.
        """
        dataset.transform(self)
        return dataset.evaluate(l2_norm_eval, whiten_eval, metric)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Trained parameters, of the projector too while it is there."""
        yield from self.encoder_.parameters()
        if self.twins_ is not None:
            yield from self.twins_.parameters()

    def to(self, device: str) -> Self:
        """Compute on another device from now on."""
        self.device = device
        if hasattr(self, "encoder_"):
            self.encoder_.to(device)
            if self.twins_ is not None:
                self.twins_.to(device)
        return self

    def remove_projector(self) -> None:
        """Forget the projector, which `transform` does not need."""
        self.twins_ = None

    # -- graph ---------------------------------------------------------------------------------

    def compute_knn(self, X: Any) -> NDArray[np.int64]:
        """Search the neighbours of rows [N, D]; the next `fit` uses them."""
        with value_errors():
            check_arguments(type(self).__init__, self.get_params())
            found = self._search(self._rows(X, reset=True)).index
        self._loaded_graph = found
        return found

    def get_knn(self) -> NDArray[np.int64]:
        """The neighbours [N, k] int64 of the last search or fit; -1 for none."""
        check_is_fitted(self, "knn_")
        return np.asarray(self.knn_)

    def save_knn(self, path: Any) -> None:
        """Write the neighbours as a ``.npy`` file."""
        write_array(Path(path), self.get_knn())

    def load_knn(self, path: Any) -> None:
        """Read neighbours that `save_knn` or ``noisyml knn`` wrote; the next `fit` uses them."""
        with value_errors():
            self.knn_ = given_pairs(Path(path), -1).index
        self._loaded_graph = self.knn_

    # -- files ---------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the model; only tensors, numbers and words, no pickled objects."""
        check_is_fitted(self, "encoder_")
        write_model(Path(path), self.content())

    def content(self) -> dict[str, Any]:
        """State and architecture, as they are written."""
        architecture = {
            "inputdim": int(self.n_features_in_),
            "n_components": int(self.n_components),
            "encoder": self.encoder,
            "projector": None if self.twins_ is None else self.projector,
            "batch_size": int(self.batch_size),
            "scale_loss": float(self.scale_loss),
            "lambd": float(self.lambd),
            "norm_layer": self.norm_layer,
            "loss": self.loss,
        }
        state = {f"encoder.{name}": x for name, x in self.encoder_.state_dict().items()}
        if self.twins_ is not None:
            state |= self.twins_.state_dict()
        return {"state_dict": state, "architecture": architecture}

    def load(self, path: Any, init: bool = False, strict: bool = False) -> Self:
        """Read a model that `save`, or the published library, wrote.

        Args:
            path: of the file.
            init: take the architecture from the file; else it must be the object's.
            strict: the file must hold a projector if its architecture has one, and nothing else.

        Raises:
            EstimatorError: no such file, or another architecture.
        """
        with value_errors():
            content = read_model(Path(path))
            known = content["architecture"]
            if init:
                names = self.get_params()
                self.set_params(
                    **{k: v for k, v in known.items() if k in names and k != "inputdim"}
                )
                if known["projector"] is None:
                    self.projector = "mlp-2-2048"
            own = {key: getattr(self, key) for key in ARCHITECTURE}
            own["inputdim"] = own["inputdim"] or known["inputdim"]
            for key, value in own.items():
                if known[key] != value:
                    raise UserError(
                        f"{path} holds a model with {key}={known[key]}, and this object has "
                        f"{key}={value}: say load(..., init=True), or build it alike."
                    )
            self.n_features_in_ = int(known["inputdim"])
            self.build(known["projector"], int(known["inputdim"]))
            self.take(content["state_dict"], strict)
        return self

    def build(self, projector: str | None, columns: int) -> None:
        """Fresh networks on the device."""
        norm = NORMS[self.norm_layer]
        self.encoder_ = encoder_layers(self.encoder, columns, self.n_components, norm)
        twins = Twins(
            self.n_components,
            columns,
            projector,
            norm,
            LOSSES[self.loss] if projector is not None or self.loss == "BT" else "redundancy",
            self.lambd,
            self.scale_loss,
        )
        self.encoder_.to(self.device)
        self.twins_ = twins.to(self.device)
        self._n_features_out = self.n_components

    def take(self, state: dict[str, Tensor], strict: bool) -> None:
        """Weights of a file, for networks of its architecture."""
        encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k[:8] == "encoder."}
        rest = {k: v for k, v in state.items() if k[:8] != "encoder."}
        try:
            self.encoder_.load_state_dict(encoder)
            if self.twins_ is not None and (rest or strict):
                self.twins_.load_state_dict(rest)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise UserError(f"The file holds another network ({reason}).") from error
        if not rest:
            self.remove_projector()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
