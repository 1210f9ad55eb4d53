"""Where the files are that come with quarry."""

from importlib.util import find_spec
from pathlib import Path


def data_file(name: str) -> Path:
    """Return the path of a file or folder below `data`: installed as the package quarry_data, or
    beside this package in a checkout.
    """
    beside = Path(__file__).parents[2] / "data"
    spec = None if beside.is_dir() and (beside / "README.md").exists() else find_spec("quarry_data")
    return (
        Path(spec.submodule_search_locations[0])
        if spec and spec.submodule_search_locations
        else beside
    ) / name
