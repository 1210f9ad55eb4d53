"""The command line: python -m quarry."""

import runpy

runpy.run_module("cli.main", run_name="__main__")
