"""The run-time type checker of the tests; see `tests/conftest.py`."""

from beartype import BeartypeConf, beartype

# As in pyright, an int is accepted where a float is annotated.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
