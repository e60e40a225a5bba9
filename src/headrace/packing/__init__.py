"""Packing: any source, through a transform, into shards with a manifest."""

from headrace.packing.pack import pack

__all__ = ["pack"]
