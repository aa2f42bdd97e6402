"""Reads the arguments before anything else is imported or started."""

import sys


def _main() -> int:
    # Imported here because that takes a second, in which a Ctrl-C must not end in a traceback.
    from scripts.demo_run.arguments import parse_arguments

    arguments = parse_arguments(sys.argv[1:])
    from scripts.demo_run.demo import main

    return main(arguments)


if __name__ == "__main__":
    try:
        sys.exit(_main())
    except KeyboardInterrupt:
        sys.exit(130)
