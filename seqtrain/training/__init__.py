"""Runs: config, stages, checkpoints, decoding, alignment, replay; `experiment.run` is the whole."""
