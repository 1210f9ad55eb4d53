"""Texts that a language model writes, and verified texts of them: asked for all at once, and again
for those that failed a check.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from miner.files import fingerprint
from miner.llm.client import Client
from miner.llm.prompts import Prompt, fill_in
from miner.llm.requests import Answer, Generator, Request
from miner.llm.verify import REMEDIES, Guard, fault, read_text, room_for
from miner.made import Negative

SHOWN = 2000  # characters of a failed text that are kept
Check = Callable[[str], tuple[str | None, dict[str, Any]]]
Answered = Callable[[Sequence["Task"], Sequence[str]], np.ndarray]
# Errors of the way to the model: sending the same again would fare no better than the attempts that
# failed.
FINAL = {
    "rate_limited",
    "server_error",
    "timeout",
    "connection",
    "bad_answer",
    "too_large",
    "too_long",
    "rejected",
}


@dataclass(frozen=True)
class Task:
    """A text that is to be written.

    Attributes:
        query_id, parent_id: of the query, and of the document that is rewritten.
        turn: number of the text for this query.
        fields: what the template may name.
        guard: what it is compared with.
        check: gives a further fault, and what `made_documents` says of the text.
    """

    query_id: str
    parent_id: str
    turn: int
    fields: dict[str, str]
    guard: Guard
    check: Check = field(default=lambda text: (None, {}))
    score: float | None = None


class Spending:
    """What the texts of each query have cost, in tokens of answers."""

    def __init__(self, options: Generator, tasks: Sequence[Task]):
        self.most, self.spent = options.tokens_per_negative, Counter[str]()
        self.asked = Counter(task.query_id for task in tasks)

    def add(self, task: Task, answer: Answer) -> None:
        """Count an answer."""
        self.spent[task.query_id] += answer.tokens[1]

    def goes_on(self, task: Task) -> bool:
        """Return whether a failed text may be asked for again."""
        query = task.query_id
        return self.most is None or self.spent[query] < self.most * self.asked[query]


def write(
    client: Client,
    prompt: Prompt,
    tasks: Sequence[Task],
    options: Generator,
    answered: Answered | None = None,
) -> tuple[list[Negative], list[tuple[Any, ...]]]:
    """Ask for all texts at once, then again for those that failed a check, up to `retries` times;
    the model is then told what was wrong.

    Args:
        client: where requests go.
        prompt: the prompt.
        tasks: the texts.
        options: sampling and retries.
        answered: says of (tasks, texts) which texts answer their query.

    Returns:
        The negatives in order of tasks, and each failed answer: query_id, parent_id, turn, attempt,
        reason, text.
    """
    writing, spending = Writing(client, prompt, options, answered), Spending(options, tasks)
    why = dict[int, str]()
    for place, task in enumerate(tasks):
        if room_for(prompt, task.guard, options.max_tokens, False):
            why[place] = ""
        else:
            writing.fail(task, 0, "no_room", "")
    for attempt in range(options.retries + 1 if why else 0):
        asked = {place: tasks[place] for place in why}
        again = writing.attempt(attempt, asked, why, spending)
        why = {place: reason for place, reason in again.items() if spending.goes_on(tasks[place])}
        if not why:
            break
    found = [writing.found[place] for place in sorted(writing.found)]
    return found, sorted(writing.failures, key=lambda row: row[:4])


class Writing:
    """Texts as they are written: those that passed, by place, and those that failed."""

    def __init__(
        self, client: Client, prompt: Prompt, options: Generator, answered: Answered | None
    ):
        self.client, self.prompt, self.options = client, prompt, options
        self.answered = answered
        self.found: dict[int, Negative] = {}
        self.failures: list[tuple[Any, ...]] = []
        self.made: dict[str, list[str]] = {}
        self.told = {"prompt": prompt.title, "model": client.name}
        self.told |= {"meaning_effect": prompt.meaning_effect}

    def fail(self, task: Task, attempt: int, reason: str, text: str) -> None:
        """Keep a failed answer."""
        names = task.query_id, task.parent_id, task.turn
        self.failures.append((*names, attempt, reason, text[:SHOWN]))

    def attempt(
        self, attempt: int, asked: dict[int, Task], why: dict[int, str], spending: Spending
    ) -> dict[int, str]:
        """Ask for texts, at their places; return those to ask for again, with what was wrong."""
        tasks = list(asked.values())
        requests = [
            request_of(self.prompt, task, attempt, self.options, why[place])
            for place, task in asked.items()
        ]
        label = partial(_came_of_it, self.prompt, tasks, requests)
        came = list(zip(tasks, requests, self.client.ask(requests, label), strict=True))
        again, read = dict[int, str](), self.read(came)
        for place, (task, _, answer), (text, reason, detail) in zip(asked, came, read, strict=True):
            spending.add(task, answer)
            if reason is None:
                names = task.query_id, task.parent_id
                found = Negative(*names, text, self.told | detail, task.score, task.turn)
                self.found[place] = found
                continue
            self.fail(task, attempt, reason, text)
            if reason not in FINAL:
                again[place] = reason
        return again

    def read(
        self, came: Sequence[tuple[Task, Request, Answer]]
    ) -> list[tuple[str, str | None, dict[str, Any]]]:
        """Return for each answer its text, why it is no negative (None if it is one), and what is
        told of it.
        """
        read = [_judged(*one, self.prompt, self.made) for one in came]
        passed = [number for number, (_, reason, _) in enumerate(read) if reason is None]
        if self.answered and passed:
            tasks, texts = [came[one][0] for one in passed], [read[one][0] for one in passed]
            for number in np.array(passed)[self.answered(tasks, texts)].tolist():
                read[number] = (read[number][0], "answers_query", {})
        return read


def _came_of_it(
    prompt: Prompt, tasks: Sequence[Task], asked: Sequence[Request], place: int, answer: Answer
) -> str:
    """Say in a word what came, for the line that is shown meanwhile."""
    text, reason, _ = read_text(answer, prompt, asked[place].schema)
    return reason or fault(text, tasks[place].guard, prompt) or "kept"


def _judged(
    task: Task, request: Request, answer: Answer, prompt: Prompt, made: dict[str, list[str]]
) -> tuple[str, str | None, dict[str, Any]]:
    text, reason, closed = read_text(answer, prompt, request.schema)
    if reason is None:
        others = made.setdefault(task.query_id, [])
        reason = fault(text, task.guard._replace(others=[*task.guard.others, *others]), prompt)
    detail: dict[str, Any] = {}
    if reason is None:
        reason, detail = task.check(text)
    if reason is None:
        others.append(text)
    return text, reason, detail | ({"closed": "at its last whole sentence"} if closed else {})


def request_of(
    prompt: Prompt, task: Task, attempt: int, options: Generator, reason: str = ""
) -> Request:
    """Return the request for a text; its seed depends on the ids, the turn and the attempt.

    Args:
        prompt, task, options: what is asked.
        attempt: 0, or how many answers failed before.
        reason: why the last one did: it is named, and one that was too long is asked for shorter.
    """
    seed = int(
        fingerprint([options.seed, task.query_id, task.parent_id, task.turn, attempt])[:7], 16
    )
    room = room_for(prompt, task.guard, options.max_tokens, reason == "truncated")
    if room is None:
        raise ValueError(f"{task} has no room: those are left out before they are asked for")
    asked = fill_in(prompt.template, task.fields | {"words": str(room.words)})
    return Request(
        prompt.system,
        f"{asked}\n{REMEDIES[reason]}" if reason in REMEDIES else asked,
        prompt.title,
        prompt.schema_text(*room.characters),
        (),
        options.temperature,
        options.top_p,
        room.tokens,
        seed,
        prompt.turns(),
    )
