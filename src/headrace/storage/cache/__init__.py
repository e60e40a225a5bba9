"""The local cache: blocks of remote files, kept on a disk or in memory for all processes of a machine."""

from headrace.storage.cache.cache import Cache, stop_publishing
from headrace.storage.cache.file import cached, open_cache
from headrace.storage.cache.options import CacheOptions, cache_options
from headrace.storage.cache.whole import cached_bytes

__all__ = ["Cache", "CacheOptions", "cache_options", "cached", "cached_bytes", "open_cache", "stop_publishing"]
