"""`python -m dynroute`, and `torchrun ... -m dynroute`."""

import sys

from dynroute.cli import main

sys.exit(main())
