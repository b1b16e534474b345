"""To be imported before torch: lets benchmarks run from a checkout that is not installed."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow a busy machine down
for _folder in (ROOT, ROOT / "python"):
    sys.path.append(str(_folder))
