"""What is wrong in a config is a ConfigError, a sentence for the user, before anything is made."""

import pathlib

import pytest

from seqtrain.training import config, errors, experiment


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'sequence__criterion': 'foo'}, 'mmi, smbr or mpe'),
        ({'graph__topology': 'hmm2'}, 'chain, hmm1, hmm3 or ctc'),
        ({'graph__context': 'quinphone'}, 'choose one of mono'),
        ({'data__split_by': 'speakers'}, 'utterance or speaker'),
        ({'sequence__patience': 2, 'data__dev': ''}, 'config.data.dev'),
        ({'exchange__rule': 'adm'}, 'config.exchange.rule'),
        ({'exchange__ray_replicas': True}, 'transport=ray'),
        ({'exchange__ray_address': 'host:6379'}, 'transport=ray'),
        ({'exchange__num_replicas': 0}, 'at least'),
        ({'bootstrap__rounds': 0, 'sequence__updates': 0}, 'Nothing to train'),
        ({'bootstrap__updates': 0, 'sequence__updates': 0}, 'Nothing to train'),
        ({'bootstrap__updates': 0, 'graph__context': 'biphone'}, 'would train nothing'),
        ({'lattice__mode': 'foo'}, 'config.lattice.mode'),
        ({'lattice__lattice_beam': -5000.0}, 'config.lattice.lattice_beam'),
        ({'lattice__ahead': -1}, 'config.lattice.ahead'),
        ({'graph__optional_silence': False}, 'config.graph.silence_probability searches for it'),
        ({'features__given': 'plp'}, 'fbank, mfcc, other'),
        ({'data__speeds': ()}, r'config\.data\.speeds is \(\): give one positive number'),
        ({'data__vtln': ('a',)}, r'config\.data\.vtln'),
        ({'data__spec_augment': True, 'spec_augment__max_warp': 2.0}, 'max_warp'),
    ],
)
def test_fields_that_cannot_be_are_named_before_there_is_a_folder(
    make_config, tmp_path, fields, message
):
    assert issubclass(config.ConfigError, errors.FOR_USERS)
    with pytest.raises(config.ConfigError, match=message):
        experiment.run(make_config(**fields), tmp_path / 'never', quiet=True)
    assert not (tmp_path / 'never').exists()


def test_what_the_system_refuses_is_for_the_user_and_a_replicas_own(make_config, tmp_path):
    file = pathlib.Path(tmp_path / 'file')
    file.touch()
    with pytest.raises(errors.FOR_USERS, match='file'):
        experiment.run(make_config(), file, quiet=True)
    assert errors.of_replica(ConnectionError())
    assert not errors.of_replica(FileNotFoundError())
