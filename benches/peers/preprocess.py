"""Times facebookresearch/dlrm's own preprocessing of a file of Criteo's lines.

    preprocess.py DLRM FILE FOLDER

DLRM is a checkout of facebookresearch/dlrm, FILE the lines, FOLDER an empty folder for what it
writes. It prints the seconds that `getCriteoAdData` took, as JSON; what that prints goes to
standard error.
"""

import contextlib
import json
import pathlib
import shutil
import sys
import time


def main():
    dlrm, lines, folder = sys.argv[1:]
    sys.path.insert(0, dlrm)
    import data_utils

    copy = pathlib.Path(folder) / "train.txt"  # beside it come its splits
    shutil.copyfile(lines, copy)
    copy.read_bytes()  # so that the file is in the page cache
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        data_utils.getCriteoAdData(
            str(copy),
            "processed",  # a name alone: it is joined to the folder of the lines
            max_ind_range=10_000_000,
            days=1,
            randomize="none",
            criteo_kaggle=True,
        )
    print(json.dumps({"seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
