"""Silence for messages of the libraries that a user of the command line need not read."""

import logging
import warnings


def quiet() -> None:
    """Silence banners, tips and warnings that ask for nothing from the user."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*GPU available but not used.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*is smaller than the logging interval.*",
        ".*litlogger.*",
        ".*in eval mode at the start of training.*",
        ".*dataloader is not resumable.*",
        ".*sync_dist=True.*",
        ".*Trying to infer the `batch_size`.*",
        ".*Can't initialize NVML.*",
        ".*Be aware that when using `ckpt_path`.*",
        ".*broadcast_buffers.*",
        ".*overridden `on_before_batch_transfer`.*",
        ".*anonymous setting has no effect.*",
    ):
        warnings.filterwarnings("ignore", message=message)
