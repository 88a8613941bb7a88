"""Tiny masked language models of several architectures, with two tokenizers, on the words of a small vocabulary."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import modeling_luna
from pretrain.data.tokenizer import train_tokenizer


MAX_LENGTH = 64
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.2,  # large enough that every input shows in the output
}
ROBERTA = {"max_position_embeddings": MAX_LENGTH + 2}
# Name: prefix of the classes, tokenizer, fields of the configuration.
ARCHITECTURES: dict[str, tuple[str, str, dict]] = {
    "luna": ("Luna", "bpe", {"projection_length": 8}),
    "roberta": ("Roberta", "bpe", ROBERTA),
    "bert": ("Bert", "wordpiece", {}),
    "modernbert": ("ModernBert", "bpe", {"cls_token_id": 0, "bos_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}),
    "distilbert": (
        "DistilBert",
        "wordpiece",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": MAX_LENGTH},
    ),
    "nystromformer": ("Nystromformer", "bpe", {"segment_means_seq_len": MAX_LENGTH, "num_landmarks": 16}),
    "convbert": ("ConvBert", "wordpiece", {"embedding_size": 32}),
    "deberta": ("DebertaV2", "bpe", {}),
    "fnet": ("FNet", "bpe", {}),
}


def train_bpe(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """A byte-level tokenizer in RoBERTa's form, which writes words of several tokens."""
    return train_tokenizer(texts, vocab_size=300, max_length=MAX_LENGTH)


def build_wordpiece(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """A tokenizer in BERT's form that knows the characters of the texts, in lower case, and their short words.

    It is not trained: the trainer orders equally frequent pieces anew each time.
    """
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())}
    characters = {character for word in words for character in word}
    pieces = characters | {f"##{character}" for character in characters} | {word for word in words if len(word) < 6}
    vocabulary = {token: number for number, token in enumerate([*specials, *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **dict(zip(names, specials, strict=True))
    )


def build(architecture: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0, **fields) -> PreTrainedModel:
    """A model with random weights."""
    prefix, _, own = ARCHITECTURES[architecture]
    classes = modeling_luna if prefix == "Luna" else transformers
    sizes = {} if prefix == "DistilBert" else SIZES
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = getattr(classes, f"{prefix}Config")(**(sizes | ids | own | fields))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(classes, f"{prefix}ForMaskedLM")(config).eval()


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_all(folder: Path, texts: Sequence[str]) -> dict[str, Path]:
    """A folder for each architecture."""
    tokenizers = {"bpe": train_bpe(texts), "wordpiece": build_wordpiece(texts)}
    return {
        name: save(folder / name, build(name, tokenizers[kind]), tokenizers[kind])
        for name, (_, kind, _) in ARCHITECTURES.items()
    }


def masked_log_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], places: Sequence[int]
) -> torch.Tensor:
    """Log probabilities of the vocabulary at each place of one text where some are masked, (length, vocabulary)."""
    masked = [tokenizer.mask_token_id if place in places else token for place, token in enumerate(ids)]
    inputs = {"input_ids": torch.tensor([masked])}
    if model.config.model_type == "nystromformer":  # it takes rows of one length, and an additive mask
        empty = MAX_LENGTH - len(masked)
        inputs = {"input_ids": torch.tensor([masked + empty * [tokenizer.pad_token_id]])}
        inputs["attention_mask"] = torch.tensor([len(masked) * [0.0] + empty * [-1e30]])[:, None, None]
    with torch.no_grad():
        return model(**inputs).logits[0].log_softmax(dim=-1)
