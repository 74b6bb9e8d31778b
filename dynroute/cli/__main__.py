"""`python -m dynroute.cli`."""

import sys

from dynroute.cli import main

sys.exit(main())
