"""What a replica's process is told of the training set, and what it makes of that for itself.

Leases and lattices name utterances by their numbers in the whole training set; a process has read
some pools of it (see `remote`).
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from seqtrain.data import features as feature_lib
from seqtrain.data.buckets import Buckets
from seqtrain.data.utterance import DataError
from seqtrain.fsa import Fsa
from seqtrain.graphs import NGramLm, PhoneLm, Topology
from seqtrain.training import align, assembly, devices, prepare
from seqtrain.training.batching import Batcher


@dataclasses.dataclass(frozen=True)
class Pool:
    """Utterances that are leased together, as `data.leases` has them.

    Attributes:
      members: their numbers in the whole training set, growing.
      speakers: whose they are; None: everybody's.
      parts: places in `members` that are aligned together, one part per replica.
      checksum: of their ids, so that a process with other data is found out.
    """

    members: tuple[int, ...]
    speakers: tuple[str, ...] | None
    parts: tuple[tuple[int, ...], ...]
    checksum: int


@dataclasses.dataclass(frozen=True, eq=False)
class Brief:
    """What a process must know of the whole training set to hold its part of it.

    Attributes:
      config: the run's, as JSON types.
      pools: see there.
      phone_lm, topology, denominator: the models that all replicas share.
      word_lm: the one of the denominators' lattices; None: training is lattice-free.
      buckets, graph_sizes: shapes of batches.
      sample_rate: Hz.
      num_inputs: F.
    """

    config: dict[str, Any]
    pools: tuple[Pool, ...]
    phone_lm: PhoneLm
    topology: Topology
    denominator: Fsa
    buckets: Buckets
    graph_sizes: tuple[tuple[int, int], ...]
    sample_rate: int
    num_inputs: int
    word_lm: NGramLm | None = None


def checksum(ids: Sequence[str]) -> int:
    return zlib.crc32('\n'.join(ids).encode())


def saved_aligners(folder: pathlib.Path) -> dict[int, np.ndarray]:
    """f32[n], the parameters that aligned, by the number of the stage they aligned for."""
    return dict(sorted((int(file.stem), np.load(file)) for file in folder.glob('*.npy')))


class Holdings:
    """A process's data: by the numbers that utterances have in the whole training set.

    A pool is read when one of its utterances is asked for.

    Args:
      config: the run's.
      brief: see there.
      align_step: see `steps.make_align`.
      device: where alignments are made.
      first: by pool, i32[sum of output lengths], its first alignments end to end, asked for with
        the pool; None: they are the flat start.

    Attributes:
      aligners: the parameters that aligned, see `Labels`.
      labels: i32[U] of every utterance, of the newest round.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        brief: Brief,
        align_step: Callable[..., Any],
        device: jax.Device,
        first: Any = None,
    ):
        self._config, self._brief = config, brief
        self._align, self._device, self._first = align_step, device, first
        self._held: dict[int, _Held] = {}
        self._places = {
            number: (pool, place)
            for pool, one in enumerate(brief.pools)
            for place, number in enumerate(one.members)
        }
        self.aligners: tuple[Any, ...] = ()
        self.labels = self._by_number(lambda held: held.labels)

    def pool(self, number: int) -> _Held:
        """A pool's data, made when they are first needed, with alignments of the newest round."""
        if number not in self._held:
            pool = self._brief.pools[number]
            data = part_of(self._config, self._brief, pool)
            first = self._first_labels(number, data)
            labels = Labels(data, first, self._config.seed, self._align, self._device, pool.parts)
            self._held[number] = _Held(data, labels)
        held = self._held[number]
        held.labels.aligners = self.aligners
        return held

    @functools.cached_property
    def batcher(self) -> Batcher:
        """Of the whole training set."""
        brief = self._brief
        features = feature_lib.FeatureSet(
            (),
            (),
            self._by_number(lambda held: held.data.features.texts),  # type: ignore[arg-type]
            self._by_number(lambda held: held.data.features.features),  # type: ignore[arg-type]
        )
        data = prepare.TrainingData(
            features,
            self._by_number(lambda held: held.data.numerators),
            brief.denominator,
            brief.buckets,
            brief.graph_sizes,
            assembly.load_lexicon(self._config.data),
            brief.topology,
            self._config.model.subsampling,
        )
        return assembly.batcher(self._config, data)

    def _first_labels(self, number: int, data: prepare.TrainingData) -> list[np.ndarray]:
        if self._first is None:
            return align.flat_start(data, self._config.graph.optional_silence)
        joined = self._first[number]
        if len(joined) != data.output_lengths.sum():
            raise DataError(
                "The recordings that this process finds are not as long as the driver's: "
                'config.data must name the same corpus on every machine.'
            )
        return data.by_utterance(joined)

    def _by_number(self, of: Callable[[_Held], Any]) -> _ByNumber:
        return _ByNumber(self.pool, self._places, of)


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
    """A pool's data and alignments in a process, by the places of its members."""

    data: prepare.TrainingData
    labels: Labels


@dataclasses.dataclass(frozen=True, eq=False)
class _ByNumber(Sequence):
    """What every utterance has one of, by its number in the whole training set.

    Attributes:
      pool: the data of a pool by its number.
      places: each utterance's pool and place in it.
      of: what is asked for, by places.
    """

    pool: Callable[[int], _Held]
    places: Mapping[int, tuple[int, int]]
    of: Callable[[_Held], Any]

    def __getitem__(self, number: Any) -> Any:
        pool, place = self.places[int(number)]
        return self.of(self.pool(pool))[place]

    def __len__(self) -> int:
        return len(self.places)


class Labels:
    """Alignments as a function of the parameters that aligned; made when they are asked for.

    Round r is by the r-th of `aligners`; where that finds no path, by the one before; round 0 are
    the first ones. The same groups are aligned together as in `align.realign`, so the results are
    the same bits.

    Args:
      data: a pool's.
      first: i32[U] per utterance.
      seed: of the batcher.
      align_step: see `steps.make_align`.
      device: where.
      parts: places that are aligned together, see `Pool`.
    """

    def __init__(
        self,
        data: prepare.TrainingData,
        first: Sequence[np.ndarray],
        seed: int,
        align_step: Callable[..., Any],
        device: jax.Device,
        parts: Sequence[Sequence[int]],
    ):
        self.aligners: tuple[Any, ...] = ()
        self._lock = threading.Lock()
        self._batcher, self._align, self._device = Batcher(data, seed), align_step, device
        lengths = data.features.num_frames.tolist()
        groups = [group for part in parts for group in data.buckets.plan(part, lengths)]
        self._group = {index: group for group in groups for index in group[1]}
        self._rounds: list[dict[int, np.ndarray]] = [dict(enumerate(first))]

    def __getitem__(self, index: int) -> np.ndarray:
        """i32[U] of the newest round. Threads may ask at the same time."""
        with self._lock:
            return self._of(len(self.aligners), index)

    def _of(self, number: int, index: int) -> np.ndarray:
        while len(self._rounds) <= number:
            self._rounds.append({})
        made = self._rounds[number]
        if index not in made:
            bucket, indices = self._group[index]
            found = align.paths(
                self._align,
                self.aligners[number - 1],
                self._batcher,
                self._device,
                bucket,
                indices,
            )
            paths = dict(found)
            made |= {i: paths[i] if i in paths else self._of(number - 1, i) for i in indices}
        return made[index]


def part_of(config: ml_collections.ConfigDict, brief: Brief, pool: Pool) -> prepare.TrainingData:
    """The training data of one pool, from this process's own copy of the corpus.

    Raises:
      DataError: the corpus here is not the driver's.
    """
    utterances = assembly.load_split(config.data, 'train')
    settings = assembly.feature_config(config)
    if pool.speakers is not None:
        utterances = [u for u in utterances if u.speaker in pool.speakers]
        settings = dataclasses.replace(settings, sample_rate=brief.sample_rate)
    lexicon, topology = assembly.load_lexicon(config.data), brief.topology
    features = feature_lib.compute_copies(
        utterances,
        settings,
        assembly.copies(config.data),
        str(devices.cache_root(config.data.cache_dir) / 'features'),
    )
    features = prepare.usable(features, lexicon, topology, config.model.subsampling)
    if checksum(features.ids) != pool.checksum or features.dim != brief.num_inputs:
        raise DataError(
            f'This process finds {len(features)} usable training utterances where the driver '
            f'finds {len(pool.members)}, or others: config.data must name the same corpus on '
            'every machine.'
        )
    graph_config = assembly.graph_config(config)
    return prepare.TrainingData(
        features,
        prepare.numerators(features.texts, lexicon, topology, brief.phone_lm, graph_config),
        brief.denominator,
        brief.buckets,
        brief.graph_sizes,
        lexicon,
        topology,
        config.model.subsampling,
    )
