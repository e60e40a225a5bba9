"""Text to tokens while packing, by a tokenizer of the `tokenizers` library, or byte by byte."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from headrace.errors import OptionError, SourceError
from headrace.storage import quoted

BYTES = "bytes"
"""The tokenizer that needs no file: tokens are the bytes of the text in UTF-8."""

_END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
_TEXT_FIELDS = ("text", "txt", "content")


@dataclass(frozen=True)
class Tokenize:
    """Makes the field `tokens` of a text field, and nothing else stays; for the format `tokens`.

    Behind each text comes the tokenizer's own token for the end of a text, if it has one of a usual name.
    """

    tokenizer: str
    """A tokenizer.json, the name of one on the Hugging Face hub, or `bytes`."""
    digest: str
    """Of the tokenizer's file or vocabulary: part of what decides the tokens."""
    field: str | None = None
    """The text field; None: the only one of text, txt, content that a sample has."""

    @classmethod
    def load(cls, tokenizer: str, field: str | None = None) -> Tokenize:
        """Reads the tokenizer once, so that one that cannot be had is refused before any work.

        Raises OptionError if the `tokenizers` library or the tokenizer is not there.
        """
        if tokenizer == BYTES:
            return cls(BYTES, "", field)
        return cls(tokenizer, xxhash.xxh3_64_hexdigest(_tokenizer(tokenizer).to_str().encode()), field)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample's key and tokens. Raises SourceError where there is no text, or it is not UTF-8."""
        text = self._text(sample)
        if self.tokenizer == BYTES:
            return {"__key__": sample["__key__"], "tokens": np.frombuffer(text.encode(), np.uint8)}
        tokenizer = _tokenizer(self.tokenizer)
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        end = next((found for name in _END_TOKENS if (found := tokenizer.token_to_id(name)) is not None), None)
        tokens = tokens if end is None else [*tokens, end]
        dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
        return {"__key__": sample["__key__"], "tokens": np.array(tokens, dtype)}

    def _text(self, sample: dict[str, Any]) -> str:
        names = [self.field] if self.field else [name for name in sample if name.rpartition(".")[2] in _TEXT_FIELDS]
        if len(names) != 1 or names[0] not in sample:
            fields = ", ".join(sorted(map(str, sample.keys() - {"__key__"})))
            raise SourceError(
                f"sample {quoted(sample['__key__'])} must have one text field to tokenize, {self.field or 'text'!r}, "
                f"it has {fields or 'none'}: name it (text_field, --text-field)"
            )
        value = sample[names[0]]
        try:
            return value if isinstance(value, str) else str(value, "utf-8")
        except (UnicodeDecodeError, TypeError) as err:
            raise SourceError(f"sample {quoted(sample['__key__'])}: field {names[0]!r} is not UTF-8 text") from err


_LOADED: dict[str, Any] = {}
_LOCK = threading.Lock()


def _tokenizer(name: str) -> Any:
    """The tokenizer, loaded once a process; its `encode` may be called from several threads."""
    with _LOCK:
        if name not in _LOADED:
            _LOADED[name] = _load(name)
        return _LOADED[name]


def _load(name: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as err:
        raise OptionError("a tokenizer needs the tokenizers library: pip install 'headrace[text]'") from err
    path = Path(name).expanduser()
    try:
        return Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)
    except Exception as err:  # the library raises plain Exception for whatever is wrong
        reason = " ".join(str(err).split())[:200]
        raise OptionError(
            f"the tokenizer {quoted(name)} cannot be read ({reason}): give a tokenizer.json, a name on the Hugging "
            f"Face hub that this machine reaches, or {BYTES!r}"
        ) from err
