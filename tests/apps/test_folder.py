"""Run folders of other verbs and other versions are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from noisyml.apps._common.folder import is_made_by
from noisyml.assembly.saved import saved_config
from noisyml.command.config import compose, top_level_keys
from noisyml.errors import UserError
from noisyml.runs.folder import RunFolder


@pytest.mark.parametrize("root", ["train", "embed", "knn", "data"])
def test_every_composed_configuration_has_the_top_level_keys(root: str) -> None:
    typed = ["embeddings=x"] if root == "knn" else []
    assert set(top_level_keys(root)) <= set(compose(root, typed))


@pytest.mark.parametrize("method", ["prism", "co_teaching", "jocor_multilabel"])
def test_no_run_of_today_is_taken_for_an_older_one(tmp_path: Path, method: str) -> None:
    """Some methods choose no loss, or another evaluator."""
    folder = RunFolder(tmp_path)
    composed = compose("train", [f"method={method}", "name=today"])
    folder.config_file.write_text(OmegaConf.to_yaml(composed, resolve=True))
    saved_config(folder, "train")


def test_a_module_that_is_gone_tells_another_version(tmp_path: Path) -> None:
    config = {key: {} for key in top_level_keys("train")} | {"run_dir": None}
    folder = RunFolder(tmp_path)
    folder.config_file.write_text(yaml.safe_dump(config))
    saved_config(folder, "train")
    config["loss"] = {"_target_": "noisyml.contrastive.Contrastive"}
    config["callbacks"] = {"mine": {"_target_": "my_package.Callback"}}
    folder.config_file.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"names noisyml\.contrastive\.Contrastive, which is gone"):
        saved_config(folder, "train")


@pytest.mark.parametrize("verb", ["train", "embed", "knn"])
def test_the_verb_that_made_a_folder_is_known(tmp_path: Path, verb: str) -> None:
    config = dict.fromkeys(top_level_keys(verb))
    if verb == "embed":
        # With a checkpoint it has the keys of the trained run as well.
        config |= dict.fromkeys(top_level_keys("train"))
    folder = RunFolder(tmp_path)
    folder.config_file.write_text(yaml.safe_dump(config))
    assert [v for v in ("train", "embed", "knn") if is_made_by(folder, v)] == [verb]
