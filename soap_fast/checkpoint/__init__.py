"""What is saved and loaded: our own layout, and those of other implementations."""

from soap_fast.checkpoint.ours import Layout, read, write

__all__ = ["Layout", "read", "write"]
