"""tools/compare_schedules.py on a tiny model: the rows of its table."""

from __future__ import annotations

import runpy

from helpers import ROOT


def test_rows_of_the_table(tiny_folder, capsys, tmp_path):
    tool = runpy.run_path(str(ROOT / "tools" / "compare_schedules.py"))
    text = tmp_path / "text.txt"
    text.write_text("Words that nothing was fitted on. " * 30)
    argv = ["--model", str(tiny_folder("llama", layers=6)), "--precision", "float32", "--text", str(text)]
    argv += ["--costs", "0.8", "--ranks", "4,0", "--ridges", "0.5", "--tokens", "200", "--depth_only"]
    assert tool["main"](argv) == 0
    out = capsys.readouterr().out
    for words in ("0.8 by cosine", "0.8 by KL", "rank 4, λ 0.3", "rank full", "rank 128, λ 0.5"):
        assert words in out
    assert tool["main"]([*argv, "--text", str(tmp_path / "no.txt")]) == 2
    assert "does not exist" in capsys.readouterr().err
