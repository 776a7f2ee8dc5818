"""
The command line, `region-learner COMMAND`.

Commands import what they need when they run: torch and transformers take seconds to import, and `--help` must be fast.
"""

from .command_line import app, main

__all__ = ["app", "main"]
