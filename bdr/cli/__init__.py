"""The command line, `bdr`: a module a group of commands, on top of everything else."""

from bdr.cli.run import main

__all__ = ["main"]
