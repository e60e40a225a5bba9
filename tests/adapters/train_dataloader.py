"""PyTorch's own DataLoader over the stream: a count of batches is all that is saved."""

import json
import os

from run import RUN, SAVE_EVERY, make_stream, record
from torch.utils.data import DataLoader

OPTIONS = {"batch_size": 5, "num_workers": 2}
stream, done = make_stream(epochs=2), 0
saved = RUN / "state.json"
start = stream
if saved.exists():
    state = json.loads(saved.read_text())
    start, done = stream.resume(state), state["batches"]
for number, batch in enumerate(DataLoader(start, **OPTIONS), start=done + 1):
    record(batch)
    if number % SAVE_EVERY == 0:
        (RUN / "part").write_text(json.dumps(stream.state_after(number, **OPTIONS)))
        os.replace(RUN / "part", saved)
