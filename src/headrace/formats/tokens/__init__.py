"""Token shards: flat arrays of little-endian uint16 or uint32, one document behind the other.

The file is what numpy's `memmap` or `fromfile` reads, with nothing added. A sample is a document, or with windows a run
of tokens of one length wherever documents begin and end. Bare files (nanoGPT's `train.bin`) and those with the header
of llm.c are read too, each as one document.
"""

from headrace.formats.format import Format
from headrace.formats.tokens.index import TokensIndex
from headrace.formats.tokens.scan import find_tokens, scan_tokens
from headrace.formats.tokens.writer import TokensWriter, encode_tokens

TOKENS = Format("tokens", ".bin", find_tokens, scan_tokens, TokensIndex.from_file, encode_tokens, TokensWriter)

__all__ = ["TOKENS", "TokensIndex", "TokensWriter", "encode_tokens", "find_tokens", "scan_tokens"]
