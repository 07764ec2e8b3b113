"""The run's folder refuses a second run and another config, and says which field."""

import json

import pytest

from seqtrain.training import config as config_lib
from seqtrain.training.workdir import Workdir, WorkdirError, write_json


def test_a_second_run_in_one_workdir_is_refused(tmp_path):
    with (
        Workdir(tmp_path, {'a': 1}),
        pytest.raises(WorkdirError, match='Another run holds'),
        Workdir(tmp_path, {'a': 1}),
    ):
        pass
    with Workdir(tmp_path, {'a': 1}):  # freed
        pass


def test_another_config_is_refused_by_field_name(tmp_path):
    with Workdir(tmp_path, {'mmi': {'updates': 1, 'leaky': 0.0}}) as workdir:
        (workdir.sub('checkpoints') / '4').touch()
    with (
        pytest.raises(WorkdirError, match=r'differs in mmi\.updates\.'),
        Workdir(tmp_path, {'mmi': {'updates': 2, 'leaky': 0.0}}),
    ):
        pass
    with Workdir(tmp_path, {'mmi': {'updates': 1, 'leaky': 0.0}}) as workdir:  # not left locked
        assert workdir.config == {'mmi': {'updates': 1, 'leaky': 0.0}}


def test_another_config_is_taken_before_there_are_results(tmp_path):
    for path in ('wrong', 'right'):
        with Workdir(tmp_path, {'data': path}) as workdir:
            assert workdir.config == {'data': path}
            workdir.sub('checkpoints')
            (workdir.path / 'machine.json').touch()
            (workdir.sub('model') / 'word.fst').touch()
            with Workdir(workdir.sub('mono'), {'data': path}) as before:
                assert before.config == {'data': path}
    (tmp_path / 'mono' / 'result.json').touch()  # of the monophone run, which the next one takes
    with pytest.raises(WorkdirError, match=r'differs in data\.'), Workdir(tmp_path, {'data': 'x'}):
        pass


def test_a_run_goes_on_at_another_address(tmp_path):
    for address in ('one:6379', 'two:6380'):
        with Workdir(tmp_path, {'exchange': {'ray_address': address}}) as workdir:
            (workdir.path / 'updates.jsonl').touch()


def test_tuples_in_a_config_equal_their_json_form(tmp_path):
    for _ in range(2):
        with Workdir(tmp_path, {'speeds': (0.9, 1.0)}) as workdir:
            (workdir.path / 'updates.jsonl').touch()


def test_what_broke_off_before_a_checkpoint_is_forgotten(tmp_path):
    with Workdir(tmp_path, {'a': 1}) as run:
        run.forget_attempt()  # nothing yet
        for name in ('events.jsonl', 'pushes.jsonl', 'updates.jsonl', 'failures.jsonl'):
            (tmp_path / name).write_text('{}\n')
        run.sub('shards').joinpath('shard-0').write_text('values')
        (tmp_path / 'machine.json').write_text('{}')
        run.sub('decode')
        run.forget_attempt()
    assert sorted(file.name for file in tmp_path.iterdir()) == ['config.json', 'decode', 'lock']


def test_an_empty_folder_has_no_config(tmp_path):
    with pytest.raises(WorkdirError, match='Train first'), Workdir(tmp_path / 'new', None):
        pass


def test_fields_that_came_after_a_run_have_their_defaults(tmp_path):
    def complete(old):
        return {'speeds': (1.0,), 'dev': '', **old}

    with Workdir(tmp_path, {'updates': 1}) as workdir:
        write_json(workdir.path / 'result.json', {})
    with Workdir(tmp_path, {'updates': 1, 'speeds': (1.0,), 'dev': ''}, complete):
        pass
    with (
        pytest.raises(WorkdirError, match=r'differs in dev\.'),
        Workdir(tmp_path, {'updates': 1, 'speeds': (1.0,), 'dev': 'test'}, complete),
    ):
        pass


def test_a_config_of_before_a_field_was_there_is_completed():
    whole = config_lib.default().to_dict()
    old = json.loads(json.dumps(whole))
    del old['data']['dev'], old['lattice']
    assert json.dumps(config_lib.complete(old)) == json.dumps(whole)
