"""Which acoustic scale which network and which unit are decoded with."""

import types

import jax
import numpy as np
import pytest

from seqtrain.data.utterance import DataError
from seqtrain.graphs import Lexicon
from seqtrain.training import assembly, evaluate, workdir
from seqtrain.training.evaluate import Evaluator, references

PARAMS = {'w': np.zeros(2, np.float32)}


@pytest.mark.parametrize(
    ('phone', 'ce_phone', 'expected'),
    [
        (0.0, 0.0, (0.2, 0.7)),  # those of words
        (0.5, 0.0, (0.5, 0.5)),
        (0.5, 0.6, (0.6, 0.5)),
        (0.0, 0.6, (0.6, 0.7)),
    ],
)
def test_words_and_phones_have_their_scales(phone, ce_phone, expected, make_config, tmp_path):
    config = make_config(
        decode__acoustic_scale=0.7,
        decode__ce_acoustic_scale=0.2,
        decode__phone_acoustic_scale=phone,
        decode__ce_phone_acoustic_scale=ce_phone,
    )
    used = []

    def recognizer(unit):
        def recognize(params, features, acoustic_scale):
            used.append((model, unit, acoustic_scale))
            return {}

        return recognize

    units = ('word', 'phone')
    with workdir.Workdir(tmp_path, config.to_dict()) as folder:
        for unit in units:
            (folder.sub('model') / f'{unit}.fst').write_bytes(b'')
        evaluator = Evaluator(
            types.SimpleNamespace(skipped=(), ids=(), num_frames=np.zeros(0, np.int32)),
            {unit: {'a': 'x y'} for unit in units},
            {unit: recognizer(unit) for unit in units},
            folder,
            config.decode,
        )
        for model in ('ce', 'smbr'):
            evaluator.score(model, PARAMS)
    assert used == [
        ('ce', 'word', 0.2),
        ('ce', 'phone', expected[0]),
        ('smbr', 'word', 0.7),
        ('smbr', 'phone', expected[1]),
    ]


def test_phones_are_scored_where_all_words_have_pronunciations(make_config, monkeypatch):
    lexicon = Lexicon.from_dict({'yes': 'Y EH S'})
    texts = {'a': 'yes', 'b': 'yes sir'}
    assert references(texts, lexicon, phones=True) == {'word': texts, 'phone': {'a': 'Y EH S'}}
    unknown = {'b': 'yes sir'}
    assert references(unknown, lexicon, phones=False) == {'word': unknown}
    assert references(unknown, lexicon, phones=True) == {'word': unknown, 'phone': {}}
    monkeypatch.setattr(evaluate, 'test_set', lambda *_: (None, unknown))
    config = make_config(decode__phone_error_rate=True)
    with pytest.raises(DataError, match='Phones cannot be scored'):
        Evaluator.make(config, types.SimpleNamespace(lexicon=lexicon), None)


def test_one_network_under_two_names_has_no_change(make_config, tmp_path):
    """An early stop may go back to what the sequence stage began with."""
    config = make_config()
    with workdir.Workdir(tmp_path, config.to_dict()) as run:
        data = assembly.training_data(config)
        evaluator = Evaluator.make(config, data, run)
        _, first = assembly.network(config, data.features.dim, data.topology.num_pdfs)
        other = jax.tree.map(lambda leaf: leaf * 0.5, first)
        for model, params in (('ce', first), ('mmi', first), ('smbr', other)):
            evaluator.score(model, params)
        assert evaluator.change('mmi', 'ce', 'word') is None
        assert evaluator.change('smbr', 'ce', 'word') is not None
        assert evaluator.change('smbr', 'ce', 'phone') is None  # not scored
        evaluator.scores = [s for s in evaluator.scores if s.model != 'ce']
        assert evaluator.change('smbr', 'ce', 'word') is None  # its hypotheses are of another set
