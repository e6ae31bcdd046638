"""Injectors whose noise depends on the class alone: symmetric, pair, asymmetric, any matrix."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisyml.checks import Share
from noisyml.errors import UserError
from noisyml.noise.base import (
    Outcome,
    Samples,
    SeededInjector,
)
from noisyml.noise.released import single_label as legacy
from noisyml.noise.transition import (
    check_matrix,
    check_preset_names,
    class_map,
    exact_counts,
    first_above,
    map_matrix,
    pair_map,
    preset_matrix,
    symmetric_matrix,
)
from noisyml.storage.text import read_table


def _check_legacy(count: str, recipe: str, default: str) -> None:
    if count != "legacy" and recipe != default:
        raise UserError(
            f"noise.legacy={recipe} has no effect with noise.count={count}; set noise.count=legacy "
            "as well, or leave noise.legacy alone."
        )


@dataclass(frozen=True, kw_only=True)
class Symmetric(SeededInjector):
    """Wrong labels uniform over the classes.

    Args:
        rate: P(label changes), or with `include_true` the fraction of samples that redraw.
        include_true: redraw over all C classes, so that a fraction ``1/C`` keeps its label
            (DivideMix, ELR, Sel-CL), instead of over the ``C-1`` wrong ones.
        count: ``bernoulli``: each sample by its own coin; ``exact``: the whole count matrix fixed
            by largest remainders (ties go to the classes that come first, so with fewer members
            than classes all classes share the same few targets); ``exact_per_class``:
            ``round(rate n_c)`` members of each class, drawn targets; ``exact_global``:
            ``round(rate N)`` samples, drawn targets; ``legacy``: the released recipe `legacy`.
        legacy: ``multinomial`` (Co-teaching, JoCoR, PLC, BARE), ``fer`` (EAC), and with
            `include_true` ``dividemix``, ``elr``, ``selcl``.
        seed: the noise seed.

    At one seed the noise of a smaller rate is contained in that of a larger one (except ``exact``
    and ``legacy``), with the same wrong labels.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import Symmetric
        >>> labels = np.repeat([0, 1, 2], 4)
        >>> manifest = Symmetric(rate=0.5, count="exact_per_class").inject(labels, 3)
        >>> manifest.observed.tolist()
        [2, 0, 1, 0, 1, 0, 1, 2, 0, 0, 2, 2]
        >>> manifest.actual_rate
        0.5
    """

    name: ClassVar[str] = "symmetric"

    rate: Share
    include_true: bool = False
    count: Literal["bernoulli", "exact", "exact_per_class", "exact_global", "legacy"] = "bernoulli"
    legacy: Literal["multinomial", "fer", "dividemix", "elr", "selcl"] = "multinomial"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_legacy(self.count, self.legacy, "multinomial")
        with_true = self.legacy in ("dividemix", "elr", "selcl")
        if self.count == "legacy" and self.include_true != with_true:
            raise UserError(
                f"noise.legacy={self.legacy} {'excludes' if self.include_true else 'includes'} the "
                f"true class; set noise.include_true={str(not self.include_true).lower()}."
            )
        if self.count == "exact" and self.include_true:
            raise UserError(
                "noise.count=exact fixes the wrong labels and excludes the true class; use "
                "exact_per_class or exact_global with noise.include_true=true."
            )

    def corrupt(self, samples: Samples) -> Outcome:
        """Flip and draw."""
        if samples.num_classes < 2:
            raise UserError("Symmetric noise needs at least two classes; the data set has one.")
        if self.count == "legacy":
            observed = self._released(samples)
        elif self.count == "exact":
            observed = self._exact(samples)
        else:
            chosen = np.flatnonzero(self._chosen(samples))
            labels, ids = samples.labels[chosen], samples.ids[chosen]
            order = samples.class_order()
            observed = samples.labels.copy()
            if self.include_true:
                which = self.draws.below(samples.num_classes, ids, "target")
                observed[chosen] = order.classes[which]
            else:
                which = self.draws.below(samples.num_classes - 1, ids, "target")
                observed[chosen] = order.other(labels, which)
        return Outcome(observed=observed, nominal_rate=self.rate)

    def _chosen(self, samples: Samples) -> NDArray[np.bool_]:
        """Mask of the samples that draw a label, bool [N]."""
        if self.count == "bernoulli":
            return self.draws.uniform(samples.ids, "flip") < self.rate
        if self.count == "exact_global":
            return self.draws.smallest(round(self.rate * len(samples)), samples.ids, "flip")
        members = np.bincount(samples.labels, minlength=samples.num_classes)
        quota = np.rint(self.rate * members)
        ranks = self.draws.rank_within_class(samples.labels, samples.ids, "flip")
        return ranks < quota[samples.labels]

    def _exact(self, samples: Samples) -> NDArray[np.int64]:
        """`exact_counts` of the symmetric matrix, in class order and without building it."""
        others = samples.num_classes - 1
        labels, order = samples.labels, samples.class_order()
        members = np.bincount(labels, minlength=samples.num_classes)
        wrong, kept = members * (self.rate / others), members * (1.0 - self.rate)
        base, base_kept = np.floor(wrong + 1e-9), np.floor(kept + 1e-9)
        left = members - base_kept - others * base
        ahead = np.round(kept - base_kept, 9) - np.round(wrong - base, 9)
        # With equal fractions the own class waits until the classes before it have been served.
        own_turn = np.where(ahead > 0, 0, np.where(ahead < 0, others, order.rank))
        extra = left - (left > own_turn)
        flips = others * base + extra
        place = self.draws.rank_within_class(labels, samples.ids, "flip")
        flipped = np.flatnonzero(place < flips[labels])
        source, place = labels[flipped], place[flipped]
        run, long_runs = base[source], extra[source]
        inside = place < long_runs * (run + 1)
        which = np.where(
            inside,
            place // (run + 1),
            long_runs + (place - long_runs * (run + 1)) // np.maximum(run, 1),
        ).astype(np.int64)
        observed = labels.copy()
        observed[flipped] = order.other(source, which)
        return observed

    def _released(self, samples: Samples) -> NDArray[np.int64]:
        labels, classes = samples.labels, samples.num_classes
        if self.legacy == "fer":
            return legacy.fer(labels, self.rate, classes, self.seed)
        if self.legacy == "dividemix":
            return legacy.dividemix_symmetric(labels, self.rate, classes, self.seed)
        if self.legacy == "elr":
            return legacy.elr_symmetric(labels, self.rate, classes, self.seed)[0]
        if self.legacy == "selcl":
            return legacy.selcl_symmetric(labels, self.rate, classes, self.seed)
        return legacy.multinomial(labels, symmetric_matrix(classes, self.rate), self.seed)


def _flip_to(
    samples: Samples, injector: SeededInjector, pairs: Mapping[int, int], rate: float, exact: bool
) -> NDArray[np.int64]:
    """Members of each source class go to its one target, int64 [N].

    With `exact` the number per class follows `exact_counts`: of the two fractional parts the larger
    is rounded up, a tie in favour of the smaller class number.
    """
    classes = np.arange(samples.num_classes)
    target = classes.copy()
    target[list(pairs.keys())] = list(pairs.values())
    labels, draws = samples.labels, injector.draws
    if exact:
        members = np.bincount(labels, minlength=samples.num_classes)
        wrong, kept = members * rate, members * (1.0 - rate)
        base, base_kept = np.floor(wrong + 1e-9), np.floor(kept + 1e-9)
        ahead = np.round(wrong - base, 9) - np.round(kept - base_kept, 9)
        upward = (ahead > 0) | ((ahead == 0) & (target < classes))
        quota = base + ((base + base_kept < members) & upward)
        flip = draws.rank_within_class(labels, samples.ids, "flip") < quota[labels]
    else:
        flip = draws.uniform(samples.ids, "flip") < rate
    return np.where(flip, target[labels], labels)


@dataclass(frozen=True, kw_only=True)
class Pair(SeededInjector):
    """Each class is mistaken for the next one, ``c -> c+1 mod C`` (Co-teaching, NeurIPS 2018).

    Args:
        rate: P(label changes); from 0.5 on the wrong class is the majority.
        count: ``bernoulli``, ``exact`` (per class) or ``legacy`` (multinomial loop).
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import Pair
        >>> Pair(rate=0.5, count="exact").inject(np.repeat([0, 1, 2], 4), 3).observed.tolist()
        [0, 1, 0, 1, 1, 1, 2, 2, 0, 0, 2, 2]
    """

    name: ClassVar[str] = "pair"

    rate: Share
    count: Literal["bernoulli", "exact", "legacy"] = "bernoulli"

    def corrupt(self, samples: Samples) -> Outcome:
        """Flip to the next class."""
        if samples.num_classes < 2:
            raise UserError("Pair noise needs at least two classes; the data set has one.")
        pairs = pair_map(samples.num_classes)
        if self.count == "legacy":
            matrix = map_matrix(samples.num_classes, pairs, self.rate)
            observed = legacy.multinomial(samples.labels, matrix, self.seed)
        else:
            observed = _flip_to(samples, self, pairs, self.rate, self.count == "exact")
        return Outcome(observed=observed, nominal_rate=self.rate)


@dataclass(frozen=True, kw_only=True)
class Asymmetric(SeededInjector):
    """Some classes are mistaken for one similar class each.

    Args:
        rate: flip probability inside the source classes; the actual rate is smaller by the share of
            samples in source classes.
        map: a name (``cifar10``, ``mnist``, ``fashion_mnist``, ``news6``, ``cifar100_superclass``,
            ``cifar100_block5``) or ``{source: target}`` of class numbers or names.
        count: ``bernoulli``, ``exact`` (per class) or ``legacy`` (the recipe `legacy`).
        legacy: ``multinomial``; ``dividemix``: an exact share of all samples passes the map;
            ``elr``: class by class, with the release's re-flip of changed labels; ``selcl``.
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import Asymmetric
        >>> manifest = Asymmetric(rate=1.0, map={0: 2}).inject(np.repeat([0, 1, 2], 4), 3)
        >>> manifest.observed.tolist()
        [2, 2, 2, 2, 1, 1, 1, 1, 2, 2, 2, 2]
    """

    name: ClassVar[str] = "asymmetric"

    rate: Share
    map: str | Mapping[int | str, int | str]
    count: Literal["bernoulli", "exact", "legacy"] = "bernoulli"
    legacy: Literal["multinomial", "dividemix", "elr", "selcl"] = "multinomial"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_legacy(self.count, self.legacy, "multinomial")

    def record(self) -> dict[str, Any]:
        """The constructor's arguments; a map of one's own as a plain dictionary."""
        custom = None if isinstance(self.map, str) else {str(k): v for k, v in self.map.items()}
        return {**super().record(), "map": self.map if custom is None else custom}

    def corrupt(self, samples: Samples) -> Outcome:
        """Flip along the map."""
        pairs = class_map(self.map, samples.num_classes, samples.class_names)
        labels, classes = samples.labels, samples.num_classes
        if self.count != "legacy":
            observed = _flip_to(samples, self, pairs, self.rate, self.count == "exact")
        elif self.legacy == "dividemix":
            observed = legacy.dividemix_asymmetric(labels, self.rate, pairs, self.seed)
        elif self.legacy == "elr":
            observed, _ = legacy.elr_asymmetric(labels, self.rate, classes, pairs, self.seed)
        elif self.legacy == "selcl":
            matrix = map_matrix(classes, pairs, self.rate)
            observed = legacy.selcl_matrix(labels, matrix, self.seed)
        else:
            matrix = map_matrix(classes, pairs, self.rate)
            observed = legacy.multinomial(labels, matrix, self.seed)
        return Outcome(observed=observed, nominal_rate=self.rate)


#: Larger matrices enter the record as shape and hash instead of number by number.
_RECORDED_ENTRIES = 100 * 100


@dataclass(frozen=True, kw_only=True)
class Matrix(SeededInjector):
    """Noise by an arbitrary row-stochastic matrix ``P[true, observed]``.

    Exactly one of `matrix`, `path` and `preset` is given.

    Args:
        matrix: C rows of C probabilities.
        path: a ``.npy`` or ``.csv`` (comma-separated, no header) file with the matrix.
        preset: ``arbitrary_mnist`` or ``arbitrary_cifar10``, fixed matrices for 10 classes.
        normalize: divide each row by its sum first, so that a count matrix of human labels works.
        diagonally_dominant: refuse a matrix in which a class's most frequent label is a wrong one.
        count: ``bernoulli``, ``exact`` (per class, largest remainders) or ``legacy``.
        legacy: ``multinomial``, or ``cleanlab`` (truncated exact counts).
        seed: the noise seed.

    Example:
        >>> import numpy as np
        >>> from noisyml.noise import Matrix
        >>> rows = [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]
        >>> manifest = Matrix(matrix=rows, count="exact").inject(np.repeat([0, 1, 2], 4), 3)
        >>> manifest.count_matrix().tolist()
        [[2, 2, 0], [0, 4, 0], [0, 0, 4]]
    """

    name: ClassVar[str] = "matrix"

    matrix: Sequence[Sequence[float]] | NDArray[np.float64] | None = None
    path: str | None = None
    preset: Literal["arbitrary_mnist", "arbitrary_cifar10"] | None = None
    normalize: bool = False
    diagonally_dominant: bool = False
    count: Literal["bernoulli", "exact", "legacy"] = "bernoulli"
    legacy: Literal["multinomial", "cleanlab"] = "multinomial"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [self.matrix is not None, self.path is not None, self.preset is not None]
        if sum(given) != 1:
            raise UserError(
                f"Matrix noise takes exactly one of noise.matrix, noise.path and noise.preset, not "
                f"{sum(given)}; set one and leave the others null."
            )
        if self.preset is not None:
            _check_legacy(self.count, self.legacy, "multinomial")

    def record(self) -> dict[str, Any]:
        """The constructor's arguments; a large matrix by shape and hash."""
        record = super().record()
        if self.matrix is not None:
            array = np.asarray(self.matrix, dtype=np.float64)
            digest = hashlib.sha256(array.astype("<f8").tobytes()).hexdigest()
            large = array.size > _RECORDED_ENTRIES
            record["matrix"] = {"shape": array.shape, "sha256": digest} if large else array
        return record

    def transition(self, num_classes: int) -> NDArray[np.float64]:
        """The checked matrix, float64 [C, C].

        Raises:
            UserError: file missing or unreadable, or not a row-stochastic C x C matrix.
        """
        raw: ArrayLike
        if self.preset is not None:
            raw = preset_matrix(self.preset)
        elif self.path is not None:
            raw = read_matrix(Path(self.path))
        else:
            raw = np.asarray(self.matrix, dtype=np.float64)
        if self.normalize:
            sums = np.asarray(raw, dtype=np.float64).sum(axis=-1, keepdims=True)
            if (sums <= 0).any():
                row = int(np.flatnonzero(sums.ravel() <= 0)[0])
                raise UserError(f"Row {row} of the noise matrix is empty; give it an entry.")
            raw = np.asarray(raw, dtype=np.float64) / sums
        return check_matrix(raw, num_classes, diagonally_dominant=self.diagonally_dominant)

    def corrupt(self, samples: Samples) -> Outcome:
        """Draw each label from its row."""
        matrix = self.transition(samples.num_classes)
        if self.preset is not None:
            setting, remedy = f"noise.preset={self.preset}", "give noise.matrix or noise.path"
            check_preset_names(setting, self.preset, samples.class_names, remedy)
        labels = samples.labels
        prior = np.bincount(labels, minlength=samples.num_classes) / len(labels)
        if self.count == "legacy":
            recipe = legacy.cleanlab if self.legacy == "cleanlab" else legacy.multinomial
            observed = recipe(labels, matrix, self.seed)
        elif self.count == "exact":
            members = np.bincount(labels, minlength=samples.num_classes)
            classes = np.arange(samples.num_classes)
            runs = np.repeat(np.tile(classes, len(classes)), exact_counts(members, matrix).ravel())
            place = self.draws.rank_within_class(labels, samples.ids, "flip")
            observed = runs[(np.cumsum(members) - members)[labels] + place]
        else:
            observed = self._bernoulli(samples, matrix)
        rate = float(1.0 - prior @ np.diagonal(matrix))
        return Outcome(observed=observed, nominal_rate=max(rate, 0.0))

    def _bernoulli(self, samples: Samples, matrix: NDArray[np.float64]) -> NDArray[np.int64]:
        order = samples.class_order()
        wrong = matrix.copy()
        np.fill_diagonal(wrong, 0.0)
        cumulative = np.cumsum(wrong[:, order.classes], axis=1)
        total, kept = cumulative[:, -1], np.diagonal(matrix)
        flip_rate = total / np.maximum(total + kept, np.finfo(np.float64).tiny)
        flip = self.draws.uniform(samples.ids, "flip") < flip_rate[samples.labels]
        chosen = np.flatnonzero(flip)
        source = samples.labels[chosen]
        point = self.draws.uniform(samples.ids[chosen], "target") * total[source]
        observed = samples.labels.copy()
        observed[chosen] = order.classes[first_above(cumulative, source, point)]
        return observed


def read_matrix(path: Path) -> NDArray[np.float64]:
    """The numbers in a ``.npy`` or ``.csv`` (comma-separated, no header) file, float64.

    Raises:
        UserError: no such file, or no numbers in it.
    """
    if not path.is_file():
        raise UserError(f"There is no noise matrix {path}; give a .npy or .csv file.")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
        if path.suffix == ".csv":
            rows = read_table(path, header=False).rows
            return np.array([[float(cell) for cell in row if cell.strip()] for row in rows])
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} is not a matrix of numbers ({error}); correct the file."
        ) from error
    raise UserError(f"{path} is neither a .npy nor a .csv file; convert the matrix to one.")
