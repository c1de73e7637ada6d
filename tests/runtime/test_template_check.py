"""The compiler's comparison of the runtime's templates with Jinja2."""

import pytest

from aicc.compiler import template_check
from aicc.compiler.template_check import CONVERSATIONS, check_template
from aicc.runtime import template_process
from aicc.runtime.errors import UnsupportedError

# What published templates do: defaults for the system message, tools as JSON, calls, roles that are checked.
BUSY_TEMPLATE = """\
{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif -%}
{%- set ns = namespace(first=true, tool_calls=0) -%}
{{- bos_token }}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] | trim + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' and not loop.first and messages[loop.index0 - 1].role == 'user' %}
        {{- raise_exception('Conversation roles must alternate') }}
    {%- endif %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- elif message.content is iterable and message.content is not mapping %}
        {%- set content = message.content | map(attribute='text') | join('\\n') %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- for call in message.tool_calls %}
            {%- set ns.tool_calls = ns.tool_calls + 1 %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role.upper()[:1] + message.role[1:] + '\\n' + content.strip() + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def test_a_template_that_renders_alike_is_said_to(smollm2_template):
    assert check_template(smollm2_template, {}) == [
        f"chat template: renders as Jinja2 does on {len(CONVERSATIONS)} conversations"
    ]


def test_what_published_templates_do_renders_alike():
    (note,) = check_template(BUSY_TEMPLATE, {"bos_token": "<s>"})
    assert note.startswith("chat template: renders as Jinja2 does")


def test_a_difference_is_told_with_where_and_what():
    (note,) = check_template("{{ messages[0].role.encode('utf-8') is defined }}", {})
    assert f"{len(CONVERSATIONS)} of {len(CONVERSATIONS)} conversations render differently from Jinja2" in note
    assert "'one question' gives an error" in note


def test_a_template_the_runtime_cannot_read_is_refused():
    with pytest.raises(UnsupportedError, match="cannot be read"):
        check_template("{% for", {})


def test_a_template_that_takes_the_process_down_takes_down_only_the_checks():
    crash = "{% set ns = namespace() %}{% set ns.self = ns %}{{ ns }}"
    with pytest.raises(UnsupportedError, match="too much time or memory"):
        check_template(crash, {})


def test_a_template_that_never_ends_is_refused(monkeypatch):
    monkeypatch.setattr(template_process, "SECONDS", 1)
    endless = (
        "{% set ns = namespace(a=[0]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a }}"
    )
    with pytest.raises(UnsupportedError, match="too much time or memory"):
        check_template(endless, {})


def test_a_template_that_only_jinja_cannot_finish_is_noted(monkeypatch):
    monkeypatch.setattr(template_check, "_SECONDS", 4)
    # The runtime lacks the filter and says so at once; Jinja2 goes on to the loops.
    slow = "{{ 'x' | center(3) }}" + "{% for i in range(9999) %}" * 3 + "{% endfor %}" * 3
    (note,) = check_template(slow, {})
    assert "could not be compared with Jinja2" in note
