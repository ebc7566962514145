"""The command line: options in, sentences and exit codes out."""

from .main import main, run

__all__ = ["main", "run"]
