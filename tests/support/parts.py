"""Parts of a method without a configuration."""

import torch

from noisyml.methods.parts import Parts, Sizes
from noisyml.metrics.classification import ClassificationEvaluator


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1)


def parts_for(encoder, names=("ant", "bee", "cat"), *, another=None, evaluator=None, **others):
    """An encoder and what goes with it; `another` makes a second one."""
    sizes = Sizes(
        num_classes=len(names),
        embedding_size=encoder.out_features,
        num_samples=100,
        class_names=list(names),
    )
    return Parts(
        encoder=encoder,
        another_encoder=another,
        evaluators={"evaluator": evaluator or ClassificationEvaluator()},
        sizes=sizes,
        **{"optimizer": sgd, "scheduler": None} | others,
    )
