"""200 generations with lanes and drafting ahead, abandoned, killed, restarted at random: nothing wrong or left over."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from helpers.workers import VOCAB, eventually, open_files, places, plan_of, remote, runs
from pdevis.config import DecodeConfig, DraftConfig
from pdevis.decoding.autoregressive import autoregressive
from pdevis.decoding.speculative import speculative
from pdevis.decoding.verifier import Verifier
from pdevis.generation import DecodeStats
from pdevis.loading.build import build_model
from pdevis.parallel.worker_pool import WorkerError, WorkerPool

RULES = [
    DraftConfig("exact"),
    DraftConfig("parallel", 0.3),
    DraftConfig("skip", 0.5),
    DraftConfig("skip", 0.5, "inline"),
]
GENERATIONS, KILLS = 200, 12


@pytest.mark.slow
def test_two_hundred_generations(tiny_folder):
    chance = random.Random(5)
    plan = plan_of(tiny_folder("llama", layers=5, seed=1))
    target = build_model(plan_of(tiny_folder("llama", layers=5)))
    kills = set(chance.sample(range(5, GENERATIONS), KILLS))
    workers, pids, errors = WorkerPool(plan, places(2), VOCAB, ahead_least=0.0), [], 0
    pids += [process.pid for process in workers.processes]
    files, memory = open_files(), psutil.Process().memory_info().rss
    for number in range(GENERATIONS):
        prompt = [chance.randrange(250) for _ in range(chance.randrange(2, 30))]
        config = DecodeConfig(24, chance.choice([1, 2, 4, "auto"]), eos_ids=(), overlap=chance.random() < 0.7)
        config = replace(config, reuse_prefix=chance.random() < 0.5)
        if chance.random() < 0.2:
            config = replace(config, temperature=1.0, seed=number)
        wanted = [event.id for event in autoregressive(Verifier(target), prompt, config=config, stats=DecodeStats())]
        stop = chance.randrange(24) if chance.random() < 0.4 else 24
        drafter = remote(workers, chance.choice(RULES))
        events, made = speculative(Verifier(target), drafter, prompt=prompt, config=config, stats=DecodeStats()), []
        try:
            if number in kills:
                made += [next(events).id for _ in range(min(stop, 3))]
                os.kill(chance.choice(workers.processes).pid, signal.SIGKILL)
            while len(made) < stop:
                made.append(next(events).id)
        except StopIteration:
            pass
        except WorkerError:
            errors += 1
        finally:
            with suppress(WorkerError):
                events.close()
        assert not config.greedy or made == wanted[: len(made)]
        if number in kills:
            workers.close()
            workers = WorkerPool(plan, places(2), VOCAB, ahead_least=0.0)
            pids += [process.pid for process in workers.processes]
        elif config.greedy:
            assert len(made) == stop
    workers.close()
    assert errors >= KILLS / 2, "a killed rank goes unnoticed only where the generation was over"
    assert eventually(lambda: not any(map(runs, pids)))
    assert open_files() <= files + 2
    assert psutil.Process().memory_info().rss < memory + 150 * 2**20
