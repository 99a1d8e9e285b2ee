"""The command `rgtg`: one file per command, which parses options, calls the package and prints; no logic.

A command imports the code that it calls inside of its function, so that `rgtg --help` and a mistyped option are
answered at once, without PyTorch.
"""

from rgtg_logits.cli.app import app, main

__all__ = ["app", "main"]
