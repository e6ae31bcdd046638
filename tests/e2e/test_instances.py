"""InsCLR on a benchmark of judged images, evaluated with whitening learnt on other embeddings."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat


def tree(root):
    """Eight textures in the layout of INSTRE: six pictures each to search, two to ask for."""
    rng = np.random.default_rng(0)
    textures = rng.integers(0, 255, (8, 12, 12, 3))
    gallery, queries = [], []
    for number, texture in enumerate(textures):
        for i in range(8):
            name = f"INSTRE-S1/object{number}/{i}.png"
            noisy = np.clip(texture + rng.integers(-20, 20, texture.shape), 0, 255)
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(noisy.astype(np.uint8))
            picture.resize((24 + 4 * i, 24)).save(path)
            (gallery if i < 6 else queries).append(name)
    truth = np.empty((1, len(queries)), dtype=[("ok", object), ("bbx", object)])
    for query in range(len(queries)):
        first = query // 2 * 6 + 1
        right = np.arange(first, first + 6, dtype=np.uint16)[None]
        truth[0, query] = (right, np.array([[0, 0, 40, 24]], np.uint16))
    names = {"imlist": gallery, "qimlist": queries}
    cells = {name: np.array([texts], dtype=object) for name, texts in names.items()}
    savemat(root / "gnd_instre.mat", {"gnd": truth, **cells})


@pytest.mark.further
def test_a_benchmark_of_judged_images_from_training_to_whitening(shell):
    tree(shell.folder / "instre")
    data = ["dataset=instre", "dataset.root=instre", "dataset.check_counts=false"]
    tiny = ["method.graph.stored=10", "sampler.batch_size=8", "trainer.max_epochs=2"]
    tiny += ["transform=square", "transform.size=24", "backbone.widths=[8,16]", "report=false"]
    tiny += ["backbone.halve_after=[1]", "evaluator=instances", "model_choice=[last]"]
    status, said = shell("train", "method=insclr", *data, *tiny)
    assert status == 0, said
    (run,) = shell.runs()
    trained = json.loads((run / "metrics.json").read_text())["test/map"]
    assert 0.125 < trained <= 1
    assert len((run / "qrels.trec.txt").read_text().splitlines()) == 16 * 6
    status, said = shell("embed", f"checkpoint={run}", "splits=[train]", "hydra.run.dir=rows")
    assert status == 0, said
    # Pictures as the benchmark shows them, one at a time, at two scales.
    changed = ["transform=plain", "data.eval_batch_size=1", "method.scales=[1,0.707]"]
    changed += ["evaluators.instances.whitening=rows", "evaluators.instances.whitening_dims=8"]
    changed += ["evaluators.instances.expansion=2", "hydra.run.dir=found"]
    status, said = shell("evaluate", f"checkpoint={run}", *changed)
    assert status == 0, said
    again = json.loads((shell.folder / "found" / "metrics.json").read_text())
    assert 0.125 < again["test/map"] <= 1
