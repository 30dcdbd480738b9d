"""The leases of this process, kept alive by a thread of their own."""

from __future__ import annotations

import logging
import threading

from hyperfarm.errors import DatabaseError
from hyperfarm.reaping import Reaper
from hyperfarm.store import Store

log = logging.getLogger("hyperfarm")
REAP_EVERY_S = 5.0


class Leases:
    """Renews leases, and takes back those of others that have expired, while this process lives.

    A lease that is lost is no longer renewed; the next write under it says so (LeaseLost). Thread-safe.
    """

    def __init__(self, store: Store, lease_s: float) -> None:
        self.lease_s = lease_s
        self._store, self._reaper = store, Reaper(store)
        self._lock = threading.Lock()
        self._tokens: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="leases")
        self._thread.start()

    def hold(self, token: str) -> None:
        with self._lock:
            self._tokens.add(token)

    def let_go(self, token: str) -> None:
        with self._lock:
            self._tokens.discard(token)

    def close(self) -> None:
        """Renew no more."""
        self._ended.set()
        self._thread.join(1.0)

    def _keep(self) -> None:
        while not self._ended.wait(min(self.lease_s / 3, REAP_EVERY_S)):
            try:
                with self._lock:
                    held = list(self._tokens)
                for token in self._store.renew(held, self.lease_s):
                    self.let_go(token)
                self._reaper.look()
            except DatabaseError as error:
                log.info("%s", error)
            except Exception:
                # Nothing may end this thread: without it every lease is lost.
                log.exception("renewing leases met an error of hyperfarm's own, and goes on")
