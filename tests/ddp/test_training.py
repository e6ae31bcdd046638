"""What processes that train together cannot share is refused; `tests/conformance` has the rest."""

from support.shell import shell

from noisyml.conformance.recipes import SETTINGS

__all__ = ["shell"]


def test_a_batch_that_processes_cannot_share_is_refused(shell):
    typed = ["dataset=digits", "trainer=ddp_cpu", "sampler=shuffle", "sampler.batch_size=33"]
    ended = [rank.wait() for rank in shell.ranks(2, "train", *SETTINGS, *typed)]
    assert [rank.returncode for rank in ended] == [2, 2], ended
    assert "cannot be divided among 2 processes" in ended[0].stderr
    assert "Traceback" not in ended[0].stderr + ended[1].stderr
