"""``python -m noisyml`` is the same as ``noisyml``."""

import sys

from noisyml.cli import main

sys.exit(main())
