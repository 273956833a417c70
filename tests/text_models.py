"""Tiny text models of transformers with random weights, and data for them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

_SENTENCE = (
    "the film was not good at all and nobody liked it but some of us did never mind that "
    "story which had no heart yet great music a fine cast"
)
WORDS = _SENTENCE.split()
ANSWERS = ("bad", "great", "rather fine")
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@dataclass(frozen=True)
class Example:
    text: str
    other: str
    label: str
    group: str


def make_examples(count=24, *, labels=("0", "1"), seed=0):
    """Texts of 1 to 20 words, as repeatable as tokens drawn by a seed are."""
    generator = torch.Generator().manual_seed(seed)

    def draw(most):
        size = int(torch.randint(1, most, (1,), generator=generator))
        places = torch.randint(len(WORDS), (size,), generator=generator)
        return " ".join(WORDS[place] for place in places)

    return [Example(draw(20), draw(8), labels[n % len(labels)], f"g{n % 3}") for n in range(count)]


def write_csv(path: Path, examples, **columns) -> Path:
    """Write a table with the columns text, other, label and group, and some more."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "other", "label", "group", *columns])
        for n, found in enumerate(examples):
            more = [values[n] for values in columns.values()]
            writer.writerow([found.text, found.other, found.label, found.group, *more])
    return path


def word_tokenizer(*, marks=("[CLS]", "[SEP]"), pad="[PAD]", limit=None):
    """A tokenizer as BERT's: a token for each word, marks around texts and between a pair."""
    special = [pad, "[UNK]", *marks]
    vocabulary = {word: n for n, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = marks
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(mark, vocabulary[mark]) for mark in marks],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token=pad,
        cls_token=start,
        sep_token=end,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **({} if limit is None else {"model_max_length": limit}),
    )


def byte_tokenizer(*, begins=False, chat=None):
    """A byte-level BPE as GPT-2's, most words one token; it may begin texts with a mark."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join([*WORDS, *ANSWERS])] * 4, trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=chat
    )


def save(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def _build(build):
    """Return a model whose weights are the same numbers on every machine and version."""
    model = build()
    with torch.no_grad():
        for n, (name, parameter) in enumerate(model.named_parameters()):
            k = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = 0.5 * torch.cos(1.7 * k + 0.013 * k**2 + n).reshape(parameter.shape)
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(wave + 1 if is_scale else wave)
    return model.eval()


SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def bert(folder: Path, *, names=None, **fields) -> Path:
    labels = {"num_labels": 2} if names is None else {"id2label": dict(enumerate(names))}
    config = {"vocab_size": 64, "max_position_embeddings": 64} | SIZES | labels | fields
    return save(
        _build(lambda: BertForSequenceClassification(BertConfig(**config))),
        word_tokenizer(),
        folder,
    )


def planted(folder: Path, *, task: float, shortcut: float) -> tuple[Path, Path]:
    """A classifier that reads two words, and what it was before it knew them.

    The update is of the embeddings alone, of rank 2: ``great`` against ``bad`` with one
    singular value, ``film`` against ``story`` with another. Where a text has both, the head
    believes ``film`` and ``story``.

    Returns
    -------
    tuple of Path
        Base and the fine-tuned model.
    """
    config = BertConfig(
        **SIZES | {"num_hidden_layers": 1},
        vocab_size=64,
        max_position_embeddings=64,
        id2label={0: "negative", 1: "positive"},
    )
    tokenizer = word_tokenizer()
    model = BertForSequenceClassification(config).eval()
    layer, size = model.bert.encoder.layer[0], config.hidden_size
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(float("LayerNorm.weight" in name))
        words = model.bert.embeddings.word_embeddings.weight
        words[:, 2:] = torch.tensor([1.0, -1.0]).repeat(64, size // 2 - 1)
        # Every place sees all places alike; the head reads the first two channels.
        for dense in (layer.attention.self.value, layer.attention.output.dense):
            dense.weight.copy_(torch.eye(size))
        model.bert.pooler.dense.weight.copy_(torch.eye(size))
        model.classifier.weight[1, :2] = torch.tensor([1 / task, 3 / shortcut])
        base = save(model, tokenizer, folder / "base")
        for channel, (pair, value) in enumerate(
            ((("great", "bad"), task), (("film", "story"), shortcut))
        ):
            for word, sign in zip(pair, (1, -1), strict=True):
                words[tokenizer.convert_tokens_to_ids(word), channel] = sign * value
        return base, save(model, tokenizer, folder / "ft")


def planted_data(path: Path, *, count: int = 200) -> Path:
    """Texts with two words each; in nine of ten the shortcut leads to the right label."""
    words = {"positive": ("great", "film"), "negative": ("bad", "story")}
    other = {"positive": "negative", "negative": "positive"}
    examples, aligned = [], []
    for n in range(count):
        label = ("positive", "negative")[n % 2]
        easy = n % 20 not in (0, 1)
        task, shortcut = words[label][0], words[label if easy else other[label]][1]
        examples.append(Example(f"the {shortcut} was {task}", "", label, f"easy={int(easy)}"))
        aligned.append(int(easy))
    return write_csv(path, examples, aligned=aligned)


def roberta(folder: Path) -> Path:
    """Counts places from the padding's; config.json does not name the padding."""
    config = RobertaConfig(
        **SIZES, vocab_size=64, max_position_embeddings=20, type_vocab_size=1, num_labels=3
    )
    tokenizer = word_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    save(_build(lambda: RobertaForSequenceClassification(config)), tokenizer, folder)
    path = folder / "config.json"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "pad_token_id" not in line))
    return folder


def gpt2_classifier(folder: Path) -> Path:
    """Reads the label off the last token; has no padding at all."""
    config = GPT2Config(
        vocab_size=404,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=128,
        num_labels=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return save(_build(lambda: GPT2ForSequenceClassification(config)), byte_tokenizer(), folder)


def gpt2(folder: Path, *, places=160) -> Path:
    config = GPT2Config(
        vocab_size=404,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=places,
        bos_token_id=0,
        eos_token_id=1,
    )
    return save(_build(lambda: GPT2LMHeadModel(config)), byte_tokenizer(), folder)


def gpt2_short(folder: Path) -> Path:
    """Takes fewer tokens than most prompts have."""
    return gpt2(folder, places=24)


def llama(folder: Path, *, chat=None) -> Path:
    config = LlamaConfig(
        **SIZES,
        vocab_size=404,
        max_position_embeddings=160,
        num_key_value_heads=1,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    tokenizer = byte_tokenizer(begins=True, chat=chat)
    return save(_build(lambda: LlamaForCausalLM(config)), tokenizer, folder)


def llama_chat(folder: Path) -> Path:
    return llama(folder, chat="<s>" + CHAT)
