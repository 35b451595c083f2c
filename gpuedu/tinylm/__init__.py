"""Two small language models trained for this book, a target and its draft, with texts to try them on.

``README.md`` beside this file is their model card; ``python -m gpuedu.tinylm.train`` trains them.
"""

from .models import load, load_tokenizer, smollm2_or_target
from .texts import TEXTS, Text, text

__all__ = ["TEXTS", "Text", "load", "load_tokenizer", "smollm2_or_target", "text"]
