"""The command for a GPU machine: processes that end, that fail, that break, or that never end."""

from __future__ import annotations

import sys
import time

import torch

from bench.gpu import command, worker
from bench.ledger import Ledger


def test_without_a_device_it_says_so_and_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert "CUDA device" in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


def test_parts_resume_and_say_what_was_not_reached(tmp_path):
    ledger = Ledger(tmp_path / "r.jsonl", "k")
    code = {"good": "print('fine')", "bad": "raise SystemExit(1)", "unfinished": "exit(3)"}
    parts = [command.Part(name, [sys.executable, "-c", text]) for name, text in code.items()]
    parts.append(
        command.Part("slow", [sys.executable, "-c", "import time; time.sleep(9)"], most=0.5)
    )
    said: list[int] = []
    done = lambda: said.append(len(ledger.records))  # noqa: E731
    assert command.run_parts(parts, ledger, time.time() + 60, done) == ["unfinished", "slow"]
    assert said == [1, 2, 3, 4]
    assert ledger["part good"]["status"] == 0
    assert "fine" in ledger["part good"]["end"]
    assert ledger["part bad"]["status"] == 1
    again = Ledger(tmp_path / "r.jsonl", "k")
    assert command.run_parts(parts, again, time.time() - 1) == ["bad", "unfinished", "slow"]
    assert "fine" in (tmp_path / "log.txt").read_text()


def test_out_of_time_all_that_a_part_started_ends_with_it(tmp_path):
    """A compiler that lives on would hold the device, and its output open."""
    alive = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(alive)!r}).touch()"
    text = "import subprocess, sys, time; print('begun', flush=True); "
    text += f"subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    started = time.time()
    status, said = command._run([sys.executable, "-c", text], 1.0)
    assert (status, said.split("\n")[0]) == (worker.Exit.OUT_OF_TIME, "begun")
    assert "out of time after 1 s" in said
    assert time.time() - started < 30
    time.sleep(max(0.0, started + 6 - time.time()))
    assert not alive.exists()


def test_a_worker_whose_device_broke_goes_on_in_another_process(tmp_path):
    ledger = Ledger(tmp_path / "r.jsonl", "k")
    count = "import pathlib; p = pathlib.Path({!r}); p.write_text(p.read_text() + '.')\n"
    count = count.format(str(tmp_path / "count"))
    (tmp_path / "count").write_text("")
    code = {"heals": count + "exit(4 if len(p.read_text()) < 2 else 0)", "never": "exit(4)"}
    parts = [command.Part(name, [sys.executable, "-c", text]) for name, text in code.items()]
    assert command.run_parts(parts, ledger, time.time() + 60) == []
    assert (tmp_path / "count").read_text() == ".."
    assert [ledger[f"part {name}"]["status"] for name in code] == [0, 4]
