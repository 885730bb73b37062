"""Rows of a rule on the terminal and as a picture: python tools/show.py rule=dyck k=4 length=48 --png FILE"""

import sys

from vitwarm.procedural.show import main

if __name__ == "__main__":
    sys.exit(main())
