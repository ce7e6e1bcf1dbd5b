"""The pool's maker, for tests of swaps."""

from tests.pool.conftest import make as make
