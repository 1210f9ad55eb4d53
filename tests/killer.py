"""Run the quarry command, and end it with kill -9 just before or just after its N-th rename:
python killer.py before 3 ARGUMENTS…
"""

import itertools
import os
import signal
import sys

moment, fatal = sys.argv[1], int(sys.argv[2])
sys.argv = ["quarry", *sys.argv[3:]]
rename, numbers = os.replace, itertools.count(1)


def replace(old, new):
    number = next(numbers)
    if number == fatal and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(old, new)
    if number == fatal and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)


os.replace = replace

from cli.main import main  # noqa: E402

main()
