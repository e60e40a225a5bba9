"""A process that reads a file of the tests' store through a cache: `cache_reader.py JSON`.

It says `ready`, waits for a line on its standard input, reads what it was told, says `right` or what was wrong, and
waits for the end of its standard input.
"""

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor

from cache_store import HttpFile, content

from headrace.storage import locate
from headrace.storage.cache import CacheOptions, cached, open_cache


def main(folder, max_bytes, url, num_bytes, reads, threads=1, longest=3 << 20, seed=0, forever=False):
    cache = open_cache(CacheOptions(folder, max_bytes))
    file = cached(lambda: HttpFile(url, num_bytes), CacheOptions(folder, max_bytes), url, num_bytes, place=locate(url))
    right = memoryview(content(num_bytes, int(url.rpartition("/")[2])))
    rng = random.Random(seed)

    def read(span):
        first, last = span
        return file.read(first, last - first) == right[first:last]

    print("ready", getattr(cache, "_fd", ""), flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(threads) as pool:
        while True:
            if reads == "all":
                starts = list(range(0, num_bytes, longest))
                rng.shuffle(starts)
                spans = [(first, min(num_bytes, first + longest)) for first in starts]
            else:
                firsts = [rng.randrange(num_bytes) for _ in range(reads)]
                spans = [(first, min(num_bytes, first + rng.randrange(1, longest))) for first in firsts]
            wrong = [span for span, is_right in zip(spans, pool.map(read, spans), strict=True) if not is_right]
            if wrong or not forever:
                break
    print("right" if not wrong else f"wrong: {wrong}", flush=True)
    sys.stdin.read()


main(**json.loads(sys.argv[1]))
