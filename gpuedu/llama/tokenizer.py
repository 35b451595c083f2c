"""Text to tokens and back, and a conversation to the text that a chat model was trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Tokenizer:
    """A tokenizer of the package ``tokenizers``, with special tokens and chat template.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        Does the work.
    bos_id, eos_id : int, optional
        Tokens that begin and end a text; None if there is none.
    chat_template : str, optional
        In Jinja, as Hugging Face and GGUF store it.

    Examples
    --------
    >>> from gpuedu.tinylm import load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> tokenizer.decode(tokenizer.encode("Four score and 7 years ago"))
    'Four score and 7 years ago'
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        chat_template: str | None = None,
    ):
        self._backend = backend
        self.bos_id, self.eos_id, self.chat_template = bos_id, eos_id, chat_template

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; special tokens that it spells out are taken as such, and none is added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones spelled out; bytes that make no character become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def chat(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """A conversation as the text that the model was trained on.

        Parameters
        ----------
        messages : sequence of dict
            Each with ``"role"`` (``"system"``, ``"user"``, ``"assistant"``) and ``"content"``.
        add_generation_prompt : bool
            End with the beginning of an answer.

        Returns
        -------
        str
            To be encoded.

        Raises
        ------
        ValueError
            If the model has no chat template, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError("chat: this tokenizer has no chat template")

        def refuse(reason: str) -> None:
            raise ValueError(f"messages: the chat template says: {reason}")

        # A template comes with a model from somewhere: it may compute text and nothing else
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(self.chat_template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=self._spelled(self.bos_id),
            eos_token=self._spelled(self.eos_id),
            raise_exception=refuse,
        )

    def _spelled(self, token: int | None) -> str:
        return "" if token is None else self._backend.id_to_token(token)


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory.

    Parameters
    ----------
    directory : Path
        With ``tokenizer.json``; special tokens and chat template from ``tokenizer_config.json`` and
        ``chat_template.jinja``, where they are.

    Returns
    -------
    Tokenizer
        Ready to use.

    Raises
    ------
    FileNotFoundError
        If there is no ``tokenizer.json``.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a tokenizer is read from this file, and it is missing")
    backend = tokenizers.Tokenizer.from_file(str(path))
    config = directory / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    template = directory / "chat_template.jinja"
    return Tokenizer(
        backend,
        bos_id=_token_id(backend, settings.get("bos_token")),
        eos_id=_token_id(backend, settings.get("eos_token")),
        chat_template=template.read_text(encoding="utf-8")
        if template.is_file()
        else settings.get("chat_template"),
    )


def _token_id(backend: tokenizers.Tokenizer, token: str | dict | None) -> int | None:
    """Id of a special token; older files wrap its text in a dictionary."""
    text = token["content"] if isinstance(token, dict) else token
    return None if text is None else backend.token_to_id(text)
