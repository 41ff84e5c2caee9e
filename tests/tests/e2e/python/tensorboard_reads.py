"""Reads a run's event files with TensorBoard's own reader, and asks TensorBoard's server for them: tensorboard_reads.py ROOT."""

import json
import sys
import time
import urllib.request

from tensorboard import default, program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

root = sys.argv[1]
accumulator = EventAccumulator(f"{root}/r/tensorboard", size_guidance={"scalars": 0})
accumulator.Reload()
read = {tag: [event.value for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}

board = program.TensorBoard(default.get_plugins())
board.configure(argv=[None, "--logdir", root, "--port", "0"])
url = board.launch()
read["served"] = False
for _ in range(200):
    tags = json.load(urllib.request.urlopen(f"{url}data/plugin/scalars/tags"))
    if "train/loss" in tags.get("r/tensorboard", {}):
        read["served"] = True
        break
    time.sleep(0.1)
print(json.dumps(read))
