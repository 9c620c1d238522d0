"""Fixtures of the tests of training runs."""

import pytest

from emo_jax.training import loop
from tests.steps import step_of


@pytest.fixture(scope="module")
def cheap_vae_start():
    """Shares the compiled step of stage vae between runs; skips the count of FLOPs (see test_flops.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_step", lambda *args: step_of("vae")[2])
        patch.setattr(loop, "step_flops", lambda *args: 10**9)
        yield
