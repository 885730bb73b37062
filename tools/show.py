"""python tools/show.py rule=dyck k=4 length=48 --png FILE.png: `vitwarm show` from a checkout."""

from vitwarm.cli import tool

if __name__ == "__main__":
    tool("show")
