"""Loggers that never ask anything, and wait for nobody."""

import socket

import pytest

from noisyml.callbacks import loggers


@pytest.mark.long
def test_a_server_that_does_not_answer_makes_the_run_offline(tmp_path, monkeypatch, caplog):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setattr(loggers, "PATIENCE", 0.2)
        logger = loggers.wandb_logger(str(tmp_path), "project", "run")
    assert logger._offline
    assert "no answer from http://127.0.0.1" in caplog.text
