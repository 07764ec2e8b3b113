"""espeak-ng in this process: text to samples with the exact time of every phone.

The library keeps state between utterances and draws random numbers, so for each one it is
loaded anew and those are seeded: the result is then the same in any order.
It comes with the package `espeakng-loader` (GPL-3, an optional extra that is not shipped here).
"""

from __future__ import annotations

import _ctypes
import ctypes
import dataclasses
import threading

import numpy as np
from jaxtyping import Float32

from seqtrain.data.utterance import DataError

# From espeak-ng's speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 0x0001
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_RATE, _PITCH = 1, 3
_EVENT_LIST_TERMINATED, _EVENT_PHONEME = 0, 7

_LOCK = threading.Lock()


class _EventId(ctypes.Union):
    _fields_ = (('number', ctypes.c_int), ('name', ctypes.c_char_p), ('string', ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ('type', ctypes.c_int),
        ('unique_identifier', ctypes.c_uint),
        ('text_position', ctypes.c_int),
        ('length', ctypes.c_int),
        ('audio_position', ctypes.c_int),
        ('sample', ctypes.c_int),
        ('user_data', ctypes.c_void_p),
        ('id', _EventId),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclasses.dataclass(frozen=True)
class Speech:
    """What espeak-ng said.

    Attributes:
      samples: f32[n], full scale ±32768.
      sample_rate: Hz.
      phones: espeak's phone names, each with the sample at which it starts.
    """

    samples: Float32[np.ndarray, ' n']
    sample_rate: int
    phones: tuple[tuple[str, int], ...]


def speak(text: str, voice: str, words_per_minute: int, pitch: int) -> Speech:
    """Synthesises one utterance; the same arguments give the same samples in any order of calls.

    Args:
      text: what to say; a comma is a short pause.
      voice: espeak's language and variant, e.g. 'en-us+f1'.
      words_per_minute: 80 to 450.
      pitch: 0 to 99, 50 is the voice's own.

    Raises:
      DataError: `espeakng-loader` is not installed, or there is no such voice.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise DataError(
            'synth_digits needs espeak-ng: pip install espeakng-loader (the extra "synth").'
        ) from None
    with _LOCK:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            data_path = espeakng_loader.get_data_path()
            return _speak(library, data_path, text, voice, words_per_minute, pitch)
        finally:
            library.espeak_Terminate()
            _ctypes.dlclose(library._handle)


def _speak(library, data_path, text, voice, words_per_minute, pitch) -> Speech:
    chunks: list[np.ndarray] = []
    phones: list[tuple[str, int]] = []

    def receive(wave, num_samples, events):
        if num_samples > 0:
            chunks.append(np.ctypeslib.as_array(wave, (num_samples,)).astype(np.float32))
        index = 0
        while events[index].type != _EVENT_LIST_TERMINATED:
            if events[index].type == _EVENT_PHONEME:
                phones.append((events[index].id.string.decode(), events[index].sample))
            index += 1
        return 0

    callback = _Callback(receive)  # Held here: the library keeps only its address.
    options = _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_DONT_EXIT
    rate = library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path.encode(), options)
    if rate <= 0:
        raise DataError(f'espeak-ng did not start with the data at {data_path}.')
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise DataError(f'espeak-ng has no voice {voice!r}.')
    library.espeak_SetParameter(_RATE, words_per_minute, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    # Breathy voices draw noise; both sources of it start anew.
    ctypes.CDLL(None).srand(1)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _CHARS_UTF8, None, None)
    library.espeak_Synchronize()
    if not chunks:
        raise DataError(f'espeak-ng said nothing for {text!r} with voice {voice!r}.')
    return Speech(np.concatenate(chunks), rate, tuple(phones))
