"""What processes that train together cannot share is refused; `tests/conformance` has the rest."""

import subprocess
import sys

from noisyml.conformance.recipes import SETTINGS


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "noisyml",
            "train",
            *SETTINGS,
            "dataset=digits",
            "trainer=ddp_cpu",
            "sampler=shuffle",
            "sampler.batch_size=33",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be divided among 2 processes" in done.stderr
    assert "Traceback" not in done.stderr
