"""The tokenizer of a model file, as llama-finetune and the server use it: special tokens parsed as such."""

import logging
from pathlib import Path

import llama_cpp

from timestep.errors import ModelFileError


class Tokenizer:
    """Tokens of a text; only the vocabulary of the model is loaded (some 0.2 s).

    ``first_token`` is the text of the beginning-of-sequence token where the model wants one in front of
    every sequence, else empty; ``padding`` that of the token that fills windows.
    """

    def __init__(self, gguf: Path) -> None:
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), parameters)
        if not self._model:
            raise ModelFileError(gguf, "llama.cpp can't read its vocabulary")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        padding = llama_cpp.llama_vocab_pad(self._vocab)
        self.padding = self._text(padding if padding >= 0 else llama_cpp.llama_vocab_eos(self._vocab))
        adds_first = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.first_token = self._text(llama_cpp.llama_vocab_bos(self._vocab)) if adds_first else ""

    def __call__(self, text: str) -> list[int]:
        """Tokens of ``text`` as it stands: nothing is added in front."""
        data = text.encode()
        room = len(data) + 1
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, False, True)
        return list(tokens[:count])

    def sequence(self, text: str) -> list[int]:
        """Tokens of a sequence that begins with ``text``, as it is served: its first token included."""
        return self(self.first_token + text)

    def close(self) -> None:
        """Free the vocabulary."""
        llama_cpp.llama_model_free(self._model)

    def _text(self, token: int) -> str:
        return bytes(llama_cpp.llama_vocab_get_text(self._vocab, token)).decode()
