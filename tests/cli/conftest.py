"""What tests of commands borrow from those of other packages: a log with a chain."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "chain"))
