"""`python -m foca_dit`: the same as the command `foca-dit`."""

import sys

from foca_dit.cli.main import main

sys.exit(main())
