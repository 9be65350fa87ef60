"""`python -m mimo_edge` is the command `mimo-edge`."""

import sys

from mimo_edge.scripts.cli import main

sys.exit(main())
