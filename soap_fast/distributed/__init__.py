"""Several processes that step the same parameters share the work; `docs/distributed.md`."""

from soap_fast.distributed.sharing import ALONE, SHARDINGS, Alone, Sharding, Sharing, sharing_of

__all__ = ["ALONE", "SHARDINGS", "Alone", "Sharding", "Sharing", "sharing_of"]
