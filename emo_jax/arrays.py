"""Array type of annotations: functions that compute with arrays accept those of JAX and of NumPy."""

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
"""Used with jaxtyping, as in ``Float[AnyArray, "batch height width channels"]``."""
