"""The main job, end to end, in a lab of two nodes: what `make demo` runs (as root).

It reads the manifests beside this file and prints one line per check, with the measured figure.
"""

import sys
from pathlib import Path

from netplane.lab.demo.run import main

sys.exit(main(Path(__file__).parent))
