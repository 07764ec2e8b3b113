"""The experiment's config: one locked ConfigDict with every field and its default.

Only `training/` and `launch/` see it. `section` turns a part of it into a frozen dataclass, which
is what the layers below receive; a field that a dataclass does not have is an error there.
"""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import ml_collections
from absl import app
from ml_collections import config_dict

T = TypeVar('T')

_LEAST = {
    'seed': 0,
    'data.batch_size': 1,
    'data.num_buckets': 1,
    'data.max_train': 0,
    'data.max_dev': 0,
    'data.max_test': 0,
    'features.sample_rate': 0,
    'spec_augment.num_freq_masks': 0,
    'spec_augment.max_freq_width': 0,
    'spec_augment.num_time_masks': 0,
    'spec_augment.max_time_width': 0,
    'spec_augment.max_time_fraction': 0,
    'graph.num_tied': 1,
    'graph.min_count': 0,
    'graph.phone_lm_order': 1,
    'graph.word_lm_order': 0,
    'model.num_hidden': 1,
    'model.num_layers': 1,
    'model.left': 0,
    'model.right': 0,
    'model.subsampling': 1,
    'exchange.num_replicas': 1,
    'exchange.num_shards': 1,
    'exchange.local_learning_rate': 0,
    'exchange.max_restarts': 0,
    'exchange.clip_norm': 0,
    'bootstrap.mono_rounds': 0,
    'bootstrap.mono_updates': 0,
    'bootstrap.mono_sequence_updates': 0,
    'bootstrap.rounds': 0,
    'bootstrap.updates': 0,
    'decode.max_active': 2,
    'decode.phone_acoustic_scale': 0,
    'decode.ce_phone_acoustic_scale': 0,
    'sequence.boost': 0,
    'sequence.risk_boost': 0,
    'sequence.updates': 0,
    'sequence.leaky': 0,
    'checkpoint.every_updates': 1,
    'checkpoint.keep': 1,
}
_ABOVE_0 = (
    'decode.acoustic_scale',
    'decode.beam',
    'decode.ce_acoustic_scale',
    'sequence.acoustic_scale',
)
_CHOICES = {
    'graph.word_lm_smoothing': ('witten-bell', 'kneser-ney', 'none'),
    'model.kind': ('tdnn', 'dnn'),
}
_BELOW_1 = ('graph.silence_probability', 'model.dropout', 'bootstrap.average', 'sequence.average')


class ConfigError(ValueError):
    """Fields of the config that cannot be; the message names them and says what to do."""


@contextlib.contextmanager
def checking() -> Iterator[None]:
    """While the config is looked at, and nothing else is done, a ValueError is a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def default() -> ml_collections.ConfigDict:
    """Every field of an experiment; `configs/*.py` change some of them."""
    config = ml_collections.ConfigDict({'name': 'experiment', 'seed': 0})
    config.start_from = ''  # folder of a run whose network and alignments this one begins with
    config.data = _data()
    config.spec_augment = _spec_augment()
    config.features = _features()
    config.graph = _graph()
    config.model = _model()
    config.exchange = _exchange()
    config.bootstrap = _bootstrap()
    config.sequence = _sequence()
    config.lattice = _lattice()
    config.decode = _decode()
    config.checkpoint = _checkpoint()
    return config.lock()


def from_json(values: dict[str, Any]) -> ml_collections.ConfigDict:
    """A run's own config again; fields that came later have their defaults."""
    config = default()
    with config.unlocked():
        config.update(ml_collections.ConfigDict(values, convert_dict=True))
    return config


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a number out of its range that no other check would name in time."""
    _check_finite(config.to_dict(), 'config')
    for name, least in _LEAST.items():
        value = _value(config, name)
        if not value >= least:
            raise ValueError(f'config.{name} is {value}: it must be at least {least}.')
    for name in _BELOW_1:
        value = _value(config, name)
        if not 0 <= value < 1:
            raise ValueError(f'config.{name} is {value}: it must be at least 0 and below 1.')
    for name in _ABOVE_0:
        value = _value(config, name)
        if not value > 0:
            raise ValueError(f'config.{name} is {value}: it must be above 0.')
    for name, choices in _CHOICES.items():
        value = _value(config, name)
        if value not in choices:
            raise ValueError(f'config.{name} is {value!r}; choose {", ".join(choices)}.')


def _check_finite(value: Any, name: str) -> None:
    """Raises ValueError for a number that is infinite or none, in a section or in a tuple."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_finite(inner, f'{name}.{key}')
    elif isinstance(value, (tuple, list)):
        for inner in value:
            _check_finite(inner, name)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{name} is {value}: it must be a finite number.')


def _value(config: ml_collections.ConfigDict, name: str) -> Any:
    """A field by its name with dots."""
    return functools.reduce(getattr, name.split('.'), config)


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """A run's own config with the fields that came later."""
    return from_json(values).to_dict()


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


def parse_flags(argv: list[str]) -> list[str]:
    """Absl's `flags_parser` that says in a sentence which `--config.field` there is not."""
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:
        cause: Any = error
        while isinstance(cause, Exception):  # they hold each other
            cause = cause.args[0]
        sys.exit(f'ConfigError: the config has no field {". ".join(str(cause).splitlines())}')


def pick(config: ml_collections.ConfigDict, *names: str) -> dict[str, Any]:
    """The named fields of a section as a dict (attribute access: a typo raises)."""
    return {name: getattr(config, name) for name in names}


def _data() -> ml_collections.ConfigDict:
    """Corpus, split, copies and batch shapes."""
    part = ml_collections.ConfigDict()
    part.corpus = 'kaldi'  # yesno, fsdd, synth_digits, or kaldi: folders named below
    part.source = ''  # local archive or folder of a named corpus; '' downloads or makes it
    part.train = 'train'  # split of a named corpus, or a Kaldi data directory
    part.dev = ''  # the same; looked at while the sequence criterion trains, see sequence.patience
    part.test = 'test'
    part.lexicon = ''  # '' takes the corpus's own
    part.silence = 'SIL'  # the phone of that file which is silence, written or not
    part.allow_pipes = False  # run the shell commands in the wav.scp of a Kaldi directory
    part.cache_dir = ''  # '' is $SEQTRAIN_CACHE, or ~/.cache/seqtrain
    part.max_train = 0  # use only the first so many utterances; 0 is all
    part.max_dev = 0
    part.max_test = 0
    part.split_by = 'utterance'  # or speaker: a replica sees only its own speakers
    part.batch_size = 8
    part.num_buckets = 2
    part.speeds = (1.0,)  # copies of the training set at these speeds
    part.vtln = (1.0,)  # and with these vocal tract length warps
    part.spec_augment = False  # whether the section spec_augment is used
    return part


def _spec_augment() -> ml_collections.ConfigDict:
    """Masks, warps and shifts of the features, see `data.augment.SpecAugmentConfig`."""
    part = ml_collections.ConfigDict()
    part.num_freq_masks = 2
    part.max_freq_width = 8
    part.num_time_masks = 2
    part.max_time_width = 20
    part.max_time_fraction = 0.1
    part.max_warp = 0.0  # of the mel bands, per utterance: 0.1 makes other speakers
    part.max_shift = 0  # frames by which utterances are moved; subsampling // 2 shows them all
    return part


def _features() -> ml_collections.ConfigDict:
    """Filterbanks, see `data.features.FeatureConfig`."""
    part = ml_collections.ConfigDict()
    part.sample_rate = 0  # Hz; 0: the rate that most recordings have
    part.num_mel_bins = 40
    part.cmvn = 'utterance'  # or speaker, none
    part.norm_vars = True
    part.given = 'fbank'  # or mfcc, other: what feats.scp holds
    part.dither = 1.0
    part.frame_length_ms = 25.0
    part.snip_edges = False  # True: Kaldi's frames, named by the left edges of their windows
    part.low_freq = 20.0  # Hz
    part.high_freq = 0.0  # Hz; <= 0: counted from the Nyquist rate
    return part


def _graph() -> ml_collections.ConfigDict:
    """Topology and language models."""
    part = ml_collections.ConfigDict()
    part.topology = 'chain'  # or ctc, hmm1, hmm3
    part.loop_probability = 0.0  # of staying in an HMM state; 0: the topology's own
    part.context = 'mono'  # or biphone, triphone: tied states, after a stage with monophones
    part.tying = 'tree'  # or count: biphones with enough occurrences have their own pdfs
    part.num_tied = 500  # pdfs at most (tree)
    part.min_count = 50  # frames of a leaf (tree), occurrences of a biphone (count)
    part.optional_silence = True
    part.silence_probability = 0.5  # of a silence between words where words are searched; 0: none
    part.phone_lm_order = 3
    part.word_lm = ''  # ARPA file, to decode with; '' estimates it from the training transcripts:
    part.word_lm_order = 2  # 0 is a loop of equally likely words
    part.word_lm_smoothing = 'witten-bell'  # or kneser-ney, none
    return part


def _model() -> ml_collections.ConfigDict:
    """The network."""
    part = ml_collections.ConfigDict()
    part.kind = 'tdnn'  # or dnn
    part.num_hidden = 128
    part.subsampling = 3
    part.dropout = 0.0
    part.offsets = ((-2, -1, 0, 1, 2), (-1, 0, 1), (-1, 0, 1), (-3, 0, 3))  # tdnn
    part.num_layers = 3  # dnn
    part.left = 10
    part.right = 5
    return part


def _exchange() -> ml_collections.ConfigDict:
    """Replicas, shards and what happens to an update."""
    part = ml_collections.ConfigDict()
    part.mode = 'async'  # or sync: the same program waits for all replicas
    part.transport = 'local'  # or ray: shards as Ray actors
    part.ray_replicas = False  # with ray: replicas in processes of their own too
    part.replica_gpus = 0.0  # what Ray reserves for such a process
    part.replica_tpus = 0.0
    part.ray_address = ''  # HOST:PORT of a cluster; '' starts Ray on this machine
    part.num_replicas = 4
    part.num_shards = 2
    part.max_restarts = 1  # of each replica, after failures
    part.lease_s = 0.0  # nobody waits for a process silent for so long; 0: they do
    part.backup_replicas = 0  # sync: so many of the slowest are not waited for
    part.rule = 'adam'  # see training.server_rule.RULES
    part.rule_options = _rule_options()
    part.local_steps = 1  # batches per push; more than one: parameter deltas are pushed
    part.local_optimizer = 'sgd'  # or momentum, adam, adamw: the replica's own
    part.local_learning_rate = 0.0  # its learning rate; 0: the stage's
    part.outer_learning_rate = 0.0  # the server's, on deltas; 0: the rule's usual one
    part.keep_state = True  # of the local optimiser, from one push to the next
    part.dylu = False  # slower replicas take fewer local steps
    part.codec = 'none'  # or bfloat16, int8: how updates are sent, with error feedback
    part.scale_by_frames = False  # a batch with more frames weighs more
    part.scale_by_staleness = False  # η/τ
    part.max_staleness = -1  # −1: unbounded
    part.on_stale = 'wait'  # or drop: what happens beyond the bound
    part.overlap = True  # compute the next step while the last push is on its way
    part.clip_norm = 5.0  # in the replica, before the push; 0: off
    return part


def _rule_options() -> ml_collections.ConfigDict:
    """What single rules need, see `exchange.rules`; unset: the usual value, if there is one."""
    part = ml_collections.ConfigDict()
    part.momentum = config_dict.placeholder(float)  # 0.9; block_momentum: 1 − 1/replicas
    part.elastic = config_dict.placeholder(float)  # easgd's α: 0.9/replicas
    part.alpha = config_dict.placeholder(float)  # cgad
    part.cutoff = config_dict.placeholder(float)
    part.keep = config_dict.placeholder(float)  # heloco
    part.shrink = config_dict.placeholder(float)
    part.max_shrink = config_dict.placeholder(float)
    part.turn = config_dict.placeholder(float)
    part.kappa = config_dict.placeholder(float)
    return part


def _bootstrap() -> ml_collections.ConfigDict:
    """The stage of cross-entropy."""
    part = ml_collections.ConfigDict()
    part.mono_rounds = 5  # of the monophone run before tied states (or with mono_offsets)
    part.mono_updates = 0  # per round of it; 0: as many as below
    part.mono_sequence_updates = 0  # then so many of lattice-free MMI, see training.start
    part.mono_offsets = ()  # its layers, to see less than model.offsets; (): these, weights kept
    part.rounds = 5  # of CE updates, a Viterbi realignment before each but the first
    part.updates = 40  # per round, over all replicas
    part.learning_rate = 2e-3
    part.final_learning_rate = 2e-3  # exponential decay over all rounds
    part.average = 0.0  # of all updates the last part whose mean the network becomes; 0: the last
    return part


def _sequence() -> ml_collections.ConfigDict:
    """The stage of the sequence criterion."""
    part = ml_collections.ConfigDict()
    part.criterion = 'mmi'  # or smbr, mpe
    part.graph = 'lattice_free'  # or lattice: see the section lattice
    part.mmi_weight = 0.0  # smbr, mpe: smoothed by so much of (boosted) MMI
    part.boost = 0.0  # b of boosted MMI, usually 0.05 to 0.1
    part.risk_boost = 0.0  # b of smbr and mpe with a margin
    part.max_silence_error = (
        0.0  # boosts: of silence where there is speech; 0 as in Kaldi, or up to 1
    )
    part.updates = 150
    part.learning_rate = 1e-3
    part.final_learning_rate = 1e-4  # exponential decay
    part.average = 0.0  # the last part of the updates whose mean the network becomes; 0: the last
    part.patience = 0  # checkpoints in a row without fewer errors on data.dev that end it; 0: none
    part.acoustic_scale = 1.0  # κ of lattice-free graphs; see lattice.acoustic_scale
    part.leaky = 0.0
    part.ce_weight = 0.0  # so much of cross-entropy with the bootstrap's alignment is added
    part.output_l2 = 1e-4
    part.state_accuracy = False  # smbr: the right HMM state counts; False: the right pdf
    part.one_silence_class = True  # smbr, mpe: any silence is right where the reference is silent
    part.drop_frames = False  # mmi: no gradient where the reference is not in the lattice
    return part


def _lattice() -> ml_collections.ConfigDict:
    """Lattices of the sequence stage, see `training.lattice.LatticeConfig`."""
    part = ml_collections.ConfigDict()
    part.mode = 'decode'  # lattices for every batch; or epoch, outer: kept for a while
    part.epochs_per_lattice = 1  # of epoch and outer
    part.ahead = 1  # batches whose lattices are made while the device works; 0: none
    part.beam = 13.0
    part.lattice_beam = 7.0
    part.max_active = 5000
    part.acoustic_scale = 0.1  # κ
    part.unit = 'word'  # or phone: phone sequences compete, whatever words they make
    part.word_lm = ''  # ARPA file of these units; '' estimates it from the training transcripts,
    part.word_lm_order = 1  # an n-gram of this order
    part.silence_probability = -1.0  # of a silence between words; -1: that of config.graph
    part.threads = 1
    part.batches_per_block = 4  # outer: frames are shuffled within so many batches
    part.correction = False  # outer, mmi: old derivatives are moved to the new outputs
    return part


def _decode() -> ml_collections.ConfigDict:
    """The beam search on the test set."""
    part = ml_collections.ConfigDict()
    part.acoustic_scale = 1.0  # after the sequence criterion
    part.ce_acoustic_scale = 0.3  # after cross-entropy: about 0.1 × subsampling
    part.phone_acoustic_scale = 0.0  # of phones, after either; 0: that of words
    part.ce_phone_acoustic_scale = 0.0  # of phones, after cross-entropy; 0: that of phones
    part.beam = 15.0
    part.max_active = 7000
    part.phone_error_rate = False  # decode phones too, with a phone bigram
    return part


def _checkpoint() -> ml_collections.ConfigDict:
    """How often, and how many are kept."""
    part = ml_collections.ConfigDict()
    part.every_updates = 100
    part.keep = 2
    return part
