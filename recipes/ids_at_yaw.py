"""The labelled training photos of a data set at one |yaw|, for --ids; nobody validates.

python recipes/ids_at_yaw.py FOLDER/V3 0 > ids.json

The people whom the scripts hold out to validate are left out, as elsewhere.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from datasets.splits import open_data  # noqa: E402

folder, yaw = sys.argv[1], float(sys.argv[2])
train = open_data(folder).splits["train"]
print(json.dumps({"train": [sample.id for sample in train if abs(sample.yaw) == yaw]}))
