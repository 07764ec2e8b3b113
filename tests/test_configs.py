"""Golden resolved configs: a changed default shows in the diff, for every experiment it touches.

After a wanted change: `python tests/test_configs.py` writes them anew.
"""

import dataclasses
import importlib.util
import json
import pathlib

import pytest

from seqtrain.data.features import FeatureConfig
from seqtrain.training import assembly
from seqtrain.training import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / 'tests' / 'golden'
CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))


def resolved(name: str) -> str:
    spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return json.dumps(module.get_config().to_dict(), indent=2, sort_keys=True) + '\n'


@pytest.mark.parametrize('name', CONFIGS)
def test_resolved_config_is_the_golden_one(name):
    assert resolved(name) == (GOLDEN / f'{name}.json').read_text()


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_begins_with_its_command(name):
    text = (ROOT / 'configs' / f'{name}.py').read_text()
    assert f'python launch/train.py --config=configs/{name}.py' in text.split('"""')[1]


def test_configs_know_every_setting_of_the_filterbank():
    settings = {field.name for field in dataclasses.fields(FeatureConfig)} - {'frame_shift_ms'}
    assert set(config_lib.default().features) == settings
    assert assembly.feature_config(config_lib.default()) == FeatureConfig()


if __name__ == '__main__':
    GOLDEN.mkdir(exist_ok=True)
    for config in CONFIGS:
        (GOLDEN / f'{config}.json').write_text(resolved(config))
