"""torchdata's StatefulDataLoader over the stream: its state holds those of the workers' shares."""

import json
import os

from run import RUN, SAVE_EVERY, make_stream, record
from torchdata.stateful_dataloader import StatefulDataLoader

loader = StatefulDataLoader(make_stream(epochs=2), batch_size=5, num_workers=2)
done, saved = 0, RUN / "state.json"
if saved.exists():
    state = json.loads(saved.read_text())
    loader.load_state_dict(state["loader"])
    done = state["done"]
for number, batch in enumerate(loader, start=done + 1):
    record(batch)
    if number % SAVE_EVERY == 0:
        (RUN / "part").write_text(json.dumps({"done": number, "loader": loader.state_dict()}))
        os.replace(RUN / "part", saved)
