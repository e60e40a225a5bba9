"""A rank of Horovod is killed in the backward pass, when its sums are sent; the other prints what that was to it."""

import os
import signal

import problems as p
import torch

from headrace.train.worker import is_lost_peer


class Deadly:
    """In step 3 of rank 1 the backward pass ends the process."""

    def __call__(self, output, batch):
        if self.run.making == 3 and os.environ["RANK"] == "1":
            output.register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        return p.cross_entropy(output, batch)


def main():
    torch.set_num_threads(1)
    loss = Deadly()
    loss.run = p.trainer(loss=loss, steps=20, engine="horovod")
    try:
        loss.run.fit()
    except RuntimeError as err:
        print("lost peer" if is_lost_peer(err) else repr(err), flush=True)
        os._exit(0)  # as a worker does: exit handlers wait for the peer


if __name__ == "__main__":
    main()
