"""``python -m skpatchcore`` is the command ``skpatchcore``."""

from skpatchcore.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
