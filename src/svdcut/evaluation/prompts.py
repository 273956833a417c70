"""What a language model is given: a prompt for each text, and the words to score after it.

It imports no torch, and no transformers: a tokenizer is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from svdcut.errors import EvaluationError, UsageError
from svdcut.evaluation.dataset import Dataset
from svdcut.files.jsonfile import quoted

_FIELD = re.compile(r"\{(text|text_pair)\}")


def check_prompt(prompt: str | None, *, has_pairs: bool) -> str:
    """Return the template to use.

    Parameters
    ----------
    prompt : str or None
        None for the text, and the other one of a pair, a line each.
    has_pairs : bool
        Whether the data has pairs.

    Raises
    ------
    UsageError
        If it has no place for a text, or one for a pair that there is not.
    """
    if prompt is None:
        return "{text}\n{text_pair}\n" if has_pairs else "{text}\n"
    fields = set(_FIELD.findall(prompt))
    needed = {"text", "text_pair"} if has_pairs else {"text"}
    if lacking := sorted(needed - fields):
        raise UsageError(
            f"--prompt {quoted(prompt)}: has no {{{lacking[0]}}} in it",
            hint="As --prompt '{text} The review is ' --labels negative,positive.",
        )
    if "text_pair" in fields - needed:
        raise UsageError(
            f"--prompt {quoted(prompt)}: {{text_pair}} is of pairs",
            hint="Name the column of the other text: --text-pair COLUMN.",
        )
    return prompt


def fill_prompts(template: str, dataset: Dataset, tokenizer: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield the context for each row; as a user's message where there is a chat template.

    Braces other than those of ``{text}`` and ``{text_pair}`` are as they are, in the template
    and in texts.

    Raises
    ------
    EvaluationError
        If the chat template cannot be rendered.
    """
    for row, text in enumerate(dataset.texts):
        fields = {"text": text, "text_pair": "" if dataset.pairs is None else dataset.pairs[row]}
        filled = _fill(template, fields)
        yield _chat(filled, tokenizer) if tokenizer.chat_template else filled


def _fill(template: str, fields: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: fields[match[1]], template)


def _chat(prompt: str, tokenizer: Any) -> str:  # noqa: ANN401
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": prompt}]
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    except TemplateError as error:
        raise EvaluationError(
            f"the chat template of the tokenizer cannot be rendered: {error}",
            hint="It has to take one message of a user.",
        ) from error


def delimiter(template: str, word: str, tokenizer: Any) -> str:  # noqa: ANN401
    """Return what stands between the prompt and a word.

    A space, if neither brings one; nothing after a chat template, which ends a turn. So does
    lm-evaluation-harness, ``ConfigurableTask.construct_requests`` and its default
    ``target_delimiter``, for prompts that end without a space.
    """
    spaced = template[-1:].isspace() or word[:1].isspace()
    return "" if spaced or tokenizer.chat_template else " "


def encode_pairs(
    contexts: Sequence[str],
    words: Sequence[str],
    tokenizer: Any,  # noqa: ANN401
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Yield for each context, by word, its tokens and those of the word that follows it.

    Both are tokenised as one text and parted where the context alone would end; spaces at
    the end of the context are counted with the word before, as most vocabularies have words
    with a space in front. Where nothing is before it, the word follows the token that begins
    a text, or ends one if there is none.

    Parameters
    ----------
    contexts, words : sequence of str
        The prompts, and what may follow each.
    tokenizer : PreTrainedTokenizerBase
        Of the model.

    Raises
    ------
    EvaluationError
        If there is nothing to score, or nothing before it.

    References
    ----------
    .. [1] lm-evaluation-harness 0.4.13, ``TemplateLM._encode_pair`` and ``loglikelihood`` in
       ``lm_eval/api/model.py``, ``HFLM.tok_encode`` in ``lm_eval/models/huggingface.py``.
    """
    bare = [context.rstrip() for context in contexts]
    wholes = [_encode([context + word for context in contexts], tokenizer) for word in words]
    prefix = _prefix_id(tokenizer)
    for row, before in enumerate(_encode(bare, tokenizer)):
        if not before and prefix is None:
            raise EvaluationError(
                "a text is empty, and the tokenizer has no token that begins a text",
                hint="A --prompt with words before {text} is never empty.",
            )
        afters = [whole[row][len(before) :] for whole in wholes]
        if not all(afters):
            word = words[afters.index([])]
            raise EvaluationError(
                f"the tokenizer has no tokens of its own for {quoted(word)} after "
                f"{quoted(contexts[row][-40:])}",
                hint="End the --prompt with a space or a new line, or choose other --labels.",
            )
        start = before if before or prefix is None else [prefix]
        yield [(start, after) for after in afters]


def _encode(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:  # noqa: ANN401
    """Return the tokens of each text, with the marks that the tokenizer adds."""
    prefix = _prefix_id(tokenizer)
    mark = None if prefix is None else tokenizer.decode(prefix)
    # A chat template often begins with the mark itself; the tokenizer would add a second one.
    is_marked = [mark is not None and text.startswith(mark) for text in texts]
    found: list[list[int]] = [[]] * len(texts)
    for marked in set(is_marked):
        rows = [row for row, flag in enumerate(is_marked) if flag is marked]
        options = {"add_special_tokens": False} if marked else {}
        encoded = tokenizer([texts[row] for row in rows], verbose=False, **options)["input_ids"]
        for row, ids in zip(rows, encoded, strict=True):
            found[row] = ids
    return found


def _prefix_id(tokenizer: Any) -> int | None:  # noqa: ANN401
    for found in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    return None
