"""`python -m benchmarks.schedules`."""

import sys

from benchmarks.schedules.runner import main

sys.exit(main())
