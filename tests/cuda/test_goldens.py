# See conftest.py.
from tests.support.goldens import EVAL, check_eval, load  # noqa: F401
