"""Packaging of seqtrain: everything installs with pip; the C++ core is optional."""

import importlib.util
import pathlib
import sys

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

HERE = pathlib.Path(__file__).parent

CORE = [
    'absl-py',
    'array-record',
    'flax>=0.12',
    'grain',
    'importlib_resources',  # used by tensorflow-datasets, which does not declare it
    'jax>=0.7.1',  # as flax 0.12 asks for
    'jaxtyping',
    'ml-collections',
    'numpy',
    'optax',
    'orbax-checkpoint',
    'pyyaml',
    'rich',
    'scipy',
    'soundfile',
    'tensorflow-datasets>=4.9',
]
EXTRAS = {
    'kaldi': ['kaldifst', 'kaldi-decoder', 'kaldi-native-fbank', 'kaldi-native-io', 'jiwer'],
    'dist': ['ray'],
    'synth': ['espeakng-loader'],  # GPL-3: the user installs it; nothing of it is shipped here
    'report': ['matplotlib', 'tensorboardX', 'treescope'],
    'notebooks': ['ipykernel', 'ipywidgets', 'nbclient', 'nbconvert', 'nbmake'],
    'test': [
        'beartype',
        'chex',
        'hypothesis',
        'mypy',
        'pytest',
        'pytest-timeout',
        'pytest-xdist>=3.7',
        'ruff',
    ],
}
EXTRAS['demo'] = EXTRAS['kaldi'] + EXTRAS['synth'] + EXTRAS['report']
EXTRAS['all'] = sorted({name for group in EXTRAS.values() for name in group})
OPTIONS = ['-std=c++17', '-O3', '-g0', '-fno-math-errno']


def core() -> list[Extension]:
    """The C++ core (seqtrain/ops/cpu); needs a compiler and the headers inside jaxlib."""
    jaxlib = importlib.util.find_spec('jaxlib')
    if jaxlib is None or jaxlib.origin is None:
        print('seqtrain: no jaxlib to build the C++ core against; installing without it.')
        return []
    return [
        Extension(
            'seqtrain.ops.cpu._core',
            sources=sorted(str(p.relative_to(HERE)) for p in HERE.glob('seqtrain/ops/cpu/*.cc')),
            depends=[str(p.relative_to(HERE)) for p in HERE.glob('seqtrain/ops/cpu/*.[hi]*')],
            include_dirs=[str(pathlib.Path(jaxlib.origin).parent / 'include')],
            # No -march: each kernel file names its instructions, and one is chosen when it runs.
            # clang would contract multiply-adds within expressions alone.
            extra_compile_args=[*OPTIONS, '-ffp-contract=fast', '-Wno-psabi'],
            optional=True,  # without a compiler the package installs and runs on `xla`
        )
    ]


def search() -> Extension:
    """The lattice search (seqtrain/lattices/native); needs a compiler alone."""
    return Extension(
        'seqtrain.lattices.native._search',
        sources=['seqtrain/lattices/native/search.cc'],
        extra_compile_args=OPTIONS,
        optional=True,  # without it lattices are made by NumPy
    )


class BuildCore(build_ext):
    """A failure leaves the package without its C++ core; it says so."""

    def run(self):
        try:
            super().run()
        except Exception as error:
            print(f'seqtrain: C++ core not built ({error}); it will run on xla.', file=sys.stderr)


class WholeSource(sdist):
    """The source as it lies in the repository: launch, configs, tests and pages, too."""

    def make_distribution(self):
        found = [*HERE.glob('*.md'), HERE / 'Makefile', HERE / 'seqtrain/exchange/README.md']
        for folder in ('.ci', 'configs', 'docs', 'launch', 'notebooks', 'tests'):
            found += (HERE / folder).rglob('*')
        kept = (p for p in found if p.is_file() and '__pycache__' not in p.parts)
        self.filelist.extend(sorted(str(p.relative_to(HERE)) for p in kept))
        super().make_distribution()


setup(
    name='seqtrain',
    version='0.1.0',
    description='Asynchronous sequence-discriminative training of acoustic models in JAX',
    long_description=(HERE / 'README.md').read_text() if (HERE / 'README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['seqtrain', 'seqtrain.*']),
    package_data={
        'seqtrain': ['py.typed'],
        'seqtrain.ops.cpu': ['*.h', '*.inc', '*.cc'],
        'seqtrain.lattices.native': ['*.cc'],
    },
    ext_modules=[*core(), search()],
    cmdclass={'build_ext': BuildCore, 'sdist': WholeSource},
    install_requires=CORE,
    extras_require=EXTRAS,
)
