"""Every random number of a run is a function of (seed, purpose, epoch, step), never of a long global stream.

So a run's state holds no generator: resuming at any step draws what the uninterrupted run would have drawn.
"""

import numpy as np

# The numbers are part of every result ever made: add a purpose at the end, never renumber.
PURPOSES = {"backbone": 0, "init": 1, "order": 2, "dropout": 3, "augment": 4, "pretraining": 5, "mixing": 6}


def _sequence(seed: int, purpose: str, epoch: int, step: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, PURPOSES[purpose], epoch, step])


def torch_seed(seed: int, purpose: str, *, epoch: int = 0, step: int = 0) -> int:
    """Return the 63-bit value for ``torch.manual_seed`` of this seed (>= 0), purpose, epoch and step."""
    return int(_sequence(seed, purpose, epoch, step).generate_state(1, np.uint64)[0] >> np.uint64(1))


def numpy_generator(seed: int, purpose: str, *, epoch: int = 0, step: int = 0) -> np.random.Generator:
    """Return a fresh NumPy generator for this seed (>= 0), purpose, epoch and step."""
    return np.random.default_rng(_sequence(seed, purpose, epoch, step))
