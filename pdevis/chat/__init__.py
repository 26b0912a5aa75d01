"""The terminal chat and one-shot answers: `appInference.py` is a parser and a call to `run_chat`."""

from pdevis.chat.app import add_chat_flags, run_chat

__all__ = ["add_chat_flags", "run_chat"]
