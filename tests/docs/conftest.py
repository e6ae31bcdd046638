"""Commands as a reader types them."""

from support.shell import shell

__all__ = ["shell"]
