r"""Times lattices of a trained run's network, beside kaldi-decoder on the same graph and scores.

    taskset -c 0 python launch/benchmark_lattices.py --workdir=DIR --data=KALDI_DIR [--unit=phone] \
        [--order=2] [--utterances=50] [--rounds=3]

The network scores the first utterances of the data directory that hold no other words than the
graph, which is an n-gram of the run's training transcripts, in words or phones; beams and acoustic
scale are those of its `config.lattice`.
Then, utterance by utterance in turn, on one thread:

    search   the decoding search alone
    pair     search, the reference's paths, their union, acceptors: what training needs
    kaldi    kaldi_decoder.LatticeSimpleDecoder with the same beams (it has no max-active), without
             determinisation

Prints seconds of audio per second of processor time, of the best of the rounds, ours over Kaldi's,
and what the lattices hold. The last line is JSON.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable

import jax
import kaldi_decoder
import numpy as np
from absl import app, flags
from absl import logging as absl_logging

from seqtrain.data import kaldi
from seqtrain.lattices import LatticeGenerator, oracle_errors
from seqtrain.training import (
    assembly,
    decode,
    devices,
    errors,
    evaluate,
    lattice,
    lattice_stage,
    recognizer,
)
from seqtrain.training import config as config_lib
from seqtrain.training.lattice import LatticeConfig
from seqtrain.training.start import topology
from seqtrain.training.steps import make_forward
from seqtrain.training.workdir import Workdir

_WORKDIR = flags.DEFINE_string('workdir', None, 'A run of launch/train.py.', required=True)
_DATA = flags.DEFINE_string('data', None, 'Kaldi data directory with a `text`.', required=True)
_UNIT = flags.DEFINE_enum('unit', 'word', ['word', 'phone'], 'What competes.')
_ORDER = flags.DEFINE_integer('order', 1, "Of the graph's n-gram.", lower_bound=1)
_UTTERANCES = flags.DEFINE_integer('utterances', 50, 'So many are timed.', lower_bound=1)
_PIPES = flags.DEFINE_bool(
    'allow_pipes', False, 'Run the shell commands in wav.scp: for a directory that you trust.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Each so often; the best counts.', lower_bound=1)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is timed.

    Attributes:
      generator: the search with its graph.
      scores: f32[U, P] per utterance.
      texts: references in the graph's units.
      audio_s: seconds of all utterances.
    """

    generator: LatticeGenerator
    scores: list[np.ndarray]
    texts: list[str]
    audio_s: float


def task() -> Task:
    """Graph, scores and references of the run and the data that the flags name."""
    with Workdir(_WORKDIR.value, None) as workdir:
        config = config_lib.from_json(workdir.config)
        devices.set_up(1, config.data.cache_dir)
        folder = workdir.path / 'model'
        files = recognizer.ModelFiles.read(folder)
        lexicon = files.lexicon(folder / 'lexicon.txt')
        states = topology(config, len(lexicon.phones), workdir.path)
        network, params = assembly.network(config, files.num_inputs, files.num_outputs)
        params, _ = recognizer.trained(config, workdir.path, params)
    trained_on = [record.text for record in assembly.load_split(config.data, 'train')]
    known = [t for t in trained_on if t and all(w in lexicon.pronunciations for w in t.split())]
    units = [lattice.spelt(text, lexicon, _UNIT.value) for text in known]
    graph = lattice.denominator_graph(
        lexicon if _UNIT.value == 'word' else lexicon.of_phones(),
        states,
        lattice.word_model(units, _ORDER.value),
        None,
        lattice_stage.silence_probability(config),
    )
    read = kaldi.read_dir(_DATA.value, allow_pipes=_PIPES.value)
    records = [record for record in read if record.text]
    texts = evaluate.references({r.id: r.text for r in records}, lexicon, phones=True)
    features = decode.features_of(config, files, records)
    forward = make_forward(network)
    unit, sayable = texts[_UNIT.value], set(graph.words)
    chosen = [
        index
        for index, name in enumerate(features.ids)
        if name in texts['phone'] and sayable.issuperset(unit[name].split())
    ]
    scores, references, frames = [], [], 0
    for index in chosen[: _UTTERANCES.value]:
        one = features.features[index]
        logits, _ = forward(params, one[None], np.array([len(one)], np.int32))
        scores.append(np.asarray(jax.block_until_ready(logits))[0])
        references.append(unit[features.ids[index]])
        frames += len(one)
    shift_s = assembly.feature_config(config).frame_shift_ms / 1000
    settings = config_lib.section(LatticeConfig, config.lattice)
    return Task(settings.generator(graph), scores, references, frames * shift_s)


def by_kaldi(generator: LatticeGenerator, scores: np.ndarray):
    """The raw lattice of the same search, as an FST; None where there is no path."""
    config = kaldi_decoder.LatticeSimpleDecoderConfig(
        beam=generator.beam, lattice_beam=generator.lattice_beam, determinize_lattice=False
    )
    decoder = kaldi_decoder.LatticeSimpleDecoder(generator.graph.fst, config)
    decoder.decode(kaldi_decoder.DecodableCtc(generator.acoustic_scale * scores))
    found, raw = decoder.get_raw_lattice()
    return raw if found else None


def seconds(call: Callable[..., object], *args) -> float:
    begun = time.process_time()
    call(*args)
    return time.process_time() - begun


def measure(of: Task, rounds: int) -> dict[str, float]:
    """Seconds of audio per second of processor time, by name; and what the lattices hold."""
    generator = of.generator

    def pair(scores: np.ndarray, text: str) -> None:
        made = generator.pair(scores, text)
        if made.numerator is not None and made.denominator is not None:
            made.numerator.to_fsa(), made.denominator.to_fsa()

    spent = np.full((len(of.scores), 3), np.inf)
    for _ in range(rounds + 1):  # the first compiles and looks up
        for row, (scores, text) in enumerate(zip(of.scores, of.texts, strict=True)):
            now = [
                seconds(generator.decode, scores),
                seconds(pair, scores, text),
                seconds(by_kaldi, generator, scores),
            ]
            spent[row] = np.minimum(spent[row], now)
    search, whole, other = of.audio_s / spent.sum(axis=0)
    found = [generator.decode(scores) for scores in of.scores]
    told = [(one, text) for one, text in zip(found, of.texts, strict=True) if one is not None]
    if not told:
        sys.exit('No utterance has a path within the beam: is this the data that the run is for?')
    units = sum(len(text.split()) for _, text in told)
    return {
        'search': search,
        'pair': whole,
        'kaldi': other,
        'search_over_kaldi': search / other,
        'arcs_per_frame': float(np.mean([one.depth() for one, _ in told])),
        'oracle_error_rate': sum(oracle_errors(*one) for one in told) / max(1, units),
        'utterances': len(found),
        'without_path': len(found) - len(told),
        'audio_s': of.audio_s,
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'Unknown arguments: {argv[1:]}.')
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        of = task()
    except errors.FOR_USERS as error:
        sys.exit(f'{type(error).__name__}: {error}')
    if not of.scores:
        sys.exit(f'{_DATA.value} has no utterance whose words are all in the graph.')
    found = measure(of, _ROUNDS.value)
    for name in ('search', 'pair', 'kaldi'):
        print(f'{name:8} {found[name]:8.1f} times real time')
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == '__main__':
    app.run(main)
