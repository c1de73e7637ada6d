"""The events of a streamed ``/v1/responses``, each numbered when it is sent."""

from __future__ import annotations

import msgspec

from aicc.runtime.server.openai.response_schema import OutputItem, OutputText, ResponseAnswer


class Event(msgspec.Struct, tag_field="type", kw_only=True):
    """Something that happened."""

    sequence_number: int = 0


class Created(Event, tag="response.created"):
    """The request was accepted."""

    response: ResponseAnswer


class InProgress(Event, tag="response.in_progress"):
    """The model has begun."""

    response: ResponseAnswer


class ItemAdded(Event, tag="response.output_item.added"):
    """A message or call begins."""

    output_index: int
    item: OutputItem


class PartAdded(Event, tag="response.content_part.added"):
    """The text of a message begins."""

    item_id: str
    output_index: int
    part: OutputText
    content_index: int = 0


class TextDelta(Event, tag="response.output_text.delta"):
    """More text."""

    item_id: str
    output_index: int
    delta: str
    content_index: int = 0
    logprobs: tuple[()] = ()


class TextDone(Event, tag="response.output_text.done"):
    """The text is complete."""

    item_id: str
    output_index: int
    text: str
    content_index: int = 0
    logprobs: tuple[()] = ()


class PartDone(Event, tag="response.content_part.done"):
    """So is the part of the message that it is."""

    item_id: str
    output_index: int
    part: OutputText
    content_index: int = 0


class ArgumentsDelta(Event, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(Event, tag="response.function_call_arguments.done"):
    """The arguments are complete."""

    item_id: str
    output_index: int
    name: str
    arguments: str


class ItemDone(Event, tag="response.output_item.done"):
    """A message or call is complete."""

    output_index: int
    item: OutputItem


class Completed(Event, tag="response.completed"):
    """The last event of a complete answer."""

    response: ResponseAnswer


class Incomplete(Event, tag="response.incomplete"):
    """The last event of an answer that was cut off."""

    response: ResponseAnswer


class Failed(Event, tag="error"):
    """The last event of an answer that failed."""

    message: str
    code: str | None
    param: str | None
