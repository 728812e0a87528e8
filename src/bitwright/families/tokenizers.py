"""What transformers' tokenizer classes do besides reading tokenizer.json, if it changes the tokens."""

from typing import NamedTuple


class Switch(NamedTuple):
    """A setting of tokenizer_config.json that a class follows, whatever tokenizer.json says.

    part: the piece of the normalizer or pre-tokenizer that tokenizer.json then has. default: of transformers.
    there: value of the setting with which the part is there.
    """

    key: str
    default: bool
    part: str
    there: bool = True


class TokenizerTraits(NamedTuple):
    """word_piece: the class sets up BERT's normalizer, pre-tokenizer and post-processor anew by tokenizer_config.json.
    switches: it follows these, and files that do not agree with them are refused. types: it hands out token types,
    unless tokenizer_config.json says otherwise (`model_input_names`)."""

    word_piece: bool = False
    switches: tuple[Switch, ...] = ()
    types: bool = False


_WORD_PIECE = TokenizerTraits(word_piece=True, types=True)

# Class, without "Fast" -> traits. A class that is not here takes tokenizer.json as it is.
TOKENIZERS: dict[str, TokenizerTraits] = {
    "AlbertTokenizer": TokenizerTraits(
        switches=(Switch("do_lower_case", True, "Lowercase"), Switch("keep_accents", False, "StripAccents", False)),
    ),
    "BertTokenizer": _WORD_PIECE,
    "CamembertTokenizer": TokenizerTraits(switches=(Switch("add_prefix_space", True, "always"),)),
    "DebertaV2Tokenizer": TokenizerTraits(
        switches=(Switch("do_lower_case", False, "Lowercase"), Switch("split_by_punct", False, "Punctuation")),
        types=True,
    ),
    "DistilBertTokenizer": _WORD_PIECE._replace(types=False),
    "ElectraTokenizer": _WORD_PIECE,
    "LayoutLMTokenizer": _WORD_PIECE,
    "MPNetTokenizer": _WORD_PIECE._replace(types=False),
}
