"""The chat template, in plain jinja2 and in transformers."""

import pytest

from demo import HF_PATH
from demo.chat import load_renderer
from demo.evaluate import cases
from demo.toolbox import ADD, GET_WEATHER

USER = {"role": "user", "content": "Hi"}
CALL = {"name": "get_weather", "arguments": {"city": "Paris"}}
CALL_TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def rendered(*messages: dict, **variables: object) -> str:
    return load_renderer()(messages=list(messages), **variables)


def test_an_empty_think_block_closes_the_prompt_unless_thinking_is_enabled() -> None:
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(USER, add_generation_prompt=True) == prompt + "<think>\n\n</think>\n\n"
    assert rendered(USER, add_generation_prompt=True, enable_thinking=False) == prompt + "<think>\n\n</think>\n\n"
    assert rendered(USER, add_generation_prompt=True, enable_thinking=True) == prompt


def test_earlier_reasoning_is_left_out() -> None:
    answer = {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nHello!"}
    assert rendered(USER, answer).endswith("<|im_start|>assistant\nHello!<|im_end|>\n")


@pytest.mark.parametrize("arguments", ['{"city": "Paris"}', {"city": "Paris"}])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_tool_calls_with_any_arguments_beside_any_absent_content(content: dict, arguments: object) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    message = {"role": "assistant", "tool_calls": [call], **content}
    assert rendered(USER, message).endswith(f"<|im_start|>assistant\n{CALL_TEXT}<|im_end|>\n")


def test_two_calls_after_words() -> None:
    message = {"role": "assistant", "content": "Wait.", "tool_calls": [{"function": CALL}, {"function": CALL}]}
    assert rendered(USER, message).endswith(f"assistant\nWait.\n{CALL_TEXT}\n{CALL_TEXT}<|im_end|>\n")


def test_neighbouring_tool_results_share_one_user_turn() -> None:
    results = [{"role": "tool", "content": "sunny"}, {"role": "tool", "content": "rainy"}]
    assert rendered(*results) == (
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n"
        "<tool_response>\nrainy\n</tool_response><|im_end|>\n"
    )


def test_tools_follow_the_system_text_as_lines_of_json() -> None:
    text = rendered({"role": "system", "content": "Be brief."}, USER, tools=[GET_WEATHER, ADD])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert text.count("<|im_start|>system") == 1
    assert '<tools>\n{"type": "function", "function": {"name": "get_weather"' in text


def test_content_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    assert rendered({"role": "user", "content": parts}) == "<|im_start|>user\nHi there<|im_end|>\n"


def test_transformers_renders_the_same() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(HF_PATH)
    render = load_renderer()
    for case in cases(n_per_family=3):
        variables = {"tools": case.tools or None, "enable_thinking": case.enable_thinking}
        ours = render(messages=case.messages, add_generation_prompt=True, **variables)
        theirs = tokenizer.apply_chat_template(case.messages, add_generation_prompt=True, tokenize=False, **variables)
        assert theirs == ours
