"""Pooling of tokens against the released one."""

import torch
from support import paths, vectors

from noisyml.models.text.pooling import masked_mean, project_pooled

GOLDEN = paths.GOLDEN / "otter"


def test_means_and_projections_equal_the_released_ones():
    case = vectors.tensors(GOLDEN, "text_pooling")
    states, mask = case["seq"], case["mask"]
    vectors.close(masked_mean(states, mask), case["pooled_identity"])
    layer = case["fc_weight"], case["fc_bias"]
    for name, counted in (("fc3", mask), ("fc3_empty", case["mask_with_empty"])):
        pooled = masked_mean(states, counted)
        found = project_pooled(pooled, *layer, counted.any(1))
        vectors.close(found, case[f"pooled_{name}"])
    assert not case["mask_with_empty"].any(1).all()
    bare = project_pooled(masked_mean(states, mask), layer[0], None, mask.any(1))
    torch.testing.assert_close(bare, case["pooled_identity"] @ layer[0].T)
