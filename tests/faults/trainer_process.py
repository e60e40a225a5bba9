"""A trainer that streams: it prints each batch and the state after it, and waits for a line before the next one."""

import json
import sys
import time

import feeding


def main(url, cache):
    with feeding.loader(url, cache or None) as loader:
        for batch in loader:
            print(json.dumps([feeding.noted(batch), loader.state_dict(), time.time()]), flush=True)
            sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
