"""A weighted sum of losses is composed on the command line, trains, and logs its terms."""

import pandas as pd
import pytest
import yaml
from support.shell import TINY


def test_terms_are_composed_trained_and_logged(shell):
    status, said = shell(
        "train",
        *TINY,
        "loss=sum",
        "loss@loss.terms.auxiliary=iaa_triplet",
        "+loss@loss.terms.bank=memory_contrastive",
        "+loss.weights.bank=0.5",
        "+loss@loss.terms.proxies=proxy_nca",
        "selector=prism_proxy",
    )
    assert status == 0, said
    (run,) = shell.runs()
    loss = yaml.safe_load((run / "config.yaml").read_text())["loss"]
    assert loss["weights"] == {"cbml": 0.99, "auxiliary": 0.01, "bank": 0.5}
    assert loss["terms"]["auxiliary"]["margin"] == 0.2
    history = pd.read_csv(run / "history.csv")
    # The proxies are a term's, and so many as there are classes: sizes reach the terms.
    for name in ("cbml", "auxiliary", "bank", "proxies"):
        assert history[f"train/loss_{name}"].notna().any(), list(history.columns)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["loss=sum", "selector=prism_proxy"], "EmbeddingSum has none: choose e.g. loss=proxy_nca"),
        (["loss=sum", "+loss.weights.cmbl=1"], "'cmbl' it does not have: use cbml, auxiliary. Did"),
        (["loss=fast_ap", "loss.params=0x10"], "loss.params=0x10 must be a mapping"),
        (
            ["loss=sum", "+loss@loss.terms.proxies=proxy_nca", "loss.terms.proxies.params=0x10"],
            "loss.terms.proxies.params=0x10 must be a mapping",
        ),
        (["loss=classification_sum"], "and ClassificationSum is none"),
    ],
)
def test_a_sum_that_cannot_work_is_refused(shell, typed, sentence):
    status, said = shell("train", *TINY, *typed)
    assert status == 2, said
    assert sentence in said


@pytest.mark.parametrize(
    ("method", "loss", "data"),
    [
        ("classification", "classification_sum", ["dataset=digits", "noise=symmetric"]),
        (
            "multilabel",
            "multilabel_sum",
            ["dataset=mosaic", "dataset.num_train=128", "backbone.image_size=[8,24]"],
        ),
    ],
)
def test_sums_on_class_scores(shell, method, loss, data):
    small = ["backbone=mlp", "backbone.hidden_features=[16]", "trainer.max_epochs=2"]
    chosen = [f"method={method}", f"loss={loss}"]
    status, said = shell("train", *data, *small, *chosen, "report=false")
    assert status == 0, said
