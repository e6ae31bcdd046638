"""Commands as a user types them."""

from support.shell import shell

__all__ = ["shell"]
