# For this folder until it has moved: its tests import from `conftest` and `test_goldens`. Both files go with it.
from tests.support.networks import largest_error, random_gates, random_images, random_network  # noqa: F401
