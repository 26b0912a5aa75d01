"""The weights of a `DecoderStack`: families, safetensors files, the reader, and prepared 8-bit weights."""
