"""`NGramLm`: back-off n-gram models over words or phones, estimated here or read as ARPA.

Natural logs. A model is a table of explicit n-grams and a back-off weight per context:
p(w|h) = table[h, w] if it is there, else backoff[h] · p(w | h without its oldest symbol).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from seqtrain.fsa.fsa import NEG_INF

BOS = '<s>'
EOS = '</s>'
UNK = '<unk>'

SMOOTHINGS = ('none', 'witten-bell', 'kneser-ney')

NGram = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NGramLm:
    """A back-off n-gram model.

    Attributes:
      order: the longest n-gram's length.
      logprobs: log p(w|h) of every explicit n-gram (*h, w).
      backoffs: log back-off weight of contexts; a context that is not listed has weight 0 (log).
    """

    order: int
    logprobs: Mapping[NGram, float]
    backoffs: Mapping[NGram, float]

    @classmethod
    def estimate(
        cls,
        sentences: Iterable[str | Sequence[str]],
        order: int,
        *,
        smoothing: str = 'witten-bell',
        vocabulary: str | Iterable[str] = (),
        extra_contexts: int | None = None,
    ) -> NGramLm:
        """Estimates a model from sentences (without <s> and </s>).

        Interpolated: p(w|h) = (c(h,w) − D) / N(h) + λ(h) · p(w|h'), with λ(h) such that p sums
        to 1, and at the bottom a uniform distribution over vocabulary and </s>.
          none: maximum likelihood, D = λ = 0. A symbol not seen after h is impossible.
          witten-bell: D = 0, N(h) = c(h) + T(h), T(h) the distinct symbols after h.
          kneser-ney: one absolute discount D = n1 / (n1 + 2·n2) per order; lower orders count
            distinct left neighbours instead of occurrences (Kneser and Ney 1995; Chen and
            Goodman 1999, interpolated form).

        Args:
          sentences: symbol sequences, or strings of symbols with spaces between them; an empty one
            counts as the sentence that ends at once.
          order: longest n-gram, at least 1.
          smoothing: one of SMOOTHINGS.
          vocabulary: more symbols (a string: with spaces between them), which get a probability
            although they may not occur; without smoothing they do not.
          extra_contexts: keep only this many of the longest contexts, those whose n-grams gain
            most log-likelihood over their back-off (Kaldi's chain: order 4, 2000). None: all.

        Raises:
          ValueError: no sentences, an unknown smoothing, an order below 1, reserved symbols,
            empty symbols or symbols with white space.
        """
        if smoothing not in SMOOTHINGS:
            raise ValueError(f'Unknown smoothing {smoothing!r}; choose {", ".join(SMOOTHINGS)}.')
        if order < 1:
            raise ValueError(f'order={order}; an n-gram has at least one symbol.')
        texts = [_symbols(sentence) for sentence in sentences]
        if not texts:
            raise ValueError('No sentences to estimate a language model from.')
        spoken = set().union(*texts)
        words = spoken.union(_symbols(vocabulary)) - {EOS}
        if split := sorted(word for word in words if word.split() != [word]):
            raise ValueError(
                f'{split[0]!r} is no symbol: it is empty or holds white space. Give each sentence '
                f'as a string or as a list of its symbols.'
            )
        if bad := sorted({BOS, EOS} & spoken | {BOS} & words):
            raise ValueError(f'{" ".join(bad)} in a sentence; they are added by the estimation.')
        counts = _counts(texts, order)
        tables = _kneser_ney_counts(counts) if smoothing == 'kneser-ney' else counts
        model = _interpolate(tables, smoothing, sorted(words) + [EOS])
        if extra_contexts is not None and order > 1:
            model = _keep_best_contexts(model, counts[-1], extra_contexts)
        return model

    @classmethod
    def uniform(cls, words: str | Iterable[str]) -> NGramLm:
        """A loop over words: every word and the end are equally likely everywhere."""
        symbols = sorted(set(_symbols(words))) + [EOS]
        logprob = -math.log(len(symbols))
        return cls(1, {(BOS,): NEG_INF, **{(w,): logprob for w in symbols}}, {(BOS,): 0.0})

    @property
    def words(self) -> tuple[str, ...]:
        """Symbols that can occur in a sentence, sorted (without <s> and </s>)."""
        return tuple(sorted(n[0] for n in self.logprobs if len(n) == 1 and n[0] not in (BOS, EOS)))

    def contexts(self) -> set[NGram]:
        """Histories in which the model differs from its back-off; () is always there."""
        explicit = {ngram[:-1] for ngram in self.logprobs}
        return explicit | {h for h, weight in self.backoffs.items() if weight != 0.0}

    def logprob(self, history: Sequence[str], word: str) -> float:
        """log p(word | history), −inf where impossible; unknown words count as <unk>."""
        length = min(self.order - 1, len(history))
        context = tuple(history)[len(history) - length :]
        if (UNK,) in self.logprobs:
            word, context = self._known(word), tuple(map(self._known, context))
        total = 0.0
        while (*context, word) not in self.logprobs:
            if not context:
                return NEG_INF
            total += self.backoffs.get(context, 0.0)
            context = context[1:]
        return total + self.logprobs[(*context, word)]

    def _known(self, word: str) -> str:
        return word if word == BOS or (word,) in self.logprobs else UNK

    def score(self, sentence: str | Sequence[str]) -> float:
        """log p(sentence, </s> | <s>)."""
        padded = (BOS, *_symbols(sentence), EOS)
        return sum(self.logprob(padded[:i], padded[i]) for i in range(1, len(padded)))

    def perplexity(self, sentences: Iterable[str | Sequence[str]]) -> float:
        """exp of the mean negative log-probability per symbol, sentence ends included."""
        sentences = [_symbols(sentence) for sentence in sentences]
        symbols = sum(len(sentence) + 1 for sentence in sentences)
        if not symbols:
            raise ValueError('No sentences: their perplexity is not defined.')
        return math.exp(-sum(map(self.score, sentences)) / symbols)


def _symbols(sentence: str | Iterable[str]) -> NGram:
    return tuple(sentence.split() if isinstance(sentence, str) else sentence)


def _counts(sentences: list[NGram], order: int) -> list[dict[NGram, int]]:
    """Occurrences of n-grams per length 1..order; <s> is a history only, never predicted."""
    counts: list[dict[NGram, int]] = [{} for _ in range(order)]
    for sentence in sentences:
        padded = (BOS, *sentence, EOS)
        for end, n in itertools.product(range(2, len(padded) + 1), range(1, order + 1)):
            if n <= end:
                ngram = padded[end - n : end]
                counts[n - 1][ngram] = counts[n - 1].get(ngram, 0) + 1
    return counts


def _kneser_ney_counts(counts: list[dict[NGram, int]]) -> list[dict[NGram, int]]:
    """Below the top: how many distinct symbols precede an n-gram (occurrences after <s>)."""
    result = []
    for lower, higher in itertools.pairwise(counts):
        table = {ngram: count for ngram, count in lower.items() if ngram[0] == BOS}
        for ngram in higher:
            table[ngram[1:]] = table.get(ngram[1:], 0) + 1
        result.append(table)
    return [*result, counts[-1]]


def _interpolate(tables: list[dict[NGram, int]], smoothing: str, symbols: list[str]) -> NGramLm:
    """Probabilities from counts, from the shortest n-grams up; see `NGramLm.estimate`."""
    probs: dict[NGram, float] = {}
    weights: dict[NGram, float] = {}
    uniform = 1.0 / len(symbols)
    for table in tables:
        discount = _discount(table) if smoothing == 'kneser-ney' else 0.0
        totals: dict[NGram, int] = {}
        types: dict[NGram, int] = {}
        for ngram, count in table.items():
            totals[ngram[:-1]] = totals.get(ngram[:-1], 0) + count
            types[ngram[:-1]] = types.get(ngram[:-1], 0) + 1
        for history, total in totals.items():
            if smoothing == 'witten-bell':
                weights[history] = types[history] / (total + types[history])
                totals[history] = total + types[history]
            else:
                weights[history] = discount * types[history] / total
        ngrams = table if table is not tables[0] else dict.fromkeys((s,) for s in symbols) | table
        for ngram in ngrams:
            history = ngram[:-1]
            lower = probs[ngram[1:]] if history else uniform
            count = table.get(ngram, 0)
            own = max(count - discount, 0.0) / totals[history]
            probs[ngram] = own + weights[history] * lower
    logprobs = {ngram: math.log(p) for ngram, p in probs.items() if p > 0}
    backoffs = {h: math.log(w) if w > 0 else NEG_INF for h, w in weights.items() if h}
    logprobs[(BOS,)] = NEG_INF
    backoffs.setdefault((BOS,), 0.0)
    return NGramLm(len(tables), dict(sorted(logprobs.items())), dict(sorted(backoffs.items())))


def _discount(table: dict[NGram, int]) -> float:
    once = sum(count == 1 for count in table.values())
    twice = sum(count == 2 for count in table.values())
    # The formula needs both counts of counts; small or artificial data may lack them.
    return once / (once + 2 * twice) if once and twice else 0.5


def _keep_best_contexts(model: NGramLm, top: dict[NGram, int], keep: int) -> NGramLm:
    """Drops all but the `keep` longest contexts of largest log-likelihood gain."""
    gains: dict[NGram, float] = {}
    for ngram, count in top.items():
        gain = model.logprobs[ngram] - model.logprob(ngram[1:-1], ngram[-1])
        gains[ngram[:-1]] = gains.get(ngram[:-1], 0.0) + count * gain
    # Only a context longer than what the lower orders offer can be dropped.
    ranked = sorted(gains, key=lambda h: (-gains[h], h))
    kept = {h for h in ranked[:keep] if gains[h] > 0}
    length = model.order - 1
    logprobs = {n: p for n, p in model.logprobs.items() if len(n) < model.order or n[:-1] in kept}
    backoffs = {h: w for h, w in model.backoffs.items() if len(h) < length or h in kept}
    return NGramLm(model.order, logprobs, backoffs)
