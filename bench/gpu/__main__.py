"""Run `python -m bench.gpu`."""

from .command import main

if __name__ == "__main__":
    raise SystemExit(main())
