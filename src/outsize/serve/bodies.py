"""What clients may send, with bounds on everything: fields that nobody here knows are passed over."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_CHOICES = 16
MOST_PROMPTS = 256
MOST_STOPS = 16
MOST_LOGPROBS = 20
MOST_MESSAGES = 4096
MOST_TOOLS = 128
MOST_TOKENS = 1 << 24

Name = Annotated[str, Field(max_length=512)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=MOST_TOKENS)]
NewTokens = Annotated[int, Field(ge=0, le=MOST_TOKENS)]


class Body(BaseModel):
    """A request's JSON."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


class StreamOptions(Body):
    """``include_usage``: a last chunk says how many tokens there were."""

    include_usage: bool = False


class Sampled(Body):
    """How to draw. Greedy unless a temperature is given."""

    model: Name | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1 << 31)
    stream: bool | None = False


class OpenAI(Sampled):
    """What both of OpenAI's older routes have, and the usual additions of other servers."""

    n: int | None = Field(default=1, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(OpenAI):
    """``/v1/completions``."""

    prompt: (
        str
        | Tokens
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    max_tokens: NewTokens | None = 16
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    suffix: str | None = None
    best_of: int | None = Field(default=None, ge=1, le=MOST_CHOICES)


class ResponseFormat(Body):
    """``json_schema`` has the schema in a field of that name."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


Messages = Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
Tools = Annotated[list[dict[str, Any]], Field(max_length=MOST_TOOLS)]


class ChatBody(OpenAI):
    """``/v1/chat/completions``."""

    messages: Messages
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None


class TextFormat(Body):
    """The ``text`` of a response: its format."""

    format: dict[str, Any] | None = None


class ResponsesBody(Sampled):
    """``/v1/responses``: text alone, and nothing is stored."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: NewTokens | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: TextFormat | None = None
    previous_response_id: Name | None = None
    user: Name | None = None


class MessagesBody(Sampled):
    """``/v1/messages``, in Anthropic's form."""

    messages: Messages
    max_tokens: NewTokens
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    tools: Tools | None = None
    tool_choice: dict[str, Any] | None = None


class TokenizeBody(Body):
    """``/tokenize``: a text or a conversation."""

    prompt: str | None = None
    content: str | None = None  # as llama.cpp's server calls it
    messages: Messages | None = None
    add_special_tokens: bool = True


class DetokenizeBody(Body):
    """``/detokenize``."""

    tokens: Annotated[list[TokenId], Field(max_length=MOST_TOKENS)]
