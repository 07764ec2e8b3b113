"""The run's folder refuses a second run and another config, and says which field."""

import pytest

from seqtrain.training.workdir import Workdir, WorkdirError


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
    with Workdir(tmp_path, {'mmi': {'updates': 1, 'leaky': 0.0}}):
        pass
    with (
        pytest.raises(WorkdirError, match=r'differs in mmi\.updates\.'),
        Workdir(tmp_path, {'mmi': {'updates': 2, 'leaky': 0.0}}),
    ):
        pass
    with Workdir(tmp_path, {'mmi': {'updates': 1, 'leaky': 0.0}}) as workdir:  # not left locked
        assert workdir.config == {'mmi': {'updates': 1, 'leaky': 0.0}}


def test_tuples_in_a_config_equal_their_json_form(tmp_path):
    for _ in range(2):
        with Workdir(tmp_path, {'speeds': (0.9, 1.0)}):
            pass


def test_an_empty_folder_has_no_config(tmp_path):
    with pytest.raises(WorkdirError, match='Train first'), Workdir(tmp_path / 'new', None):
        pass
