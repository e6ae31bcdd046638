"""What Weights & Biases has recorded offline, read with its own messages."""

import struct
import time


def records_of_wandb(run, patience=30.0):
    """The messages of the finished offline run in a run folder.

    The service that writes them may be some milliseconds behind the end of the run.
    """
    from wandb.proto import wandb_internal_pb2 as messages

    (file,) = [f for f in (run / "wandb").rglob("run-*.wandb") if not f.parent.is_symlink()]
    end = time.monotonic() + patience
    while True:
        content = file.read_bytes()
        records = [messages.Record.FromString(r) for r in records_of_a_log(content, start=7)]
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < end, f"{file} has {len(records)} records and no end"
        time.sleep(0.05)


def records_of_a_log(content, start, block=2**15):
    """Records of a log in LevelDB's format: in one piece (kind 1), or in several (2, 3 ..., 4)."""
    place, whole = start, b""
    while place + 7 <= len(content):
        _, size, kind = struct.unpack_from("<IHB", content, place)
        if block - place % block < 7 or kind == 0:
            place += block - place % block
            continue
        if place + 7 + size > len(content):  # still being written
            return
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""
