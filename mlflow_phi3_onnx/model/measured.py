"""The model under measurement: requests answered by the clock, and given answers scored."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_phi3_onnx.core.request import ChatPrompt, Options, TextPrompt, TokenPrompt
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError
from mlflow_phi3_onnx.model.planned import PlannedRequest
from mlflow_phi3_onnx.model.tokens import TokenModel, entries, same_beginning
from mlflow_phi3_onnx.openai.prompts import check_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_phi3_onnx.core.request import Prompt
    from mlflow_phi3_onnx.core.tasks import Task

__all__ = ["MeasuredModel", "TimedAnswer"]


@dataclass(frozen=True)
class TimedAnswer:
    """One request's response, and when its tokens came.

    Attributes:
        response: The response, as ``run`` returns it.
        prompt_tokens: How many tokens the prompt has.
        arrivals: For each time that tokens came, the seconds since the request was made, and how
            many tokens the completion had from then on.
    """

    response: Any
    prompt_tokens: int
    arrivals: tuple[tuple[float, int], ...]

    @property
    def completion_tokens(self) -> int:
        """How many tokens the completion has, the one that ended it included."""
        return self.arrivals[-1][1]

    @property
    def seconds(self) -> float:
        """How long the whole answer took, tokenization included."""
        return self.arrivals[-1][0]

    @property
    def time_to_first_token(self) -> float:
        """Seconds from the request to its first token."""
        return self.arrivals[0][0]

    @property
    def decode_tokens(self) -> int:
        """How many tokens came after those of the first time."""
        return self.completion_tokens - self.arrivals[0][1]

    @property
    def decode_seconds(self) -> float:
        """How long those took."""
        return self.seconds - self.time_to_first_token

    @property
    def inter_token_latencies(self) -> list[float]:
        """Seconds between each token after the first and the one before it.

        Where several came at once, as accepted draft tokens do, each has its share of the time.
        """
        gaps: list[float] = []
        for (before, fewer), (after, more) in zip(self.arrivals, self.arrivals[1:], strict=False):
            gaps += [(after - before) / (more - fewer)] * (more - fewer)
        return gaps


class MeasuredModel(TokenModel):
    """A model whose answers can be timed, and which tells how likely it finds other answers."""

    def run_timed(self, task: Task, fields: Mapping[str, Any]) -> TimedAnswer:
        """Answer one request, and tell when its tokens came.

        Args:
            task: What is asked for.
            fields: The request: ``messages`` or ``prompt``, and parameters; one completion of one
                prompt, of at least one token.

        Raises:
            InvalidRequestError: If a field is not what it may be.
            UnsupportedParameterError: If a parameter is unknown or not supported.
        """
        started = time.perf_counter()
        planned = self._planner.plan_request(task, fields, stream=True)
        if len(planned.jobs) != 1 or planned.jobs[0].max_tokens == 0:
            raise InvalidRequestError(
                f"What is timed is one completion, of at least one token; this request is for"
                f" {len(planned.jobs):,}. Send one prompt, with n and max_tokens of at least 1."
            )
        response, arrivals = self._texts.run_timed(planned)
        times = tuple((then - started, tokens) for then, tokens in arrivals)
        return TimedAnswer(response, len(planned.jobs[0].prompt), times)

    def target_logprobs(
        self, task: Task, fields: Mapping[str, Any], target: str
    ) -> list[dict[str, Any]]:
        """Report how likely each token of a given answer is, after the request and those before it.

        This is teacher forcing: the answer is not the model's own. In a chat it is rendered as the
        assistant's turn, without its end; else it follows the prompt character by character, and a
        token that spans the border is the answer's.

        Args:
            task: What is asked for.
            fields: The request, of one prompt; what it says of the completion does not count.
            target: The answer.

        Returns:
            One object a token of the answer, as :meth:`token_logprobs` has them.

        Raises:
            InvalidRequestError: If a field is not what it may be, or the answer has no tokens.
            UnsupportedParameterError: If the chat template writes a turn that it opened otherwise
                than it opened it, so that no answer can follow the opening.
            ContextLengthError: If both together have more tokens than the model's context.
        """
        return self._texts.run([self._plan_target(task, fields, target)])[0]

    async def atarget_logprobs(
        self, task: Task, fields: Mapping[str, Any], target: str
    ) -> list[dict[str, Any]]:
        """Report how likely a given answer is, as ``target_logprobs``."""
        return (await self._texts.arun(lambda: [self._plan_target(task, fields, target)]))[0]

    def _plan_target(self, task: Task, fields: Mapping[str, Any], target: str) -> PlannedRequest:
        request = self._planner.parse(task, fields)
        check_text(target, name="target")
        if len(request.prompts) != 1:
            raise InvalidRequestError(
                f"target follows one prompt; this request has {len(request.prompts):,}.",
                param="prompt",
            )
        (prompt,) = request.prompts
        before = self._planner.encode(prompt).tolist()
        whole = self._planner.encode(self._followed(prompt, target)).tolist()
        start = same_beginning(before, whole)
        if isinstance(prompt, ChatPrompt) and start < len(before):
            raise UnsupportedParameterError(
                "The model's chat template writes the assistant's turn otherwise than it opens it:"
                " target cannot be scored as what follows the prompt.",
                param="target",
            )
        if start == len(whole):
            raise InvalidRequestError("target has no tokens to score.", param="target")
        scoring = Options(
            max_tokens=0,
            top_logprobs=0,
            prompt_logprobs=True,
            adapter=request.options.adapter,
        )
        job = self._planner.plan_job(TokenPrompt(tuple(whole), "target"), scoring)
        read = partial(entries, whole[0], self._tokenizer)
        return PlannedRequest([job], lambda completions: read(completions)[start:])

    def _followed(self, prompt: Prompt, target: str) -> Prompt:
        """Return a prompt with an answer at its end."""
        if isinstance(prompt, TextPrompt):
            return replace(prompt, text=prompt.text + target)
        if isinstance(prompt, TokenPrompt):
            more = self._planner.encode(TextPrompt(target, "target")).tolist()
            return replace(prompt, ids=(*prompt.ids, *more))
        messages, begun = prompt.messages, ""
        if prompt.continued:
            *messages, last = messages
            begun = last["content"]
        turn = {"role": "assistant", "content": begun + target}
        return replace(prompt, messages=(*messages, turn), opened=False, continued=True)
