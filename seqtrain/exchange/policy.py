"""`Policy`: in what order and how late a shard may apply its replicas' pushes."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Policy:
    """How a shard orders its replicas.

    Attributes:
      mode: 'async' or 'sync'.
      num_workers: replicas that may join; their numbers are 0 … num_workers − 1.
      quorum: sync only: pushes per round; None means all replicas.
      max_staleness: async only: the bound τ on the server age s1; None means unbounded.
      on_stale: 'wait' (the server holds pulls and pushes back so that no push ever becomes older
        than τ) or 'drop' (older pushes are refused).
    """

    mode: str = 'async'
    num_workers: int = 1
    quorum: int | None = None
    max_staleness: int | None = None
    on_stale: str = 'wait'

    def __post_init__(self):
        if self.mode not in ('async', 'sync'):
            raise ValueError(f"mode is {self.mode!r}; choose 'async' or 'sync'.")
        if self.on_stale not in ('wait', 'drop'):
            raise ValueError(f"on_stale is {self.on_stale!r}; choose 'wait' or 'drop'.")
        if self.num_workers < 1:
            raise ValueError(f'num_workers is {self.num_workers}; at least one replica.')
        if self.quorum is not None and not 1 <= self.quorum <= self.num_workers:
            raise ValueError(f'quorum is {self.quorum}; choose 1 … {self.num_workers}.')
        if self.max_staleness is not None and self.max_staleness < 0:
            raise ValueError(f'max_staleness is {self.max_staleness}; choose 0 or more, or None.')
        if self.quorum is not None and not self.sync:
            raise ValueError(
                f"quorum is {self.quorum}, but only mode='sync' reads it: leave it out."
            )
        if self.max_staleness is not None and self.sync:
            raise ValueError(
                f"max_staleness is {self.max_staleness}, but only mode='async' reads it: leave it "
                'out.'
            )

    @property
    def sync(self) -> bool:
        return self.mode == 'sync'

    @property
    def waits(self) -> bool:
        """Whether the server holds messages back to keep the staleness bound."""
        return not self.sync and self.max_staleness is not None and self.on_stale == 'wait'


def check_lease(lease_s: float | None) -> None:
    """Raises for a lease that nobody could keep.

    Raises:
      ValueError: it is not above 0 seconds.
    """
    if lease_s is not None and not lease_s > 0:
        raise ValueError(f'lease_s is {lease_s}; give seconds above 0, or None for never.')
