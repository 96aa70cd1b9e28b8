"""A Hugging Face folder to GGUF by llama.cpp's own converter, for a tokenizer that is new and splits as GPT-2's.

The converter knows a tokenizer's way of splitting by a digest of its *tokens*, so it knows none that was trained
yesterday. It is told here.

    PYTHONPATH=llama.cpp:llama.cpp/gguf-py python convert_gguf.py model --outfile model.gguf --outtype bf16
"""

import sys

import convert_hf_to_gguf
from conversion.base import TextModel
from conversion.llama import LlamaModel

TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
LlamaModel.set_vocab = TextModel._set_vocab_gpt2  # it would try SentencePiece first
sys.exit(convert_hf_to_gguf.main())
