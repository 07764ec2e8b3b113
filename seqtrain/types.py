"""The axis legend and the named array types that every layer shares. Imports nothing of ours.

Axes
    B   utterances in a batch
    T   frames (at the network's output rate unless a name says otherwise)
    F   feature dimensions
    P   pdfs: the network's outputs
    S   states of a graph
    A   arcs of a graph
    N   replicas

Infinities
    -inf in a log-weight means "not there" (no initial weight, no final weight, padding arc).
    -inf as a log-partition means "no path"; the caller sees it through `valid`, never as a NaN.
"""

from jaxtyping import Array, Bool, Float32, Int32

Scores = Float32[Array, 'B T P']
"""Log-scores of every pdf in every frame (natural log; need not be normalised)."""

Lengths = Int32[Array, 'B']
"""Valid frames of every utterance; frames at or after it are padding."""

Labels = Int32[Array, 'B T']
"""A pdf index for every frame."""

PerUtterance = Float32[Array, 'B']
"""One value per utterance."""

Valid = Bool[Array, 'B']
"""False where an utterance is infeasible and contributes neither value nor gradient."""
