"""What a user can get wrong ends in one sentence and status 2, without a traceback."""

import pytest
from support.shell import TINY


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["trian"], "no verb 'trian'. Did you mean 'train'?"),
        (["train", "noise.rat=0.3", "noise=symmetric"], "Did you mean 'noise.rate'?"),
        (["train", "nose.rate=0.3"], "There is no setting 'nose.rate'. Did you mean 'noise.rate'?"),
        (["train", "selectr=prism_avg"], "There is no setting 'selectr'. Did you mean 'selector'?"),
        (["train", "max_epoch=3"], "Did you mean 'trainer.max_epochs'?"),
        (["train", "selector=prism_agv"], "no selector 'prism_agv'. Did you mean 'prism_avg'?"),
        (["train", "dataset=digit"], "no dataset 'digit'. Did you mean 'digits'?"),
        (["train", "--multirunn"], "There is no option '--multirunn'. Did you mean '--multirun'?"),
        (["train", "loss=[.9]"], "loss=[.9] is no choice"),
        (["train", "paths.cache={1:2}"], "paths.cache={1: 2} must be a word"),
        (["train", "paths=3"], "paths=3 is no choice"),
        (["train", "evaluator=[null]"], "evaluator=[null] is no choice"),
        (
            [
                "train",
                "dataset=digits",
                "pseudo_labels=kmeans",
                "method.pseudo_labels.num_clusters=(",
            ],
            "method.pseudo_labels.num_clusters=( must be a whole number",
        ),
        (["train", "-sc"], "-sc wants install=SHELL or uninstall=SHELL"),
        (["-sc"], "-sc wants install=SHELL or uninstall=SHELL"),
        (["train", "trainer.max_epochs=many"], "trainer.max_epochs=many should be a number"),
        (["train", "noise.rate=0.3"], "these have: noise=asymmetric"),
        (["train", "noise.rate=[0.3"], "The override 'noise.rate=[0.3' cannot be read"),
        (["train", "dataset=csv"], "A value for 'dataset.path' is needed"),
        (["train", "backbone=timm"], "A value for 'backbone.name' is needed"),
        (["list", "selector"], "Did you mean 'selectors'?"),
        (["report", "nowhere"], "There is no folder nowhere"),
        (["evaluate", "checkpoint=nowhere"], "belongs to no run folder"),
        (["evaluate"], "A value for 'checkpoint' is needed"),
    ],
)
def test_misspelt_words_are_answered_with_a_suggestion(shell, typed, sentence):
    status, said = shell(*typed)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["selector=prism_proxy"], "has none: choose e.g. loss=proxy_nca"),
        (["method.enqueue=before", "selector=prism_avg"], "use selector=keep_all"),
        (["+selector.foo=1"], "has no setting 'foo'"),
        (["+backbone.standardise=true"], "needs backbone.frozen=true"),
        (["model_choice=[newest]"], "model_choice[0]=newest must be last, best, mean_last or test"),
        (["seed=[1]"], "seed=[1] is a list where one value belongs"),
        (["seed=true"], "seed=true should be a number; the default is 0."),
        (["data.eval_batch_size=0"], "data.eval_batch_size=0 must be a whole number of at least 1"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0 must be a whole number of at least 1"),
        (["model_choice=mean_last"], "the last 5 epochs (mean_last_epochs), and the run has 2"),
        (["noise.rate=1.4", "selector=keep_all"], "rate=1.4 must be a number from 0 to 1"),
        (["loss=pml", "loss.name=CircelLoss"], "CircleLoss"),
        (["sampler.batch_size=30", "sampler.samples_per_class=4"], "not a multiple"),
        (["dataset=image_folder", "dataset.path=nowhere"], "nowhere"),
        (["dataset=cub200", "paths.data=nowhere"], "CUB_200_2011"),
        (["optimizer.lr=1e12", "head.normalise=false", "loss=contrastive"], "lower optimizer.lr"),
    ],
)
def test_combinations_that_cannot_work_are_refused(shell, overrides, sentence):
    status, said = shell("train", *TINY, *overrides)
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said


def test_a_failed_job_does_not_stop_a_sweep(shell):
    status, said = shell("train", "-m", *TINY, "sampler.batch_size=4096,64", "sampler=shuffle")
    assert status == 2
    assert "exceeds the" in said
    assert "1 of 2 jobs failed" in said
    assert sum((run / "metrics.json").is_file() for run in shell.runs()) == 1


def test_a_batch_of_one_has_no_statistics(shell):
    """The last stage of a ResNet sees an 8 x 8 digit as one pixel."""
    typed = ["method=classification", "dataset=digits", "backbone=resnet18", "report=false"]
    short = ["data.train_size=33", "sampler.batch_size=32", "sampler.drop_last=false"]
    status, said = shell("train", *typed, *short, "backbone.in_channels=1")
    assert status == 2, said
    assert "Batch norm has nothing to compare the only image" in said
    assert "Traceback" not in said
