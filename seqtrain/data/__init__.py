"""Corpora, Kaldi directories, features, augmentation, length buckets and utterance leases."""
