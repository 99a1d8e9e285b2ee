"""Rewrites JSON files as the package writes them, with each list of numbers on one line.

python .ci/format_json.py $(git ls-files "examples/*.json")
"""

import json
import sys
from pathlib import Path

from rgtg_logits.files import write_json

for name in sys.argv[1:]:
    write_json(name, json.loads(Path(name).read_text(encoding="utf8")))
