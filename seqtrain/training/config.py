"""The experiment's config: one locked ConfigDict with every field and its default.

Only `training/` and `launch/` see it. `section` turns a part of it into a frozen dataclass, which
is what the layers below receive; a field that a dataclass does not have is an error there.
"""

import dataclasses
from typing import Any, TypeVar

import ml_collections

T = TypeVar('T')


def default() -> ml_collections.ConfigDict:
    """Every field of an experiment; `configs/*.py` change some of them."""
    config = ml_collections.ConfigDict()
    config.name = 'experiment'
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.corpus = 'kaldi'  # yesno, fsdd, synth_digits, or kaldi: folders named below
    config.data.source = ''  # local archive or folder of a named corpus; '' downloads or makes it
    config.data.train = 'train'  # split of a named corpus, or a Kaldi data directory
    config.data.test = 'test'
    config.data.lexicon = ''  # '' takes the corpus's own
    config.data.cache_dir = ''  # '' is ~/.cache/seqtrain
    config.data.max_train = 0  # use only the first so many utterances; 0 is all
    config.data.max_test = 0
    config.data.split_by = 'utterance'  # or speaker: a replica sees only its own speakers
    config.data.batch_size = 8
    config.data.num_buckets = 2
    config.data.speeds = (1.0,)  # copies of the training set at these speeds
    config.data.vtln = (1.0,)  # and with these vocal tract length warps
    config.data.spec_augment = False
    config.spec_augment = ml_collections.ConfigDict()
    config.spec_augment.num_freq_masks = 2
    config.spec_augment.max_freq_width = 8
    config.spec_augment.num_time_masks = 2
    config.spec_augment.max_time_width = 20
    config.spec_augment.max_time_fraction = 0.1

    config.features = ml_collections.ConfigDict()
    config.features.sample_rate = 0  # Hz; 0: the rate that most recordings have
    config.features.num_mel_bins = 40
    config.features.cmvn = 'utterance'  # or speaker, none
    config.features.dither = 1.0

    config.graph = ml_collections.ConfigDict()
    config.graph.topology = 'chain'  # or ctc, hmm1, hmm3
    config.graph.optional_silence = True
    config.graph.phone_lm_order = 3
    config.graph.word_lm_order = 2  # decoding; 0 is a loop of equally likely words
    config.graph.word_lm = ''  # ARPA file; '' estimates it from the training transcripts

    config.model = ml_collections.ConfigDict()
    config.model.kind = 'tdnn'  # or dnn
    config.model.num_hidden = 128
    config.model.subsampling = 3
    config.model.dropout = 0.0
    config.model.offsets = ((-2, -1, 0, 1, 2), (-1, 0, 1), (-1, 0, 1), (-3, 0, 3))  # tdnn
    config.model.num_layers = 3  # dnn
    config.model.left = 10
    config.model.right = 5

    config.exchange = ml_collections.ConfigDict()
    config.exchange.mode = 'async'  # or sync: the same program waits for all replicas
    config.exchange.transport = 'local'  # or ray: shards as Ray actors
    config.exchange.ray_address = ''  # HOST:PORT of a cluster; '' starts Ray on this machine
    config.exchange.num_replicas = 4
    config.exchange.num_shards = 2
    config.exchange.rule = 'adam'  # downpour_adagrad, sgd, dc_asgd, dc_asgd_adaptive
    config.exchange.scale_by_frames = False  # a batch with more frames weighs more
    config.exchange.scale_by_staleness = False  # η/τ
    config.exchange.max_staleness = -1  # −1: unbounded
    config.exchange.on_stale = 'wait'  # or drop: what happens beyond the bound
    config.exchange.overlap = True  # compute the next step while the last push is on its way
    config.exchange.clip_norm = 5.0  # in the replica, before the push; 0: off

    config.bootstrap = ml_collections.ConfigDict()
    config.bootstrap.rounds = 5  # of CE updates, a Viterbi realignment before each but the first
    config.bootstrap.updates = 40  # per round, over all replicas
    config.bootstrap.learning_rate = 2e-3

    config.sequence = ml_collections.ConfigDict()
    config.sequence.criterion = 'mmi'  # lattice-free; or smbr, mpe
    config.sequence.boost = 0.0  # b of boosted MMI, usually 0.05 to 0.1
    config.sequence.updates = 150
    config.sequence.learning_rate = 1e-3
    config.sequence.final_learning_rate = 1e-4  # exponential decay
    config.sequence.leaky = 0.0
    config.sequence.ce_weight = 0.0  # F-smoothing with the bootstrap's alignment
    config.sequence.output_l2 = 1e-4

    config.decode = ml_collections.ConfigDict()
    config.decode.acoustic_scale = 1.0
    config.decode.beam = 15.0
    config.decode.max_active = 7000
    config.decode.phone_error_rate = False  # decode phones too, with a phone bigram

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_updates = 100
    config.checkpoint.keep = 2
    return config.lock()


def from_json(values: dict[str, Any]) -> ml_collections.ConfigDict:
    """A run's own config again; fields that came later have their defaults."""
    config = default()
    with config.unlocked():
        config.update(ml_collections.ConfigDict(values, convert_dict=True))
    return config


def section(cls: type[T], config: ml_collections.ConfigDict, **extra: Any) -> T:
    """Builds the frozen dataclass `cls` from a section of the config and `extra` fields.

    Raises:
      ValueError: `config` has a field that `cls` does not know.
    """
    values = {**config.to_dict(), **extra}
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - known):
        raise ValueError(f'{cls.__name__} has no field {unknown[0]!r}; it has {sorted(known)}.')
    return cls(**values)


def pick(config: ml_collections.ConfigDict, *names: str) -> dict[str, Any]:
    """The named fields of a section as a dict (attribute access: a typo raises)."""
    return {name: getattr(config, name) for name in names}
