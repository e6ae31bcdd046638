"""Folders of the checkout."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
CONF = ROOT / "conf"
GOLDEN = TESTS / "golden"
