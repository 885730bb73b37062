"""Of all tests."""

import os

# Of this process alone, where the package's own become errors (pyproject.toml): others would print them.
os.environ.pop("PYTHONWARNDEFAULTENCODING", None)
