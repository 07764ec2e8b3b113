"""TFDS builders of the corpora that configs name: `yesno`, `fsdd`, `synth_digits`."""
