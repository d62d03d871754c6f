"""Chats: the tokens are the template's own, and learned is exactly what the assistant says, with its end token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cutlayer.data.chat import Template, chat_of, exchange, is_template, messages_of
from cutlayer.data.readers import read_file
from cutlayer.data.rows import Rows
from cutlayer.data.tasks import CausalLM, Ragged, Samples
from cutlayer.errors import ConfigError, DataError

# Written for these tests, after what the families' templates do; none is copied.
CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' + system + "
    "'<|eot_id|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = '' %}{% if '</think>' in m.content %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{{ bos_token }}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPELLED = (
    "{% for m in messages %}{{ 'Q: ' + m.content + '\n' if m.role == 'user' else 'A: ' + m.content + '\n\n' }}"
    "{% if loop.last and m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
)
LAST_ONLY = MISTRAL.replace("loop.first", "loop.last")
SPECIAL = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>"),
)


def tokenizer(template: str | None = None, *, trims: bool = True, begins: bool = False) -> Any:
    """A token per byte, and a few merged ones, one of which reaches over a line break."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("o", "k")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    model = Tokenizer(BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges))
    model.pre_tokenizer = ByteLevel(add_prefix_space=False, trim_offsets=trims)
    model.decoder = ByteLevelDecoder()
    model.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    model.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    if begins:
        model.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", model.token_to_id("<s>"))])
    made = PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    return made


def said(*turns: str) -> list[dict[str, Any]]:
    """Turns from `role: words`."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


TWO = said("user: Who sat on the mat?", "assistant: the cat  ", "user: ok\n\nwhere?", "assistant: On the mat 🐈.")


def encoded(chat: list[dict[str, Any]], tok: Any, **options: Any) -> Samples:
    return CausalLM(**{"messages": "messages", "max_length": 4096, **options}).encode(
        Rows.of([{"messages": chat}]), tok
    )


def learned(samples: Samples, tok: Any, row: int = 0) -> list[str]:
    """The runs of learned tokens, as text."""
    assert isinstance(samples.labels, Ragged)
    runs: list[list[int]] = [[]]
    for label in samples.labels[row]:
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tok.decode(run) for run in runs if run]


CASES = {
    "chatml": (CHATML, "the cat  <|im_end|>", "On the mat 🐈.<|im_end|>"),
    "llama3": (LLAMA3, "the cat<|eot_id|>", "On the mat 🐈.<|eot_id|>"),
    "qwen3": (QWEN3, "the cat  <|im_end|>", "<think>\n\n</think>\n\nOn the mat 🐈.<|im_end|>"),
    "gemma": (GEMMA, "the cat<end_of_turn>", "On the mat 🐈.<end_of_turn>"),
    "mistral": (MISTRAL, " the cat</s>", " On the mat 🐈.</s>"),
    "marked": (MARKED, "the cat  <|im_end|>", "On the mat 🐈.<|im_end|>"),
    "spelled": (SPELLED, " the cat  \n\n", "On the mat 🐈.\n\n</s>"),
}
"""By family, its template, and what is learned of `TWO`. The one that is spelled out asks with a blank at its end, and
the tokenizer joins that to the answer's first word: the whole token is learned."""


@pytest.mark.parametrize("trims", [True, False])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_learned_is_what_the_assistant_says_and_its_end_token(case: tuple[str, str, str], trims: bool) -> None:
    template, *answers = case
    tok = tokenizer(template, trims=trims)
    samples = encoded(TWO, tok)
    assert learned(samples, tok) == answers
    assert samples.weights.tolist() == [sum(label != -100 for label in samples.labels[0][1:])]
    assert (samples.num_cut, samples.num_dropped, len(samples)) == (0, 0, 1)


@pytest.mark.parametrize("name", [name for name in CASES if name != "llama3"])  # whose template looks at the clock
def test_the_tokens_are_those_of_the_template(name: str) -> None:
    tok = tokenizer(CASES[name][0], begins=True)
    ids = tok.apply_chat_template(TWO, tokenize=True, return_dict=True)["input_ids"]
    assert encoded(TWO, tok).input_ids[0] == ids
    # What a model sees when it is asked is what it was trained on.
    asked = tok.apply_chat_template(TWO[:-1], tokenize=True, add_generation_prompt=True, return_dict=True)["input_ids"]
    samples = encoded(TWO, tok)
    answer = tok(learned(samples, tok)[-1], add_special_tokens=False)["input_ids"]
    if name != "spelled":
        assert ids[: len(asked) + len(answer)] == asked + answer


def test_marks_give_what_transformers_gives() -> None:
    tok = tokenizer(MARKED)
    answer = tok.apply_chat_template(TWO, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert encoded(TWO, tok).learned(0) == [bool(mark) for mark in answer["assistant_masks"]]


def test_a_day_is_a_day() -> None:
    tok = tokenizer(LLAMA3)
    assert "Today Date: 26 Jul 2024" in tok.decode(encoded(TWO, tok).input_ids[0])


def test_thoughts_of_earlier_turns_are_left_out_as_the_template_does() -> None:
    chat = said(
        "user: a?", "assistant: <think>\nhm\n</think>\n\nb", "user: c?", "assistant: <think>\noh\n</think>\n\nd"
    )
    tok = tokenizer(QWEN3)
    samples = encoded(chat, tok)
    assert learned(samples, tok) == ["b<|im_end|>", "<think>\noh\n</think>\n\nd<|im_end|>"]
    assert samples.input_ids[0] == tok.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]


def test_system_turns() -> None:
    system, tok = said("system: Be kind."), tokenizer(CHATML)
    own = encoded([*system, *TWO], tok)
    assert "<|im_start|>system\nBe kind.<|im_end|>" in tok.decode(own.input_ids[0])
    given = encoded(TWO, tok, system="Be kind.")
    assert given.input_ids[0] == own.input_ids[0]
    assert encoded([*system, *TWO], tok, system="Be rude.").input_ids[0] == own.input_ids[0]
    for template in (MISTRAL, LLAMA3):
        tok = tokenizer(template)
        assert learned(encoded([*system, *TWO], tok), tok) == learned(encoded(TWO, tok), tok)


FORMS = {
    "sharegpt": [{"from": "human" if turn["role"] == "user" else "gpt", "value": turn["content"]} for turn in TWO],
    "json": json.dumps(TWO),
    "columns": {"role": [turn["role"] for turn in TWO], "content": [turn["content"] for turn in TWO]},
    "nulls": [turn | {"tool_calls": None, "name": None} for turn in TWO],
    "parts": [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in TWO],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_chats(form: Any) -> None:
    assert messages_of(form) == TWO


def test_columns_are_found_by_name() -> None:
    tok = tokenizer(CHATML)
    expected = encoded(TWO[:2], tok).input_ids[0]
    pair = {"prompt": TWO[0]["content"], "completion": TWO[1]["content"]}
    for row in ({"messages": TWO[:2]}, {"conversations": FORMS["sharegpt"][:2]}, pair, {"more": 1, **pair}):
        samples = CausalLM(max_length=4096).encode(Rows.of([row]), tok)
        assert samples.input_ids[0] == expected
        assert learned(samples, tok) == ["the cat  <|im_end|>"]
    plain = CausalLM().settled(Rows.of([{"text": "a"}]), tok)
    assert (plain.text, plain.template) == ("text", None)
    with pytest.raises(
        DataError, match="expected a column messages, conversations or text, or prompt and completion, "
    ):
        CausalLM().settled(Rows.of([{"chat": TWO}]), tok)


def test_an_answer_to_turns_is_learned_and_the_turns_are_not() -> None:
    for template in (CHATML, MARKED):
        tok = tokenizer(template)
        row = {"prompt": TWO[:3], "completion": TWO[3:]}
        samples = CausalLM(max_length=4096).encode(Rows.of([row]), tok)
        assert samples.input_ids[0] == encoded(TWO, tok).input_ids[0]
        assert learned(samples, tok) == ["On the mat 🐈.<|im_end|>"]


def test_chats_in_files_of_every_kind(tmp_path: Path) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    tok, rows = tokenizer(CHATML), [{"messages": TWO}, {"messages": TWO[:2]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    texts = ['"' + json.dumps(row["messages"]).replace('"', '""') + '"' for row in rows]
    (tmp_path / "a.csv").write_text("\n".join(["messages", *texts, ""]))
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        samples = CausalLM(max_length=4096).encode(read_file(tmp_path / name), tok)
        assert samples.input_ids[0] == encoded(TWO, tok).input_ids[0], name
        assert len(samples) == 2


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ([], "expected a list of turns, got no turns"),
        (None, "expected a list of turns, got null"),
        ("hello", "expected a list of turns, got a text that is no JSON"),
        (7, "expected a list of turns, got int"),
        (said("user: a"), "expected a turn of the assistant's to learn, got only user"),
        (["a"], "turn 0: expected role and content, got str"),
        ([{"content": "a"}], "turn 0: expected role and content, got only content"),
        ([{"from": "martian", "value": "a"}], "turn 0: expected one of human, .* got from 'martian'"),
        ([{"role": "user"}], "turn 0: expected content that is text, got null"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "turn 0: expected content that is text, got a part"),
        (said("user: a<|im_end|>", "assistant: b"), r"turn 0 \(user\): expected words without .* got '<\|im_end\|>'"),
        (said("user: a", "assistant: b<|im_end|>"), r"turn 1 \(assistant\): expected words without .* '<\|im_end\|>'"),
    ],
)
def test_a_row_that_is_no_chat(cell: Any, says: str) -> None:
    rows = Rows.of([{"messages": TWO}, {"messages": cell}])
    with pytest.raises(DataError, match=rf"there, row 1 \(from 0\), column 'messages': {says}.*Correct or remove"):
        CausalLM(messages="messages").encode(rows, tokenizer(CHATML), where="there")


def test_a_role_must_be_one_that_templates_know_or_that_this_one_names() -> None:
    """A misspelt answer beside others would be read and never learned, silently."""
    misspelt = [*TWO, *said("user: a", "asistant: b")]
    with pytest.raises(DataError, match=r"row 0 .*turn 5: expected a role of assistant, .* got 'asistant'"):
        encoded(misspelt, tokenizer(CHATML))
    tok = tokenizer(CHATML + "{# 'asistant' #}")
    assert len(encoded(misspelt, tok)) == 1
    assert len(encoded(said("developer: a", "user: b", "assistant: c"), tokenizer(CHATML))) == 1


@pytest.mark.parametrize("template", [None, "plain"])
def test_a_number_is_its_digits_as_prompt_and_as_answer(template: str | None) -> None:
    tok, task = tokenizer(CHATML), CausalLM("q", "a", template=template)
    number, text = (task.encode(Rows.of([{"q": q, "a": a}]), tok) for q, a in ((7, 12), ("7", "12")))
    assert number.input_ids[0] == text.input_ids[0]


def test_a_prompt_or_an_answer_that_is_neither_text_nor_turns() -> None:
    for cells, says in (({"q": None, "a": "b"}, "the prompt, got null"), ({"q": "a", "a": 1.5}, "the answer, got flo")):
        with pytest.raises(DataError, match=f"row 0 .*expected a text or a list of turns as {says}"):
            CausalLM("q", "a").encode(Rows.of([cells]), tokenizer(CHATML))


@pytest.mark.parametrize("template", [None, "plain"])
def test_empty_answers_are_counted(template: str | None) -> None:
    """They are learned, as an end alone: a model that is silent afterwards has been told before."""
    rows = Rows.of([{"q": "a", "a": "b"}, {"q": "a", "a": ""}])
    samples = CausalLM("q", "a", template=template).encode(rows, tokenizer(CHATML))
    assert (samples.num_silent, len(samples)) == (1, 2)
    assert samples.line.endswith(" dropped, 1 with an empty answer")
    assert "empty" not in CausalLM("q", "a", template=template).encode(rows.select([0]), tokenizer(CHATML)).line


def test_a_prompt_that_has_been_through_the_template() -> None:
    tok = tokenizer(CHATML)
    prompt = tok.apply_chat_template(TWO[:1], tokenize=False, add_generation_prompt=True)
    for template in (None, "plain"):
        with pytest.raises(
            DataError, match=r"row 0 .*expected words without the \w+'s own tokens, got '<\|im_start\|>'"
        ):
            CausalLM("q", "a", template=template).encode(Rows.of([{"q": prompt, "a": "b"}]), tok)
    with pytest.raises(DataError, match=r"got '\[INST\]'"):
        CausalLM("q", "a").encode(Rows.of([{"q": "[INST] Hi [/INST]", "a": "b"}]), tokenizer(MISTRAL))


def test_a_text_that_has_been_through_the_template_begins_and_ends_once() -> None:
    for begins in (False, True):
        tok = tokenizer(begins=begins)
        one, other = (CausalLM(text="t").encode(Rows.of([{"t": text}]), tok) for text in ("<s>ok</s>", "ok"))
        assert tok.decode(one.input_ids[0]) == "<s>ok</s>"
        assert tok.decode(other.input_ids[0]) == ("<s>ok</s>" if begins else "ok</s>")


def test_a_template_that_refuses_a_chat() -> None:
    with pytest.raises(DataError, match=r"row 0 .*got its 'System role not supported'"):
        encoded(said("system: a", "user: b", "assistant: c"), tokenizer(GEMMA))
    with pytest.raises(DataError, match=r"row 0 .*got its 'Conversation roles must alternate"):
        encoded(said("user: b", "assistant: c", "assistant: d"), tokenizer(GEMMA))


def test_a_template_that_writes_earlier_turns_otherwise_is_refused() -> None:
    tok = tokenizer(LAST_ONLY)
    with pytest.raises(
        DataError, match=r"row 0 .*turn \d: expected a template that writes what stands before an answer"
    ):
        encoded(said("system: s", *[f"{turn['role']}: {turn['content']}" for turn in TWO]), tok)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in", "expected a chat template that shows questions and answers, got one that says: "),
        ("{{ raise_exception('tools only') }}", "got one that says: tools only"),
        (None, "expected a model with a chat template, got a tokenizer without one. Say --template plain"),
    ],
)
def test_no_template(template: str | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        encoded(TWO, tokenizer(template))


def test_nothing_to_learn_is_an_error_and_not_a_nan() -> None:
    nothing = MARKED.replace("{% generation %}", "{% if false %}{% generation %}").replace(
        "{% endgeneration %}", "{% endgeneration %}{% endif %}"
    )
    with pytest.raises(DataError, match=r"row 0 .*expected something to learn, got no text between the template's gen"):
        encoded(TWO, tokenizer(nothing))
    silent = "{% for m in messages %}{{ m.content if m.role == 'user' else '' }}{% endfor %}"
    with pytest.raises(DataError, match=r"row 0 .*expected something to learn, got nothing in the assistant's turns"):
        encoded(TWO, tokenizer(silent))


def test_the_template_of_a_file_is_used_in_place_of_the_models() -> None:
    tok = tokenizer(MISTRAL)
    other = encoded(TWO, tok, template=CHATML)
    assert other.input_ids[0] == encoded(TWO, tokenizer(CHATML)).input_ids[0]
    assert is_template(CHATML)


def test_plain_has_no_turns() -> None:
    with pytest.raises(ConfigError, match=r"data\.template: expected a template with turns for column 'messages'"):
        encoded(TWO, tokenizer(CHATML), template="plain")
    with pytest.raises(ConfigError, match=r"data\.system: expected none for the plain form"):
        CausalLM("q", "a", template="plain", system="Be kind.")
    with pytest.raises(ConfigError, match=r"data\.system: expected none for column 't'"):
        CausalLM(text="t", system="Be kind.")


# --- what is too long -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if name != "spelled"])
def test_too_long_a_prompt_loses_its_beginning_and_the_answer_nothing(name: str) -> None:
    tok = tokenizer(CASES[name][0])
    whole = encoded(TWO[:2], tok)
    short = encoded(TWO[:2], tok, max_length=len(whole.input_ids[0]) - 4)
    assert learned(short, tok) == learned(whole, tok)
    assert tok.decode(short.input_ids[0]) == tok.decode(whole.input_ids[0]).replace("Who sat", "sat")
    assert (short.num_cut, short.num_dropped, whole.num_cut) == (1, 0, 0)


def test_the_oldest_exchanges_leave_first_and_whole() -> None:
    tok = tokenizer(CHATML)
    system = said("system: Be kind.")
    last = encoded([*system, *TWO[2:]], tok)
    cut = encoded([*system, *TWO], tok, max_length=last.lengths[0] + 3)
    assert cut.input_ids[0] == last.input_ids[0]
    assert (cut.num_cut, last.num_cut) == (1, 0)
    three = [*TWO, *said("user: And now?", "assistant: Gone.")]
    assert (
        encoded(three, tok, max_length=encoded(three[2:], tok).lengths[0]).input_ids[0]
        == (encoded(three[2:], tok).input_ids[0])
    )
    read = {"prompt": [*TWO[:3]], "completion": TWO[3:]}
    samples = CausalLM(max_length=int(encoded(TWO[2:], tok).lengths[0])).encode(Rows.of([read]), tok)
    assert samples.input_ids[0] == encoded(TWO[2:], tok).input_ids[0]


def test_too_long_an_answer_loses_its_end_after_the_prompts_words_are_gone() -> None:
    tok = tokenizer(CHATML)
    chat = said("user: Who?", f"assistant: {'a' * 100}")
    frame = encoded(said("user: ", "assistant: a"), tok).lengths[0] - 3  # without a, its end token and line break
    samples = encoded(chat, tok, max_length=int(frame) + 10)
    assert learned(samples, tok) == ["a" * 10]
    assert "Who" not in tok.decode(samples.input_ids[0])
    two = Rows.of([{"messages": chat}, {"messages": [*said(f"system: {'long ' * 50}"), *chat]}])
    samples = CausalLM(messages="messages", max_length=int(frame) + 10).encode(two, tok)
    assert (samples.rows.tolist(), samples.num_cut, samples.num_dropped) == ([0], 2, 1)  # a system turn without end
    assert samples.line == (
        f"1 rows of {frame + 10} / {frame + 10} / {frame + 10} tokens (shortest / median / longest), "
        f"2 cut off at {frame + 10}, 1 dropped"
    )


def test_a_chat_without_exchanges() -> None:
    chat = chat_of(said("system: s", "assistant: a"))
    assert (chat.exchanges, chat.without(0)) == ([], chat)
    tok = tokenizer(CHATML)
    assert learned(encoded(chat.messages, tok, max_length=30), tok)


def test_words_of_the_template_alone_are_markers() -> None:
    template = Template(QWEN3, tokenizer(), None)
    assert {"<|im_start|>", "<|im_end|>"} <= set(template.markers)
    assert "<s>" not in template.markers
    assert Template(MISTRAL, tokenizer(), None).markers == ("<s>", "</s>", "[INST]", "[/INST]")
    thought = exchange("Why?", "<think>hm</think>Because.")
    assert template.rendered(thought).text.endswith("<think>\nhm\n</think>\n\nBecause.<|im_end|>\n")


@pytest.mark.slow
def test_real_questions_as_chats(shared_data: Path) -> None:
    rows = read_file(shared_data / "gsm8k" / "train.parquet")
    tok = tokenizer(CHATML)
    some = rows.select(range(40))
    chats = Rows.of(
        [
            {"messages": said(f"user: {question}", f"assistant: {answer}")}
            for question, answer in zip(some.cells("question"), some.cells("answer"), strict=True)
        ]
    )
    samples = CausalLM(max_length=4096).encode(chats, tok)
    for row, answer in enumerate(some.cells("answer")):
        assert learned(samples, tok, row) == [answer + "<|im_end|>"]
    short = CausalLM(max_length=256).encode(chats, tok)
    assert short.num_cut > 0
    assert short.lengths.max() <= 256
