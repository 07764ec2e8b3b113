"""Packaging of seqtrain: everything installs with pip; the C++ core is optional."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

CORE = [
    'absl-py',
    'array-record',
    'flax>=0.12',
    'grain',
    'importlib_resources',  # used by tensorflow-datasets, which does not declare it
    'jax>=0.6',
    'jaxtyping',
    'ml-collections',
    'numpy',
    'optax',
    'orbax-checkpoint',
    'soundfile',
    'tensorflow-datasets>=4.9',
]
EXTRAS = {
    'kaldi': ['kaldifst', 'kaldi-decoder', 'kaldi-native-fbank', 'kaldi-native-io', 'jiwer'],
    'dist': ['ray'],
    'synth': ['espeakng-loader'],  # GPL-3: the user installs it; nothing of it is shipped here
    'report': ['matplotlib', 'tensorboardX', 'treescope', 'rich'],
    'notebooks': ['ipykernel', 'nbclient', 'nbconvert', 'nbmake'],
    'test': [
        'beartype',
        'chex',
        'hypothesis',
        'mypy',
        'pytest',
        'pytest-timeout',
        'pytest-xdist',
        'ruff',
    ],
}
EXTRAS['demo'] = EXTRAS['kaldi'] + EXTRAS['synth'] + EXTRAS['report']
EXTRAS['all'] = sorted({name for group in EXTRAS.values() for name in group})

setup(
    name='seqtrain',
    version='0.1.0',
    description='Asynchronous sequence-discriminative training of acoustic models in JAX',
    long_description=(HERE / 'README.md').read_text() if (HERE / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['seqtrain', 'seqtrain.*']),
    install_requires=CORE,
    extras_require=EXTRAS,
)
