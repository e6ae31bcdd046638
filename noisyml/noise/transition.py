"""Class-conditional noise as numbers: class maps, row-stochastic matrices, exact counts.

Matrices are ``P[true, observed]`` with rows that sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noisyml.errors import UserError

#: Superclass of each of CIFAR-100's fine labels (alphabetical numbering), from the data files.
CIFAR100_FINE_TO_COARSE: NDArray[np.int64] = np.array(
    [
        4,
        1,
        14,
        8,
        0,
        6,
        7,
        7,
        18,
        3,
        3,
        14,
        9,
        18,
        7,
        11,
        3,
        9,
        7,
        11,
        6,
        11,
        5,
        10,
        7,
        6,
        13,
        15,
        3,
        15,
        0,
        11,
        1,
        10,
        12,
        14,
        16,
        9,
        11,
        5,
        5,
        19,
        8,
        8,
        15,
        13,
        14,
        17,
        18,
        10,
        16,
        4,
        17,
        4,
        2,
        0,
        17,
        4,
        18,
        17,
        10,
        3,
        2,
        12,
        12,
        16,
        12,
        1,
        9,
        19,
        2,
        10,
        0,
        1,
        16,
        12,
        9,
        13,
        15,
        13,
        16,
        19,
        2,
        4,
        6,
        19,
        5,
        5,
        8,
        19,
        18,
        1,
        2,
        15,
        6,
        0,
        17,
        8,
        14,
        13,
    ]
)
CIFAR100_FINE_TO_COARSE.setflags(write=False)

#: Class maps ``source -> target`` by name, with the number of classes they are made for.
CLASS_MAPS: dict[str, tuple[int, dict[int, int]]] = {
    # Patrini et al., CVPR 2017: truck->automobile, bird->airplane, cat<->dog, deer->horse.
    "cifar10": (10, {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}),
    # Patrini et al., CVPR 2017: 7->1, 2->7, 5<->6, 3->8.
    "mnist": (10, {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}),
    # The literature has no agreed map; this one is ours: sandal, boot->sneaker, pullover->shirt,
    # coat<->shirt, dress->T-shirt.
    "fashion_mnist": (10, {5: 7, 9: 7, 2: 6, 4: 6, 6: 4, 3: 0}),
    # 20 Newsgroups regrouped to 6 classes.
    "news6": (6, {0: 5, 5: 0, 1: 4, 3: 2}),
    # Next fine class of the same superclass, cyclically: what the papers describe.
    "cifar100_superclass": (
        100,
        {
            int(fine): int(after)
            for members in (np.flatnonzero(k == CIFAR100_FINE_TO_COARSE) for k in range(20))
            for fine, after in zip(members, np.roll(members, -1), strict=True)
        },
    ),
    # Next label of the block 5k .. 5k+4, cyclically: what JoCoR, PLC and ELR compute under the
    # same name; these blocks are not superclasses.
    "cifar100_block5": (100, {c: 5 * (c // 5) + (c + 1) % 5 for c in range(100)}),
}

_CIFAR10_NAMES = (
    "airplane plane aeroplane",
    "automobile car",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_MNIST_NAMES = tuple(
    f"{digit} {word} {digit}{word}"
    for digit, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
)
_CIFAR100_WORDS = (
    "apple aquariumfish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house "
    "kangaroo keyboard lamp lawnmower leopard lion lizard lobster man mapletree motorcycle "
    "mountain mouse mushroom oaktree orange orchid otter palmtree pear pickuptruck pinetree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark "
    "shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweetpepper table "
    "tank telephone television tiger tractor train trout tulip turtle wardrobe whale willowtree "
    "wolf woman worm"
)
_CIFAR100_NAMES = tuple(_CIFAR100_WORDS.split())
#: Names of the classes that a map or matrix is made for, in lower case without other characters
#: than letters and digits; spellings of one class are separated by blanks. ``news6`` has no entry:
#: there are no agreed names for the six groups.
PRESET_CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "cifar10": _CIFAR10_NAMES,
    "arbitrary_cifar10": _CIFAR10_NAMES,
    "mnist": _MNIST_NAMES,
    "arbitrary_mnist": _MNIST_NAMES,
    "fashion_mnist": (
        "tshirttop tshirt top",
        "trouser trousers",
        "pullover",
        "dress",
        "coat",
        "sandal sandals",
        "shirt",
        "sneaker sneakers",
        "bag",
        "ankleboot ankleboots boot",
    ),
    "cifar100_superclass": _CIFAR100_NAMES,
    "cifar100_block5": _CIFAR100_NAMES,
}

#: Fixed matrices: classes not listed keep their labels. The rest of a row stays on the diagonal.
_PRESETS: dict[str, dict[int, dict[int, float]]] = {
    "arbitrary_mnist": {
        7: {1: 0.25, 9: 0.25},
        2: {7: 0.30, 9: 0.10},
        5: {6: 0.30, 4: 0.15},
        6: {5: 0.35, 4: 0.10},
        3: {8: 0.40, 5: 0.10},
    },
    "arbitrary_cifar10": {
        9: {1: 0.10, 7: 0.10},
        2: {0: 0.20, 6: 0.10},
        3: {5: 0.10, 8: 0.20, 0: 0.10},
        5: {3: 0.10, 9: 0.30},
        4: {7: 0.10, 1: 0.10, 2: 0.10},
    },
}
MATRIX_PRESETS = tuple(_PRESETS)


def class_map(
    name_or_map: str | Mapping[int | str, int | str],
    num_classes: int,
    class_names: Sequence[str] | None = None,
) -> dict[int, int]:
    """Resolve a class map to ``{source: target}`` of class numbers.

    Args:
        name_or_map: a key of `CLASS_MAPS`, or a mapping whose sources and targets are class
            numbers or class names.
        num_classes: number of classes C.
        class_names: C names, needed for maps written with names.

    Raises:
        UserError: unknown map, a named one for other classes, unknown class, or a class sent to
            itself.

    Example:
        >>> from noisyml.noise.transition import class_map
        >>> class_map({"cat": "dog"}, 2, ["cat", "dog"])
        {0: 1}
    """
    if isinstance(name_or_map, str):
        if name_or_map not in CLASS_MAPS:
            raise UserError(
                f"noise.map={name_or_map} is unknown; choose one of {', '.join(CLASS_MAPS)} or "
                "give a map such as {cat: dog, 3: 5}."
            )
        expected, pairs = CLASS_MAPS[name_or_map]
        if expected != num_classes:
            raise UserError(
                f"noise.map={name_or_map} is made for {expected} classes but the data set has "
                f"{num_classes}; choose another map or give one such as {{3: 5}}."
            )
        remedy = "write a map such as noise.map={3: 5} or noise.map={cat: dog}"
        fitting = [
            name
            for name in CLASS_MAPS
            if class_names is not None and _misfit(name, class_names) is None
        ]
        if fitting:
            remedy = f"set noise.map={fitting[0]}, or {remedy}"
        check_preset_names(f"noise.map={name_or_map}", name_or_map, class_names, remedy)
        return dict(pairs)
    names = {} if class_names is None else {name: i for i, name in enumerate(class_names)}

    def number(entry: int | str) -> int:
        if isinstance(entry, str) and entry in names:
            return names[entry]
        try:
            value = int(entry)
        except ValueError:
            value = -1
        if not 0 <= value < num_classes:
            raise UserError(
                f"noise.map names the class {entry!r}, which is neither a class name of the data "
                f"set nor a number from 0 to {num_classes - 1}; correct it."
            )
        return value

    resolved = {number(source): number(target) for source, target in name_or_map.items()}
    fixed = [source for source, target in resolved.items() if source == target]
    if fixed or not resolved:
        what = f"sends class {fixed[0]} to itself" if fixed else "is empty"
        raise UserError(f"noise.map {what}; list only classes that change, as {{source: target}}.")
    return resolved


def check_preset_names(
    setting: str, preset: str, class_names: Sequence[str] | None, remedy: str
) -> None:
    """Raise unless the classes are the ones a named map or matrix is made for, as far as known.

    Args:
        setting: key and value, for the message.
        preset: name of the map or matrix.
        class_names: C names, as many as the preset has; None: nothing to compare.
        remedy: what to do instead, for the message.

    Raises:
        UserError: a name differs.
    """
    if class_names is None or preset not in PRESET_CLASS_NAMES:
        return
    number = _misfit(preset, class_names)
    if number is not None:
        raise UserError(
            f"{setting} is made for other classes: its class {number} is "
            f"'{PRESET_CLASS_NAMES[preset][number].split()[0]}', that of the data set is "
            f"'{class_names[number]}'; {remedy}."
        )


def _misfit(preset: str, class_names: Sequence[str]) -> int | None:
    """The first class whose name is not the preset's, None if all fit (0 if there are no names)."""
    known = PRESET_CLASS_NAMES.get(preset, ())
    if len(known) != len(class_names):
        return 0
    plain = ("".join(filter(str.isalnum, str(name).lower())) for name in class_names)
    pairs = enumerate(zip(plain, known, strict=True))
    return next((i for i, (name, spellings) in pairs if name not in spellings.split()), None)


def symmetric_matrix(num_classes: int, rate: float) -> NDArray[np.float64]:
    """Diagonal ``1 - rate``, elsewhere ``rate / (C-1)``; float64 [C, C].

    Example:
        >>> from noisyml.noise.transition import symmetric_matrix
        >>> symmetric_matrix(3, 0.4).tolist()
        [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]
    """
    matrix = np.full((num_classes, num_classes), rate / (num_classes - 1))
    np.fill_diagonal(matrix, 1.0 - rate)
    return matrix


def map_matrix(num_classes: int, pairs: Mapping[int, int], rate: float) -> NDArray[np.float64]:
    """Each source of `pairs` goes to its target with probability `rate`; float64 [C, C].

    Example:
        >>> from noisyml.noise.transition import map_matrix
        >>> map_matrix(3, {0: 1}, 0.25).tolist()
        [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    matrix = np.eye(num_classes)
    sources, targets = list(pairs.keys()), list(pairs.values())
    matrix[sources, sources] = 1.0 - rate
    matrix[sources, targets] = rate
    return matrix


def pair_map(num_classes: int) -> dict[int, int]:
    """``c -> c+1 mod C`` (Han et al., Co-teaching, NeurIPS 2018).

    Example:
        >>> from noisyml.noise.transition import pair_map
        >>> pair_map(3)
        {0: 1, 1: 2, 2: 0}
    """
    return {c: (c + 1) % num_classes for c in range(num_classes)}


def preset_matrix(name: str) -> NDArray[np.float64]:
    """A fixed 10 x 10 matrix of `MATRIX_PRESETS`; float64 [10, 10].

    Example:
        >>> from noisyml.noise.transition import preset_matrix
        >>> preset_matrix("arbitrary_mnist").sum(axis=1).round(6).tolist() == [1.0] * 10
        True
    """
    matrix = np.eye(10)
    for source, targets in _PRESETS[name].items():
        for target, probability in targets.items():
            matrix[source, target] = probability
        matrix[source, source] = 1.0 - sum(targets.values())
    return matrix


def check_matrix(
    matrix: ArrayLike, num_classes: int, *, diagonally_dominant: bool = False
) -> NDArray[np.float64]:
    """A user's matrix as float64 [C, C], rows that are off by more than rounding brought to 1.

    Raises:
        UserError: not C x C, negative or not finite, a row that does not sum to 1 within 1e-6, or
            (if asked for) an off-diagonal entry that is not below its row's diagonal.

    Example:
        >>> from noisyml.noise.transition import check_matrix
        >>> check_matrix([[0.75, 0.25], [0.5, 0.5]], 2).tolist()
        [[0.75, 0.25], [0.5, 0.5]]
    """
    array = np.asarray(matrix, dtype=np.float64)
    if array.shape != (num_classes, num_classes):
        raise UserError(
            f"The noise matrix has shape {list(array.shape)} but the data set has {num_classes} "
            f"classes; give {num_classes} rows of {num_classes} probabilities."
        )
    if not np.isfinite(array).all() or array.min(initial=0.0) < 0:
        raise UserError("The noise matrix has a negative or undefined entry; give probabilities.")
    off = np.flatnonzero(np.abs(array.sum(axis=1) - 1.0) > 1e-6)
    if len(off):
        columns = np.abs(array.sum(axis=0) - 1.0).max() <= 1e-6
        raise UserError(
            f"Row {off[0]} of the noise matrix sums to {array[off[0]].sum():.6g} instead of 1; "
            + (
                "its columns sum to 1, so transpose it: rows are true classes here."
                if columns
                else "rows are true classes, columns observed ones."
            )
        )
    if diagonally_dominant:
        rest = array.copy()
        np.fill_diagonal(rest, -1.0)
        weak = np.flatnonzero(rest.max(axis=1) >= np.diagonal(array))
        if len(weak):
            raise UserError(
                f"Class {weak[0]} is mislabelled as another class at least as often as it is "
                "labelled right; lower its noise or set noise.diagonally_dominant=false."
            )
    # NumPy's multinomial refuses what a matrix stored as float32 is off; rows that are right to
    # the last bits stay as they are, because released label files depend on them.
    sums = array.sum(axis=1, keepdims=True)
    return np.where(np.abs(sums - 1.0) > 1e-12, array / sums, array)


def exact_counts(class_counts: ArrayLike, matrix: ArrayLike) -> NDArray[np.int64]:
    """Number of members of each class that get each label, without randomness: int64 [C, C].

    Largest remainders: ``floor(n_c P_cj)``, and the members left over go, one each, to the largest
    fractional parts (rounded to 9 decimals), ties to the smaller j.

    Args:
        class_counts: int [C], members n_c of each true class.
        matrix: float [C, C], row-stochastic.

    Example:
        >>> from noisyml.noise.transition import exact_counts
        >>> exact_counts([4, 4], [[0.75, 0.25], [0.5, 0.5]]).tolist()
        [[3, 1], [2, 2]]
    """
    members = np.asarray(class_counts, dtype=np.int64)
    probabilities = np.asarray(matrix, dtype=np.float64)
    wanted = members[:, None] * (probabilities / probabilities.sum(axis=1, keepdims=True))
    counts = np.floor(wanted + 1e-9)
    order = np.argsort(-np.round(wanted - counts, 9), axis=1, kind="stable")
    left = members - counts.sum(axis=1)
    extra = (np.arange(len(members)) < left[:, None]).astype(np.float64)
    np.put_along_axis(counts, order, np.take_along_axis(counts, order, axis=1) + extra, axis=1)
    return counts.astype(np.int64)


def first_above(table: NDArray, rows: NDArray[np.int64], values: NDArray) -> NDArray[np.int64]:
    """The first column of each sample's row whose entry exceeds its value, int64 [N].

    Bisection over all samples at once, so that no [N, C] array is ever built.

    Args:
        table: [R, C], every row non-decreasing (cumulative sums).
        rows: int64 [N], row of each sample.
        values: [N], each below the last entry of its row.
    """
    columns = table.shape[1]
    flat, base = np.ascontiguousarray(table).ravel(), rows * columns
    low = np.zeros(len(rows), dtype=np.int64)
    high = np.full(len(rows), columns - 1, dtype=np.int64)
    for _ in range(max(columns - 1, 0).bit_length()):
        middle = (low + high) >> 1
        right = flat[base + middle] <= values
        low = np.where(right, np.minimum(middle + 1, high), low)
        high = np.where(right, high, middle)
    return low
