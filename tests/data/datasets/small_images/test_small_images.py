"""MNIST and CIFAR, written in their official formats, and how their training half is divided."""

import pickle

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from support import paths

from noisyml.data.datasets.small_images.cifar import CIFAR10_CLASSES, Cifar10, Cifar100
from noisyml.data.datasets.small_images.mnist import MNIST
from noisyml.data.readers.partition import bare_protocol
from noisyml.errors import UserError
from noisyml.noise import Asymmetric, HumanLabels
from noisyml.noise.transition import CIFAR100_FINE_TO_COARSE, PRESET_CLASS_NAMES

CONF = paths.CONF / "dataset"
RNG = np.random.default_rng(0)
FINE = [
    name.replace("aquariumfish", "aquarium_fish")
    for name in PRESET_CLASS_NAMES["cifar100_superclass"]
]
COARSE = [f"superclass_{i}" for i in range(20)]


def _cifar_arrays(classes, images=40, batches=1):
    pixels = RNG.integers(0, 256, (batches, images, 3072), dtype=np.uint8)
    labels = np.arange(batches * images).reshape(batches, images) % classes
    return pixels, labels.astype(np.uint8)


def _binary10(root, pixels, labels):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for name, rows, own in zip(names, pixels, labels, strict=True):
        np.column_stack([own[:, None], rows]).tofile(folder / name)


def _python10(root, pixels, labels):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name, rows, own in zip(names, pixels, labels, strict=True):
        batch = {b"batch_label": b"x", b"labels": own.tolist(), b"data": rows, b"filenames": [b"a"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def test_both_versions_of_cifar10_are_the_same_images(tmp_path):
    pixels, labels = _cifar_arrays(10, batches=6)
    splits = {}
    for write in (_binary10, _python10):
        root = tmp_path / write.__name__
        root.mkdir()
        write(root, pixels, labels)
        source = Cifar10(str(root), val_fraction=0.2, check_counts=False)
        assert source.missing() is None
        splits[write] = source.splits()
        with pytest.raises(UserError, match=r"train split of cifar10: expected 50000 .* found 200"):
            Cifar10(str(root)).splits()
    for name, split in splits[_binary10].items():
        other = splits[_python10][name]
        assert split.keys == other.keys
        assert split.fingerprint == other.fingerprint
    split = splits[_binary10]["train"]
    assert tuple(split.class_names) == CIFAR10_CLASSES
    assert {n: len(s) for n, s in splits[_binary10].items()} == {
        "train": 160,
        "val": 40,
        "test": 40,
    }
    # Official numbers run through the five batches, and a record holds whole planes of colour.
    number = int(split.keys[-1].removeprefix("train/"))
    planes = pixels[number // 40, number % 40].reshape(3, 32, 32)
    np.testing.assert_array_equal(split.images.pixels[-1], planes.transpose(1, 2, 0))
    assert split.labels[-1] == labels.flatten()[number]


def _cifar100(root, version):
    pixels, labels = _cifar_arrays(100, images=200, batches=2)
    coarse = CIFAR100_FINE_TO_COARSE[labels].astype(np.uint8)
    if version == "binary":
        folder = root / "cifar-100-binary"
        folder.mkdir()
        for i, name in enumerate(("train.bin", "test.bin")):
            rows = np.column_stack([coarse[i], labels[i], pixels[i]])
            rows.tofile(folder / name)
        (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
        (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n\n")
    else:
        folder = root / "cifar-100-python"
        folder.mkdir()
        for i, name in enumerate(("train", "test")):
            batch = {
                "data": pixels[i],
                "fine_labels": labels[i].tolist(),
                "coarse_labels": coarse[i].tolist(),
            }
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
        names = {b"fine_label_names": [n.encode() for n in FINE], "coarse_label_names": COARSE}
        (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return folder


@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar100_has_two_kinds_of_labels(tmp_path, version):
    folder = _cifar100(tmp_path, version)
    fine = Cifar100(str(tmp_path), check_counts=False).splits()["train"]
    coarse = Cifar100(str(tmp_path), check_counts=False, labels="coarse").splits()["train"]
    assert fine.class_names == FINE
    assert coarse.class_names == COARSE
    np.testing.assert_array_equal(fine.extras["coarse_label"], CIFAR100_FINE_TO_COARSE[fine.labels])
    np.testing.assert_array_equal(
        coarse.labels, CIFAR100_FINE_TO_COARSE[coarse.extras["fine_label"]]
    )
    # Noise inside the superclasses knows the classes by these names.
    for names in ("cifar100_superclass", "cifar100_block5"):
        noise = Asymmetric(rate=0.5, map=names)
        manifest = noise.inject(fine.labels, 100, keys=fine.keys, class_names=fine.class_names)
        assert 0.3 < manifest.actual_rate < 0.7
        same = CIFAR100_FINE_TO_COARSE[manifest.observed] == CIFAR100_FINE_TO_COARSE[fine.labels]
        assert same.all() == (names == "cifar100_superclass")
    with pytest.raises(UserError, match=r"labels=both must be fine or coarse"):
        Cifar100(str(tmp_path), labels="both")
    if version == "binary":
        raw = np.fromfile(folder / "train.bin", dtype=np.uint8)
        raw[0] = (raw[0] + 1) % 20
        raw.tofile(folder / "train.bin")
        with pytest.raises(UserError, match="lies in two superclasses"):
            Cifar100(str(tmp_path), check_counts=False).splits()
        (folder / "coarse_label_names.txt").unlink()
        assert Cifar100(str(tmp_path)).missing().endswith("coarse_label_names.txt")


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({b"data": Trap()}), r"builtins.print"),
        (pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 2]}), "no batch of"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}), "no batch of"),
        (pickle.dumps([1]), "no batch of"),
        (b"\x80\x02nonsense", "is damaged"),
    ],
)
def test_foreign_pickles_are_not_executed(tmp_path, capsys, content, message):
    pixels, labels = _cifar_arrays(10, images=4, batches=6)
    _python10(tmp_path, pixels, labels)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Cifar10(str(tmp_path), check_counts=False).splits()
    assert "executed" not in capsys.readouterr().out


def test_cifar_mistakes(tmp_path):
    pixels, labels = _cifar_arrays(10, images=4, batches=6)
    _binary10(tmp_path, pixels, labels)
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"data_batch_2.bin has 12291 bytes, .* of the 3073"):
        Cifar10(str(tmp_path), check_counts=False).splits()
    file.write_bytes(b"\x0b" + content[1:])
    with pytest.raises(UserError, match="label outside of 0 to 9"):
        Cifar10(str(tmp_path), check_counts=False).splits()
    file.unlink()
    assert Cifar10(str(tmp_path)).missing() == str(file)


def _mnist(root, train=600):
    for prefix, number in (("train", train), ("t10k", 20)):
        for kind, shape in (("images-idx3", (number, 28, 28)), ("labels-idx1", (number,))):
            array = RNG.integers(0, 10, shape, dtype=np.uint8)
            if kind == "labels-idx1":
                array = (np.arange(number) % 10).astype(np.uint8)
            head = bytes([0, 0, 8, array.ndim]) + np.array(shape, dtype=">u4").tobytes()
            (root / f"{prefix}-{kind}-ubyte").write_bytes(head + array.tobytes())


def test_mnist(tmp_path):
    _mnist(tmp_path)
    splits = MNIST(str(tmp_path), val_fraction=0.5, check_counts=False).splits()
    assert {n: len(s) for n, s in splits.items()} == {"train": 300, "val": 300, "test": 20}
    labels, names = splits["train"].labels, splits["train"].class_names
    manifest = Asymmetric(rate=1.0, map="mnist").inject(labels, 10, class_names=names)
    assert set(manifest.observed[labels == 7].tolist()) == {1}
    with pytest.raises(UserError, match="train split of mnist: expected 60000 as published"):
        MNIST(str(tmp_path)).splits()
    with pytest.raises(UserError, match=r"takes 100 validation samples .* use split=official"):
        MNIST(str(tmp_path), split="bare", check_counts=False).splits()
    with pytest.raises(UserError, match=r"split=half must be official or bare"):
        MNIST(str(tmp_path), split="half")


def test_the_protocol_of_bare_is_that_of_scikit_learn(tmp_path):
    from sklearn.model_selection import train_test_split

    _mnist(tmp_path, train=6003)
    splits = MNIST(str(tmp_path), split="bare", check_counts=False, seed=3).splits()
    train, held_out = train_test_split(np.arange(6003), test_size=0.2, random_state=42)
    assert [int(key[-5:]) for key in splits["train"].keys] == train.tolist()
    val = [int(key[-5:]) for key in splits["val"].keys]
    assert np.bincount(splits["val"].labels).tolist() == [100] * 10
    assert set(val) <= set(held_out.tolist())
    labels = np.arange(60_000) % 10
    rows = bare_protocol(labels, 0)
    assert len(rows["train"]) == 48_000
    assert not np.array_equal(rows["val"], bare_protocol(labels, 1)["val"])


def test_human_labels_follow_their_images_into_val(tmp_path):
    _mnist(tmp_path)
    clean = np.arange(600) % 10
    noisy = (clean + (np.arange(600) % 4 == 0)) % 10
    np.savez(tmp_path / "people.npz", clean_label=clean, noisy_label=noisy)
    people = HumanLabels(path=str(tmp_path / "people.npz"), row="number")
    assert not people.training_only
    splits = MNIST(str(tmp_path), val_fraction=0.25, check_counts=False).splits()
    for name in ("train", "val"):
        split = splits[name]
        manifest = people.inject(split.labels, 10, keys=split.keys)
        numbers = [int(key.removeprefix("train/")) for key in split.keys]
        np.testing.assert_array_equal(manifest.observed, noisy[numbers])
    with pytest.raises(UserError, match=r"set noise.row=number"):
        HumanLabels(path=people.path).inject(splits["train"].labels, 10, keys=splits["train"].keys)
    with pytest.raises(UserError, match=r"end in no numbers: set noise.row=position"):
        people.inject([0, 1], 10, keys=["a", "b"])
    with pytest.raises(UserError, match=r"has 600 labels, but a sample is number 600"):
        people.inject([0], 10, keys=["train/00600"])


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_configurations_name_the_arguments(name, tmp_path):
    source = instantiate(OmegaConf.load(CONF / f"{name}.yaml"), root=str(tmp_path))
    assert source.split == "official"
    assert source.check_counts
