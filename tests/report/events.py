#!/usr/bin/env python3
"""Say as JSON what TensorBoard's own reader finds in a folder: {"tag": [[step, value, wall_time], ...]}.

needs: pip install tensorboard==2.21.0
use:   python events.py FOLDER
"""
import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

found = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0, "tensors": 0})
found.Reload()
tags = found.Tags()
# Newer readers turn scalars into tensors as they read them.
events = {tag: [[e.step, e.value, e.wall_time] for e in found.Scalars(tag)] for tag in tags["scalars"]}
for tag in tags["tensors"]:
    events[tag] = [[e.step, float(tensor_util.make_ndarray(e.tensor_proto)), e.wall_time] for e in found.Tensors(tag)]
json.dump(events, sys.stdout)
