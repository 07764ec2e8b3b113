"""Which acoustic scale which network and which unit are decoded with."""

import types

import numpy as np
import pytest

from seqtrain.data.utterance import DataError
from seqtrain.graphs import Lexicon
from seqtrain.training import workdir
from seqtrain.training.evaluate import Evaluator, references

PARAMS = {'w': np.zeros(2, np.float32)}


@pytest.mark.parametrize(
    ('of_phones', 'expected'),
    [
        (
            0.0,
            [
                ('ce', 'word', 0.2),
                ('ce', 'phone', 0.2),
                ('smbr', 'word', 0.7),
                ('smbr', 'phone', 0.7),
            ],
        ),
        (
            0.5,
            [
                ('ce', 'word', 0.2),
                ('ce', 'phone', 0.5),
                ('smbr', 'word', 0.7),
                ('smbr', 'phone', 0.5),
            ],
        ),
    ],
)
def test_words_and_phones_have_their_scales(of_phones, expected, make_config, tmp_path):
    config = make_config(
        decode__acoustic_scale=0.7,
        decode__ce_acoustic_scale=0.2,
        decode__phone_acoustic_scale=of_phones,
    )
    used = []

    def recognizer(unit):
        def recognize(params, features, acoustic_scale):
            used.append((model, unit, acoustic_scale))
            return {}

        return recognize

    units = ('word', 'phone')
    with workdir.Workdir(tmp_path, config.to_dict()) as folder:
        evaluator = Evaluator(
            types.SimpleNamespace(skipped=()),
            {unit: {'a': 'x y'} for unit in units},
            {unit: recognizer(unit) for unit in units},
            folder,
            config.decode,
        )
        for model in ('ce', 'smbr'):
            evaluator.score(model, PARAMS)
    assert used == expected


def test_phones_are_scored_where_all_words_have_pronunciations():
    lexicon = Lexicon.from_dict({'yes': 'Y EH S'})
    texts = {'a': 'yes', 'b': 'yes sir'}
    assert references(texts, lexicon, phones=True) == {'word': texts, 'phone': {'a': 'Y EH S'}}
    with pytest.raises(DataError, match='Phones cannot be scored'):
        references({'b': 'yes sir'}, lexicon, phones=True)
    assert references({'b': 'yes sir'}, lexicon, phones=False) == {'word': {'b': 'yes sir'}}
