"""`Lexicon`: words to phone sequences. Reading, checks, and transcripts as phone acceptors.

Phones are numbered from 0, silence first. Weights of alternatives are not modelled: every
pronunciation and every optional silence of a transcript has log-weight 0.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from seqtrain.fsa.fsa import NEG_INF, Fsa
from seqtrain.fsa.operations import connect, minimise
from seqtrain.textfile import read_lines

SILENCE = 'SIL'
_EPSILON = -1
# What Kaldi's lexiconp.txt has before the phones. Not whole numbers: some phone sets are numbers.
_DECIMAL = re.compile(r'\d*\.\d+(e[+-]?\d+)?|\d+e[+-]?\d+', re.IGNORECASE)

# CMUdict's name of a word's further pronunciations.
_NUMBERED = re.compile(r'(.+)\(\d+\)')

# Meant to stand within a word, but white space all the same: a part of the word would be a phone.
_NO_BREAK = re.compile('[\u00a0\u2007\u202f]')


class LexiconError(ValueError):
    """A malformed lexicon; the message names file and line."""


class OovError(ValueError):
    """Words without a pronunciation; `words` lists them all."""

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)
        super().__init__(
            f'{len(self.words)} word(s) are not in the lexicon: {" ".join(self.words)}. '
            'Add their pronunciations, or leave out the utterance; words of a language model are '
            'left out with skip_oov=True.'
        )

    def __reduce__(self):
        return OovError, (self.words,)  # it crosses from process to process


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """Words with their pronunciations.

    Attributes:
      pronunciations: for every word its distinct pronunciations, each a tuple of phone names.
      phones: phone names in the order of their ids; silence is id 0.
      silence: name of the silence phone, allowed between words without being written.
    """

    pronunciations: Mapping[str, tuple[tuple[str, ...], ...]]
    phones: tuple[str, ...]
    silence: str = SILENCE

    @classmethod
    def from_dict(
        cls,
        entries: Mapping[str, str | Sequence[str] | Sequence[Sequence[str]]],
        *,
        phones: Sequence[str] | None = None,
        silence: str = SILENCE,
    ) -> Lexicon:
        """Builds a lexicon from `{'YES': 'Y EH S'}`, `{'A': ['AH', 'EY']}` or phone lists.

        Args:
          entries: for every word one pronunciation as a string of phones, or several of them
            (each a string, or a sequence of phone names).
          phones: the phone set in the order of its ids (silence first); default: sorted names.
          silence: name of the silence phone.

        Raises:
          LexiconError: an empty pronunciation, a phone that is not in `phones`, or one that stands
            there twice; a second silence ('sil' beside 'SIL').
        """
        table: dict[str, tuple[tuple[str, ...], ...]] = {}
        for word, variants in entries.items():
            listed = [variants] if isinstance(variants, str) else list(variants)
            split = [tuple(v.split()) if isinstance(v, str) else tuple(v) for v in listed]
            if not split or not all(split):
                raise LexiconError(f'Word {word!r} has an empty pronunciation.')
            table[word] = tuple(dict.fromkeys(split))
        if not table:
            raise LexiconError('The lexicon has no words.')
        used = {phone for variants in table.values() for phones_ in variants for phone in phones_}
        names = tuple(phones) if phones else (silence, *sorted(used - {silence}))
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise LexiconError(f'Phones that stand twice in the phone set: {" ".join(twice)}.')
        if names[0] != silence:
            raise LexiconError(f'The phone set must begin with the silence phone {silence!r}.')
        if others := [x for x in names[1:] if x.casefold() == silence.casefold()]:
            raise LexiconError(
                f'There is a phone {others[0]!r} beside the silence phone {silence!r}: say that it '
                f'is the silence (silence={others[0]!r}; --config.data.silence={others[0]} for a '
                'run).'
            )
        if unknown := sorted(used - set(names)):
            raise LexiconError(f'Phones outside of the phone set: {" ".join(unknown)}.')
        return cls(dict(sorted(table.items())), names, silence)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike,
        *,
        phones: Sequence[str] | None = None,
        silence: str = SILENCE,
    ) -> Lexicon:
        """Reads lines `WORD phone phone ...`; several lines per word are alternatives.

        Raises:
          LexiconError: names file and line of an entry without phones, with a probability before
            them, with a no-break space, or with a phone outside of `phones` where these are given;
            of CMUdict's comments and numbered words; or of what is not UTF-8. See `from_dict`, too.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no such lexicon.')
        entries: dict[str, list[tuple[str, ...]]] = {}
        for number, line in enumerate(read_lines(path, LexiconError), start=1):
            if _NO_BREAK.search(line):
                raise LexiconError(
                    f'{path}:{number}: a no-break space in {line.strip()!r}; put plain spaces '
                    f'between word and phones, and none into a word.'
                )
            fields = line.split()
            if not fields:
                continue
            if len(fields) == 1:
                raise LexiconError(f'{path}:{number}: word {fields[0]!r} has no phones.')
            if fields[0].startswith(';;;') or '#' in fields[1:]:
                raise LexiconError(f'{path}:{number}: take out the comment in {line.strip()!r}.')
            if _DECIMAL.fullmatch(fields[1]) and fields[1] not in (phones or ()):
                raise LexiconError(
                    f'{path}:{number}: {fields[1]} is a probability, not a phone; take it out '
                    f'(Kaldi has lexicon.txt beside lexiconp.txt).'
                )
            unknown = sorted(set(fields[1:]) - set(phones)) if phones else []
            if unknown:
                raise LexiconError(f'{path}:{number}: unknown phone(s) {" ".join(unknown)}.')
            entries.setdefault(fields[0], []).append(tuple(fields[1:]))
        if not entries:
            raise LexiconError(f'{path}: no entries; lines are `WORD phone phone ...`.')
        _check_words(path, entries, phones or ())
        return cls.from_dict(entries, phones=phones, silence=silence)

    def write(self, path: str | os.PathLike) -> None:
        """Writes what `read` reads; the order of the phones is told to `read` again."""
        lines = [
            f'{word} {" ".join(phones)}\n'
            for word, variants in self.pronunciations.items()
            for phones in variants
        ]
        pathlib.Path(path).write_text(''.join(lines), encoding='utf-8')

    def of_phones(self) -> Lexicon:
        """The lexicon whose words are the phones themselves (without silence), to decode phones."""
        spoken = {phone: [(phone,)] for phone in self.phones if phone != self.silence}
        return Lexicon.from_dict(spoken, phones=self.phones, silence=self.silence)

    def with_words(self, pronunciations: Mapping[str, Sequence[Sequence[str]]]) -> Lexicon:
        """With further words of the same phones; a word that is there already is replaced."""
        return Lexicon.from_dict(
            {**self.pronunciations, **pronunciations}, phones=self.phones, silence=self.silence
        )

    def canonical(self, words: str | Sequence[str]) -> tuple[str, ...]:
        """Phone names of a transcript by each word's first pronunciation, without silences.

        The reference of a phone error rate. Raises OovError, or ValueError for an empty transcript.
        """
        words = split_words(words)
        self.check(words)
        spoken = (phone for word in words for phone in self.pronunciations[word][0])
        return tuple(phone for phone in spoken if phone != self.silence)

    @property
    def words(self) -> tuple[str, ...]:
        """All words, sorted."""
        return tuple(self.pronunciations)

    @functools.cached_property
    def phone_ids(self) -> dict[str, int]:
        return {phone: index for index, phone in enumerate(self.phones)}

    def variants(self, word: str) -> tuple[tuple[int, ...], ...]:
        """The word's pronunciations as phone ids."""
        return tuple(
            tuple(self.phone_ids[phone] for phone in variant)
            for variant in self.pronunciations[word]
        )

    def check(self, words: Iterable[str]) -> None:
        """Raises OovError with every word (once, sorted) that has no pronunciation."""
        if missing := sorted({word for word in words if word not in self.pronunciations}):
            raise OovError(missing)


def _check_words(
    path: pathlib.Path, entries: Mapping[str, list[tuple[str, ...]]], phones: Sequence[str]
) -> None:
    """Raises LexiconError for what only all lines together tell."""
    for word in entries:
        base = _NUMBERED.fullmatch(word)
        if base and base[1] in entries:
            raise LexiconError(
                f'{path}: no transcript says {word!r}: write it as another line of {base[1]!r}.'
            )
    firsts = {variant[0] for variants in entries.values() for variant in variants}
    if firsts == {'1'} and len(entries) > 1 and '1' not in phones:
        raise LexiconError(
            f'{path}: 1 stands after every word; it is a probability, not a phone: take it out.'
        )
    if special := {'<s>', '</s>'} & set(entries):
        raise LexiconError(
            f'{path}: {" ".join(sorted(special))} is added by language models; take it out.'
        )


def split_words(words: str | Sequence[str]) -> list[str]:
    """Words of a transcript given as a string or already split; an empty one is a ValueError."""
    result = words.split() if isinstance(words, str) else list(words)
    if not result:
        raise ValueError('The transcript is empty; leave out the utterance.')
    return result


def transcript(
    words: str | Sequence[str], lexicon: Lexicon, *, optional_silence: bool = True
) -> Fsa:
    """All phone sequences of a transcript as a deterministic, minimal acceptor over phone ids.

    Deterministic means that pronunciations and silences that spell the same phone sequence are
    counted once. Silence may stand before, between and after words, at most once at a place.

    Raises:
      OovError: words without pronunciation (all of them).
      ValueError: the transcript is empty.
    """
    words = split_words(words)
    lexicon.check(words)
    arcs: list[tuple[int, int, int]] = []  # (src, label, dst) with label −1 for epsilon
    fresh = iter(range(1, 1 << 30))

    def silence_from(state: int) -> int:
        if not optional_silence:
            return state
        after = next(fresh)
        arcs.extend([(state, _EPSILON, after), (state, 0, after)])
        return after

    state = silence_from(0)
    for word in words:
        after = next(fresh)
        for variant in lexicon.variants(word):
            path = [state, *(next(fresh) for _ in variant[1:]), after]
            arcs.extend(zip(path[:-1], variant, path[1:], strict=True))
        state = silence_from(after)
    return minimise(_determinise(arcs, final=state))


def training_phones(
    transcripts: Iterable[str | Sequence[str]],
    lexicon: Lexicon,
    *,
    silence_probability: float = 0.5,
    samples: int = 1,
    seed: int = 0,
) -> list[tuple[int, ...]]:
    """Phone sequences to estimate a phone LM from, where no alignments are there to give them.

    Every transcript gives `samples` sequences: a pronunciation is drawn uniformly, and silence
    stands at each word boundary (and at both ends) with `silence_probability`. The draw depends on
    the seed, the transcript and its number among equal ones only, not on the order of transcripts.

    Raises:
      OovError: a transcript has words that the lexicon has not.
    """
    result = []
    seen: dict[str, int] = {}
    for words in transcripts:
        words = split_words(words)
        lexicon.check(words)
        text = ' '.join(words)
        number = seen[text] = seen.get(text, -1) + 1
        rng = np.random.default_rng([seed, number, zlib.crc32(text.encode())])
        for _ in range(samples):
            phones: list[int] = []
            for word in words:
                phones += [0] * int(rng.random() < silence_probability)
                variants = lexicon.variants(word)
                phones += variants[rng.integers(len(variants))]
            phones += [0] * int(rng.random() < silence_probability)
            result.append(tuple(phones))
    return result


def _determinise(arcs: list[tuple[int, int, int]], final: int) -> Fsa:
    """Subset construction of an unweighted automaton with epsilons, from state 0 to `final`."""
    out: dict[int, list[tuple[int, int]]] = {}
    for src, label, dst in arcs:
        out.setdefault(src, []).append((label, dst))

    def closure(states: set[int]) -> frozenset[int]:
        stack, result = list(states), set(states)
        while stack:
            for label, dst in out.get(stack.pop(), ()):
                if label == _EPSILON and dst not in result:
                    result.add(dst)
                    stack.append(dst)
        return frozenset(result)

    queue = [closure({0})]
    number = {queue[0]: 0}
    rows = []
    for subset in queue:  # grows while it is walked
        reached: dict[int, set[int]] = {}
        for state in subset:
            for label, dst in out.get(state, ()):
                if label != _EPSILON:
                    reached.setdefault(label, set()).add(dst)
        for label in sorted(reached):
            after = closure(reached[label])
            if after not in number:
                number[after] = len(queue)
                queue.append(after)
            rows.append((number[subset], number[after], label, 0.0))
    initial = np.full(len(queue), NEG_INF)
    initial[0] = 0.0
    finals = [0.0 if final in subset else NEG_INF for subset in queue]
    return connect(Fsa.from_arcs(rows, initial, np.array(finals)))
