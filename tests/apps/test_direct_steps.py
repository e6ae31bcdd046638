"""Direct steps compute what Lightning's loop computes, and give way to a hook that is filled in."""

import lightning
import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule
from omegaconf import OmegaConf

from noisyml.apps._common.direct_steps import (
    BATCH_HOOKS,
    METHOD_HOOKS,
    STEP_HOOKS,
    DirectSteps,
    steps_can_be_direct,
)
from noisyml.apps._common.trainer import leave_out_idle_hooks, make_trainer

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
NODE = OmegaConf.create(
    {"_target_": "lightning.Trainer", "accelerator": "cpu", "devices": 1, "max_epochs": 3}
)


class Regression(LightningModule):
    """A network on dictionaries of rows, with schedules, validation and logged values."""

    def __init__(self, plateau=False):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.Dropout(),
            torch.nn.Linear(8, 1),
        )
        self.plateau = plateau
        self.after = []

    def training_step(self, batch, batch_idx):
        loss = self.net(batch["x"]).square().mean()
        self.log("fit", loss)
        return {"loss": loss, "number": batch_idx}

    def on_after_backward(self):
        self.after.append(self.global_step)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.net(batch["x"]).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        if self.plateau:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return [optimizer], [{"scheduler": scheduler, "monitor": "val"}]
        steps = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": steps, "interval": "step"}]


class Rows(LightningDataModule):
    """Ten rows of three."""

    def train_dataloader(self):
        rows = torch.arange(30.0).view(10, 3).sin()
        return torch.utils.data.DataLoader([{"x": row} for row in rows], batch_size=4)

    val_dataloader = train_dataloader


class Watching(Callback):
    """Keeps what the end of each batch was told."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        assert not outputs["loss"].requires_grad
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append((trainer.global_step, batch_idx, float(outputs["loss"]), rate))


def fitted(make, folder, module=None, callbacks=(), data=None, ckpt=None, **settings):
    """Trainer, module and what was seen after training."""
    watching, module = Watching(), module or Regression()
    saving = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, save_last=True, every_n_train_steps=1
    )
    trainer = make([watching, saving, *callbacks], **{**QUIET, **settings})
    torch.manual_seed(1)
    trainer.fit(module, datamodule=data or Rows(), ckpt_path=ckpt)
    return trainer, module, watching.seen


def plain(callbacks, **settings):
    """Lightning's own trainer."""
    return lightning.Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, **{"max_epochs": 3, **settings}
    )


def ours(callbacks, **settings):
    """The trainer of all verbs."""
    node = OmegaConf.merge(NODE, {"profiler": settings.pop("profiler", None)})
    return make_trainer(node, callbacks, **settings)


def saved(folder):
    state = torch.load(folder / "last.ckpt", weights_only=True)
    return {name: state[name] for name in ("loops", "global_step", "epoch", "lr_schedulers")}


@pytest.mark.long
@pytest.mark.parametrize("plateau", [False, True])
@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 2}, {"max_steps": 5}], ids=str)
def test_the_same_steps_weights_and_checkpoints_as_lightnings_loop(tmp_path, plateau, settings):
    trainer, expected, seen = fitted(plain, tmp_path / "a", Regression(plateau), **settings)
    own, module, watched = fitted(ours, tmp_path / "b", Regression(plateau), **settings)
    assert own.fit_loop.epoch_loop.automatic_optimization.is_direct
    assert watched == seen
    assert module.after == expected.after
    for name, tensor in expected.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name
    assert saved(tmp_path / "b") == saved(tmp_path / "a")
    assert own.callback_metrics.keys() == trainer.callback_metrics.keys() == {"fit", "val"}
    assert own.callback_metrics["fit"] == trainer.callback_metrics["fit"]


def test_a_run_goes_on_from_lightnings_checkpoint_in_the_middle_of_an_epoch(tmp_path):
    fitted(plain, tmp_path / "a", max_steps=4)
    whole = [
        fitted(make, tmp_path / name, ckpt=tmp_path / "a" / "last.ckpt")[1:]
        for name, make in (("b", plain), ("c", ours))
    ]
    assert whole[0][1] == whole[1][1]
    assert torch.equal(whole[0][0].net[0].weight, whole[1][0].net[0].weight)


def filled(base, hook):
    """A class on `base` whose hook counts its calls, then does what it did before."""

    def call(self, *args, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        return getattr(base, hook)(self, *args, **kwargs)

    return type("Filled", (base,), {hook: call})()


@pytest.mark.long
@pytest.mark.parametrize("hook", METHOD_HOOKS + BATCH_HOOKS)
def test_a_hook_of_a_method_is_called_in_every_step(tmp_path, hook):
    module = filled(Regression, hook)
    leave_out_idle_hooks(module)
    fitted(ours, tmp_path, module, limit_val_batches=0)
    assert module.calls == 9


@pytest.mark.long
@pytest.mark.parametrize("hook", STEP_HOOKS)
def test_a_hook_of_a_callback_is_called_in_every_step(tmp_path, hook):
    callback = filled(Callback, hook)
    fitted(ours, tmp_path, callbacks=[callback], limit_val_batches=0)
    assert callback.calls == 9


@pytest.mark.long
@pytest.mark.parametrize("hook", BATCH_HOOKS)
def test_a_hook_of_a_data_module_is_called_for_every_batch(tmp_path, hook):
    data = filled(Rows, hook)
    fitted(ours, tmp_path, data=data, limit_val_batches=0)
    assert data.calls == 9


def test_a_schedule_with_a_rule_of_its_own_is_followed(tmp_path):
    module = filled(Regression, "lr_scheduler_step")
    fitted(ours, tmp_path, module)
    assert module.calls == 9


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"profiler": "simple"},
    ],
    ids=str,
)
def test_what_lightning_does_in_a_step_is_left_to_it(tmp_path, settings):
    expected = fitted(plain, tmp_path / "a", **settings)
    trainer, module, seen = fitted(ours, tmp_path / "b", **settings)
    assert not steps_can_be_direct(trainer)
    assert isinstance(trainer.fit_loop.epoch_loop.automatic_optimization, DirectSteps)
    assert seen == expected[2]
    assert torch.equal(module.net[0].weight, expected[1].net[0].weight)


def test_a_step_may_return_its_loss_alone(tmp_path):
    class Bare(Regression):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)["loss"]

    assert fitted(ours, tmp_path / "a", Bare())[2] == fitted(plain, tmp_path / "b", Bare())[2]
