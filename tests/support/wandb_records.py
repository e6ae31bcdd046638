"""What Weights & Biases has recorded offline, read with its own messages."""

import struct


def records_of_wandb(run):
    """The messages of the offline run in a run folder."""
    from wandb.proto import wandb_internal_pb2 as messages

    (file,) = [f for f in (run / "wandb").rglob("run-*.wandb") if not f.parent.is_symlink()]
    for data in records_of_a_log(file.read_bytes(), start=7):
        yield messages.Record.FromString(data)


def records_of_a_log(content, start, block=2**15):
    """Records of a log in LevelDB's format: in one piece (kind 1), or in several (2, 3 ..., 4)."""
    place, whole = start, b""
    while place + 7 <= len(content):
        _, size, kind = struct.unpack_from("<IHB", content, place)
        if block - place % block < 7 or kind == 0:
            place += block - place % block
            continue
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""
