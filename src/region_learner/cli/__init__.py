"""
The command line, `region-learner COMMAND`.

Commands import what they need when they run. Torch and transformers take seconds to import, and `--help` must not.
"""

from .command_line import app, main

__all__ = ["app", "main"]
