"""The tokenizer of a model file, as llama-finetune and the server use it: special tokens parsed as such."""

from pathlib import Path

from llama_cpp import Llama


class Tokenizer:
    """Tokens of a text; only the vocabulary of the model is loaded (some 0.3 s).

    ``first_token`` is the text of the beginning-of-sequence token where the model wants one in front of
    every sequence, else empty; ``padding`` that of the token that fills windows.
    """

    def __init__(self, gguf: Path) -> None:
        self._llama = Llama(str(gguf), vocab_only=True, verbose=False)
        metadata = self.metadata = dict(self._llama.metadata)
        self.context_length = int(metadata[f"{metadata['general.architecture']}.context_length"])
        eos = self._llama.token_eos()
        self.padding = self._text(int(metadata.get("tokenizer.ggml.padding_token_id", eos)))
        adds_first = len(self._llama.tokenize(b"", add_bos=True, special=True)) > 0
        self.first_token = self._text(self._llama.token_bos()) if adds_first else ""

    def __call__(self, text: str) -> list[int]:
        """Tokens of ``text`` as it stands: nothing is added in front."""
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=True))

    def close(self) -> None:
        """Free the vocabulary."""
        self._llama.close()

    def _text(self, token: int) -> str:
        return bytes(self._llama.detokenize([token], special=True)).decode()
