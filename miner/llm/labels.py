"""How a server says yes or no. vLLM gives the log-probabilities of chosen tokens; OpenAI's protocol
those of the likeliest ones; any server a text.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from miner.llm.requests import Request

EXACT = "log-probabilities of the two words"
TOP = "top log-probabilities"
TEXT = "text of the answer"
NO_LABEL = "no_label"  # error of an answer that names none of the labels
TEXT_TOKENS = 16  # of an answer that is read as a text: a word, after markdown or empty thoughts
UNSAID = -30.0  # log-probability of a label that a text does not say; e^-30 is as good as none
BEFORE = " \t\n\r\u0120\u010a\u2581"  # of a token; \u0120, \u010a, \u2581: spaces in vocabularies


class Way(NamedTuple):
    """How labels are scored.

    Attributes:
        scores: EXACT, TOP or TEXT.
        top: likeliest tokens that are asked for.
        thinking_off: whether the chat template is told to open no thoughts.
    """

    scores: str
    top: int = 0
    thinking_off: bool = True

    def asks(self, request: Request, tokens: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Return what a request for labels says besides, `tokens` being their ids."""
        template = {"chat_template_kwargs": {"enable_thinking": False}} if self.thinking_off else {}
        if self.scores == TEXT:
            return {"max_tokens": TEXT_TOKENS, "extra_body": template}
        if self.scores == TOP:
            return {"logprobs": True, "top_logprobs": self.top, "extra_body": template}
        ids = {
            "logprob_token_ids": [tokens[word][0] for word in request.labels],
            "return_tokens_as_token_ids": True,
        }
        return {"logprobs": True, "extra_body": ids | template}

    def read(
        self, choice: Any, labels: Sequence[str], tokens: Mapping[str, Sequence[int]]
    ) -> tuple[float, ...] | None:
        """Return the log-probabilities of labels, None if the answer names none of them.

        Raises:
            NoScores: the answer does not hold what was asked for.
        """
        if self.scores == TEXT:
            return text_scores(choice.message.content or "", labels)
        try:
            top = [
                (str(item.token), float(item.logprob))
                for item in choice.logprobs.content[0].top_logprobs
            ]
            said = dict(top)
            exact = [said[f"token_id:{tokens[word][0]}"] for word in labels if self.scores == EXACT]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise NoScores from error
        if len(top) < len(labels) or not np.isfinite([score for _, score in top]).all():
            raise NoScores
        return tuple(exact) or top_scores(top, labels)


# each is tried until a server takes one: the most exact first
WAYS = (
    Way(EXACT),
    *(Way(TOP, top, off) for top in (20, 5) for off in (True, False)),
    Way(TEXT),
    Way(TEXT, thinking_off=False),
)


class NoScores(Exception):
    """An answer comes without the log-probabilities that were asked for."""


def top_scores(top: Sequence[tuple[str, float]], labels: Sequence[str]) -> tuple[float, ...] | None:
    """Return the log-probabilities of labels from those of the likeliest tokens: a label has the
    sum over its tokens, in any case, with or without a space before it; one that is not among them
    has at most the least that is, and gets that. None if no label is among them.

    >>> scores = top_scores([("Yes", -0.7), (" yes", -1.4), ("Maybe", -3.0)], ["Yes", "No"])
    >>> [round(score, 2) for score in scores]
    [-0.3, -3.0]
    """
    found = {
        word: [score for token, score in top if token.strip(BEFORE).casefold() == word.casefold()]
        for word in labels
    }
    if not any(found.values()):
        return None
    least = min(score for _, score in top)
    return tuple(
        float(np.logaddexp.reduce(found[word])) if found[word] else least for word in labels
    )


def text_scores(text: str, labels: Sequence[str]) -> tuple[float, ...] | None:
    """Return 0 for the label that is the first word of a text and UNSAID for the others, None if
    none is. Thoughts before the answer, punctuation and markdown are passed over.

    >>> text_scores("**Yes**, it does.", ["Yes", "No"]), text_scores("Perhaps.", ["Yes", "No"])
    ((0.0, -30.0), None)
    """
    first = re.search(r"[^\W_]+", text.rpartition("</think>")[2])
    said = [first is not None and first[0].casefold() == word.casefold() for word in labels]
    return tuple(0.0 if one else UNSAID for one in said) if any(said) else None
