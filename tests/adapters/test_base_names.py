"""Names of base models: which mean one, which are paths, and which one is written."""

from __future__ import annotations

import pytest

from clair_cli.adapters.base_names import is_absolute, is_local_path, name_to_write, one_base

ALIASES = [
    ("roberta-base", "FacebookAI/roberta-base"),
    ("gpt2", "openai-community/gpt2"),
    ("bert-base-uncased", "google-bert/bert-base-uncased"),
    ("distilbert-base-uncased", "distilbert/distilbert-base-uncased"),
    ("distilgpt2", "distilbert/distilgpt2"),
    ("t5-small", "google-t5/t5-small"),
    ("xlm-roberta-base", "FacebookAI/xlm-roberta-base"),
    ("org/Model", "Org/model"),
    ("mistralai/Mistral-7B-v0.3", "unsloth/mistral-7b-v0.3-bnb-4bit"),
    ("mistralai/Mistral-7B-v0.3", "unsloth/mistral-7b-v0.3"),
    ("Qwen/Qwen2.5-7B-Instruct", "unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit"),
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"),
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct-AWQ"),
    ("mistralai/Mistral-7B-Instruct-v0.2", "TheBloke/Mistral-7B-Instruct-v0.2-GPTQ"),
    ("mistralai/Mistral-7B-Instruct-v0.2", "somebody/Mistral-7B-Instruct-v0.2-AWQ"),
    ("meta-llama/Meta-Llama-3-8B", "unsloth/llama-3-8b-bnb-4bit"),
    ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ("meta-llama/Llama-2-7b-hf", "TheBloke/Llama-2-7B-GPTQ"),
    ("meta-llama/Meta-Llama-3.1-8B-Instruct", "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4"),
    ("meta-llama/Llama-3.2-1B", "mlx-community/Llama-3.2-1B-4bit"),
]
DIFFERENT = [
    ("org/base", "org/other"),
    ("org/base", "other/base"),
    ("roberta-base", "roberta-large"),
    ("roberta-base", "org/roberta-base"),
    ("gpt2", "facebookai/gpt2"),
    ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"),
    ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"),
    ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf"),
    ("mistralai/Mistral-7B-v0.1", "unsloth/mistral-7b-v0.3-bnb-4bit"),
    ("org/4bit", "org/8bit"),
]


@pytest.mark.parametrize(("one", "other"), ALIASES)
def test_names_of_one_model(one: str, other: str) -> None:
    assert one_base([one, one, other]) == {one: one, other: one}
    assert one_base([other, one, other]) == {one: other, other: other}


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_names_of_two_models(one: str, other: str) -> None:
    assert one_base([one, other]) == {one: one, other: other}


def test_a_copy_goes_with_the_most_frequent_of_several_owners() -> None:
    names = ["a/base", "b/base", "b/base", "x/base-GPTQ"]
    found = one_base(names)
    assert found == {"a/base": "a/base", "b/base": "b/base", "x/base-GPTQ": "b/base"}
    assert one_base(["b/base", "x/base-awq", "a/base"])["x/base-awq"] == "a/base"
    assert one_base(["x/base-awq", "unsloth/base-bnb-4bit"])["x/base-awq"] == (
        "unsloth/base-bnb-4bit"
    )


PATHS = ["/data/m", "./m", "../m", "~/m", "C:\\m", "C:/m", "a\\b", "a/b/c", "models/llama",
         "checkpoints/m", "my-finetune", "m/", "file:///m", "org/"]  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_local_paths(name: str) -> None:
    assert is_local_path(name)


@pytest.mark.parametrize(
    "name", ["org/m", "gpt2", "gpt2-medium", "roberta-base", "T5-small", "", "a\n::b"]
)
def test_names_of_the_hub(name: str) -> None:
    assert not is_local_path(name)


@pytest.mark.parametrize(
    "name", ["/home/bob/m", "~bob/m", "C:\\bob\\m", "c:/bob", "\\\\host\\m", "file:///m", "x/../m"]
)
def test_a_place_on_somebodys_machine_is_never_written(name: str) -> None:
    assert is_absolute(name) and is_local_path(name)
    assert name_to_write([name] * 3) is None


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["org/a", "org/a", "org/b"], "org/a"),
        (["org/a", "org/b"], None),
        (["org/a", None], None),
        (["org/a", None, None, "org/a"], None),
        (["org/a", "org/a", None], "org/a"),
        (["./m", "./m"], "./m"),
        (["roberta-base", "FacebookAI/roberta-base", "roberta-base", "org/x"], "roberta-base"),
        (["gpt2", "openai-community/gpt2", "GPT2"], None),
        (["gpt2", "gpt2", "openai-community/gpt2", "openai-community/gpt2"], "gpt2"),
        (["gpt2", "gpt2", "gpt2", "/home/gpt2"], "gpt2"),
        ([], None),
    ],
)
def test_the_name_that_is_written(names: list[str | None], written: str | None) -> None:
    assert name_to_write(names) == written
    assert name_to_write(names[::-1]) == written
