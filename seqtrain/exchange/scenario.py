"""What is simulated, and what came out: distributions, scenarios, toy problems, results."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from seqtrain.exchange.policy import Policy

KINDS = ('constant', 'uniform', 'exponential', 'lognormal')


@dataclasses.dataclass(frozen=True)
class Dist:
    """A distribution of positive numbers.

    Attributes:
      kind: 'constant', 'uniform' (mean · [1−spread, 1+spread]), 'exponential' or 'lognormal'
        (`spread` is the σ of the logarithm; the mean is kept).
      mean: its mean.
      spread: see kind.
    """

    kind: str = 'constant'
    mean: float = 1.0
    spread: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f'{self.kind!r} is no distribution; choose one of {KINDS}.')
        if not (self.mean >= 0 and self.spread >= 0) or (
            self.kind == 'uniform' and self.spread > 1
        ):
            raise ValueError(f'{self} would give negative numbers, or none at all.')

    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """f64[size]."""
        if self.kind == 'uniform':
            return self.mean * rng.uniform(1 - self.spread, 1 + self.spread, size)
        if self.kind == 'exponential':
            return rng.exponential(self.mean, size)
        if self.kind == 'lognormal':
            return self.mean * rng.lognormal(-(self.spread**2) / 2, self.spread, size)
        return np.full(size, self.mean)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Attributes:
      policy: mode, number of replicas, staleness bound.
      duration_s: virtual seconds.
      seed: of everything.
      step_s: time to compute one update.
      slowness: factor on a replica's `step_s`, drawn once per replica.
      slow: (replica, factor) pairs on top of that.
      latency_s: one way; a push and the pull after it travel together.
      bandwidth: bytes per second of a replica's line in each direction, for all shards together;
        drawn once per replica.
      size: parameters in all (4 bytes each).
      num_shards: shards.
      apply_s: how long a shard is busy with one push, serve_s: with one pull.
      queue_size: pushes of a replica that may be under way before it rests.
      overlap: go on computing while the exchange goes on, with the parameters at hand; False waits
        for the pull that follows a push (see `Client`).
      replica_mtbf_s: mean time between a replica's deaths (exponential; inf: never), restart_s:
        until it is back, lease_s: after which the shards let go of it.
      shard_mtbf_s, shard_restart_s: the same for shards; checkpoint_s: how often they save.
      sample_s: how often the loss is measured.
    """

    policy: Policy
    duration_s: float = 600.0
    seed: int = 0
    step_s: Dist = Dist('lognormal', 1.0, 0.2)
    slowness: Dist = Dist()
    slow: tuple[tuple[int, float], ...] = ()
    latency_s: Dist = Dist('exponential', 1e-3)
    bandwidth: Dist = Dist('constant', 1e9)
    size: int = 1_000_000
    num_shards: int = 1
    apply_s: float = 1e-3
    serve_s: float = 1e-4
    queue_size: int = 2
    overlap: bool = True
    replica_mtbf_s: float = float('inf')
    restart_s: float = 30.0
    lease_s: float = 60.0
    shard_mtbf_s: float = float('inf')
    shard_restart_s: float = 10.0
    checkpoint_s: float = 60.0
    sample_s: float = 10.0

    def __post_init__(self):
        for name in _ABOVE_0:
            if not getattr(self, name) > 0:
                raise ValueError(f'{name} is {getattr(self, name)}; it must be above 0.')
        for name in _FROM_0:
            if not getattr(self, name) >= 0:
                raise ValueError(f'{name} is {getattr(self, name)}; it must be 0 or above.')
        if not np.isfinite(self.duration_s):
            raise ValueError('duration_s is infinite; a simulation needs an end.')
        if not self.bandwidth.mean > 0:
            raise ValueError('The mean bandwidth must be above 0.')
        if self.num_shards > self.size:
            raise ValueError(f'num_shards is {self.num_shards} for {self.size} parameters.')
        if not self.step_s.mean * self.slowness.mean + self.latency_s.mean + self.apply_s > 0:
            raise ValueError('Steps, messages and shards that all take no time: nothing ever ends.')
        for replica, factor in self.slow:
            if not 0 <= replica < self.policy.num_workers or not 0 < factor < float('inf'):
                raise ValueError(
                    f'slow={replica}:{factor}; give a replica from 0 to '
                    f'{self.policy.num_workers - 1} and a positive factor.'
                )


_ABOVE_0 = (
    'duration_s', 'size', 'num_shards', 'queue_size', 'replica_mtbf_s', 'shard_mtbf_s',
    'checkpoint_s', 'sample_s',
)  # fmt: skip
_FROM_0 = ('apply_s', 'serve_s', 'restart_s', 'lease_s', 'shard_restart_s')


class Problem(Protocol):
    """Something to train, as a flat vector."""

    def start(self) -> np.ndarray:
        """f32[n], initial values."""

    def gradient(self, values: np.ndarray, worker: int, step: int) -> np.ndarray:
        """f32[n], replica's gradient at values; deterministic in its arguments."""

    def loss(self, values: np.ndarray) -> float:
        """The loss of values."""


class Quadratic:
    """The toy: ½ Σ_i h_i (w_i − w*_i)², noisy gradients, curvatures from 1 to 1/condition.

    Args:
      size: parameters.
      condition: largest over smallest curvature.
      noise: standard deviation of a gradient's noise per parameter.
      skew: distance between a replica's own optimum and w* (data that are not alike).
      seed: of all of it.
    """

    def __init__(
        self,
        size: int = 50,
        condition: float = 20.0,
        noise: float = 0.1,
        skew: float = 0.0,
        seed: int = 0,
    ):
        rng = np.random.default_rng(seed)
        self._seed, self._noise, self._skew = seed, noise, skew
        self._curvature = np.geomspace(1.0, 1.0 / condition, size).astype(np.float32)
        self._target = rng.normal(size=size).astype(np.float32)

    def start(self) -> np.ndarray:
        return np.zeros_like(self._target)

    def gradient(self, values: np.ndarray, worker: int, step: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, worker, step))
        own = np.random.default_rng((self._seed, worker)).normal(size=len(values))
        noise = self._noise * rng.normal(size=len(values))
        gap = values - self._target - self._skew * own
        return (self._curvature * gap + noise).astype(np.float32)

    def loss(self, values: np.ndarray) -> float:
        gap = values.astype(np.float64) - self._target  # diverging runs overflow f32
        return float(0.5 * np.sum(self._curvature * gap**2))


@dataclasses.dataclass(frozen=True)
class Result:
    """What happened.

    Attributes:
      scenario: what was simulated.
      time_s, worker, staleness: f64[k], i32[k], i32[k] of each update that shard 0 applied.
      rejected: pushes that were refused, over all shards.
      deaths, shard_deaths: how many.
      busy: f64[N], share of the time that each replica computed.
      loss: (time, loss) samples; empty without a problem.
      events: how many events the simulation went through.
    """

    scenario: Scenario
    time_s: np.ndarray
    worker: np.ndarray
    staleness: np.ndarray
    rejected: int
    deaths: int
    shard_deaths: int
    busy: np.ndarray
    loss: tuple[tuple[float, float], ...]
    events: int

    @property
    def throughput(self) -> float:
        """Pushes applied per second."""
        return len(self.time_s) / self.scenario.duration_s
