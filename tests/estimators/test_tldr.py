"""TLDR as an estimator: released fits, scikit-learn, files, and the traps of the release."""

import functools
import pickle
import subprocess
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator
from support import paths, vectors
from torch import nn

from noisyml import TLDR, optim
from noisyml.errors import UserError
from noisyml.estimators.tldr import EstimatorError
from noisyml.estimators.whitening import whiten
from noisyml.methods.vectors.pairs import knn_pairs
from noisyml.methods.vectors.training import train_on_pairs
from noisyml.methods.vectors.twins import Twins
from noisyml.models.dense import encoder_layers

load = functools.partial(vectors.tensors, paths.GOLDEN / "tldr")
TINY = {"projector": "mlp-1-8", "batch_size": 16, "epochs": 3, "warmup_epochs": 1}


@pytest.fixture(autouse=True)
def short_fits_may_be_short():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def rows(n=64, dim=8, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(dtype)


def tiny(**settings):
    return TLDR(**{"n_components": 3, "random_state": 0, **TINY, **settings})


# -- the released library ------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_released_fit_step_by_step(name, precision):
    golden = load(f"fit_trace_{name}")
    double = precision == "f64"
    dtype = torch.float64 if double else torch.float32
    x, size = golden["X"].to(dtype), golden["X"].shape[1]
    n, batch, epochs = len(x), int(golden["batch_size"]), int(golden["epochs"])
    components = int(golden["n_components"])
    encoder = encoder_layers(golden["encoder"], size, components).to(dtype)
    twins = Twins(components, size, golden["projector"]).to(dtype)
    parts = nn.ModuleDict({"encoder": encoder, **dict(twins.named_children())})
    parts.load_state_dict(
        {key.removeprefix("init."): value for key, value in golden.items() if key[:5] == "init."}
    )
    optimizer = optim.lars(parts.parameters(), lr=float(golden["learning_rate"]) * batch / 256)
    schedule = optim.twin_cosine(
        optimizer,
        total_steps=len(golden["lrs"]),
        epochs=epochs,
        warmup_epochs=int(golden["warmup_epochs"]),
        num_samples=n,
        batch_size=batch,
    )
    graph = golden["knn"]
    assert np.array_equal(
        knn_pairs(golden["X"].numpy(), int(golden["n_neighbors"]), metric="cosine").index,
        graph.numpy(),
    )
    rates = []

    def pairs():
        for index, column in zip(golden["indices"], golden["neighbour_column"], strict=True):
            rates.append(optimizer.param_groups[0]["lr"])
            yield x[index], x[graph[index, column]]

    losses = list(train_on_pairs(encoder, twins, optimizer, schedule, pairs()))
    atol = 1e-7 if double else 1e-5
    suffix = "_f64" if double else ""
    vectors.close(torch.tensor(rates, dtype=torch.float64), golden["lrs"].double(), atol=1e-9)
    expected = golden[f"losses{suffix}"].double()
    vectors.close(torch.stack(losses).double(), expected, atol=atol, rtol=1e-5)
    prefix = "final_f64." if double else "final."
    for key, value in parts.state_dict().items():
        vectors.close(value.double(), golden[prefix + key].double(), atol=atol, rtol=1e-5)
    with torch.no_grad():
        codes = encoder.eval()(x[:20])
    vectors.close(codes.double(), golden[f"Z{suffix}"].double(), atol=atol, rtol=1e-5)


def test_released_states_are_read_and_transform_as_released(tmp_path):
    golden = load("fit_trace_mlp")
    state = {k.removeprefix("final."): v for k, v in golden.items() if k[:6] == "final."}
    architecture = {
        "inputdim": 10, "n_components": 3, "encoder": "mlp-1-8", "projector": "mlp-2-12",
        "batch_size": 25, "scale_loss": 1 / 32, "lambd": 3.9e-3, "norm_layer": "BN", "loss": "BT",
    }  # fmt: skip
    torch.save({"state_dict": state, "architecture": architecture}, tmp_path / "released.pth")
    model = TLDR().load(tmp_path / "released.pth", init=True)
    found = model.transform(golden["X"][:20])
    assert isinstance(found, torch.Tensor)
    vectors.close(found, golden["Z"], atol=1e-5)
    vectors.close(model.transform(golden["X"][:20], l2_norm=True), golden["Z_l2"], atol=1e-5)


def test_released_whitening():
    golden = vectors.arrays(paths.GOLDEN / "tldr", "whiten")
    found, matrix = whiten(golden["X"], fudge=float(golden["fudge"]))
    vectors.close(found, golden["X_white"], atol=1e-8)
    vectors.close(matrix, golden["W"], atol=1e-8)


# -- scikit-learn --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*check_array_api_input")
@pytest.mark.long
def test_the_contract_of_scikit_learn():
    check_estimator(
        TLDR(2, projector="mlp-1-8", batch_size=8, epochs=2, warmup_epochs=0, n_neighbors=2)
    )


def test_names_and_defaults_are_the_published_ones():
    defaults = TLDR().get_params()
    assert defaults.pop("knn_metric") == "cosine"
    assert defaults.pop("optimizer") == "lars"
    assert defaults == {
        "n_components": 32, "encoder": "linear", "projector": "mlp-2-2048", "n_neighbors": 5,
        "pin_memory": False, "knn_approximation": None, "knn_graph": None, "inputdim": None,
        "batch_size": 1024, "scale_loss": 1 / 32, "lambd": 3.9e-3, "epochs": 100,
        "learning_rate": 0.2, "warmup_epochs": 10, "norm_layer": "BN", "loss": "BT",
        "gaussian": False, "output_folder": None, "snapshot_freq": 0, "resume": False,
        "save_best": False, "verbose": 0, "random_state": None, "device": "cpu", "writer": None,
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "mlp-1-6", "norm_layer": "LN"},
        {"gaussian": True},
        {"loss": "MSE", "projector": "mlp-1-8"},
        {"projector": None},
        {"optimizer": "adam"},
        {"pin_memory": True},
        {"knn_metric": "l2"},
    ],
)
def test_every_option_learns_and_repeats_itself(settings):
    x = rows()
    model = tiny(learning_rate=20, **settings).fit(x)
    assert len(model.loss_curve_) == 3
    assert model.loss_curve_[-1] != model.loss_curve_[0]
    again = clone(model).fit(x)
    assert np.array_equal(model.transform(x), again.transform(x))
    assert model.transform(x).dtype == np.float32
    other = clone(model).set_params(random_state=1).fit(x)
    assert not np.array_equal(model.transform(x), other.transform(x))


def test_rows_of_a_memory_map_are_read_batch_by_batch(tmp_path):
    x = rows(100)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = tiny()
    assert np.shares_memory(model._rows(mapped, reset=True), mapped)
    assert np.array_equal(model.fit(mapped).transform(mapped), tiny().fit(x).transform(x))


def test_parts_of_a_transform_are_those_of_the_whole():
    x = rows(100)
    model = tiny().fit(x)
    parts = model.transform(x, batching_threshold=10, amount_batches=7)
    np.testing.assert_allclose(parts, model.transform(x), atol=1e-6)
    unit = model.transform(x, l2_norm=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("encoder", ["linear", "flinear-2-5"])
def test_a_linear_encoder_is_a_matrix(encoder):
    x = rows()
    model = tiny(encoder=encoder).fit(x)
    weight, bias = model.linear_map()
    assert weight.shape == (8, 3)
    np.testing.assert_allclose(x @ weight + bias, model.transform(x), atol=1e-5)
    with pytest.raises(EstimatorError, match="no linear map"):
        tiny(encoder="mlp-1-4").fit(x).linear_map()


@pytest.mark.parametrize(
    "settings",
    [{}, {"encoder": "flinear-1-5"}, {"encoder": "mlp-2-6", "norm_layer": "LN"},
     {"encoder": "mlp-1-6"}],
)  # fmt: skip
@pytest.mark.long
def test_an_onnx_model_gives_the_same_codes(settings, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    x = rows()
    model = tiny(**settings).fit(x)
    for l2_norm in (False, True):
        model.export_onnx(tmp_path / "model.onnx", l2_norm=l2_norm)
        session = runtime.InferenceSession(
            str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(["codes"], {"rows": x[:9]})
        np.testing.assert_allclose(found, model.transform(x, l2_norm=l2_norm)[:9], atol=1e-5)


# -- the traps of the release --------------------------------------------------------------------


def test_more_rows_in_a_batch_than_there_are_is_an_error_and_not_an_idle_fit():
    with pytest.raises(ValueError, match="exceeds the 64 rows, so that no step would be taken"):
        tiny(batch_size=65).fit(rows())
    with pytest.raises(UserError, match="exceeds the 64 rows"):
        tiny().fit(rows(), batch_size=65)


@pytest.mark.parametrize("warmup", [3, 4])
def test_a_warm_up_that_never_ends(warmup):
    with pytest.raises(EstimatorError, match="must be fewer than epochs=3"):
        tiny(warmup_epochs=warmup).fit(rows())


def test_few_steps_are_warned_of_and_enough_are_not():
    with pytest.warns(ConvergenceWarning, match="raise the learning rate about"):
        tiny().fit(rows())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        tiny(learning_rate=2000).fit(rows())


def test_a_second_fit_has_a_graph_of_its_own_and_a_projector():
    first, second = rows(), rows(80, seed=1)
    model = tiny().fit(first)
    assert np.array_equal(model.fit(second).get_knn(), knn_pairs(second, 5).index)
    assert np.array_equal(model.transform(second), tiny().fit(second).transform(second))


def test_saving_leaves_the_object_as_it_is(tmp_path):
    x = rows()
    model = tiny().fit(x)
    before = model.get_params()
    model.save(tmp_path / "model.pth")
    assert model.get_params() == before
    fresh = tiny().load(tmp_path / "model.pth")
    assert np.array_equal(fresh.transform(x), model.transform(x))
    assert np.array_equal(fresh.fit(x).transform(x), model.transform(x))
    assert pickle.loads(pickle.dumps(model)).transform(x).shape == (64, 3)


def test_files_of_another_architecture_or_kind_are_refused(tmp_path):
    tiny().fit(rows()).save(tmp_path / "model.pth")
    with pytest.raises(EstimatorError, match="n_components=3, and this object has n_components=4"):
        tiny(n_components=4).load(tmp_path / "model.pth")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    for name, sentence in [("other.pth", "names no architecture"), ("none.pth", "There is no")]:
        with pytest.raises(EstimatorError, match=sentence):
            TLDR().load(tmp_path / name)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(subprocess.run))
    with pytest.raises(EstimatorError, match="is not a model of TLDR"):
        TLDR().load(tmp_path / "evil.pth")


def test_a_resumed_fit_ends_where_the_uninterrupted_one_ends(tmp_path):
    class Interrupted(Exception):
        pass

    class Writer:
        def add_scalar(self, name, value, epoch):
            if epoch == 3:
                raise Interrupted

    x = rows()
    settings = {"epochs": 6, "learning_rate": 50, "encoder": "mlp-1-6"}
    whole = tiny(**settings).fit(x)
    model = tiny(**settings, output_folder=str(tmp_path), snapshot_freq=2, writer=Writer())
    with pytest.raises(Interrupted):
        model.fit(x)
    assert {file.name for file in tmp_path.iterdir()} == {
        "latest_snapshot.pth", "snapshot_2.pth"
    }  # fmt: skip
    resumed = tiny(**settings, output_folder=tmp_path, resume=True).fit(x)
    assert np.array_equal(resumed.transform(x), whole.transform(x))
    assert resumed.loss_curve_ == whole.loss_curve_
    assert resumed.twins_ is None
    final = TLDR().load(tmp_path / "final_model.pth", init=True)
    assert np.array_equal(final.transform(x), whole.transform(x))


def test_graphs_are_given_saved_and_used_once(tmp_path):
    x = rows()
    model = tiny(n_neighbors=4)
    graph = model.compute_knn(x)
    model.save_knn(tmp_path / "graph.npy")
    assert np.array_equal(np.load(tmp_path / "graph.npy"), graph)
    given = tiny(n_neighbors=4).fit(x, knn_graph=graph)
    assert np.array_equal(given.transform(x), tiny(n_neighbors=4).fit(x).transform(x))
    oracle = {row: [(row + 1) % 64, (row + 2) % 64][: 1 + row % 2] for row in range(64)}
    assert tiny(knn_graph=oracle).fit(x).get_knn().shape == (64, 2)
    loaded = tiny(n_neighbors=2)
    loaded.load_knn(tmp_path / "graph.npy")
    assert np.array_equal(loaded.fit(x).get_knn(), graph[:, :2])
    with pytest.raises(EstimatorError, match="lists 4 neighbours of each row, and n_neighbors=5"):
        tiny(knn_graph=graph).fit(x)


def test_the_best_model_by_a_data_set_of_ones_own(tmp_path):
    class Own:
        scores = iter([0.2, 0.9, 0.5])

        def transform(self, model):
            self.codes = model.transform(rows(5))

        def evaluate(self, l2_norm, whiten, metric):
            return next(self.scores)

    model = tiny(output_folder=tmp_path, save_best=True)
    model.fit(rows(), dataset_val=Own(), retain_projector=True)
    assert model.best_score_ == 0.9
    best = torch.load(tmp_path / "best.pth", weights_only=True)
    assert best["epoch"] == 2
    assert any(name.startswith("projector.") for name in best["state_dict"])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"encoder": "mpl-1-4"}, "Did you mean 'mlp'"),
        ({"n_components": 0}, "n_components=0 must be a whole number of at least 1"),
        ({"norm_layer": "GN"}, "norm_layer=GN must be BN or LN"),
        ({"inputdim": 9}, "inputdim=9, but the rows have 8 columns"),
        ({"loss": "MSE", "projector": "mlp-1-9"}, r"write e\.g\. mlp-1-8"),
        ({"n_neighbors": 64}, "more neighbours than the 63 other rows"),
    ],
)
def test_what_does_not_fit_is_said(settings, sentence):
    with pytest.raises(EstimatorError, match=sentence):
        tiny(**settings).fit(rows())
