"""Where processes that torchrun starts again find one another."""

from __future__ import annotations

import datetime
import os
import time
import uuid

import torch.distributed as dist

PREFIX = "dynroute"
PAUSE = 0.02  # seconds between the first process's looks
TIMEOUT = datetime.timedelta(minutes=30)


def agents_store() -> dist.Store | None:
    """The store of the torchrun that started this process, for `torch.distributed.init_process_group`; None: there is
    none, or it begins with each start.

    It outlives the processes that die and are started again, and with them the addresses that they left there: the new
    ones would wait for the dead (pytorch issue 135712). So they take a name that only they know. How often a process
    was started does not do as one: on several machines torchrun counts otherwise on each.

    Raises:
        ConnectionError: processes that do not come.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, is_master=False, timeout=TIMEOUT)
    return dist.PrefixStore(f"{PREFIX}/{agreed_name(store, rank, size)}", store)


def agreed_name(store: dist.Store, rank: int, size: int, timeout: datetime.timedelta = TIMEOUT) -> str:
    """A name that these processes, all started anew, have in common and no other had before.

    The first process answers whoever greets it until all have thanked it for its own name; greetings of the dead are
    answered too, and thanked by nobody.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"{PREFIX}/greeting/{rank}", own)
        try:
            name = store.get(f"{PREFIX}/answer/{own}").decode()
        except RuntimeError as error:
            raise ConnectionError("the first process of this run does not come") from error
        store.set(f"{PREFIX}/thanks/{name}/{rank}", "")
        return name
    missing, deadline = set(range(1, size)), time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"{PREFIX}/greeting/{other}"]):
                store.set(f"{PREFIX}/answer/{store.get(f'{PREFIX}/greeting/{other}').decode()}", own)
            if store.check([f"{PREFIX}/thanks/{own}/{other}"]):
                missing.discard(other)
        if time.monotonic() > deadline:
            raise ConnectionError(f"processes {sorted(missing)} of this run do not come")
        time.sleep(PAUSE)
    return own
