"""``python -m slimfast``."""

import sys

from slimfast.cli import main

sys.exit(main())
