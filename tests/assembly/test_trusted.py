"""Run folders of strangers: what their configurations may name, and that nothing of them runs."""

import os
import pickle

import pytest
import yaml
from omegaconf import OmegaConf
from support.paths import CONF
from support.shell import TINY, shell

from noisyml.assembly.saved import saved_config
from noisyml.assembly.trusted import (
    UntrustedError,
    admit,
    admitting,
    check_composed,
    check_places,
    check_saved,
    check_target,
)
from noisyml.command.config import compose
from noisyml.errors import UserError
from noisyml.models.heads import EmbeddingHead
from noisyml.runs.folder import RunFolder

__all__ = ["shell"]

#: Names that lead to something that runs what a file or an argument says.
DANGEROUS = [
    "pandas.read_pickle",
    "torch.load",
    "numpy.load",
    "joblib.load",
    "torch.hub.load",
    "builtins.open",
    # Names of ours that lead elsewhere.
    "noisyml.data.features.np.load",
    "torch.optim.adam.torch.load",
    "noisyml.cli.os.system",
]


@pytest.fixture
def foreign(tmp_path):
    """A run folder whose configuration is innocent, with a checkpoint."""
    folder = tmp_path / "foreign"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    config = compose("train", ["dataset=digits", *TINY, "name=foreign"])
    config.run_dir = str(folder)
    plain = OmegaConf.to_container(config, resolve=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    return RunFolder(folder)


class Twin(EmbeddingHead):
    """A head of one's own."""


def change(folder, key, value):
    config = OmegaConf.create(folder.config())
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    folder.config_file.write_text(OmegaConf.to_yaml(config))


class Bomb:
    """A pickle of it leaves a trace when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("target", DANGEROUS)
def test_names_that_lead_to_running_code_are_refused(foreign, target):
    change(foreign, "head", {"_target_": target})
    with pytest.raises(UntrustedError, match=f"names head._target_={target}, which "):
        saved_config(foreign, "train")


@pytest.mark.parametrize(
    "target", [DANGEROUS[0], *[pytest.param(t, marks=pytest.mark.slow) for t in DANGEROUS[1:]]]
)
def test_a_run_folder_of_a_stranger_is_safe_to_open(shell, foreign, tmp_path, target):
    """evaluate, embed and resume refuse it in one sentence; report shows it and builds nothing."""
    trace = tmp_path / "trace"
    bomb = tmp_path / "bomb.pkl"
    bomb.write_bytes(pickle.dumps(Bomb(trace)))
    word = {"torch.hub.load": "repo_or_dir", "joblib.load": "filename", "torch.load": "f"}
    word |= {"pandas.read_pickle": "filepath_or_buffer", "noisyml.cli.os.system": "command"}
    argument = f"mkdir {trace}" if target.endswith("system") else str(bomb)
    change(foreign, "head", {"_target_": target, word.get(target, "file"): argument})
    for typed in (
        ["evaluate", f"checkpoint={foreign.path}"],
        ["embed", f"checkpoint={foreign.path}"],
        ["train", f"resume={foreign.path}"],
    ):
        status, said = shell(*typed)
        assert status == 2, said
        assert f"config.yaml names head._target_={target}, which " in said
        assert len(said.strip().splitlines()) == 1, said
    status, said = shell("report", str(foreign.path))
    assert status == 0, said
    assert not trace.exists()


def test_what_the_files_of_the_package_name_is_trusted(monkeypatch):
    monkeypatch.delenv("NOISYML_TRUST", raising=False)
    # Hydra's own parts are never in a saved configuration.
    for file in (file for file in CONF.rglob("*.yaml") if "hydra" not in file.parts):
        for line in file.read_text().splitlines():
            key, _, value = line.strip().removeprefix("- ").partition(":")
            if key == "_target_":
                check_target(value.split("#")[0].strip(), line, file)


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.StepLR",
        "torch.nn.Identity",
        "torchvision.transforms.v2.RandomCrop",
        "torchvision.models.resnet18",
        "timm.models.ResNet",
        "pytorch_metric_learning.losses.CircleLoss",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.callbacks.EarlyStopping",
    ],
)
@pytest.mark.long
def test_parts_of_known_libraries_are_trusted(tmp_path, target):
    check_target(target, target, tmp_path)


@pytest.mark.parametrize(
    "target",
    [
        "noisyml.storage.files.write_atomically",  # writes anywhere
        "noisyml.models.weights.read_weights",
        "noisyml.noise.manifest.NoiseManifest.load",
        "noisyml.__main__.main",
        "noisyml.assembly.nodes.get_object",
        "hydra.utils.get_object",
        "torchvision.datasets.CIFAR10",  # unpickles
        "torchvision.models.get_model",
        "timm.create_model",  # reads checkpoints by unpickling
        "timm.models.load_checkpoint",
        "lightning.pytorch.callbacks.LambdaCallback",
        "torch.nn.Module.__init__",
        "os",
        ["torch.nn.Linear"],
        None,
    ],
)
def test_other_names_are_not(tmp_path, target):
    with pytest.raises(UntrustedError, match="so nothing of it is built"):
        check_target(target, f"head._target_={target}", tmp_path)


@pytest.mark.parametrize(
    "node",
    [
        {"a": {"b": {"_target_": "os.system", "_partial_": True}}},
        {"a": [{"_target_": "noisyml.optim.adam", "betas": [{"_target_": "os.system"}]}]},
        {"a": {"_target_": {"_target_": "os.system"}}},
    ],
)
def test_names_are_found_wherever_they_stand(tmp_path, node):
    with pytest.raises(UntrustedError, match=r"a.*_target_="):
        check_saved(node, tmp_path / "config.yaml")


@pytest.mark.parametrize("text", ["${oc.env:HOME}", r"\${oc.env:HOME}", "${seed}", "a${b}c"])
def test_a_saved_configuration_reads_nothing(shell, foreign, text):
    change(foreign, "dataset.cache_dir", None)
    config = foreign.config()
    config["dataset"]["cache_dir"] = text
    foreign.config_file.write_text(yaml.safe_dump(config))
    status, said = shell("embed", f"checkpoint={foreign.path}")
    assert status == 2
    assert "dataset.cache_dir=" in said
    assert "holds plain values" in said


def test_what_is_typed_over_it_is_ones_own(shell, foreign):
    """The typed head is built; it is the checkpoint that cannot be read."""
    typed = f"head._target_={__name__}.Twin"
    status, said = shell("evaluate", f"checkpoint={foreign.path}", typed)
    assert status == 2
    assert "last.ckpt cannot be read (it is empty)" in said


def test_packages_of_ones_own(shell, foreign, tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(
        "from os import system\nfrom noisyml.models.heads import IdentityHead\n"
        "class Head(IdentityHead):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("NOISYML_TRUST")
    change(foreign, "head", {"_target_": "my_package.Head"})
    status, said = shell("evaluate", f"checkpoint={foreign.path}")
    assert status == 2
    assert "say trust=[my_package]" in said
    status, said = shell("evaluate", f"checkpoint={foreign.path}", "trust=[my_package]")
    assert "nothing of it is built" not in said
    assert "NOISYML_TRUST" not in os.environ
    monkeypatch.setenv("NOISYML_TRUST", "another,my_package.Head")
    saved_config(foreign, "train")
    # A package is trusted for what it defines, not for what it imports.
    monkeypatch.setenv("NOISYML_TRUST", "my_package")
    change(foreign, "head", {"_target_": "my_package.system"})
    with pytest.raises(UntrustedError, match="no class or function"):
        saved_config(foreign, "train")
    status, said = shell("evaluate", f"checkpoint={foreign.path}", "trust=[../x]")
    assert "names no Python package" in said


def test_what_a_command_has_typed_its_stages_may_name(tmp_path, monkeypatch):
    monkeypatch.delenv("NOISYML_TRUST", raising=False)
    node = {"head": {"_target_": "collections.OrderedDict"}}
    with admitting():
        admit(OmegaConf.create(node))
        check_saved(node, tmp_path)
        with pytest.raises(UntrustedError):
            check_saved({"head": {"_target_": "collections.Counter"}}, tmp_path)
    with pytest.raises(UntrustedError):
        check_saved(node, tmp_path)


@pytest.mark.long
def test_overrides_in_a_run_folder_are_checked_when_they_are_composed_anew(tmp_path):
    check_composed(compose("train", ["loss=triplet_sampled", "selector=prism_vmf"]), tmp_path)
    with pytest.raises(UntrustedError, match=r"head\._target_=os\.system"):
        check_composed(compose("train", ["head._target_=os.system"]), tmp_path)
    for text in ("${oc.env:AWS_SECRET}", "x${oc.select:a,${oc.env:B}}", "${oc.decode:${seed}}"):
        with pytest.raises(UntrustedError, match=r"trust=\[oc\.env\] allows it"):
            check_composed(compose("train", [f"dataset.cache_dir='{text}'"]), tmp_path)


def test_a_run_writes_into_its_own_folder(foreign, tmp_path):
    check_places(saved_config(foreign, "train"), foreign.path)
    victim = tmp_path / ".bashrc"
    change(foreign, "callbacks.history.file", str(victim))
    config = saved_config(foreign, "train")
    with pytest.raises(UserError, match=r"callbacks\.history\.file=.* lies outside of it"):
        check_places(config, foreign.path)
    check_places(config, foreign.path, typed=["callbacks.history.file"])
    change(foreign, "callbacks.history.file", "history.csv")
    with pytest.raises(UserError, match="lies outside of it"):
        check_places(saved_config(foreign, "train"), foreign.path)


@pytest.mark.parametrize("uri", ["sqlite:////elsewhere/x.db", "file:///elsewhere", "/elsewhere"])
def test_a_saved_logger_names_no_database_outside_of_the_folder(tmp_path, uri):
    config = OmegaConf.create({"logger": {"mlflow": {"tracking_uri": uri}}})
    with pytest.raises(UserError, match="lies outside of it"):
        check_places(config, tmp_path)
    check_places(config, tmp_path, typed=["logger.mlflow.tracking_uri"])
    config.logger.mlflow = {"tracking_uri": "https://my.server", "store": "outputs"}
    check_places(config, tmp_path)


def test_a_folder_that_was_moved_writes_where_it_lies_now(foreign, tmp_path):
    moved = foreign.path.rename(tmp_path / "elsewhere")
    config = saved_config(RunFolder(moved), "train")
    assert config.callbacks.history.file == str(moved / "history.csv")
    check_places(config, moved)
