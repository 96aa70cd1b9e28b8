"""From what a request asks to the token ids that the model reads: a chat through its template, a text, or ids as they are."""

from typing import Any

from llmray.serve.engine import EngineRequest, RequestRefusedError


def prompt_ids(request: EngineRequest, tokenizer: Any, *, vocabulary: int) -> list[int]:
    """Token ids of a prompt, at least one.

    Raises:
        RequestRefusedError: the model has no template for it, or no such token.
    """
    if request.messages is not None:
        ids = _chat_ids(request, tokenizer)
    elif isinstance(request.prompt, tuple):
        if wrong := [token for token in request.prompt if not 0 <= token < vocabulary]:
            raise RequestRefusedError(
                f"there is no token {wrong[0]}: ids go from 0 to {vocabulary - 1}", "prompt", "invalid_value"
            )
        ids = list(request.prompt)
    else:
        ids = list(tokenizer(request.prompt)["input_ids"])
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise RequestRefusedError(
            "prompt must not be empty: this model has no token to begin with",
            "prompt" if request.messages is None else "messages",
        )
    return ids


def check_length(request: EngineRequest, most_characters: int) -> None:
    """Refuse what no tokenizer could make fit, before it takes seconds to tokenize.

    Raises:
        RequestRefusedError: the prompt has more characters than tokens of a context can stand for.
    """
    characters = characters_of(request)
    if characters > most_characters:
        raise RequestRefusedError(
            f"the prompt has {characters} characters, and the model's context holds {most_characters} at most: shorten it",
            "prompt" if request.messages is None else "messages",
            "context_length_exceeded",
        )


def characters_of(request: EngineRequest) -> int:
    """Characters, or token ids, of a prompt, without its tools."""
    if request.messages is None:
        return len(request.prompt or ())
    return sum(len(one["content"]) for one in request.messages if isinstance(one["content"], str))


def reads_tools(tokenizer: Any) -> bool:
    """Whether the model's chat template does anything with tools."""
    return isinstance(tokenizer.chat_template, str) and "tools" in tokenizer.chat_template


def _chat_ids(request: EngineRequest, tokenizer: Any) -> list[int]:
    assert request.messages is not None
    if not tokenizer.chat_template:
        raise RequestRefusedError(
            "this model has no chat template: use /v1/completions, or give its tokenizer one", "messages"
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(one) for one in request.messages],
            tools=list(request.tools) or None,
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:  # a template may refuse roles with any error of its own
        raise RequestRefusedError(f"the model's chat template refuses these messages: {error}", "messages") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
