"""``python -m outsize`` is ``outsize``."""

import sys

from outsize.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
