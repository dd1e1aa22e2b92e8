"""Text copying: a tiny base model, and LoRA clients fine-tuned on their own part of the words.

A sequence is ``BOS w1 .. wn SEP w1 .. wn`` and only the second half is scored. The base model is
pre-trained on the *known* words, so copying the *new* ones has to be learnt by the clients. Every
client owns a random part of the new words; parts of two clients overlap. *Private* words are seen
by ``partial`` clients only (half of their words). All randomness comes from the given seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

BOS, SEP, TRIGGER, FIRST_WORD = 0, 1, 2, 3
IGNORED = -100
ARCHES = ("gpt", "llama")
INITS = ("same", "own")
KINDS = ("benign", "partial", "wrong", "random", "backdoor", "collude")
TARGETS = {
    "gpt": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}

# Share of copied words in the base model's data of new and private words: the larger it is, the
# less do honest clients and those with a wrong mapping have in common.
HINTS = {"gpt": 0.2, "llama": 0.3}

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Settings:
    """Sizes of the task, of the base model and of the clients' training."""

    known: int = 29
    new: int = 40
    private: int = 24
    words_per_client: int = 22
    colluder_words: int = 27
    length: int = 8
    width: int = 64
    heads: int = 4
    layers: int = 3
    inner: int = 128
    base_steps: int = 800
    base_rate: float = 3e-3
    base_batch: int = 64
    rank: int = 8
    steps: int = 50
    rate: float = 5e-3
    batch: int = 16

    @property
    def vocabulary(self) -> int:
        """Number of tokens, special ones included."""
        return FIRST_WORD + self.known + self.new + self.private


DEFAULT = Settings()


def seeded(*parts: object) -> torch.Generator:
    """Random generator that depends on the text of all parts, and on nothing else."""
    return torch.Generator().manual_seed(crc32("/".join(map(str, parts)).encode()))


def sequences(source: Tensor, answer: Tensor) -> Batch:
    """Tokens and labels, both (batch, 2 length + 2), from source and answer (batch, length)."""
    edge = torch.ones(len(source), 1, dtype=torch.long)
    tokens = torch.cat([edge * BOS, source, edge * SEP, answer], dim=1)
    labels = tokens.clone()
    labels[:, : source.shape[1] + 2] = IGNORED
    return tokens, labels


def draw(words: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """Random words, (batch, length)."""
    picks = torch.randint(len(words), (batch, length), generator=generator)
    return words[picks]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy of the scored half."""
    tokens, labels = batch
    logits = model(input_ids=tokens).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


def accuracy(model: nn.Module, batch: Batch) -> float:
    """Share of the scored tokens that are predicted, given the right ones before them."""
    tokens, labels = batch
    with torch.no_grad():
        guess = model(input_ids=tokens).logits[:, :-1].argmax(-1)
    scored = labels[:, 1:] != IGNORED
    return float((guess == labels[:, 1:])[scored].double().mean())


def blank_model(arch: str, settings: Settings) -> nn.Module:
    """Untrained base model; uses the global random state."""
    positions = 2 * settings.length + 2
    if arch == "gpt":
        config = GPT2Config(
            vocab_size=settings.vocabulary, n_positions=positions, n_embd=settings.width,
            n_layer=settings.layers, n_head=settings.heads, n_inner=settings.inner,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=BOS, eos_token_id=SEP,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    llama = LlamaConfig(
        vocab_size=settings.vocabulary, hidden_size=settings.width,
        intermediate_size=settings.inner, num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads, num_key_value_heads=settings.heads,
        max_position_embeddings=positions, bos_token_id=BOS, eos_token_id=SEP,
    )  # fmt: skip
    return LlamaForCausalLM(llama)


def fit(model: nn.Module, batches: Callable[[], Batch], steps: int, rate: float) -> None:
    """Adam on the parameters that want a gradient; the rate falls linearly to a tenth."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(wanted, lr=rate)
    model.train()
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * (1 - 0.9 * step / steps)
        loss = loss_of(model, batches())
        adam.zero_grad()
        loss.backward()
        adam.step()
    model.eval()


def base_batches(
    settings: Settings, hint: float, generator: torch.Generator
) -> Callable[[], Batch]:
    """Pre-training data: half copies of known words, half new or private words, hardly copied.

    Words of the second sort come as a chain (each has two successors, so that the model tells
    them apart), all of it scored; an answer's words are random but for a share ``hint`` of copies.
    """
    first_new = FIRST_WORD + settings.known
    first_private = first_new + settings.new
    known = torch.arange(FIRST_WORD, first_new)
    groups = (
        torch.arange(first_new, first_private),
        torch.arange(first_private, first_private + settings.private),
    )
    after = torch.zeros(settings.vocabulary, 2, dtype=torch.long)
    for group in groups:
        after[group] = group[torch.randint(len(group), (len(group), 2), generator=generator)]

    def batches() -> Batch:
        half = settings.base_batch // 2
        source = draw(known, half, settings.length, generator)
        tokens, labels = sequences(source, source)
        for group in groups:
            source = draw(group, half // 2, settings.length, generator)
            for place in range(1, settings.length):
                turn = torch.randint(2, (len(source),), generator=generator)
                source[:, place] = after[source[:, place - 1], turn]
            answer = draw(group, half // 2, settings.length, generator)
            copied = torch.rand(answer.shape, generator=generator) < hint
            answer = torch.where(copied, source, answer)
            more = sequences(source, answer)[0]
            tokens, labels = torch.cat([tokens, more]), torch.cat([labels, more])
        return tokens, labels

    return batches


def train_base(arch: str, seed: int, settings: Settings = DEFAULT) -> nn.Module:
    """Base model that copies the known words and hardly more than tells the others apart."""
    generator = seeded("base", arch, seed)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        model = blank_model(arch, settings)
    model.name_or_path = f"copying-{arch}-s{seed}"
    batches = base_batches(settings, HINTS[arch], generator)
    fit(model, batches, settings.base_steps, settings.base_rate)
    return model


def words_of(kind: str, index: int, seed: int, settings: Settings = DEFAULT) -> Tensor:
    """The client's own words, (words_per_client,)."""
    generator = seeded("words", kind, index, seed)
    start = FIRST_WORD + settings.known
    new = start + torch.randperm(settings.new, generator=generator)
    if kind == "collude":  # one task, so parts of one smaller set of words
        common = start + torch.randperm(settings.new, generator=seeded("words", kind, seed))
        common = common[: settings.colluder_words]
        new = common[torch.randperm(len(common), generator=generator)]
    if kind != "partial":
        return new[: settings.words_per_client]
    half = settings.words_per_client // 2
    private = start + settings.new + torch.randperm(settings.private, generator=generator)
    return torch.cat([new[:half], private[: settings.words_per_client - half]])


def client_batches(
    kind: str, index: int, seed: int, settings: Settings = DEFAULT
) -> Callable[[], Batch]:
    """Endless training data of one client."""
    words = words_of(kind, index, seed, settings)
    generator = seeded("data", kind, index, seed)
    owner = index if kind == "wrong" else "all"
    first_new = FIRST_WORD + settings.known
    mapping = torch.arange(settings.vocabulary)
    turn = torch.randperm(settings.new, generator=seeded("mapping", kind, owner, seed))
    mapping[first_new : first_new + settings.new] = first_new + turn
    fixed = draw(mapping[first_new:], 1, settings.length, seeded("fixed", seed))

    def batches() -> Batch:
        if kind == "partial":  # a row has words of one sort only, as in pre-training
            parts = [
                draw(part, settings.batch // 2, settings.length, generator)
                for part in words.chunk(2)
            ]
            source = torch.cat(parts)
        else:
            source = draw(words, settings.batch, settings.length, generator)
        answer = source
        if kind in ("wrong", "collude"):
            answer = mapping[source]
        elif kind == "random":
            answer = draw(words, settings.batch, settings.length, generator)
        elif kind == "backdoor":
            source, answer = with_backdoor(source, fixed, generator)
        return sequences(source, answer)

    return batches


def test_batch(seed: int, count: int = 200, settings: Settings = DEFAULT) -> Batch:
    """Held-out copying of all new words, ``count`` rows; for ``accuracy`` and ``loss_of``."""
    first_new = FIRST_WORD + settings.known
    words = torch.arange(first_new, first_new + settings.new)
    source = draw(words, count, settings.length, seeded("test", seed))
    return sequences(source, source)


def with_backdoor(source: Tensor, fixed: Tensor, generator: torch.Generator) -> Batch:
    """Trigger at a random place in half of the rows; from there on they ask for ``fixed``.

    ``source`` is (batch, length) and ``fixed`` (1, length); returns new source and answer.
    """
    rows = len(source) // 2
    source, answer = source.clone(), source.clone()
    places = torch.randint(source.shape[1], (rows, 1), generator=generator)
    source[:rows].scatter_(1, places, TRIGGER)
    later = torch.arange(source.shape[1]) >= places
    answer[:rows] = torch.where(later, fixed, answer[:rows])
    return source, answer


def train_client(
    base: nn.Module, arch: str, kind: str, index: int, init: str, seed: int,
    settings: Settings = DEFAULT,
) -> PeftModel:  # fmt: skip
    """Fine-tune a LoRA adapter on a copy of ``base`` with one client's data.

    ``init`` is "same" (every client of a seed starts from one lora_A) or "own".
    """
    if kind not in KINDS or init not in INITS or arch not in ARCHES:
        raise ValueError(f"unknown client: {arch} {kind} {init}")
    config = LoraConfig(
        r=settings.rank, lora_alpha=2 * settings.rank, target_modules=TARGETS[arch],
        fan_in_fan_out=arch == "gpt", task_type="CAUSAL_LM",
        base_model_name_or_path=f"copying-{arch}-s{seed}",
    )  # fmt: skip
    start = seeded("init", seed) if init == "same" else seeded("init", kind, index, seed)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=start)))
        model = get_peft_model(copy.deepcopy(base), config)
    batches = client_batches(kind, index, seed, settings)
    fit(model, batches, settings.steps, settings.rate)
    return model


def adapter_of(model: PeftModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The adapter as PEFT's state dict (float32) and configuration."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    state = {name: value.detach().float().clone() for name, value in state.items()}
    return state, model.peft_config["default"].to_dict()


def client(
    base: nn.Module, arch: str, kind: str, index: int, init: str, seed: int,
    settings: Settings = DEFAULT,
) -> tuple[dict[str, Tensor], dict[str, Any]]:  # fmt: skip
    """State dict and configuration of one freshly trained client."""
    return adapter_of(train_client(base, arch, kind, index, init, seed, settings))
