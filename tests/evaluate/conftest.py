"""The evaluation needs an extra that the oldest supported transformers are tested without."""

from importlib.util import find_spec

collect_ignore_glob = [] if all(map(find_spec, ("pandas", "pyarrow", "sacrebleu", "matplotlib"))) else ["test_*.py"]
