"""Several processes that step the same parameters share the work; `docs/distributed.md`."""

from soap_fast.distributed.choice import SHARDINGS, Sharding, sharing_of
from soap_fast.distributed.together import ALONE, Alone, Entries, Groups

__all__ = ["ALONE", "SHARDINGS", "Alone", "Entries", "Groups", "Sharding", "sharing_of"]
