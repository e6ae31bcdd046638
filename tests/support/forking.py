"""The fork server of `multiprocessing`, forked from the process of the tests.

Started as a Python of its own it spends ten seconds on imports that the tests have done already.
"""

import contextlib
import faulthandler
import os
import sys
from multiprocessing import forkserver, resource_tracker, util

import pytest


def serve():
    """Start it; right before the first test only, after which this process may have threads."""
    resource_tracker.ensure_running()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "spawnv_passfds", _fork)
        forkserver.ensure_running()


def _fork(_, arguments, files):
    server = os.fork()
    if server:
        return server
    try:
        # What only the process of the tests holds: the end of the pipe that tells of its end.
        _, alive, *_ = files
        for other in map(int, os.listdir("/dev/fd")):
            with contextlib.suppress(OSError):
                if other != alive and os.path.sameopenfile(other, alive):
                    os.close(other)
        faulthandler.disable()
        for number, stream in enumerate(("stdout", "stderr"), start=1):
            setattr(sys, stream, os.fdopen(number, "w", closefd=False))
        forkserver._forkserver.__init__()  # its lock is held
        exec(arguments[-1], {})
    finally:
        os._exit(1)
