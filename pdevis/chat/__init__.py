"""The terminal chat and one-shot answers: `appInference.py` is a parser and a call to `app.run_chat`."""
