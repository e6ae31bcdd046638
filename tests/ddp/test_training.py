"""What processes that train together cannot share is refused; `tests/conformance` has the rest."""

from support.shell import shell

from noisyml.conformance.recipes import SETTINGS

__all__ = ["shell"]


def test_a_batch_that_processes_cannot_share_is_refused(shell):
    typed = ["dataset=digits", "trainer=ddp_cpu", "sampler=shuffle", "sampler.batch_size=33"]
    done = shell.apart("train", *SETTINGS, *typed)
    assert done.returncode == 2, done.stderr
    assert "cannot be divided among 2 processes" in done.stderr
    assert "Traceback" not in done.stderr
