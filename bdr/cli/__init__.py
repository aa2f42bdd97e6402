"""The command line `bdr`."""
